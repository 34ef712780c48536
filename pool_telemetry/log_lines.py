"""The loggers of this library: each line begins with the process, if its service has several."""

import logging
from collections.abc import Callable, MutableMapping
from typing import Any

Prefix = Callable[[], str]

_prefix: Prefix = str


def set_prefix(prefix: Prefix) -> None:
    """Set the function that returns the beginning of each line."""
    global _prefix
    _prefix = prefix


class ProcessLog(logging.LoggerAdapter[logging.Logger]):
    """A logger whose lines say which process of a service wrote them."""

    def __init__(self, name: str) -> None:
        super().__init__(logging.getLogger(name), {})

    def process(
        self, msg: Any, kwargs: MutableMapping[str, Any]
    ) -> tuple[Any, MutableMapping[str, Any]]:
        """Return the message with the process before it."""
        return f"{_prefix()}{msg}", kwargs
