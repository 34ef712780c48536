"""Addresses that a user may name, and pages that are read by HTTP."""

import base64
import ipaddress
import re
import urllib.error
import urllib.parse
import urllib.request
from typing import Final

from pool_telemetry.errors import PoolTelemetryError
from pool_telemetry.stats import printable
from pool_telemetry.uri import mask_uri

TIMEOUT_SECONDS: Final = 10.0
"""The limit of one request, in seconds; a slow Prometheus query takes a few."""
_HOST: Final = re.compile(r"([^\s:@/?#\[\]]+|\[[0-9A-Fa-f:.%]+\])(:\d+)?")


class SourceError(PoolTelemetryError, RuntimeError):
    """A source does not answer, or does not have the numbers that a command needs."""


class NotFoundError(SourceError):
    """The host answers, but it does not have this page."""


def validate_target(target: str) -> str:
    """Return the address that a user named as a complete one: `HOST:PORT` gets `http://`.

    Raises:
        SourceError: The target is not a valid address.
    """
    target = target.strip()
    if is_server(target):
        return target
    address = target if "://" in target else f"http://{target}"
    try:
        parts = urllib.parse.urlsplit(address)
        host = parts.netloc.rpartition("@")[2] if target == address else parts.netloc
        usable = parts.scheme in ("http", "https") and _HOST.fullmatch(host) and parts.port != 0
        usable = usable and not _is_number(parts.hostname or "")
    except ValueError:  # an invalid port or IPv6 address
        usable = False
    if not usable:
        raise SourceError(
            "this is not a valid address: use HOST:PORT or http://HOST:PORT of a service (or its "
            "/health or /metrics), https://HOST, or mongodb://HOST:PORT"
        )
    return parts.geturl()


def _is_number(host: str) -> bool:
    """Return whether the resolver would take a host for a number: 8765 would be 0.0.34.61."""
    if not re.fullmatch(r"[0-9]+|0x[0-9a-f]*", host.rpartition(".")[2]):
        return False
    try:
        ipaddress.IPv4Address(host)
    except ValueError:
        return True
    return False


def is_server(target: str) -> bool:
    """Return whether an address names a MongoDB server; all other addresses are asked by HTTP."""
    return target.startswith(("mongodb://", "mongodb+srv://"))


def get(page: str) -> str:
    """Return the text of a page; credentials in its address become basic authentication.

    Raises:
        NotFoundError: The host answers with an error status.
        SourceError: The host does not answer.
    """
    try:
        with urllib.request.urlopen(_request(page), timeout=TIMEOUT_SECONDS) as answer:  # noqa: S310  # see validate_target()
            text: str = answer.read().decode()
    except urllib.error.HTTPError as error:
        with error:
            status = f"{error.code} ({printable(error.reason)})" if error.reason else error.code
            raise NotFoundError(f"{mask_uri(page)} answers with status {status}") from None
    except (OSError, ValueError) as error:
        reason = getattr(error, "reason", error)
        words = getattr(reason, "strerror", None) or type(reason).__name__
        raise SourceError(
            f"{mask_uri(page)} does not answer ({words}): check the address, and that the service "
            "runs"
        ) from None
    return text


def _request(page: str) -> urllib.request.Request:
    parts = urllib.parse.urlsplit(page)
    user, at, host = parts.netloc.rpartition("@")
    request = urllib.request.Request(parts._replace(netloc=host).geturl())  # noqa: S310
    if at:
        secret = base64.b64encode(urllib.parse.unquote(user).encode()).decode()
        request.add_unredirected_header("Authorization", f"Basic {secret}")
    return request
