"""The guide's pool sizings, to read and to pass: `initialize(uri, **presets.PRODUCTION)`.

A preset names what the guide names for it; everything else stays as `options.DEFAULTS` has it.
CONSTRAINED and PRODUCTION have a waitQueueTimeoutMS, which an asynchronous pool on Python 3.11 must
not have: `initialize(uri, **{**presets.PRODUCTION, "waitQueueTimeoutMS": None})`.
"""

from collections.abc import Mapping
from types import MappingProxyType
from typing import Any, Final

LOW_TRAFFIC: Final[Mapping[str, Any]] = MappingProxyType({"maxPoolSize": 20, "minPoolSize": 2})

MEDIUM_TRAFFIC: Final[Mapping[str, Any]] = MappingProxyType({"maxPoolSize": 50, "minPoolSize": 10})

HIGH_TRAFFIC: Final[Mapping[str, Any]] = MappingProxyType({"maxPoolSize": 200, "minPoolSize": 50})

CONSTRAINED: Final[Mapping[str, Any]] = MappingProxyType(
    {"maxPoolSize": 20, "minPoolSize": 5, "maxIdleTimeMS": 30_000, "waitQueueTimeoutMS": 3_000}
)
"""One vCPU or so: a small pool, quick to fail rather than to queue."""

DEVELOPMENT: Final[Mapping[str, Any]] = MappingProxyType(
    {"maxPoolSize": 10, "minPoolSize": 2, "maxIdleTimeMS": 60_000}
)

PRODUCTION: Final[Mapping[str, Any]] = MappingProxyType(
    {
        "maxPoolSize": 200,
        "minPoolSize": 50,
        "maxIdleTimeMS": 45_000,
        "waitQueueTimeoutMS": 5_000,
        "serverSelectionTimeoutMS": 5_000,
        "connectTimeoutMS": 10_000,
        "socketTimeoutMS": 30_000,
        "retryWrites": True,
        "retryReads": True,
        "w": "majority",
        "journal": True,
        "compressors": ("snappy", "zlib"),
    }
)
"""Many concurrent requests, durable writes. Compression needs `python-snappy` for snappy."""
