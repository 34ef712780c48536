"""Addresses that a user may name, and pages that are read by HTTP.

`get` is the only function that asks a host by HTTP. The host may be broken or hostile: its answer
has a time and a size, and credentials and redirects never reach another host. The answers of one
command also have a time together (`time_limit`).
"""

import base64
import contextlib
import http.client
import ipaddress
import json
import math
import re
import ssl
import threading
import time
import unicodedata
import urllib.error
import urllib.parse
import urllib.request
import zlib
from collections.abc import Iterator
from concurrent.futures import Future
from contextvars import ContextVar
from http import HTTPStatus
from typing import Any, Final

from pool_telemetry.errors import PoolTelemetryError

DEADLINE_SECONDS: Final = 10.0
"""The limit of one whole answer, in seconds: from the name's look-up to the last byte.

A slow Prometheus query takes a few seconds.
"""
COMMAND_SECONDS: Final = 30.0
"""The limit of all answers that one command asks for, in seconds, besides its measurement."""
MAX_BYTES: Final = 32 * 1024 * 1024
"""The limit of a page, unpacked. A process with 500 series of commands has less than 2 MB."""
MAX_JSON_BYTES: Final = 8 * 1024 * 1024
"""The limit of a page of JSON, whose values take up to 30 times more memory than their text."""
_PIECE: Final = 64 * 1024
_MAX_DIGITS: Final = 18
_MAX_REASON: Final = 100
_HOST: Final = re.compile(r"(?P<name>[^\s:@/?#\[\]\\]+|\[[0-9A-Fa-f:.]+(%[\w.-]+)?\])(:[0-9]+)?")
_MAX_REDIRECTS: Final = 5
_REDIRECTS: Final = (301, 302, 303, 307, 308)
_HANDLERS: Final = (
    urllib.request.HTTPHandler,
    urllib.request.HTTPSHandler,
    urllib.request.HTTPErrorProcessor,
    urllib.request.HTTPDefaultErrorHandler,
)
_MONGODB: Final = "It looks like you are trying to access MongoDB over HTTP"
_OTHER_PROTOCOL: Final = (
    "use mongodb://HOST:PORT for a MongoDB server, https://HOST:PORT for a service with TLS"
)

_ends_at: ContextVar[float] = ContextVar("ends_at", default=math.inf)


class SourceError(PoolTelemetryError, RuntimeError):
    """A source does not answer, or does not have the numbers that a command needs."""


class NotFoundError(SourceError):
    """The host answers, but it does not have this page."""


class RefusedError(NotFoundError):
    """The host may have this page, but it refuses to give it. The message says what to do."""


@contextlib.contextmanager
def time_limit(seconds: float) -> Iterator[None]:
    """Limit the time of all answers in this block together; an outer block's limit still holds."""
    token = _ends_at.set(min(_ends_at.get(), time.monotonic() + seconds))
    try:
        yield
    finally:
        _ends_at.reset(token)


def validate_target(target: str, name: str = "the address") -> str:
    """Return the address that a user named as a complete one: `HOST:PORT` gets `http://`.

    Args:
        target: The address.
        name: The words for the address in an error, because its text may have a password.

    Raises:
        SourceError: The target is not a valid address.
    """
    target = target.strip()
    address = target if "://" in target else f"http://{target}"
    if (wrong := _what_is_wrong(target, address)) is not None:
        raise SourceError(
            f"{name} is not a valid address ({wrong}): use HOST:PORT or http://HOST:PORT of a "
            "service (or its /health or /metrics), https://HOST, or mongodb://HOST:PORT"
        )
    return target if is_server(target) else urllib.parse.urlsplit(address).geturl()


def _what_is_wrong(target: str, address: str) -> str | None:
    if not target:
        return "it is empty"
    if not target.isprintable() or " " in target:
        return "it has a space or a control character"
    if is_server(target):
        return None
    parts = urllib.parse.urlsplit(f"{address.partition('://')[0]}:")
    if parts.scheme not in ("http", "https"):
        return "it begins in another way than http://, https:// or mongodb://"
    if "@" in address and target != address:
        return "a user name or password needs http:// before it"
    try:
        parts = urllib.parse.urlsplit(address)
        host = parts.netloc.rpartition("@")[2]
        is_valid = _is_host(host)
    except ValueError:  # an invalid IPv6 address
        return "its host is not valid"
    # A second "@" may be a part of the password, and so may be all that is before it.
    if address.count("@") > ("@" in parts.netloc):
        return "write @ and / in a user name or password as %40 and %2F"
    if host.count(":") > 1 and not host.startswith("["):
        return "write an IPv6 address in brackets, as in [::1]:8000"
    if not _is_port(parts):
        return "its port is not from 1 to 65535"
    if not is_valid or _is_number(parts.hostname or ""):
        return "its host is not valid"
    if not address.replace(host, "", 1).isascii():
        return "write characters outside of ASCII as %XX"
    return None


def _is_port(parts: urllib.parse.SplitResult) -> bool:
    try:
        return parts.port != 0
    except ValueError:
        return False


