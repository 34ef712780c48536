"""The language of the project: no text has a pattern that reads like a riddle.

Comments, docstrings, texts in code and the documents are read. CONTRIBUTING.md has the rules.
"""

import ast
import functools
import io
import re
import tokenize
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.support import unmeasured

ROOT = Path(__file__).parents[1]
FOLDERS = ("pool_telemetry", "tests", "examples", "dashboards")
PATTERNS = {
    "a clause without a noun as its subject": (
        r"(^|[.:;] )(Who|Whoever|Those who|What|Whatever) (?!is wrong\b)[a-z]+ [^?]*(\.|$)"
        r"|\b(for|of|by|to|from|as|those|since|than|where) who\b|\bwho (just|may|had|has|is|was)\b"
    ),
    "a caller that is a person": r"\b([Hh]e|[Hh]is|[Hh]im|[Hh]imself)\b",
    "for or where instead of because or if": (
        r"[,:] for (?:it|they|there|this|that|who|what|more|nobody|somebody)\b"
        r"|\b[Ww]here (?:it|they|that|there|nobody|none|who|one|an?|the|no) \w+"
        r"(?: \w+)? (?:is|are|was|were|has|had|does|do)\b"
    ),
    "a word of our own": (
        r"\b(comes? again|let go|in silence|for sure|r[au]ns? dry|goes? before|tells? of|of theirs"
        r"|gives? back|crowds?|has ghosts|drops? ghosts)\b"
    ),
}


def texts(path: Path) -> Iterator[tuple[int, str]]:
    """Yield the texts of a file for people, with their lines' numbers."""
    text = path.read_text(encoding="utf-8")
    if path.suffix == ".md":
        for number, block in enumerate(re.split(r"```.*?```|`[^`\n]*`", text, flags=re.DOTALL)):
            yield number, " ".join(block.split())
        return
    for token in tokenize.generate_tokens(io.StringIO(text).readline):
        if token.type == tokenize.COMMENT:
            yield token.start[0], token.string.lstrip("# ")
    for node in ast.walk(ast.parse(text)):
        if isinstance(node, ast.Constant) and isinstance(node.value, str) and " " in node.value:
            for paragraph in re.split(r"\n\s*\n", re.sub(r"`[^`\n]*`", "", node.value)):
                yield node.lineno, " ".join(paragraph.split())


@functools.cache
def everything() -> list[tuple[str, str]]:
    """Return all texts, each with its `file:line`."""
    files = [path for folder in FOLDERS for path in (ROOT / folder).rglob("*.py")]
    files += [*ROOT.glob("*.md"), *(ROOT / "dashboards").glob("*.md")]
    skipped = {Path(__file__), ROOT / "CHANGELOG.md"}  # of a changelog what was released stays
    return [
        (f"{path.relative_to(ROOT)}:{line}", text)
        for path in sorted({*files} - skipped)
        for line, text in texts(path)
    ]


@pytest.mark.parametrize("name", PATTERNS)
@unmeasured()
def test_no_text_has_a_pattern_that_is_hard_to_read(name: str) -> None:
    places = [f"{place}: {text}" for place, text in everything() if re.search(PATTERNS[name], text)]
    assert not places, "\n".join(places)
