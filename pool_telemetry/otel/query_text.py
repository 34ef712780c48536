"""A command's text without its values, for spans with the option `query_text`."""

import json
from collections.abc import Container, Iterator, Mapping, Sequence
from typing import Any, Final

MAX_CHARACTERS: Final = 2_000

_MAX_DEPTH: Final = 20
_MAX_VALUES: Final = 300  # of one command; later values are left out
# Fields of every command, and an insert's documents: they say nothing about the query.
_LEFT_OUT: Final = frozenset(
    {"$clusterTime", "$db", "apiVersion", "documents", "lsid", "signature", "txnNumber"}
)


def query_text(command: Mapping[str, Any], names: Container[str] = ()) -> str:
    """Return a command as JSON of bounded length, with its field names and `?` for each value.

    A top-level string under one of `names` is a collection's name, so it is kept.
    """
    budget = iter(range(_MAX_VALUES))
    shape = {
        key: value if key in names and isinstance(value, str) else _shape(value, budget, _MAX_DEPTH)
        for key, value in command.items()
        if key not in _LEFT_OUT
    }
    text = json.dumps(shape, ensure_ascii=False)
    return text if len(text) <= MAX_CHARACTERS else text[: MAX_CHARACTERS - 1] + "…"


def _shape(value: Any, budget: Iterator[int], depth: int) -> Any:
    """Return a document or list with `?` for each value; a list of values is a single `?`."""
    if depth and isinstance(value, Mapping):
        shown = zip(value.items(), budget, strict=False)
        return {str(key): _shape(one, budget, depth - 1) for (key, one), _ in shown}
    if depth and isinstance(value, Sequence) and not isinstance(value, str | bytes):
        listed = zip(value, budget, strict=False)
        shapes = [_shape(one, budget, depth - 1) for one, _ in listed]
        return "?" if all(one == "?" for one in shapes) else shapes
    return "?"
