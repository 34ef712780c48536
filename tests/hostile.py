"""Servers that answer what no good server would, on loopback, and mutants of good answers."""

import contextlib
import json
import random
import re
import socket
import socketserver
import struct
import threading
from collections.abc import Callable, Iterator, Mapping
from typing import Any, Final

import bson

Script = Callable[[socket.socket, str], None]
"""Answers one request: the connection, and the request's path."""

ODD_TEXTS: Final = (
    *("", " ", "\x1b[2J\x1b]0;owned\x07", "\u202eevil", "\ud800", "\u2028", "a\nb", "\x9b31m"),
    *("\0", "x" * 10_000, "{{ . }}", "%s%n", "٣", "NaN", "\x7f", "mongodb://ann:s3cr3t@h"),
)
ODD_NUMBERS: Final = (
    *("NaN", "Infinity", "-Infinity", "1e999", "-1", "1" * 400, "1e300", "0.5", "9" * 20),
)


@contextlib.contextmanager
def answering(script: Script) -> Iterator[str]:
    """Answer each request by a script while the block runs; yield `127.0.0.1:PORT`."""
    open_now = list[socket.socket]()

    def answer(connection: socket.socket) -> None:
        with connection, contextlib.suppress(OSError):
            request = piece = connection.recv(65_536)
            while piece and request.startswith(b"GET ") and b"\r\n\r\n" not in request:
                request += (piece := connection.recv(65_536))
            words = request.split(b" ", 2)
            script(connection, words[1].decode("latin-1") if len(words) == 3 else "")

    def accept() -> None:
        with contextlib.suppress(OSError):
            while True:
                connection, _ = listener.accept()
                open_now.append(connection)
                thread = threading.Thread(target=answer, args=(connection,))
                threads.append(thread)
                thread.start()

    threads = list[threading.Thread]()
    with socket.create_server(("127.0.0.1", 0)) as listener:
        threads.append(threading.Thread(target=accept))
        threads[0].start()
        try:
            yield f"127.0.0.1:{listener.getsockname()[1]}"
        finally:
            for one in (listener, *open_now):
                with contextlib.suppress(OSError):
                    one.shutdown(socket.SHUT_RDWR)
            for thread in threads:
                thread.join()


def sending(*pieces: bytes) -> Script:
    """Return a script that sends these bytes, and closes the connection."""

    def script(connection: socket.socket, _: str) -> None:
        for piece in pieces:
            connection.sendall(piece)

    return script


def endless(start: bytes, piece: bytes) -> Script:
    """Return a script that sends one piece after the other until the client leaves."""

    def script(connection: socket.socket, _: str) -> None:
        connection.sendall(start)
        while True:
            connection.sendall(piece)

    return script


def dripping(start: bytes, drop: bytes, pause: float = 0.02) -> Script:
    """Return a script that sends a drop now and then until the client leaves."""
    never = threading.Event()

    def script(connection: socket.socket, _: str) -> None:
        connection.sendall(start)
        while not never.wait(pause):
            connection.sendall(drop)

    return script


def response(body: bytes, status: str = "200 OK", *headers: str) -> bytes:
    """Return a complete response."""
    lines = (f"HTTP/1.1 {status}", f"Content-Length: {len(body)}", *headers)
    return "\r\n".join((*lines, "", "")).encode() + body


def pages(known: Mapping[str, str | bytes]) -> Script:
    """Return a script that has these pages, by path without the query."""

    def script(connection: socket.socket, path: str) -> None:
        page = known.get(path.partition("?")[0])
        if isinstance(page, str):
            page = page.encode("utf-8", "surrogatepass")
        connection.sendall(response(b"", "404 Not Found") if page is None else response(page))

    return script


HELLO: Final = {"ok": 1, "isWritablePrimary": True, "minWireVersion": 0, "maxWireVersion": 21}


@contextlib.contextmanager
def mongod(status: Mapping[str, Any], **hello: Any) -> Iterator[str]:
    """Serve MongoDB's protocol while the block runs; yield the connection string.

    Args:
        status: The answer to `serverStatus`.
        hello: More fields of the answer to `hello`, which has those of HELLO.
    """

    class Answers(socketserver.StreamRequestHandler):
        def handle(self) -> None:
            while head := self.rfile.read(16):
                length, request, _, code = struct.unpack("<iiii", head)
                asked = self.rfile.read(length - 16)
                answer = {"ok": 1, **status} if b"serverStatus" in asked else {**HELLO, **hello}
                body = bson.encode({"ok": 1} if b"ping" in asked else answer)
                if code == 2004:  # a query, as the first hello is
                    body, code = struct.pack("<iqii", 8, 0, 0, 1) + body, 1
                else:
                    body = struct.pack("<iB", 0, 0) + body
                self.wfile.write(struct.pack("<iiii", len(body) + 16, 0, request, code) + body)

    class Server(socketserver.ThreadingTCPServer):
        daemon_threads = True  # PyMongo leaves the connection of a monitor that ended open

        def handle_error(self, *_: Any) -> None:
            """Leave connections that the client resets."""

    with Server(("127.0.0.1", 0), Answers) as server:
        thread = threading.Thread(target=server.serve_forever, args=(0.01,))
        thread.start()
        try:
            yield f"mongodb://127.0.0.1:{server.server_address[1]}/?directConnection=true"
        finally:
            server.shutdown()
            thread.join()


