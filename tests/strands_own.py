"""Strands' own tests over our repository: `make test-strands` fetches, overlays and runs them.

They come from the source distribution of the version that is installed here, into `.strands/`;
nothing of them is committed. Its tests of RepositorySessionManager use a repository in memory:
`MockedSessionRepository` is ours instead, each in a database of its own on a real server.
"""

import importlib.metadata
import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Final

from pool_telemetry.embedded import EmbeddedServer

ROOT: Final = Path(__file__).parent.parent
FOLDER: Final = ROOT / ".strands"
TESTS: Final = ("tests/strands/session/test_repository_session_manager.py",)

SETTINGS: Final = """
[pytest]
asyncio_mode = auto
asyncio_default_fixture_loop_scope = function
"""
OVERLAY: Final = """
import os, uuid
from pymongo import MongoClient
from pool_telemetry.sessions import MongoDBSessionRepository

_client = MongoClient(os.environ["MONGODB_URI"])

class MockedSessionRepository(MongoDBSessionRepository):
    def __init__(self):
        super().__init__(_client, f"strands_{uuid.uuid4().hex[:12]}")
"""


def fetch() -> None:
    """Get the tests, and what they need beside what is here."""
    version = importlib.metadata.version("strands-agents")
    shutil.rmtree(FOLDER, ignore_errors=True)
    FOLDER.mkdir()
    pip = (sys.executable, "-m", "pip", "--quiet", "--disable-pip-version-check")
    wanted = ("--no-deps", "--no-binary", "strands-agents", f"strands-agents=={version}")
    subprocess.run([*pip, "download", "--dest", str(FOLDER), *wanted], check=True)
    site = str(FOLDER / "site")
    subprocess.run([*pip, "install", "--target", site, "--no-deps", "pytest-asyncio"], check=True)
    (archive,) = FOLDER.glob("*.tar.gz")
    unpack = ("tar", "-xzf", archive, "-C", FOLDER, "--strip-components=1", "--wildcards")
    subprocess.run([*unpack, "*/tests/*"], check=True)
    (FOLDER / "pytest.ini").write_text(SETTINGS)  # not ours, nor theirs
    (FOLDER / "tests" / "conftest.py").write_text("")  # theirs is for the tests of AWS
    (FOLDER / "tests" / "fixtures" / "mock_session_repository.py").write_text(OVERLAY)


def main() -> int:
    """Fetch and run them; return pytest's code."""
    fetch()
    paths = (str(FOLDER / "site"), str(FOLDER), str(ROOT))
    with EmbeddedServer() as server:
        environ = {**os.environ, "MONGODB_URI": server.uri, "PYTHONPATH": os.pathsep.join(paths)}
        command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", *TESTS]
        return subprocess.run(command, cwd=FOLDER, env=environ).returncode


if __name__ == "__main__":
    sys.exit(main())
