"""An application behind a real HTTP server on loopback."""

import contextlib
import http.client
import json
import threading
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import uvicorn
from fastapi import FastAPI

from tests.support import wait_for


@dataclass(frozen=True)
class Answer:
    """An HTTP response."""

    status: int
    content_type: str
    text: str

    def json(self) -> Any:
        return json.loads(self.text)


class Web:
    """An HTTP client of one server."""

    def __init__(self, port: int, seconds: float = 180.0) -> None:
        self.port = port
        self.seconds = seconds  # for an answer

    def get(self, path: str, method: str = "GET", **headers: str) -> Answer:
        """Get a path, or post to it; redirections are not followed."""
        connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=self.seconds)
        try:
            connection.request(method, path, headers=headers)
            response = connection.getresponse()
            body = response.read().decode()
            return Answer(response.status, response.headers.get("content-type", ""), body)
        finally:
            connection.close()


def use_django() -> None:
    """Set Django up, once in a process: it takes no other settings later."""
    import django
    from django.conf import settings

    if not settings.configured:
        settings.configure(DEFAULT_AUTO_FIELD="django_mongodb_backend.fields.ObjectIdAutoField")
        django.setup()


@contextlib.contextmanager
def serving(app: FastAPI) -> Iterator[Web]:
    """Serve an application, its lifespan included, while the block runs."""
    server = uvicorn.Server(uvicorn.Config(app, host="127.0.0.1", port=0, log_level="critical"))
    thread = threading.Thread(target=server.run)
    thread.start()
    try:
        wait_for(lambda: server.started or not thread.is_alive(), "the web server")
        assert server.started, "the application did not start"
        yield Web(server.servers[0].sockets[0].getsockname()[1])
    finally:
        server.should_exit = True
        thread.join()
