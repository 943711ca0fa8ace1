"""Broker URLs, turned into what pika needs to connect, and into labels without passwords.

Every connection of the package is made from an `Endpoint`: deadlines, heartbeats, TLS and names are decided here, once.
pika and ssl are imported when an endpoint is made, not before: a program that only defines tasks needs neither.
"""

from __future__ import annotations

import difflib
import socket
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any, Final
from urllib.parse import SplitResult, parse_qsl, quote, unquote, urlsplit

from amqptasks._version import __version__
from amqptasks.broker.tls import OPTIONS, Tls, read_setting, with_options
from amqptasks.exceptions import ImproperlyConfigured
from amqptasks.urls import mask_url

if TYPE_CHECKING:
    import pika

__all__ = ["Endpoint", "endpoints"]

#: Scheme -> whether it means TLS. `pyamqp` and `librabbitmq` are kombu's names of transports for the same protocol.
SCHEMES: Final = {"amqp": False, "amqps": True, "pyamqp": False, "pyamqps": True, "librabbitmq": False}

# A broker in an alarm tells so and then reads nothing; a connection left like that for good is a hang.
BLOCKED_CONNECTION_TIMEOUT_S: Final = 300.0

_LOGIN_METHODS: Final = {"PLAIN": "PLAIN", "AMQPLAIN": "PLAIN", "EXTERNAL": "EXTERNAL"}

_QUERY_NAMES: Final = (
    "heartbeat", "connection_timeout", "blocked_connection_timeout", "auth_mechanism", "login_method",
    *OPTIONS, *(f"ssl_{name}" for name in OPTIONS),
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
    tls: Tls | None
    name: str


def endpoints(
    urls: Sequence[str],
    *,
    heartbeat_s: float | None,
    connection_timeout_s: float,
    ssl: Any = None,
    login_method: str | None = None,
    name: str,
) -> tuple[Endpoint, ...]:
    """Turn broker URLs into endpoints, in the order in which they are to be tried.

    Args:
        heartbeat_s: Seconds between heartbeats; 0 or None for none.
        connection_timeout_s: Seconds for the TCP connection; TLS and AMQP may add half of it.
        ssl: `broker_use_ssl`: True, a mapping of ``keyfile``, ``certfile``, ``ca_certs``, ``cert_reqs`` and others, or
            an ``ssl.SSLContext``. The broker's certificate is verified unless ``cert_reqs`` says not to.
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
        tls=read_setting(ssl),
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
        wish = replace(wish, tls=Tls())
    method = _LOGIN_METHODS.get(wish.login_method.upper())
    if method is None:
        raise _bad(url, f"expected the login method PLAIN or EXTERNAL, got: {wish.login_method!r}")
    if method == "EXTERNAL" and wish.tls is None:
        raise _bad(url, "login method EXTERNAL needs TLS: use amqps:// or broker_use_ssl", encode=False)
    if method == "EXTERNAL" and wish.tls is not None and not wish.tls.may_have_certificate:
        why = "login method EXTERNAL is by a certificate of this side's: give certfile and keyfile in broker_use_ssl"
        raise _bad(url, why, encode=False)
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
            pika.SSLOptions(wish.tls.context(), wish.tls.server_hostname or host) if wish.tls is not None else None
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
            table[OPTIONS[key.removeprefix("ssl_")]] = value
    if not table:
        return wish
    if wish.tls is None and not SCHEMES[parts.scheme.lower()]:
        given = ", ".join(sorted(table))
        raise _bad(url, f"it gives TLS options ({given}) but does not use TLS: write amqps://", encode=False)
    try:
        return replace(wish, tls=with_options(wish.tls, table))
    except ValueError as error:
        given = ", ".join(sorted(table))
        raise _bad(url, f"it gives TLS options ({given}), but {error}", encode=False) from None


def _number(url: str, key: str, value: str) -> float:
    try:
        number = float(value)
    except ValueError:
        number = -1.0
    if not 0 <= number < 1e9:
        raise _bad(url, f"expected its parameter {key!r} to be a number of 0 or more, got: {value!r}", encode=False)
    return number


def _bad(url: str, why: str, *, encode: bool = True) -> ImproperlyConfigured:
    text = f"the broker URL {mask_url(url)!r} cannot be used: {why}"
    if encode:
        text += ". In a user's name, password or virtual host write @ : / ? # % as %40 %3A %2F %3F %23 %25"
    return ImproperlyConfigured(text)
