"""Strands' own tests over our classes: `make test-strands` fetches, overlays and runs them.

The tests come from the source distribution of the installed version, into `.strands/`; none is
committed. Our classes replace Strands' in-memory repository, file session manager and two storages,
each in a database of its own on a real server.
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

# Only the replaced classes have files, clear() and the search by strategies.
REPLACED = "file_manager._", "agent_manager._", "storage.clear()", "scoped.clear()", "strategy ="

def pytest_collection_modifyitems(config, items):
    def needs_replaced(item):
        return any(word in inspect.getsource(item.function) for word in REPLACED)
    config.hook.pytest_deselected(items=[item for item in items if needs_replaced(item)])
    items[:] = [item for item in items if not needs_replaced(item)]

@pytest.fixture
def agenerator():
    async def agenerator(items):
        for item in items:
            yield item
    return agenerator
"""


def fetch() -> None:
    """Download the tests and their plugin pytest-asyncio into `.strands/`."""
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
    (FOLDER / "pytest.ini").write_text(SETTINGS)  # replaces both projects' pytest settings
    (FOLDER / "tests" / "conftest.py").write_text(OVERLAY)  # Strands' conftest is for AWS tests
    mock = FOLDER / "tests" / "fixtures" / "mock_session_repository.py"
    mock.write_text("from tests.conftest import MockedSessionRepository\n")


def main() -> int:
    """Fetch and run Strands' tests; return pytest's exit code."""
    fetch()
    paths = (str(FOLDER / "site"), str(FOLDER), str(ROOT))
    with EmbeddedServer() as server:
        environ = {**os.environ, "MONGODB_URI": server.uri, "PYTHONPATH": os.pathsep.join(paths)}
        command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", *TESTS]
        return subprocess.run(command, cwd=FOLDER, env=environ).returncode


if __name__ == "__main__":
    sys.exit(main())