def _is_host(host: str) -> bool:
    found = _HOST.fullmatch(host)
    host.encode("idna")  # raises a ValueError for an empty or overlong label
    if found and found["name"].startswith("["):
        ipaddress.IPv6Address(found["name"][1:-1])  # raises a ValueError
    return (
        found is not None
        and any(c.isalnum() for c in found["name"])
        and unicodedata.normalize("NFKC", host) == host
    )


def _is_number(host: str) -> bool:
    """Return whether the resolver would take a host for a number: 8765 would be 0.0.34.61."""
    if ":" in host or not re.fullmatch(r"[0-9]+|0x[0-9a-f]*", host.rpartition(".")[2]):
        return False
    try:
        ipaddress.IPv4Address(host)
    except ValueError:
        return True
    return False


def is_server(target: str) -> bool:
    """Return whether an address names a MongoDB server; all other addresses are asked by HTTP."""
    return target.startswith(("mongodb://", "mongodb+srv://"))


def shown(page: str) -> str:
    """Return an address for people: without user name, password, query and fragment."""
    parts = urllib.parse.urlsplit(page)
    host = parts.netloc.rpartition("@")[2]
    return parts._replace(netloc=host, query="", fragment="").geturl()


def get_json(page: str) -> Any:
    """Return the value of a page of JSON, in which every number is finite.

    Raises:
        NotFoundError: The host answers with an error status, or not with such JSON.
        SourceError: The host does not answer.
    """
    text = get(page, MAX_JSON_BYTES)
    try:
        return json.loads(text, parse_constant=_finite, parse_float=_finite, parse_int=_whole)
    except (ValueError, RecursionError):
        raise NotFoundError(f"{shown(page)} does not answer with valid JSON") from None


def _finite(text: str) -> float:
    if not math.isfinite(number := float(text)):
        raise ValueError(text)
    return number


def _whole(text: str) -> int:
    if len(text) > _MAX_DIGITS:
        raise ValueError(text)
    return int(text)


def get(page: str, max_bytes: int = MAX_BYTES) -> str:
    """Return the text of a page; credentials in its address become basic authentication.

    Raises:
        NotFoundError: The host answers with an error status, or redirects elsewhere.
        RefusedError: The status speaks of the caller or of the host, and not of the page.
        SourceError: The host does not answer, or not in time, or with too much, or in another
            protocol.
    """
    seconds = min(DEADLINE_SECONDS, max(0.0, _ends_at.get() - time.monotonic()))
    answer = Future[bytes]()
    # A thread of its own, because a look-up of a name has no limit, and each piece of an answer
    # would have a limit of its own. The process ends without it.
    threading.Thread(target=_fulfil, args=(answer, page, max_bytes), daemon=True).start()
    name, host = shown(page), shown(urllib.parse.urljoin(page, "/")).rstrip("/")
    try:
        text = answer.result(seconds).decode()
    except urllib.error.HTTPError as error:
        if advice := _advice(page, error.code):
            raise RefusedError(f"{name} {_status(error)}: {advice}") from None
        raise NotFoundError(f"{name} {_status(error)}") from None
    except UnicodeDecodeError:
        raise SourceError(f"{name} does not answer with text in UTF-8") from None
    except http.client.IncompleteRead:
        raise SourceError(
            f"{name} closed the connection in the middle of its answer: it may have ended or "
            "restarted; run the command again"
        ) from None
    except OSError as error:
        if isinstance(error, TimeoutError) and seconds < DEADLINE_SECONDS:
            raise SourceError(
                f"{host} answers so slowly that the time of the command is over: its process may "
                "be overloaded; give a longer --seconds to wait for it"
            ) from None
        raise SourceError(f"{host} {_reason(error)}") from None
    except (http.client.HTTPException, zlib.error, ValueError):
        raise SourceError(f"{host} does not answer in valid HTTP: {_OTHER_PROTOCOL}") from None
    if text.startswith(_MONGODB):
        address = urllib.parse.urlsplit(host).netloc
        raise SourceError(f"{host} is a MongoDB server: use mongodb://{address}")
    return text


def _status(error: urllib.error.HTTPError) -> str:
    reason = f" ({error.reason[:_MAX_REASON]})" if error.reason else ""
    return f"answers with status {error.code}{reason}"


def _advice(page: str, status: int) -> str:
    """Return what to do about an error status; empty if the page may be at another address."""
    if status == HTTPStatus.UNAUTHORIZED and "@" not in urllib.parse.urlsplit(page).netloc:
        return (
            "give user name and password, best as http://USER:PASSWORD@HOST:PORT in "
            "POOL_TELEMETRY_URL"
        )
    if status == HTTPStatus.UNAUTHORIZED:
        return "check the user name and the password, and that the page takes basic authentication"
    if status == HTTPStatus.FORBIDDEN:
        return (
            "ask from a host, or with a user, that may see the page (http://USER:PASSWORD@HOST:"
            "PORT in POOL_TELEMETRY_URL)"
        )
    if status == HTTPStatus.PROXY_AUTHENTICATION_REQUIRED:
        return "give the proxy's user name and password in http_proxy, or name the host in no_proxy"
    if status in (HTTPStatus.REQUEST_TIMEOUT, HTTPStatus.TOO_MANY_REQUESTS):
        return "the host has too much to do, so wait a while before you run the command again"
    if status >= HTTPStatus.INTERNAL_SERVER_ERROR:
        return "the service or a proxy before it has a problem, which its log tells"
    return ""