# Mutants


def mutants(text: str, count: int, seed: str) -> Iterator[str | bytes]:
    """Yield mutants of an exposition or of JSON: odd bytes, odd tokens, and odd values."""
    chance = random.Random(seed)
    is_json = text.startswith(("{", "["))
    ways: list[Callable[[str, random.Random], str | bytes]]
    ways = [_odd_bytes, _odd_lines, _odd_tokens, _odd_node if is_json else _odd_sample]
    for number in range(count):
        yield ways[number % len(ways)](text, chance)


def _odd_bytes(text: str, chance: random.Random) -> bytes:
    data = bytearray(text.encode())
    for _ in range(chance.choice((1, 1, 3, 30))):
        at = chance.randrange(len(data) or 1)
        length = chance.choice((1, 1, 10, 1000))
        data[at : at + chance.choice((0, length))] = chance.randbytes(chance.choice((0, 1, 4)))
    return bytes(data[: chance.choice((None, None, chance.randrange(len(data) + 1)))])


def _odd_lines(text: str, chance: random.Random) -> str:
    separator = "\n" if "\n" in text else ","
    lines = text.split(separator)
    for _ in range(chance.choice((1, 3, 10))):
        at = chance.randrange(len(lines))
        lines[at : at + chance.choice((0, 1))] = chance.choice(
            ([], [lines[at]] * 2, [chance.choice(lines)], [chance.choice(ODD_TEXTS)])
        )
        lines = lines or [""]
    if chance.random() < 0.1:
        chance.shuffle(lines)
    return separator.join(lines)


def _odd_tokens(text: str, chance: random.Random) -> str:
    found = [*re.finditer(r"\w+|[^\w\s]", text)]
    for one in sorted(chance.sample(found, min(3, len(found))), key=lambda m: -m.start()):
        odd = chance.choice((*ODD_TEXTS, *ODD_NUMBERS, *'{}[]",:=#\\', chance.choice(found)[0]))
        text = text[: one.start()] + odd + text[one.end() :]
    return text


def _odd_sample(text: str, chance: random.Random) -> str:
    """Change values and labels of samples, so that most of the text is still an exposition."""
    lines = text.split("\n")
    samples = [number for number, line in enumerate(lines) if line and line[0] != "#"]
    for number in chance.sample(samples, min(len(samples), chance.choice((1, 1, 1, 5, 30)))):
        line, value = lines[number].rpartition(" ")[::2]
        if chance.random() < 0.5:
            value = chance.choice((*ODD_NUMBERS, "+Inf", "", "0x1", "1_0", "1 1 1"))
        else:
            odd = chance.choice((*ODD_TEXTS, *ODD_NUMBERS)).replace("\n", "\\n")
            labels = [*re.finditer('"[^"]*"', line)]
            if labels:
                one = chance.choice(labels)
                line = f'{line[: one.start()]}"{odd}"{line[one.end() :]}'
        lines[number] = f"{line} {value}"
    return "\n".join(lines)


def _odd_node(text: str, chance: random.Random) -> str:
    """Change values and keys of JSON, which stays JSON, except that numbers may be odd."""
    root = [json.loads(text)]
    places: list[tuple[Any, Any]] = [(root, 0)]
    for parent, key in places:  # grows meanwhile
        node = parent[key]
        if isinstance(node, dict | list):
            keys = node if isinstance(node, dict) else range(len(node))
            places += [(node, one) for one in keys]
    numbers = dict[str, str]()
    for parent, key in chance.sample(places, min(len(places), chance.choice((1, 1, 2, 5)))):
        way = chance.randrange(5)
        if way == 0 and isinstance(parent, dict):
            parent.pop(key, None)
        elif way == 1:
            mark = f"number-{len(numbers)}"
            numbers[f'"{mark}"'] = chance.choice(ODD_NUMBERS)
            _set(parent, key, mark)
        elif way == 2:
            _set(parent, key, chance.choice(ODD_TEXTS))
        elif way == 3 and isinstance(parent, dict):
            parent[chance.choice(ODD_TEXTS)] = parent.pop(key, None)
        else:
            nested: Any = []
            for _ in range(chance.choice((1, 3, 3, 400))):
                nested = chance.choice(([nested], {"a": nested}))
            odd: tuple[Any, ...] = (
                None,
                True,
                False,
                [],
                {},
                [None],
                {"": None},
                0,
                nested,
                [1, [2]],
            )
            _set(parent, key, chance.choice(odd))
    found = json.dumps(root[0])
    for mark, number in numbers.items():
        found = found.replace(mark, number)
    return found


def _set(parent: Any, key: Any, value: Any) -> None:
    if isinstance(parent, dict) or key < len(parent):
        parent[key] = value
