"""Sessions of Strands agents in MongoDB, over a client that this library watches.

Needs `pip install 'pool-telemetry[strands]'`. The synchronous and the asynchronous classes share
their coroutines (`async_repository.py`); `documents.py` describes the stored documents. Only
applications import this room. It uses the singletons and adds attributes to spans; no metric,
diagnosis or web route belongs here.
"""

try:
    import strands  # noqa: F401  # imported first so that the error names the missing package
except ImportError as error:
    raise ImportError(
        "pool_telemetry.sessions needs strands-agents: pip install 'pool-telemetry[strands]'"
    ) from error

from pool_telemetry.errors import SessionOwnerError
from pool_telemetry.sessions.async_repository import AsyncMongoDBSessionRepository
from pool_telemetry.sessions.collections import indexes
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
from pool_telemetry.sessions.importer import ImportReport, import_sessions
from pool_telemetry.sessions.manager import AsyncMongoDBSessionManager, MongoDBSessionManager
from pool_telemetry.sessions.repository import MongoDBSessionRepository
from pool_telemetry.sessions.storage import MongoDBStorage

__all__ = [
    "AsyncMongoDBSessionManager",
    "AsyncMongoDBSessionRepository",
    "ImportReport",
    "InvalidIdError",
    "MongoDBSessionManager",
    "MongoDBSessionManagerFactory",
    "MongoDBSessionRepository",
    "MongoDBStorage",
    "SessionConflictError",
    "SessionInfo",
    "SessionOwnerError",
    "SessionUsage",
    "close_global_factory",
    "get_global_factory",
    "import_sessions",
    "indexes",
    "initialize_global_factory",
]