def _reason(error: OSError) -> str:
    """Return why a host does not answer, and what to do."""
    cause = getattr(error, "reason", None) if isinstance(error, urllib.error.URLError) else error
    if isinstance(cause, TimeoutError):
        return (
            f"did not answer completely within {DEADLINE_SECONDS:g} s: its process may be stopped "
            "or overloaded, or a firewall drops the packets"
        )
    if isinstance(cause, ConnectionResetError | BrokenPipeError):
        return f"closed the connection without an answer: check the address; {_OTHER_PROTOCOL}"
    if isinstance(cause, ssl.SSLCertVerificationError):
        return f"has a certificate that is not trusted ({cause.verify_message})"
    if isinstance(cause, ssl.SSLError):
        return "does not speak TLS: use http://HOST:PORT, or mongodb://HOST:PORT for MongoDB"
    words = getattr(cause, "strerror", None) or type(cause).__name__
    return f"does not answer ({words}): check the address, and that the service runs"


# In the thread


def _fulfil(answer: "Future[bytes]", page: str, max_bytes: int) -> None:
    try:
        answer.set_result(_fetch(page, max_bytes))
    except BaseException as error:  # noqa: BLE001  # raised again by get()
        answer.set_exception(error)


def _fetch(page: str, max_bytes: int) -> bytes:
    is_local = _is_loopback(urllib.parse.urlsplit(page).hostname or "")
    opener = urllib.request.OpenerDirector()  # it follows no redirect and opens no file
    # A proxy would look for a loopback address on its own machine.
    opener.add_handler(urllib.request.ProxyHandler({} if is_local else None))
    for handler in _HANDLERS:
        opener.add_handler(handler())
    for _ in range(_MAX_REDIRECTS):
        try:
            with opener.open(_request(page), timeout=DEADLINE_SECONDS) as answer:
                return _body(answer, page, max_bytes)
        except urllib.error.HTTPError as error:
            error.close()
            if error.code not in _REDIRECTS:
                raise
            page = _redirected(page, error.headers.get("Location", ""))
    raise NotFoundError(f"{shown(page)} redirects in a loop")


def _redirected(page: str, location: str) -> str:
    """Return the address to ask instead, with the credentials of the first one.

    It has the same host and port, or https instead of http on the same host.

    Raises:
        NotFoundError: It is another address.
    """
    to = urllib.parse.urljoin(page, location)
    old, new = urllib.parse.urlsplit(page), urllib.parse.urlsplit(to)
    user, at, host = old.netloc.rpartition("@")
    place = new.netloc.removeprefix(user + at)
    is_same = (old.scheme, host) == (new.scheme, place)
    is_upgrade = (old.scheme, new.scheme) == ("http", "https") and old.hostname == new.hostname
    is_valid = location.isascii() and location.isprintable() and " " not in location
    if not location or "@" in place or not is_valid or not (is_same or is_upgrade):
        where = f"{shown(to)}, which is another address" if location else "no address"
        raise NotFoundError(
            f"{shown(page)} redirects to {where}: name the right one, if you trust it"
        )
    return new._replace(netloc=user + at + place).geturl()


def _body(answer: http.client.HTTPResponse, page: str, max_bytes: int) -> bytes:
    coding = answer.headers.get("Content-Encoding", "identity").strip().lower()
    if coding not in ("identity", "gzip"):
        raise SourceError(f"{shown(page)} is packed in a way that was not asked for")
    unpacker = zlib.decompressobj(wbits=zlib.MAX_WBITS | 16) if coding == "gzip" else None
    body, received = bytearray(), 0
    while piece := answer.read(_PIECE):
        received += len(piece)
        body += unpacker.decompress(piece, max_bytes + 1 - len(body)) if unpacker else piece
        if max(received, len(body)) > max_bytes:
            raise SourceError(
                f"{shown(page)} has more than {max_bytes // 1024**2} MB: check that it is the "
                "address of a service"
            )
    # Read in pieces, an answer that is shorter than its Content-Length raises nothing.
    if answer.length or (unpacker and not unpacker.eof):
        raise http.client.IncompleteRead(b"")
    return bytes(body)


def _is_loopback(host: str) -> bool:
    try:
        address = ipaddress.ip_address(host)
    except ValueError:
        return host == "localhost" or host.endswith(".localhost")
    address = getattr(address, "ipv4_mapped", None) or address
    return address.is_loopback or address.is_unspecified


def _request(page: str) -> urllib.request.Request:
    parts = urllib.parse.urlsplit(page)
    user, at, host = parts.netloc.rpartition("@")
    request = urllib.request.Request(parts._replace(netloc=host).geturl())  # noqa: S310  # see validate_target()
    if at:
        secret = base64.b64encode(urllib.parse.unquote(user).encode()).decode()
        request.add_unredirected_header("Authorization", f"Basic {secret}")
    return request
