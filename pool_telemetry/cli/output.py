"""Printing for the command line: text that is safe for a terminal, and JSON that is always valid.

Everything that a remote host says passes here.
"""

import contextlib
import json
import os
import sys
from collections.abc import Iterable
from typing import Any, TextIO

from pool_telemetry.errors import PoolTelemetryError
from pool_telemetry.stats import printable


def as_text(lines: Iterable[str]) -> str:
    """Return lines as one text, with a space for each unprintable character.

    These are control characters and escape sequences, line ends inside a line, characters that
    change the direction of a text, and halves of a surrogate pair.
    """
    return "\n".join(map(printable, lines))


def as_json(values: Any) -> str:
    """Return values as JSON, in ASCII.

    Raises:
        ValueError: A number is not finite.
    """
    text = json.dumps(values, indent=2, allow_nan=False)
    return text.replace("\x7f", "\\u007f")  # the only control character that JSON lets pass


def say(text: str, stream: TextIO | None = None) -> None:
    """Print a text from `as_text` or `as_json`, in the encoding that the stream has.

    Raises:
        BrokenPipeError: The reader has left.
        PoolTelemetryError: The text can't be written, such as to a full disk.
    """
    to = sys.stdout if stream is None else stream
    encoding = getattr(to, "encoding", None) or "utf-8"
    try:
        print(text.encode(encoding, "replace").decode(encoding), file=to, flush=True)
    except BrokenPipeError:
        raise
    except OSError as error:
        discard(to)
        raise PoolTelemetryError(f"can't print the answer: {error.strerror}") from None


def discard(stream: TextIO) -> None:
    """Drop what a stream has in its buffer, because Python would fail again at its end."""
    with contextlib.suppress(OSError, ValueError):
        os.dup2(os.open(os.devnull, os.O_WRONLY), stream.fileno())


def say_failure(command: str, message: str, *, in_json: bool = False) -> None:
    """Print why a command failed: a line on stderr, and with `in_json` an object on stdout."""
    say(as_text([f"pool-telemetry {command}: {message}"]), sys.stderr)
    if in_json:
        empty = {"verdict": None, "severity": None} if command == "doctor" else {}
        say(as_json({**empty, "error": printable(message)}))
