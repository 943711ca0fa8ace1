"""Broker URLs, turned into what pika needs to connect, and into labels without passwords.

Every connection of the package is made from an `Endpoint`: deadlines, heartbeats, TLS and names are decided here, once.
pika and ssl are imported when an endpoint is made, not before: a program that only defines tasks needs neither.
"""

from __future__ import annotations

import difflib
import socket
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any, Final
from urllib.parse import SplitResult, parse_qsl, quote, unquote, urlsplit

from amqptasks._version import __version__
from amqptasks.exceptions import ImproperlyConfigured
from amqptasks.urls import mask_url

if TYPE_CHECKING:
    import ssl as tls

    import pika

__all__ = ["Endpoint", "endpoints"]

#: Scheme -> whether it means TLS. `pyamqp` and `librabbitmq` are kombu's names of transports for the same protocol.
SCHEMES: Final = {"amqp": False, "amqps": True, "pyamqp": False, "pyamqps": True, "librabbitmq": False}

# A broker in an alarm tells so and then reads nothing; a connection left like that for good is a hang.
BLOCKED_CONNECTION_TIMEOUT_S: Final = 300.0

_CERT_REQS: Final = {
    "none": 0, "cert_none": 0, "verify_none": 0,
    "optional": 1, "cert_optional": 1,
    "required": 2, "cert_required": 2, "verify_peer": 2,
}  # fmt: skip
_LOGIN_METHODS: Final = {"PLAIN": "PLAIN", "AMQPLAIN": "PLAIN", "EXTERNAL": "EXTERNAL"}

# Names of TLS options: in `broker_use_ssl`, and with or without `ssl_` or in RabbitMQ's spelling in a URL.
_TLS_NAMES: Final = {
    "keyfile": "keyfile", "certfile": "certfile",
    "ca_certs": "ca_certs", "cacertfile": "ca_certs", "cafile": "ca_certs",
    "cert_reqs": "cert_reqs", "verify": "cert_reqs", "server_hostname": "server_hostname",
    "server_name_indication": "server_hostname", "password": "password", "ciphers": "ciphers",
    "check_hostname": "check_hostname",
}  # fmt: skip
_QUERY_NAMES: Final = (
    "heartbeat", "connection_timeout", "blocked_connection_timeout", "auth_mechanism", "login_method",
    *_TLS_NAMES, *(f"ssl_{name}" for name in _TLS_NAMES),
)  # fmt: skip


@dataclass(frozen=True, slots=True)
class Endpoint:
    """One broker to connect to. ``label`` names it for people, without its password."""

    parameters: pika.ConnectionParameters = field(repr=False)
    label: str


@dataclass(frozen=True, slots=True)
class _Wish:
    """What settings and one URL ask for, together."""

    heartbeat_s: int
    connection_timeout_s: float
    blocked_timeout_s: float
    login_method: str
    tls: Mapping[str, Any] | None
    name: str


def endpoints(
    urls: Sequence[str],
    *,
    heartbeat_s: float | None,
    connection_timeout_s: float,
    ssl: bool | Mapping[str, Any] | None = None,
    login_method: str | None = None,
    name: str,
) -> tuple[Endpoint, ...]:
    """Turn broker URLs into endpoints, in the order in which they are to be tried.

    Args:
        heartbeat_s: Seconds between heartbeats; 0 or None for none.
        connection_timeout_s: Seconds for the TCP connection; TLS and AMQP may add half of it.
        ssl: `broker_use_ssl`: True, or a mapping of ``keyfile``, ``certfile``, ``ca_certs``, ``cert_reqs`` and others.
            The broker's certificate is verified unless ``cert_reqs`` says not to.
        login_method: ``PLAIN`` or ``EXTERNAL`` (the client's certificate is the login).
        name: What the RabbitMQ management pages call the connection.

    Raises:
        ImproperlyConfigured: A URL or a TLS option cannot be used. Names the URL without its password.
    """
    if isinstance(urls, str):
        urls = (urls,)
    if not urls:
        raise ImproperlyConfigured("expected at least one broker URL such as 'amqp://user@host//', got none")
    wish = _Wish(
        heartbeat_s=_heartbeat(heartbeat_s),
        connection_timeout_s=connection_timeout_s,
        blocked_timeout_s=BLOCKED_CONNECTION_TIMEOUT_S,
        login_method=login_method or "PLAIN",
        tls=_tls_table(ssl),
        name=name,
    )
    return tuple(_endpoint(url, wish) for url in urls)


