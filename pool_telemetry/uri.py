"""Reads the options in a connection string, and shows it without secrets."""

import contextlib
import re
import reprlib
from collections.abc import Iterator, Mapping
from typing import Any, Final
from urllib.parse import parse_qsl, unquote_plus

from pool_telemetry.errors import PoolConfigurationError

# Hosts, a database and options, with an "@" in values of options only. Any other text begins with
# credentials, which may have special characters that are not escaped.
_HOST: Final = r"([^\s:@/?,\[\]]+|\[[^\]@/?]*\])(:\d+)?"
_HOSTS: Final = re.compile(rf"{_HOST}(,{_HOST})*")
_WITHOUT_CREDENTIALS: Final = re.compile(rf"{_HOSTS.pattern}(/[^@?]*)?(\?([^@=]+=.*)?)?")
_CREDENTIALS: Final = re.compile(r"[^:@/?#\[\]]*(:[^:@/?#\[\]]*)?@")

# Options whose values may be shown. Any option unknown to PyMongo may be a mistyped password.
_HARMLESS: Final = frozenset(
    {
        *("appname", "authmechanism", "authsource", "compressors", "connect", "connecttimeoutms"),
        *("datetime_conversion", "directconnection", "enableoverloadretargeting", "fsync"),
        *("heartbeatfrequencyms", "journal", "loadbalanced", "localthresholdms"),
        *("maxadaptiveretries", "maxconnecting", "maxidletimems", "maxpoolsize"),
        *("maxstalenessseconds", "minpoolsize", "proxyhost", "proxyport", "readconcernlevel"),
        *("readpreference", "readpreferencetags", "replicaset", "retryreads", "retrywrites"),
        *("servermonitoringmode", "serverselectiontimeoutms", "sockettimeoutms", "srvmaxhosts"),
        *("srvservicename", "ssl", "timeoutms", "tls", "tlsallowinvalidcertificates"),
        *("tlsallowinvalidhostnames", "tlscafile", "tlscertificatekeyfile", "tlscrlfile"),
        *("tlsdisableocspendpointcheck", "tlsinsecure", "tz_aware"),
        *("unicode_decode_error_handler", "uuidrepresentation", "w", "waitqueuemultiple"),
        *("waitqueuetimeoutms", "wtimeoutms", "zlibcompressionlevel"),
    }
)
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
    """Return the options in a URI by lower-case name, because PyMongo takes names in any case."""
    found: dict[str, list[str]] = {}
    query = _split(uri)[2].partition("?")[2] if "://" in uri else ""
    separator = "&" if "&" in query else ";"
    for key, value in parse_qsl(query, keep_blank_values=True, separator=separator):
        found.setdefault(key.lower(), []).append(value)
    return {key: ",".join(values) for key, values in found.items()}  # tags may be repeated


def identity(uri: str, kwargs: Mapping[str, Any]) -> tuple[str, dict[str, Any]]:
    """Return the address and options in a form that is equal if the effective settings are."""
    options = {**uri_options(uri), **{key.lower(): value for key, value in kwargs.items()}}
    return uri.partition("?")[0].rstrip("/"), {k: _plain(v) for k, v in options.items()}


def differences(
    old: tuple[str, Mapping[str, Any]],
    new: tuple[str, Mapping[str, Any]],
    names: Mapping[str, str],
) -> list[str]:
    """Return the differences of two identities in words, `name old -> new`, without secrets.

    Only the name is given if the values may not be shown. A missing setting is `unset`.

    Args:
        old: The first identity.
        new: The second.
        names: Names of options as PyMongo writes them, by lower-case name.
    """
    found = [_difference("address", mask_uri(old[0]), mask_uri(new[0]))] if old[0] != new[0] else []
    for key in sorted({*old[1], *new[1]}):
        values = [one.get(key, "unset") for one in (old[1], new[1])]
        if values[0] != values[1]:
            shown = [_shown(one) if key in _HARMLESS else "***" for one in values]
            found.append(_difference(names.get(key, key), *shown))
    return found


