r"""Check a regular expression as RE2 does, which Prometheus uses: in Go, without a dependency.

`files` asks it about the jobs that a user gave. Python's `re` has another syntax: it knows
lookaheads and backreferences, and it does not know `\pL`, `\z` and `\Q...\E`.
"""

import re
from typing import Final

MAX_LENGTH: Final = 1000
"""The longest expression, in characters: no expression of this length is too large for RE2."""
_MAX_REPEAT: Final = 1000
_MAX_DEPTH: Final = 500
_MAX_RUNE: Final = 0x10FFFF

# Prometheus knows (?<name>...) from Go 1.22 only.
_GROUP: Final = re.compile(r"\(\?(?:P<([A-Za-z0-9_]+)>|([imsU]*(?:-[imsU]+)?):)")
_FLAGS: Final = re.compile(r"\(\?(?:[imsU]+(?:-[imsU]+)?|-[imsU]+)\)")
_REPEAT: Final = re.compile(r"\{(0|[1-9][0-9]*)(?:,(0|[1-9][0-9]*)?)?\}", re.ASCII)
_PROPERTY: Final = re.compile(r"[pP](?:\{\^?([A-Za-z_]+)\}|([A-Z]))")
_CODE: Final = re.compile(r"x(?:\{([0-9A-Fa-f]+)\}|([0-9A-Fa-f]{2}))|([1-7][0-7]{1,2}|0[0-7]{0,2})")
_POSIX: Final = re.compile(
    r"\[:\^?(?:alnum|alpha|ascii|blank|cntrl|digit|graph|lower|print|punct|space|upper|word|xdigit):\]"
)
_CONTROLS: Final = {"a": 7, "f": 12, "t": 9, "n": 10, "r": 13, "v": 11}
_PROPERTIES: Final = frozenset(
    {
        *("Any", "C", "Cc", "Cf", "Co", "Cs", "L", "Ll", "Lm", "Lo", "Lt", "Lu", "M", "Mc", "Me"),
        *("Mn", "N", "Nd", "Nl", "No", "P", "Pc", "Pd", "Pe", "Pf", "Pi", "Po", "Ps", "S", "Sc"),
        *("Sk", "Sm", "So", "Z", "Zl", "Zp", "Zs", "Arabic", "Common", "Cyrillic", "Devanagari"),
        *("Greek", "Han", "Hangul", "Hebrew", "Hiragana", "Katakana", "Latin", "Thai"),
    }
)


def problem(expression: str) -> str:
    """Return what RE2 does not accept in an expression; empty if it accepts all of it."""
    if len(expression) > MAX_LENGTH:
        return f"more than {MAX_LENGTH} characters"
    try:
        _Parser(expression).parse()
    except ValueError as error:
        return str(error)
    return ""


