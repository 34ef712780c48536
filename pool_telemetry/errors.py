"""The errors of this library. Every message says what, which pool, and what to do."""


class PoolTelemetryError(Exception):
    """The root of this package's own errors. PyMongo's errors pass through as they are."""


class PoolNotInitializedError(PoolTelemetryError, RuntimeError):
    """The pool is used before `initialize()`, or after `close()`."""


class PoolConfigurationError(PoolTelemetryError, ValueError):
    """An option has a value that cannot work. The message names option, value and range."""
