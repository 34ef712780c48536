"""What a connection string says, and what of it may be shown: names, hosts, and no secret."""

import re
from collections.abc import Mapping
from typing import Any, Final
from urllib.parse import parse_qsl, unquote_plus

# Hosts, a database, options: an "@" may only stand in an option's value. What is not of this form
# has credentials before it, perhaps with special characters that are not escaped.
_HOST: Final = r"([^\s:@/?,\[\]]+|\[[^\]@/?]*\])(:\d+)?"
_WITHOUT_CREDENTIALS: Final = re.compile(rf"{_HOST}(,{_HOST})*(/[^@?]*)?(\?([^@=]+=.*)?)?")

_SECRET_OPTIONS: Final = frozenset(
    {
        "authmechanismproperties",  # may carry AWS_SESSION_TOKEN
        "tlscertificatekeyfilepassword",
        "ssl_pem_passphrase",
        "proxyusername",
        "proxypassword",
        "username",
        "password",
    }
)


def uri_options(uri: str) -> dict[str, str]:
    """Return the options in a URI by lower-case name; PyMongo takes names in any case."""
    found: dict[str, list[str]] = {}
    query = _split(uri)[2].partition("?")[2]
    for key, value in parse_qsl(query, separator="&" if "&" in query else ";"):
        found.setdefault(key.lower(), []).append(value)
    return {key: ",".join(values) for key, values in found.items()}  # tags may come repeatedly


def identity(uri: str, kwargs: Mapping[str, Any]) -> tuple[str, dict[str, Any]]:
    """Return what two initializations must share to have the same effective settings."""
    options = {**uri_options(uri), **{key.lower(): value for key, value in kwargs.items()}}
    return uri.partition("?")[0].rstrip("/"), {k: _plain(v) for k, v in options.items()}


def _plain(value: Any) -> Any:
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, int | float):
        return str(int(value) if value == value // 1 else value)
    if isinstance(value, list | tuple) and all(isinstance(one, str) for one in value):
        return ",".join(value)
    return value


def _split(uri: str) -> tuple[str, str, str]:
    """Return scheme with "://", credentials with "@", and the rest; the first two may be empty."""
    scheme, separator, rest = uri.partition("://")
    if not separator:  # MongoClient also takes host:port alone
        return "", "", uri
    if _WITHOUT_CREDENTIALS.fullmatch(rest):
        return scheme + separator, "", rest
    tail = rest.partition("@")[2]
    if not _WITHOUT_CREDENTIALS.fullmatch(tail):
        tail = rest.rpartition("@")[2] if "@" in rest else ""
    return scheme + separator, rest[: len(rest) - len(tail)], tail


def mask_uri(uri: str) -> str:
    """Return the URI without user name, password, and the options that carry secrets."""
    scheme, credentials, rest = _split(uri)
    if not scheme:
        return uri if _WITHOUT_CREDENTIALS.fullmatch(uri) else "***"
    masked = "***:***@" if credentials else ""
    address, question, query = rest.partition("?")
    separator = "&" if "&" in query else ";"
    parts = query.split(separator)
    for i, part in enumerate(parts):
        key, equals, _ = part.partition("=")
        if unquote_plus(key).lower() in _SECRET_OPTIONS:
            parts[i] = f"{key}{equals}***"
    return f"{scheme}{masked}{address}{question}{separator.join(parts)}"


def secrets_of(uri: str, kwargs: Mapping[str, Any]) -> list[str]:
    """Return the texts that must never be shown, longest first, as given and percent-decoded."""
    found = [str(v) for k, v in kwargs.items() if k.lower() in _SECRET_OPTIONS and v]
    found += [v for k, v in uri_options(uri).items() if k in _SECRET_OPTIONS]
    credentials = _split(uri)[1]
    found += [credentials.rstrip("@"), *re.split("[:@/?#]", credentials)]
    every = {form for text in found for form in (text, unquote_plus(text)) if len(form) > 1}
    return sorted(every, key=len, reverse=True)
