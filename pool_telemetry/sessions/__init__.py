"""Sessions of Strands agents in MongoDB, over the client that this library watches.

Needs `pip install 'pool-telemetry[strands]'`.
"""

try:
    import strands  # noqa: F401  # to say what is missing
except ImportError as error:
    raise ImportError(
        "pool_telemetry.sessions needs strands-agents: pip install 'pool-telemetry[strands]'"
    ) from error

from pool_telemetry.sessions.documents import InvalidIdError
from pool_telemetry.sessions.repository import MongoDBSessionRepository

__all__ = ["InvalidIdError", "MongoDBSessionRepository"]
