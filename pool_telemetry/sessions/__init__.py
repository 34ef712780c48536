"""Sessions of Strands agents in MongoDB, over the client that this library watches.

Needs `pip install 'pool-telemetry[strands]'`. Everything that is written twice, awaited and not,
is made of the same coroutines: see `async_repository.py`; `documents.py` says what is stored.
"""

try:
    import strands  # noqa: F401  # to say what is missing
except ImportError as error:
    raise ImportError(
        "pool_telemetry.sessions needs strands-agents: pip install 'pool-telemetry[strands]'"
    ) from error

from pool_telemetry.sessions.async_repository import AsyncMongoDBSessionRepository
from pool_telemetry.sessions.documents import (
    InvalidIdError,
    SessionConflictError,
    SessionInfo,
    SessionUsage,
)
from pool_telemetry.sessions.factory import (
    MongoDBSessionManagerFactory,
    close_global_factory,
    get_global_factory,
    initialize_global_factory,
)
from pool_telemetry.sessions.manager import AsyncMongoDBSessionManager, MongoDBSessionManager
from pool_telemetry.sessions.repository import MongoDBSessionRepository
from pool_telemetry.sessions.storage import MongoDBStorage

__all__ = [
    "AsyncMongoDBSessionManager",
    "AsyncMongoDBSessionRepository",
    "InvalidIdError",
    "MongoDBSessionManager",
    "MongoDBSessionManagerFactory",
    "MongoDBSessionRepository",
    "MongoDBStorage",
    "SessionConflictError",
    "SessionInfo",
    "SessionUsage",
    "close_global_factory",
    "get_global_factory",
    "initialize_global_factory",
]
