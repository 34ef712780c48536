"""Removes pieces of known secrets from texts and errors. `uri` knows the secrets."""

import itertools
import operator
from collections.abc import Iterable
from typing import Final

PIECE: Final = 4
"""Characters of the shortest piece of a secret that is removed from a text."""


def without_pieces(text: str, secrets: Iterable[str]) -> str:
    """Return a text with `***` for every piece of a secret that has PIECE characters or more.

    A shorter secret is replaced whole. PyMongo shows options in lower case, so case counts nothing.
    """
    lower = _lower(text)
    hidden = [False] * len(lower)
    pieces = {
        piece
        for secret in map(_lower, secrets)
        for piece in ({secret[i : i + PIECE] for i in range(len(secret) - PIECE + 1)} or {secret})
    }
    for piece in pieces:
        at = lower.find(piece)
        while at >= 0:
            hidden[at : at + len(piece)] = [True] * len(piece)
            at = lower.find(piece, at + 1)
    groups = itertools.groupby(zip(text, hidden, strict=True), operator.itemgetter(1))
    return "".join("***" if is_hidden else "".join(c for c, _ in run) for is_hidden, run in groups)


def _lower(text: str) -> str:
    """Return a text of the same length in lower case."""
    return "".join(low if len(low := c.lower()) == 1 else c for c in text)


def scrub(error: BaseException, secrets: list[str]) -> None:
    """Replace secrets in the texts of an error, its causes and its contexts."""
    seen: set[int] = set()
    behind: list[BaseException | None] = [error]
    while behind:
        one = behind.pop()
        if one is None or id(one) in seen:
            continue
        seen.add(id(one))
        # A UnicodeError's repr has the whole text.
        if without_pieces(text := f"{one} {one!r}", secrets) != text:
            one.args = tuple(without_pieces(str(arg), secrets) for arg in one.args)
        # PyMongo's errors keep their text a second time.
        for name, value in vars(one).items():
            if isinstance(value, str) and without_pieces(value, secrets) != value:
                setattr(one, name, without_pieces(value, secrets))
        behind += [one.__cause__, one.__context__]
