"""Strands' own tests over our classes: `make test-strands` fetches, overlays and runs them.

They come from the source distribution of the version that is installed here, into `.strands/`;
nothing of them is committed. Its repository in memory, its file session manager and its two
storages are ours instead, each in a database of its own on a real server.
"""

import importlib.metadata
import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Final

from pool_telemetry.demo.embedded import EmbeddedServer

ROOT: Final = Path(__file__).parent.parent
FOLDER: Final = ROOT / ".strands"
SESSION: Final = "tests/strands/session"
STORAGE: Final = "tests/strands/storage"
TESTS: Final = (
    f"{SESSION}/test_repository_session_manager.py",
    f"{SESSION}/test_file_session_manager.py",
    f"{SESSION}/test_snapshot_session_manager.py",
    f"{STORAGE}/test_storage.py",
    f"{STORAGE}/test_in_memory_storage.py",
)
SETTINGS: Final = """
[pytest]
asyncio_mode = auto
asyncio_default_fixture_loop_scope = function
"""
OVERLAY: Final = """
import hashlib, inspect, os, uuid
import pytest, strands.session.file_session_manager, strands.storage
from pymongo import MongoClient
from pool_telemetry.sessions import *

client = MongoClient(os.environ["MONGODB_URI"])

class MockedSessionRepository(MongoDBSessionRepository):
    def __init__(self, **kwargs):
        super().__init__(client, f"strands_{uuid.uuid4().hex[:12]}")

def database(folder):
    return f"strands_{hashlib.sha1(str(folder or uuid.uuid4()).encode()).hexdigest()[:12]}"

class FileSessionManager(MongoDBSessionManager):
    def __init__(self, session_id, storage_dir=None, **kwargs):
        super().__init__(session_id, client, database_name=database(storage_dir))

    def __getattr__(self, name):
        return getattr(self.repository, name)

class LocalFileStorage(MongoDBStorage):
    def __init__(self, folder=None):
        super().__init__(client, database(folder))

strands.session.file_session_manager.FileSessionManager = FileSessionManager
strands.storage.InMemoryStorage = strands.storage.LocalFileStorage = LocalFileStorage

# What only the replaced classes have: files, clear(), the search by strategies.
THEIRS = "file_manager._", "agent_manager._", "storage.clear()", "scoped.clear()", "strategy ="

def pytest_collection_modifyitems(config, items):
    def is_theirs(item):
        return any(word in inspect.getsource(item.function) for word in THEIRS)
    config.hook.pytest_deselected(items=[item for item in items if is_theirs(item)])
    items[:] = [item for item in items if not is_theirs(item)]

@pytest.fixture
def agenerator():
    async def agenerator(items):
        for item in items:
            yield item
    return agenerator
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
    (FOLDER / "tests" / "conftest.py").write_text(OVERLAY)  # theirs is for the tests of AWS
    mock = FOLDER / "tests" / "fixtures" / "mock_session_repository.py"
    mock.write_text("from tests.conftest import MockedSessionRepository\n")


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