def _difference(name: str, old: str, new: str) -> str:
    return name if old == new else f"{name} {old} -> {new}"


def _shown(value: Any) -> str:
    if not isinstance(value, str | None):
        return "***"
    text = str(value)
    return reprlib.repr(mask_uri(text)).strip("'") if {":", "@"} & {*text} else text[:100]


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
    if not separator:  # MongoClient also takes hosts without a scheme
        return "", "", uri
    if _WITHOUT_CREDENTIALS.fullmatch(rest):
        return scheme + separator, "", rest
    tail = rest.partition("@")[2]
    if not _WITHOUT_CREDENTIALS.fullmatch(tail):
        tail = rest.rpartition("@")[2] if "@" in rest else ""
    return scheme + separator, rest[: len(rest) - len(tail)], tail


def mask_uri(uri: str) -> str:
    """Return the URI without user name, password, and secrets in options."""
    scheme, credentials, rest = _split(uri)
    if not scheme:
        return uri if _HOSTS.fullmatch(uri) else "***"
    masked = "***:***@" if credentials else ""
    address, question, query = rest.partition("?")
    separator = "&" if "&" in query else ";"
    parts = query.split(separator)
    for i, part in enumerate(parts):
        key, equals, _ = part.partition("=")
        if ";" in part:  # beside "&" it is ambiguous, and PyMongo refuses it
            parts[i] = "***"
        elif part and unquote_plus(key).lower() not in _HARMLESS:
            parts[i] = f"{key}=***" if equals else "***"
    return f"{scheme}{masked}{address}{question}{separator.join(parts)}"


def check_credentials(uri: str) -> None:
    """Refuse a user name or password that is not escaped.

    PyMongo would read a part of it as hosts or options, and show that in errors and warnings.

    Raises:
        PoolConfigurationError: It contains a special character that is not escaped.
    """
    credentials = _split(uri)[1]
    if "@" in credentials and not _CREDENTIALS.fullmatch(credentials):
        raise PoolConfigurationError(
            f"connection_string is {mask_uri(uri)}, with special characters in its user name or "
            "password: escape both with urllib.parse.quote_plus()"
        )


def secrets_of(uri: str, kwargs: Mapping[str, Any]) -> list[str]:
    """Return all secret texts, the longest first, as given and percent-decoded."""
    options = {**uri_options(uri), **{key.lower(): value for key, value in kwargs.items()}}
    found = [str(value) for key, value in options.items() if key in _SECRET_OPTIONS and value]
    properties = options.get("authmechanismproperties", "")
    pairs = properties.split(",") if isinstance(properties, str) else []
    found += [pair.partition(":")[2] for pair in pairs]
    credentials = _split(uri)[1]
    found += [credentials.rstrip("@"), *re.split("[:@/?#]", credentials)]
    every = {form for text in found for form in (text, unquote_plus(text)) if len(form) > 1}
    return sorted(every, key=len, reverse=True)


@contextlib.contextmanager
def without_secrets(uri: str, kwargs: Mapping[str, Any]) -> Iterator[None]:
    """Let errors pass as they are raised, but remove secrets from their texts."""
    try:
        yield
    except Exception as error:
        _scrub(error, secrets_of(uri, kwargs))
        raise


def _scrub(error: BaseException, secrets: list[str]) -> None:
    """Replace secrets in the texts of an error, its causes and its contexts."""
    pattern = re.compile("|".join(map(re.escape, secrets)) or "(?!)", re.IGNORECASE)
    seen: set[int] = set()
    behind: list[BaseException | None] = [error]
    while behind:
        one = behind.pop()
        if one is None or id(one) in seen:
            continue
        seen.add(id(one))
        # PyMongo shows options in lower case; a UnicodeError's repr has the whole text.
        if pattern.search(f"{one} {one!r}"):
            one.args = tuple(pattern.sub("***", str(arg)) for arg in one.args)
        behind += [one.__cause__, one.__context__]