class _Parser:
    """Reads an expression once, from the left to the right."""

    def __init__(self, text: str) -> None:
        self._text = text
        self._at = 0
        self._names = set[str]()
        # How often each open group repeats its parts at most, and what is before the position.
        self._groups = [1]
        self._last: int | None = None  # how often the last part repeats its own; None: no part
        self._repeated = False

    def parse(self) -> None:
        while self._at < len(self._text):
            self._step(self._text[self._at])
        if len(self._groups) > 1:
            raise ValueError("a ( without )")

    def _step(self, char: str) -> None:
        if char == "(":
            self._open()
        elif char == ")":
            self._close()
        elif char == "|":
            self._skip(1)
        elif char in "*+?":
            self._repeat(1, 1)
        elif char == "{" and (found := _REPEAT.match(self._text, self._at)):
            least = int(found[1])
            most = int(found[2]) if found[2] else least
            if most < least or most > _MAX_REPEAT:
                raise ValueError(f"{found[0]}, a repetition that is not possible")
            self._repeat(max(most, 1), len(found[0]))
        elif char == "[":
            self._class()
        elif char == "\\":
            self._escape()
        else:
            self._part(1)

    def _skip(self, length: int) -> None:
        """Go past text that is no part, so that nothing after it can repeat it."""
        self._at += length
        self._last, self._repeated = None, False

    def _part(self, length: int, repeats: int = 1) -> None:
        self._at += length
        self._last, self._repeated = repeats, False
        self._groups[-1] = max(self._groups[-1], repeats)

    def _repeat(self, times: int, length: int) -> None:
        if self._last is None:
            raise ValueError(f"{self._text[self._at]} without anything to repeat")
        if self._repeated:
            raise ValueError(f"{self._text[self._at - 1 : self._at + 1]}, a repeated repetition")
        if self._last * times > _MAX_REPEAT:
            raise ValueError("repetitions of repetitions above 1000")
        lazy = self._text[self._at + length : self._at + length + 1] == "?"
        self._part(length + lazy, self._last * times)
        self._repeated = True

    def _open(self) -> None:
        if flags := _FLAGS.match(self._text, self._at):
            self._at += len(flags[0])
            self._repeated = False
            return
        length = 1
        if self._text.startswith("(?", self._at):
            group = _GROUP.match(self._text, self._at)
            if group is None or group[1] in self._names:
                raise ValueError(f"{self._text[self._at : self._at + 4]}, an unknown kind of group")
            self._names |= {group[1]} - {None}
            length = len(group[0])
        self._groups.append(1)
        if len(self._groups) > _MAX_DEPTH:
            raise ValueError("too many groups in groups")
        self._skip(length)

    def _close(self) -> None:
        if len(self._groups) == 1:
            raise ValueError("a ) without (")
        self._part(1, self._groups.pop())

    def _escape(self) -> None:
        after = self._text[self._at + 1 : self._at + 2]
        if after == "Q":
            end = self._text.find("\\E", self._at)
            if end < 0:  # Prometheus puts ")$" after the expression
                raise ValueError("\\Q without \\E")
            if end > self._at + 2:
                self._part(0)
            self._at = end + 2
        elif after and after in "AbBzdDsSwW":
            self._part(2)
        elif found := _PROPERTY.match(self._text, self._at + 1):
            self._property(found)
            self._part(1 + len(found[0]))
        else:
            self._part(self._character(self._at)[1])

    def _property(self, found: re.Match[str]) -> None:
        if (found[1] or found[2]) not in _PROPERTIES:
            raise ValueError(f"\\{found[0]}, an unknown class")

    def _character(self, at: int) -> tuple[int, int]:
        """Return the code of the character at a position, and the length of its text."""
        if self._text[at] != "\\":
            return ord(self._text[at]), 1
        after = self._text[at + 1 : at + 2]
        if found := _CODE.match(self._text, at + 1):
            code = int(found[3], 8) if found[3] else int(found[1] or found[2], 16)
            if code <= _MAX_RUNE:
                return code, 1 + len(found[0])
        elif after in _CONTROLS:
            return _CONTROLS[after], 2
        elif after.isascii() and after and not after.isalnum() and after != "\0":
            return ord(after), 2
        raise ValueError(f"\\{after}, an unknown escape")

    def _class(self) -> None:
        at = self._at + 1 + self._text.startswith("[^", self._at)
        first = True
        while first or self._text[at : at + 1] != "]":
            if at >= len(self._text):
                raise ValueError("a [ without ]")
            at, first = self._in_class(at), False
        self._part(at + 1 - self._at)

    def _in_class(self, at: int) -> int:
        """Return the position after one member of a class."""
        rest = self._text[at : at + 2]
        if self._text.startswith("[:", at) and ":]" in self._text[at:]:
            if not (found := _POSIX.match(self._text, at)):
                raise ValueError(f"{self._text[at : at + 5]}, an unknown class")
            return at + len(found[0])
        if found := _PROPERTY.match(self._text, at + 1) if rest[0] == "\\" else None:
            self._property(found)
            return at + 1 + len(found[0])
        if rest in ("\\d", "\\D", "\\s", "\\S", "\\w", "\\W"):
            return at + 2
        low, length = self._character(at)
        at += length
        if self._text[at : at + 1] == "-" and self._text[at + 1 : at + 2] not in ("]", ""):
            high, length = self._character(at + 1)
            if high < low:
                raise ValueError("a range from a higher to a lower character")
            at += 1 + length
        return at
