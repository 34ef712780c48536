"""Which values an option may have, and how a refused value is shown.

Our own options, MongoClient's and the limits of health use the same ranges and the same errors.
"""

import re
import reprlib
import sys
from dataclasses import dataclass
from typing import Any, Final

from pool_telemetry.errors import PoolConfigurationError
from pool_telemetry.uri import mask_uri

_SHORT: Final = 5
"""Characters of the longest text that is shown in any case, such as `maybe`."""
_LIKE_A_NUMBER: Final = re.compile(r"[-+]?[\d.,_ ]+([eE][-+]?\d+)?[a-zA-Z%]{0,2}")
"""A number as people write it: `1e3`, `1,000`, `10s`."""


@dataclass(frozen=True, slots=True)
class Range:
    """The numbers from `low` to below `high`, in `words` for errors; with `none` also None."""

    words: str
    low: float
    high: float = sys.float_info.max
    whole: bool = False
    none: bool = False

    def has(self, value: Any) -> bool:
        """Return whether a value is in the range; a text, as in a URI, counts as its number."""
        if value is None:
            return self.none
        if isinstance(value, str):
            try:
                value = int(value) if self.whole else float(value)
            except ValueError:
                return False
        kinds = int if self.whole else int | float
        return (
            isinstance(value, kinds)
            and not isinstance(value, bool)
            and self.low <= value < self.high
        )


@dataclass(frozen=True, slots=True)
class OneOf:
    """The values of a choice, in `words` for errors."""

    words: str
    values: tuple[Any, ...]

    def has(self, value: Any) -> bool:
        """Return whether a value is one of the choices."""
        return any(isinstance(value, type(one)) and value == one for one in self.values)


def shown(value: Any) -> str:
    """Return a value for an error's text: shortened, without the secrets of a connection string."""
    if isinstance(value, str):
        return reprlib.repr(mask_uri(value) if "://" in value or "@" in value else value)
    if not isinstance(value, int | float | None):
        return f"of type {type(value).__name__}"  # its content may be secret
    try:
        return reprlib.repr(value)
    except ValueError:  # Python limits the digits of an integer that becomes text
        return "too long to show"


def shown_if_number(value: Any) -> str:
    """Return what was given as a number, for an error's text; a longer text may be a secret."""
    if isinstance(value, str) and len(value) > _SHORT and not _LIKE_A_NUMBER.fullmatch(value):
        return "a text that is not valid"
    return shown(value)


def check_number(name: str, value: Any, allowed: Range) -> None:
    """Refuse a value that is not a number in the range; a text is refused, too.

    Raises:
        PoolConfigurationError: With the name, the value and the range.
    """
    if isinstance(value, str) or not allowed.has(value):
        raise PoolConfigurationError(f"{name} is {shown_if_number(value)}: use {allowed.words}")
