"""How Redis is named: URLs and settings as Celery has them, turned into arguments of the library's connections."""

from __future__ import annotations

import ssl
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Final
from urllib.parse import SplitResult, parse_qsl, unquote, urlsplit

from amqptasks.exceptions import ImproperlyConfigured
from amqptasks.results.registry import resolve
from amqptasks.urls import mask_url

__all__ = ["Target", "checked_url", "read_url"]

#: Schemes, and how the server is reached.
KINDS: Final[Mapping[str, str]] = {
    "redis": "tcp", "rediss": "tls", "socket": "unix", "unix": "unix", "sentinel": "sentinel",
}  # fmt: skip
#: Where one of several sentinels ends and the next one begins.
_SENTINELS: Final = ";"
_SENTINEL_PORT: Final = 26379
_NOT_OF_SOCKETS: Final = ("host", "port", "socket_connect_timeout", "socket_keepalive")
_CERTIFICATES: Final[Mapping[Any, str]] = {
    "CERT_REQUIRED": "required", "CERT_OPTIONAL": "optional", "CERT_NONE": "none",
    "required": "required", "optional": "optional", "none": "none",
    ssl.CERT_REQUIRED: "required", ssl.CERT_OPTIONAL: "optional", ssl.CERT_NONE: "none",
}  # fmt: skip
#: What a URL may say that would change what this package relies on, or is a setting of its own.
_REFUSED: Final = ("decode_responses", "protocol", "max_connections", "connection_class", "retry", "encoding")


@dataclass(frozen=True, slots=True)
class Target:
    """A Redis that can be connected to.

    Attributes:
        kind: "tcp", "tls", "unix" or "sentinel".
        arguments: Of the library's connections.
        sentinels: Hosts and ports; empty if the server itself was named.
    """

    kind: str
    arguments: Mapping[str, Any]
    sentinels: tuple[tuple[str, int], ...] = ()
    master_name: str = ""
    min_other_sentinels: int = 0
    sentinel_arguments: Mapping[str, Any] = field(default_factory=dict)


def checked_url(url: str) -> str:
    """Return a URL that names a Redis.

    Raises:
        ImproperlyConfigured: It does not.
    """
    for each in url.split(_SENTINELS) if url.startswith("sentinel:") else [url]:
        if url and each.partition("://")[0] not in KINDS:
            raise ImproperlyConfigured(
                f"expected the result backend to be a URL such as redis://host:6379/0, rediss://, redis+socket:///path "
                f"or sentinel://host:26379, got: {mask_url(url)}"
            )
        try:
            _ = urlsplit(each).port
        except ValueError as error:
            raise ImproperlyConfigured(f"the result backend {mask_url(url)} cannot be read: {error}") from error
    return url


def read_url(url: str, defaults: Mapping[str, Any], transport: Mapping[str, Any]) -> Target:
    """Read a URL.

    Args:
        url: Empty for what `defaults` say.
        defaults: Arguments of connections, which the URL overrides.
        transport: ``result_backend_transport_options``.

    Raises:
        ImproperlyConfigured: It cannot be used.
    """
    if url.startswith("sentinel:"):
        return _read_sentinels(checked_url(url), defaults, transport)
    parts = urlsplit(checked_url(url or "redis://"))
    kind = KINDS[parts.scheme]
    arguments = _arguments(parts, defaults, url)
    if kind == "unix":
        arguments["path"] = unquote(parts.path)
        for name in _NOT_OF_SOCKETS:
            arguments.pop(name, None)
    elif kind == "tcp" and arguments.pop("ssl", False):
        kind = "tls"
    return Target("tls" if kind == "tls" else kind, arguments)