def _endpoint(url: str, wish: _Wish) -> Endpoint:
    try:
        parts = urlsplit(url.strip())
        scheme, host, port = parts.scheme.lower(), parts.hostname, parts.port
    except ValueError as error:
        # Not `from error`: its text quotes what stands where the port should be, often a piece of the password.
        why = "its port is not a number from 0 to 65535" if "Port" in str(error) else "its host cannot be read"
        raise _bad(url, why) from None
    if scheme not in SCHEMES:
        raise _bad(url, f"expected a URL that begins with amqp:// or amqps://, got scheme {scheme!r}", encode=False)
    if parts.fragment or (parts.username is None and "@" in parts.path):
        # Cut in the wrong place: it would connect to a host whose name is a piece of the password.
        raise _bad(url, "it cannot be cut into user, password and host")
    wish = _with_query(url, parts, wish)
    if SCHEMES[scheme] and wish.tls is None:
        wish = replace(wish, tls={})
    method = _LOGIN_METHODS.get(wish.login_method.upper())
    if method is None:
        raise _bad(url, f"expected the login method PLAIN or EXTERNAL, got: {wish.login_method!r}")
    if method == "EXTERNAL" and wish.tls is None:
        raise _bad(url, "login method EXTERNAL needs TLS: use amqps:// or broker_use_ssl", encode=False)
    host = unquote(host) if host else "localhost"
    port = port or (5671 if wish.tls is not None else 5672)
    user = unquote(parts.username) if parts.username else "guest"
    password = unquote(parts.password) if parts.password is not None else ("guest" if user == "guest" else "")
    # Celery's rule: one slash ends the host, the rest is the virtual host; none means "/".
    vhost = unquote(parts.path[1:]) or "/"
    shown_host = f"[{host}]" if ":" in host else host
    shown_user = f"{quote(user, safe='')}@" if method == "PLAIN" else ""
    label = f"{'amqps' if wish.tls is not None else 'amqp'}://{shown_user}{shown_host}:{port}/{quote(vhost, safe='/')}"
    try:
        parameters = _parameters(host, port, vhost, (user, password) if method == "PLAIN" else None, wish)
    except (OSError, ValueError, TypeError) as error:
        raise ImproperlyConfigured(f"the broker {label} cannot be used: {error}") from error
    return Endpoint(parameters, label)


def _parameters(
    host: str, port: int, vhost: str, login: tuple[str, str] | None, wish: _Wish
) -> pika.ConnectionParameters:
    import pika
    import pika.credentials

    context = _tls_context(wish.tls) if wish.tls is not None else None
    return pika.ConnectionParameters(
        host=host,
        port=port,
        virtual_host=vhost,
        credentials=pika.credentials.PlainCredentials(*login) if login else pika.credentials.ExternalCredentials(),
        heartbeat=wish.heartbeat_s,
        blocked_connection_timeout=wish.blocked_timeout_s,
        socket_timeout=wish.connection_timeout_s,
        stack_timeout=wish.connection_timeout_s * 1.5,
        # Retrying is done where the connection is used, with jitter and over all endpoints.
        connection_attempts=1,
        ssl_options=(
            pika.SSLOptions(context, (wish.tls or {}).get("server_hostname") or host) if context is not None else None
        ),
        tcp_options=_tcp_options(wish.heartbeat_s),
        client_properties={
            "connection_name": wish.name,
            "product": "amqptasks",
            "version": __version__,
            "information": "Distributed tasks for Python on RabbitMQ",
        },
    )  # fmt: skip


def _tcp_options(heartbeat_s: int) -> dict[str, int] | None:
    # pika looks for silence every heartbeat + 5 s only. The kernel notices earlier that what we send, heartbeats
    # included, is not acknowledged by a peer behind a dead network.
    if heartbeat_s and hasattr(socket, "TCP_USER_TIMEOUT"):
        return {"TCP_USER_TIMEOUT": int(heartbeat_s * 1500)}
    return None


def _heartbeat(value: float | None) -> int:
    if value is None:
        return 0
    if isinstance(value, bool) or not 0 <= value <= 65535:
        raise ImproperlyConfigured(f"expected broker_heartbeat to be seconds from 0 to 65535, got: {value!r}")
    # The protocol carries whole seconds; half a second must not become "no heartbeats".
    return max(1, round(value)) if value else 0


