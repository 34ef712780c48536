"""The embedded server starts, stops, starts again, and reports why it can't start."""

import os
import socket
import tempfile
from pathlib import Path
from typing import Any

import pytest
from pymongo import MongoClient

from pool_telemetry.demo import embedded
from pool_telemetry.demo.embedded import EmbeddedServer, EmbeddedServerError


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    return tmp_path


def test_a_restarted_server_has_its_port_and_no_data(
    own_server: EmbeddedServer, folder: Path
) -> None:
    uri = own_server.uri
    with MongoClient[dict[str, Any]](uri) as client:
        client["t"]["t"].insert_one({})
    own_server.stop(kill=True)
    own_server.stop()
    own_server.start()
    assert own_server.uri == uri
    assert len(list(folder.iterdir())) == 1
    with MongoClient[dict[str, Any]](uri) as client:
        assert client["t"]["t"].count_documents({}) == 0
    pid = own_server.pid
    assert pid is not None
    own_server.stop()
    assert list(folder.iterdir()) == []
    with pytest.raises(ProcessLookupError):
        os.kill(pid, 0)


def test_a_port_in_use_is_an_error_that_leaves_no_files(folder: Path) -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        server = EmbeddedServer(taken.getsockname()[1])
        with pytest.raises(EmbeddedServerError, match=r"did not start; its output: .*in use"):
            server.start()
    assert server.pid is None
    assert list(folder.iterdir()) == []


def test_without_the_embedded_server_the_error_asks_for_a_uri(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(embedded, "executable", lambda: None)
    with pytest.raises(EmbeddedServerError, match="set MONGODB_URI to a server of yours"):
        EmbeddedServer().start()