def _read_sentinels(url: str, defaults: Mapping[str, Any], transport: Mapping[str, Any]) -> Target:
    parts = [urlsplit(each) for each in url.split(_SENTINELS) if each]
    master = transport.get("master_name")
    if not master or not isinstance(master, str):
        raise ImproperlyConfigured(
            f"the result backend {mask_url(url)} needs the name of the master: "
            "result_backend_transport_options = {'master_name': …}"
        )
    # What the first one says of the database and its user holds for the master, wherever that is.
    arguments = _arguments(parts[0], defaults, url)
    for name in ("host", "port"):
        arguments.pop(name, None)
    hosts = tuple((each.hostname or "localhost", each.port or _SENTINEL_PORT) for each in parts)
    others, theirs = transport.get("min_other_sentinels") or 0, transport.get("sentinel_kwargs") or {}
    return Target("sentinel", arguments, hosts, master, others, dict(theirs))


def _arguments(parts: SplitResult, defaults: Mapping[str, Any], url: str) -> dict[str, Any]:
    given: dict[str, Any] = {
        "host": parts.hostname,
        "port": parts.port,
        "username": unquote(parts.username) if parts.username else None,
        "password": unquote(parts.password) if parts.password else None,
    }
    arguments = {key: value for key, value in {**defaults, **_said(given)}.items() if value is not None}
    database: Any = unquote(parts.path).strip("/") if parts.scheme not in ("socket", "unix") else ""
    query = dict(parse_qsl(parts.query))
    database = query.pop("virtual_host", "").strip("/") or query.pop("db", "") or database or arguments.get("db", 0)
    try:
        arguments["db"] = int(database)
    except ValueError:
        raise ImproperlyConfigured(
            f"expected the database of the result backend {mask_url(url)} to be a number, got: {database!r:.40}"
        ) from None
    arguments.update(_typed(query, url))
    provider = arguments.get("credential_provider")
    if provider is not None:
        arguments["credential_provider"] = _provider(provider)
        arguments.pop("username", None)
        arguments.pop("password", None)
    return _with_tls(arguments, parts.scheme, url)


def _said(values: Mapping[str, Any]) -> dict[str, Any]:
    return {key: value for key, value in values.items() if value is not None}


def _typed(query: Mapping[str, str], url: str) -> dict[str, Any]:
    from redis.connection import URL_QUERY_ARGUMENT_PARSERS

    parsers: Mapping[str, Any] = URL_QUERY_ARGUMENT_PARSERS
    values: dict[str, Any] = {}
    for key, text in query.items():
        if key in _REFUSED:
            raise ImproperlyConfigured(f"{key} cannot be part of the result backend {mask_url(url)}")
        try:
            values[key] = parsers.get(key, str)(text)
        except (TypeError, ValueError) as error:
            raise ImproperlyConfigured(
                f"{key} in the result backend {mask_url(url)} cannot be read: {error}"
            ) from error
    return values


def _provider(given: Any) -> Any:
    """Return what supplies user and password: as it is, or made by the class of that path."""
    if isinstance(given, str):
        given = resolve(given, "redis_backend_credential_provider")
    if isinstance(given, type):
        given = given()
    if not callable(getattr(given, "get_credentials", None)):
        raise ImproperlyConfigured(
            f"expected redis_backend_credential_provider to be a redis.CredentialProvider, got: {type(given).__name__}"
        )
    return given


def _with_tls(arguments: dict[str, Any], scheme: str, url: str) -> dict[str, Any]:
    told = arguments.pop("use_ssl", None)
    if told:
        arguments = {**(told if isinstance(told, Mapping) else {}), **arguments, "ssl": True}
    named = sorted(key for key in arguments if key.startswith("ssl_"))
    if scheme in ("socket", "unix"):
        return {key: value for key, value in arguments.items() if key != "ssl" and key not in named}
    if named and scheme == "redis" and not told:
        raise ImproperlyConfigured(f"the result backend {mask_url(url)} has {named[0]}: for TLS begin with rediss://")
    if "ssl_cert_reqs" in arguments:
        wanted = arguments["ssl_cert_reqs"]
        if wanted not in _CERTIFICATES:
            raise ImproperlyConfigured(
                f"expected ssl_cert_reqs of the result backend {mask_url(url)} to be 'required', 'optional' or "
                f"'none', got: {wanted!r:.40}"
            )
        arguments["ssl_cert_reqs"] = _CERTIFICATES[wanted]
    if scheme == "rediss":
        arguments.pop("ssl", None)
    return arguments