def _with_query(url: str, parts: SplitResult, wish: _Wish) -> _Wish:
    table: dict[str, Any] = {}
    for key, value in parse_qsl(parts.query, keep_blank_values=True):
        if key not in _QUERY_NAMES:
            near = difflib.get_close_matches(key, _QUERY_NAMES, n=1)
            known = f"known are {', '.join(_QUERY_NAMES[:5])} and TLS options"
            hint = f" (did you mean {near[0]!r}?)" if near else f"; {known}"
            raise _bad(url, f"its parameter {key!r} is not known{hint}", encode=False)
        if key == "heartbeat":
            wish = replace(wish, heartbeat_s=_heartbeat(_number(url, key, value)))
        elif key == "connection_timeout":
            # Milliseconds, as in RabbitMQ's specification of AMQP URIs.
            wish = replace(wish, connection_timeout_s=max(_number(url, key, value), 1.0) / 1000)
        elif key == "blocked_connection_timeout":
            wish = replace(wish, blocked_timeout_s=_number(url, key, value))
        elif key in ("auth_mechanism", "login_method"):
            wish = replace(wish, login_method=value)
        else:
            table[_TLS_NAMES[key.removeprefix("ssl_")]] = value
    if not table:
        return wish
    if wish.tls is None and not SCHEMES[parts.scheme.lower()]:
        given = ", ".join(sorted(table))
        raise _bad(url, f"it gives TLS options ({given}) but does not use TLS: write amqps://", encode=False)
    return replace(wish, tls={**(wish.tls or {}), **table})


def _number(url: str, key: str, value: str) -> float:
    try:
        number = float(value)
    except ValueError:
        number = -1.0
    if not 0 <= number < 1e9:
        raise _bad(url, f"expected its parameter {key!r} to be a number of 0 or more, got: {value!r}", encode=False)
    return number


def _tls_table(ssl: bool | Mapping[str, Any] | None) -> dict[str, Any] | None:
    if not isinstance(ssl, Mapping):
        return {} if ssl else None
    table = {}
    for key, value in ssl.items():
        name = _TLS_NAMES.get(str(key).removeprefix("ssl_"))
        if name is None:
            near = difflib.get_close_matches(str(key), _TLS_NAMES, n=1)
            hint = f"did you mean {near[0]!r}?" if near else f"known are {', '.join(_TLS_NAMES)}"
            raise ImproperlyConfigured(f"broker_use_ssl has no option {key!r} ({hint})")
        table[name] = value
    return table


def _tls_context(table: Mapping[str, Any]) -> tls.SSLContext:
    """Make a verifying context; weaker only where ``cert_reqs`` or ``check_hostname`` say so.

    Raises:
        ValueError: An option cannot be used.
    """
    import ssl as tls

    reqs = tls.VerifyMode(_cert_reqs(table.get("cert_reqs")))
    try:
        context = tls.create_default_context(cafile=table.get("ca_certs"))
    except OSError as error:
        raise ValueError(f"the certificates in ca_certs={table.get('ca_certs')!r} cannot be loaded: {error}") from error
    context.check_hostname = reqs is tls.CERT_REQUIRED and _flag(table.get("check_hostname", True))
    context.verify_mode = reqs
    if table.get("ciphers"):
        try:
            context.set_ciphers(table["ciphers"])
        except tls.SSLError as error:
            raise ValueError(f"no cipher of ciphers={table['ciphers']!r} can be used: {error}") from error
    certfile, keyfile = table.get("certfile"), table.get("keyfile")
    if keyfile and not certfile:
        raise ValueError(f"keyfile={keyfile!r} is given without certfile")
    if certfile:
        try:
            # A password function, even a useless one, keeps OpenSSL from asking for it on the terminal.
            context.load_cert_chain(certfile, keyfile, password=lambda: table.get("password") or "")
        except OSError as error:
            raise ValueError(
                f"the certificate in certfile={certfile!r} (keyfile={keyfile!r}) cannot be loaded: {error}"
            ) from error
    return context


def _cert_reqs(value: object) -> int:
    if value is None:
        return 2
    if isinstance(value, str) and value.lower() in _CERT_REQS:
        return _CERT_REQS[value.lower()]
    if isinstance(value, int) and not isinstance(value, bool) and value in (0, 1, 2):
        return int(value)
    raise ValueError(f"expected cert_reqs to be 'none', 'optional' or 'required', got: {value!r}")


def _flag(value: object) -> bool:
    return value.lower() not in ("0", "no", "off", "false", "") if isinstance(value, str) else bool(value)


def _bad(url: str, why: str, *, encode: bool = True) -> ImproperlyConfigured:
    text = f"the broker URL {mask_url(url)!r} cannot be used: {why}"
    if encode:
        text += ". In a user's name, password or virtual host write @ : / ? # % as %40 %3A %2F %3F %23 %25"
    return ImproperlyConfigured(text)
