"""Reads the options in a connection string, and shows it without secrets."""

import contextlib
import re
import reprlib
from collections.abc import Iterator, Mapping
from types import MappingProxyType
from typing import Any, Final
from urllib.parse import parse_qsl, unquote, unquote_plus

from pymongo.uri_parser import validate_options

from pool_telemetry.errors import PoolConfigurationError
from pool_telemetry.scrubbing import scrub, without_pieces

# Hosts, a database and options, with an "@" in values of options only. Any other text begins with
# credentials, which may have special characters that are not escaped.
_HOST: Final = r"([^\s:@/?,\[\]]+|\[[^\]@/?]*\])(:\d+)?"
_HOSTS: Final = re.compile(rf"{_HOST}(,{_HOST})*")
_WITHOUT_CREDENTIALS: Final = re.compile(rf"{_HOSTS.pattern}(/[^@?]*)?(\?([^@=]+=.*)?)?")
_CREDENTIALS: Final = re.compile(r"[^:@/?#\[\]]*(:[^:@/?#\[\]]*)?@")

_SCHEMES: Final = ("mongodb", "mongodb+srv", "http", "https")
_PROPERTIES: Final = frozenset(
    {
        *("AWS_SESSION_TOKEN", "CANONICALIZE_HOST_NAME", "ENVIRONMENT", "SERVICE_HOST"),
        *("SERVICE_NAME", "SERVICE_REALM", "TOKEN_RESOURCE"),
    }
)  # of authMechanismProperties

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


def is_ambiguous(uri: str) -> bool:
    """Return whether a secret could stand anywhere in a connection string.

    That is so if credentials are not escaped, or if an "@" in the options could be a password's.
    """
    scheme, separator, rest = uri.partition("://")
    if not separator:
        return not _HOSTS.fullmatch(uri)
    credentials, at, tail = rest.rpartition("@")
    return (
        scheme not in _SCHEMES
        or any(c.isspace() or not c.isprintable() for c in uri)
        or bool(at and not _CREDENTIALS.fullmatch(credentials + at))
        or not _WITHOUT_CREDENTIALS.fullmatch(tail)
        or "#" in tail
    )


def mask_uri(uri: str) -> str:
    """Return the URI without user name, password, and secrets in options; in doubt only `***`."""
    if is_ambiguous(uri):
        scheme = uri.partition("://")[0]
        return f"{scheme}://***" if scheme in _SCHEMES else "***"
    scheme, credentials, rest = _split(uri)
    if not scheme:
        return uri
    address, question, query = rest.partition("?")
    separator = "&" if "&" in query else ";"
    shown = [
        part if harmless else _masked_option(part, in_doubt=in_doubt)
        for part, harmless, in_doubt in _options_in_doubt(query, separator)
    ]
    masked = "***:***@" if credentials else ""
    return f"{scheme}{masked}{address}{question}{separator.join(shown)}"


def _masked_option(part: str, *, in_doubt: bool) -> str:
    key, equals, _ = part.partition("=")
    return f"{key}=***" if equals and not (in_doubt or ";" in part) else "***"


def _options_in_doubt(query: str, separator: str) -> Iterator[tuple[str, bool, bool]]:
    """Yield each option as `key=value`, whether it may be shown, and whether its key may not be.

    Options that follow a secret may be a piece of it, if it contains a separator.
    """
    in_doubt = False
    for part in query.split(separator):
        key = unquote_plus(part.partition("=")[0]).lower()
        harmless = not part or (not in_doubt and key in _HARMLESS and ";" not in part)
        yield part, harmless, in_doubt
        in_doubt = in_doubt or not harmless


