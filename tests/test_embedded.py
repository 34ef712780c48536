"""The embedded server starts, stops, starts again, and says why when it cannot."""

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


def test_it_comes_back_on_its_port_without_its_data(
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


def test_a_taken_port_is_told_and_nothing_is_left(folder: Path) -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        server = EmbeddedServer(taken.getsockname()[1])
        with pytest.raises(EmbeddedServerError, match=r"did not start; it said: .*in use"):
            server.start()
    assert server.pid is None
    assert list(folder.iterdir()) == []


def test_where_it_is_not_installed_a_server_is_asked_for(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(embedded, "executable", lambda: None)
    with pytest.raises(EmbeddedServerError, match="set MONGODB_URI to a server of yours"):
        EmbeddedServer().start()
