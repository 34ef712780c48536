"""This package's own errors. Every message names the problem, the pool and the remedy."""


class PoolTelemetryError(Exception):
    """The base of this package's own errors. PyMongo's errors pass through unchanged."""


class PoolNotInitializedError(PoolTelemetryError, RuntimeError):
    """The pool is used before `initialize()`, or after `close()`."""


class PoolConfigurationError(PoolTelemetryError, ValueError):
    """An option has an invalid value. The message names option, value and range."""


class SessionOwnerError(PoolTelemetryError, PermissionError):
    """A session or blob has another owner than the caller named. The message names no owner."""
