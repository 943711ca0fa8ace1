"""Results in MongoDB: ``mongodb://`` and ``mongodb+srv://``, and the options of pymongo in the URL.

The documents are Celery's, so that workers and callers of both can share a database, and a success is never
overwritten. What is done there is in `mongodb_documents.py`, imported with the first use, so that programs which only
send tasks do not pay for pymongo.
"""

from __future__ import annotations

import importlib.util
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, Final

from amqptasks.exceptions import ImproperlyConfigured
from amqptasks.results.payload import Payloads
from amqptasks.results.polled import StoreBackend
from amqptasks.results.registry import BackendApp
from amqptasks.results.retries import StoreRetries
from amqptasks.urls import mask_url

if TYPE_CHECKING:
    from amqptasks.results.mongodb_documents import Documents

__all__ = ["MongoBackend", "from_app"]

#: Keys of ``mongodb_backend_settings`` that are not options of the client.
_OWN: Final = frozenset(
    ("host", "port", "mongo_host", "user", "password", "database", "taskmeta_collection", "groupmeta_collection",
     "max_pool_size", "options")
)  # fmt: skip
#: So that nobody waits longer than that on a server that is away: without them, half a minute or for ever.
_TIMEOUTS: Final[Mapping[str, int]] = {
    "serverSelectionTimeoutMS": 5_000, "connectTimeoutMS": 5_000, "socketTimeoutMS": 30_000
}  # fmt: skip
_POOL: Final = 10


def from_app(url: str, app: BackendApp) -> MongoBackend:
    """Make the backend that the settings ask for; ``url`` may be empty, or lack its ``mongodb+``."""
    conf = app.conf
    settings = conf.mongodb_backend_settings or {}
    return MongoBackend(url, settings, Payloads.of(conf, app.limits()), StoreRetries.of(conf), conf.result_expires)


class MongoBackend(StoreBackend):
    """A result store in two collections. Safe from any thread; a forked child opens connections of its own.

    Args:
        url: pymongo's; empty for a server on this machine.
        settings: As ``mongodb_backend_settings``; they win over the URL.
        expires_s: How long results are kept after they were stored; None or 0 for ever.

    Raises:
        ImproperlyConfigured: pymongo is not installed, or a setting is of the wrong type.
    """

    def __init__(
        self, url: str = "", settings: Mapping[str, Any] | None = None, payloads: Payloads | None = None,
        retries: StoreRetries | None = None, expires_s: float | None = 86_400.0,
    ) -> None:  # fmt: skip
        self._url = _completed(url)
        if importlib.util.find_spec("pymongo") is None:
            raise ImproperlyConfigured(
                f"the result backend {mask_url(self._url)} needs pymongo: pip install 'amqptasks[mongodb]'"
            )
        self._settings = _checked(settings or {})
        self._payloads = payloads or Payloads()
        self._expires_s = expires_s
        super().__init__(retries)

    def open(self) -> Documents:
        """Make the client."""
        from amqptasks.results.mongodb_documents import Documents, Place

        settings = self._settings
        names = {key: settings[key] for key in ("database", "taskmeta_collection", "groupmeta_collection") if
                 settings.get(key)}  # fmt: skip
        place = Place(self._servers(), self._client_options(), **names)
        return Documents(place, self._payloads, self._expires_s, self.as_uri())

    def _servers(self) -> str | list[str]:
        settings = self._settings
        if settings.get("mongo_host"):
            given = settings["mongo_host"]
            return given if isinstance(given, str) else list(given)
        if "host" not in settings and "port" not in settings:
            return self._url
        host = settings.get("host", "localhost")
        if isinstance(host, str) and not host.startswith(("mongodb://", "mongodb+srv://")):
            return f"mongodb://{host}:{settings.get('port', 27017)}"
        return host if isinstance(host, str) else list(host)

    def _client_options(self) -> dict[str, Any]:
        settings = self._settings
        more = {key: value for key, value in settings.items() if key not in _OWN}
        given: dict[str, Any] = {**(settings.get("options") or {}), **more}
        if settings.get("user"):
            given["username"] = settings["user"]
        if settings.get("password"):
            given["password"] = settings["password"]
        named = {key.lower() for key in given} | _options_of(self._url)
        defaults = {**_TIMEOUTS, "maxPoolSize": settings.get("max_pool_size", _POOL)}
        if "@" in self._url or "username" in given:
            # As Celery has it: users are the server's, whatever database the URL names.
            defaults["authSource"] = "admin"
        return {**{key: value for key, value in defaults.items() if key.lower() not in named}, **given}

    def as_uri(self) -> str:
        """Return the URL without its password."""
        servers = self._servers()
        return mask_url(servers if isinstance(servers, str) and "://" in servers else f"mongodb://{_joined(servers)}")

    def may_pass(self, error: Exception, retry: int) -> bool:
        """Whether the server was away, busy, or about to change its mind."""
        from amqptasks.results.mongodb_documents import may_pass

        return may_pass(error)

    def is_refused(self, error: BaseException) -> bool:
        """Whether the server takes no such value, now or ever."""
        from amqptasks.results.mongodb_documents import is_refused

        return is_refused(error)

    def reason(self, error: BaseException) -> str:
        """Say why in one line, without a description of every server."""
        return super().reason(Exception(str(error).partition(", Timeout: ")[0]))


def _joined(servers: str | list[str]) -> str:
    return servers if isinstance(servers, str) else ",".join(servers)


def _completed(url: str) -> str:
    if not url or url == "mongodb://":
        return "mongodb://localhost"
    # ``mongodb+srv://`` comes without its beginning, which names the backend.
    return url if url.startswith("mongodb") else f"mongodb+{url}"


def _options_of(url: str) -> set[str]:
    return {each.partition("=")[0].lower() for each in url.partition("?")[2].replace(";", "&").split("&")}


def _checked(settings: Mapping[str, Any]) -> dict[str, Any]:
    for key in ("database", "taskmeta_collection", "groupmeta_collection", "user", "password"):
        if settings.get(key) is not None and not isinstance(settings[key], str):
            raise ImproperlyConfigured(
                f"expected {key!r} of mongodb_backend_settings to be a text, got: {type(settings[key]).__name__}"
            )
    options = settings.get("options")
    if options is not None and not isinstance(options, Mapping):
        raise ImproperlyConfigured(
            "expected 'options' of mongodb_backend_settings to be a mapping of options of pymongo's client, got: "
            f"{type(options).__name__}"
        )
    return dict(settings)