def check_credentials(uri: str, kwargs: Mapping[str, Any] = MappingProxyType({})) -> None:
    """Refuse a connection string of which PyMongo would show a piece of a secret.

    PyMongo would read a part of a user name or password that is not escaped as hosts or options,
    and it warns of a wrong option by the text of its error.

    Args:
        uri: The connection string.
        kwargs: MongoClient's options, which may be secret, too.

    Raises:
        PoolConfigurationError: Credentials are not escaped, or there is such an option.
    """
    credentials = _split(uri)[1]
    if "@" in credentials and not _CREDENTIALS.fullmatch(credentials):
        raise PoolConfigurationError(
            f"connection_string is {mask_uri(uri)}, with special characters in its user name or "
            "password: escape both with urllib.parse.quote_plus()"
        )
    _check_options(uri, kwargs)


def _check_options(uri: str, kwargs: Mapping[str, Any]) -> None:
    secrets = secrets_of(uri, kwargs)
    query = _split(uri)[2].partition("?")[2] if "://" in uri else ""
    for part in query.split("&" if "&" in query else ";"):
        text = _shown_by_pymongo(*part.partition("=")[::2])
        if without_pieces(text, secrets) != text:
            masked = without_pieces(mask_uri(uri), secrets)
            raise PoolConfigurationError(
                f"connection_string is {masked}, and PyMongo refuses an option that may be "
                "a piece of a secret: check its form, and escape user name, password and values "
                "of options with urllib.parse.quote_plus()"
            )


def _shown_by_pymongo(key: str, value: str) -> str:
    """Return the text that PyMongo may show of an option in a URI."""
    name = key.lower()
    if name == "compressors":  # a warning of its own, and no error
        return value
    with contextlib.suppress(UnicodeError):
        value = value if name == "authmechanismproperties" else unquote_plus(value)
    try:
        validate_options({key: [value] if name == "readpreferencetags" else value})
    except Exception as error:  # noqa: BLE001  # PyMongo has many
        return str(error)
    return ""


def secrets_of(uri: str, kwargs: Mapping[str, Any]) -> list[str]:
    """Return all texts that may be secrets, the longest first, as given and percent-decoded."""
    found = list[str]()
    rest = uri.partition("://")[2] or uri
    if is_ambiguous(uri):
        found += [rest, *re.split("[@:/?#&=;,]", rest)]
    else:
        _, credentials, rest = _split(uri)
        found += [credentials.rstrip("@"), *re.split("[:@/?#]", credentials)]
        query = rest.partition("?")[2]
        for part, harmless, in_doubt in _options_in_doubt(query, "&" if "&" in query else ";"):
            key, _, value = part.partition("=")
            if not harmless:
                found += _secrets_in(key, value)
                if in_doubt and unquote_plus(key).lower() not in _HARMLESS | _SECRET_OPTIONS:
                    found.append(key)
    for name, value in kwargs.items():
        if name.lower() not in _HARMLESS:
            found += _secrets_in(name, value)
    every = {form for text in found for form in _forms(text) if len(form) > 1}
    return sorted(every, key=lambda text: (-len(text), text))


def _secrets_in(name: str, value: Any) -> Iterator[str]:
    """Yield the secret texts in the value of an option, without names that PyMongo defines."""
    if isinstance(value, Mapping):
        for one in value.values():
            yield from _secrets_in(name, one)
    elif isinstance(value, list | tuple):
        for one in value:
            yield from _secrets_in(name, one)
    elif isinstance(value, bytes | bytearray):
        yield value.decode("latin-1")
    elif isinstance(value, str) and name.lower() == "authmechanismproperties":
        for pair in re.split(",|%2[cC]", value):
            key, _, secret = unquote_plus(pair).partition(":")
            yield from (secret,) if key in _PROPERTIES else (pair, key, secret)
    elif isinstance(value, str):
        yield value


def _forms(text: str) -> tuple[str, ...]:
    return text, unquote(text), unquote_plus(text), unquote_plus(unquote_plus(text))


@contextlib.contextmanager
def without_secrets(uri: str, kwargs: Mapping[str, Any]) -> Iterator[None]:
    """Let errors pass as they are raised, but remove secrets from their texts."""
    try:
        yield
    except Exception as error:
        scrub(error, secrets_of(uri, kwargs))
        raise
