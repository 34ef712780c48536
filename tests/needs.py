"""Programs that tests need beside Python's packages: skipped with the reason, and failed in CI."""

import os
import shutil
from typing import NoReturn

import pytest


def needs(*programs: str, package: str) -> None:
    """Go on if these programs are here."""
    if lacking := [name for name in programs if shutil.which(name) is None]:
        lacks(f"no {' and no '.join(lacking)}: apt-get install {package}")


def lacks(words: str) -> NoReturn:
    """Skip the test; in CI, which installs everything, fail it."""
    if os.environ.get("CI"):
        pytest.fail(f"CI installs it, so it has to be here: {words}")
    pytest.skip(words)
