"""Result backends by URL: which class keeps results at ``redis://``, ``db+sqlite://`` or a user's own scheme.

A backend is named by what stands before ``://``, or before ``+`` where the rest is a URL of its own. Names are looked
up in the ``override_backends`` setting, then here, then among the entry points ``amqptasks.result_backends`` of what
is installed. A dotted path (``module:Class``) names a class directly. Whatever is found is called with (url, app).
"""

from __future__ import annotations

import importlib
import logging
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any, Final, Protocol

from amqptasks.exceptions import ImproperlyConfigured
from amqptasks.results.backend import DisabledBackend, ResultBackend
from amqptasks.urls import mask_url

if TYPE_CHECKING:
    from amqptasks.broker.loop import LoopThread
    from amqptasks.broker.parameters import Endpoint
    from amqptasks.wire.serializers import Limits

__all__ = ["ENTRY_POINTS", "BackendApp", "BackendFactory", "make_backend", "resolve"]

logger = logging.getLogger(__name__)

#: The group of entry points that add backends: ``name = module:Class`` in a package's metadata.
ENTRY_POINTS: Final = "amqptasks.result_backends"

# Paths, not classes: a backend's libraries are imported by those who use it.
_BUILT_IN: Final[Mapping[str, str]] = {
    "rpc": "amqptasks.results.rpc:from_app",
    "memory": "amqptasks.results.memory:from_app",
    "cache": "amqptasks.results.memcached:from_app",
    "db": "amqptasks.results.database:from_app",
    "database": "amqptasks.results.database:from_app",
    "django-cache": "amqptasks.results.django_cache:from_app",
    "django-db": "amqptasks.results.django_db:from_app",
    "file": "amqptasks.results.files:from_app",
    "filesystem": "amqptasks.results.files:from_app",
    "mongodb": "amqptasks.results.mongodb:from_app",
    "redis": "amqptasks.results.redis:from_app",
    "rediss": "amqptasks.results.redis:from_app",
    "sentinel": "amqptasks.results.redis:from_app",
}
_DISABLED: Final = "disabled"


class BackendApp(Protocol):
    """What backends may ask of the app."""

    @property
    def conf(self) -> Any:
        """The settings."""

    @property
    def tasks(self) -> Mapping[str, Any]:
        """The registered tasks."""

    @property
    def thread(self) -> LoopThread:
        """The background thread of the process's connections to the broker."""

    def endpoints(self, purpose: str) -> tuple[Endpoint, ...]:
        """Return the brokers to connect to."""

    def limits(self) -> Limits:
        """Return the limits on what is decoded."""


#: Makes a backend of its URL (what follows ``name+``, else all of it; empty if the setting is a bare name) and the app.
BackendFactory = Callable[[str, BackendApp], ResultBackend]


def make_backend(setting: Any, app: BackendApp) -> ResultBackend:
    """Make the backend that ``result_backend`` asks for.

    Args:
        setting: A URL, a name, a dotted path, a class, or a `ResultBackend` itself; None for no results.

    Raises:
        ImproperlyConfigured: There is no such backend, or it cannot be made.
    """
    if isinstance(setting, ResultBackend):
        return setting
    name, url = _parts(setting) if isinstance(setting, str) else ("", "")
    if setting is None or name == _DISABLED:
        return DisabledBackend()
    factory = _factory(name, setting, app.conf) if name else setting
    if not callable(factory):
        raise ImproperlyConfigured(f"expected a result backend, its class or its URL, got: {factory!r:.80}")
    _check(factory, url, app)
    backend = factory(url, app)
    if not isinstance(backend, ResultBackend):
        raise ImproperlyConfigured(
            f"expected the result backend {mask_url(setting)} to be a subclass of "
            f"amqptasks.results.backend.ResultBackend, got: {type(backend).__name__}"
        )
    if app.conf.result_compression and not backend.compresses:
        logger.warning("result_compression has no effect on the result backend %s", backend.as_uri())
    if app.conf.result_failure_expires is not None and not backend.expires_failures:
        logger.warning("result_failure_expires has no effect on the result backend %s", backend.as_uri())
    return backend


def _check(factory: Any, url: str, app: BackendApp) -> None:
    """Refuse what can be seen to make no backend, before it is called."""
    if not isinstance(factory, type) and getattr(factory, "__module__", "").startswith("amqptasks."):
        # Ours: nothing more need be imported to know that.
        return
    import inspect

    name = f"{factory.__module__}:{factory.__qualname__}" if isinstance(factory, type) else repr(factory)
    if isinstance(factory, type) and not issubclass(factory, ResultBackend):
        theirs = any(each.__module__.startswith("celery.") for each in factory.__mro__)
        hint = "; Celery's backends speak to Celery's app, and cannot be used here" if theirs else ""
        raise ImproperlyConfigured(
            f"expected the result backend {name} to be a subclass of amqptasks.results.backend.ResultBackend{hint}"
        )
    missing = sorted(getattr(factory, "__abstractmethods__", ()))
    if missing:
        raise ImproperlyConfigured(f"the result backend {name} lacks {', '.join(missing)}")
    try:
        inspect.signature(factory).bind(url, app)
    except TypeError as error:
        raise ImproperlyConfigured(
            f"expected the result backend {name} to be made with its URL and the app, as {name.rpartition(':')[2]}"
            f"(url, app): {error}"
        ) from error
    except ValueError:
        # Of some things written in C nobody can say.
        return


def _parts(setting: str) -> tuple[str, str]:
    """Split the backend's name from the URL that it gets."""
    scheme, found, _rest = setting.partition("://")
    name, plus, _rest = scheme.partition("+")
    if not found:
        return setting.strip(), ""
    return name, setting[len(name) + 1 :] if plus else setting


def _factory(name: str, setting: str, conf: Any) -> Any:
    overrides = conf.override_backends or {}
    target = overrides.get(name, _BUILT_IN.get(name))
    if target is not None:
        return resolve(target, f"the result backend {name!r}") if isinstance(target, str) else target
    if ":" in name or "." in name:
        return resolve(name, "result_backend")
    installed = _installed()
    if name in installed:
        return _loaded(name, installed[name])
    raise ImproperlyConfigured(_unknown(name, setting, {*overrides, *_BUILT_IN, _DISABLED, *installed}))


def _installed() -> dict[str, Any]:
    # Only asked for names that are not known: it reads the metadata of everything installed.
    from importlib.metadata import entry_points

    return {each.name: each for each in entry_points(group=ENTRY_POINTS)}


def _loaded(name: str, entry_point: Any) -> Any:
    try:
        return entry_point.load()
    except (ImportError, AttributeError) as error:
        raise ImproperlyConfigured(
            f"the result backend {name!r} is installed as {entry_point.value!r} and cannot be loaded: {error}"
        ) from error


def _unknown(name: str, setting: str, known: set[str]) -> str:
    import difflib

    near = difflib.get_close_matches(name.partition("+")[0].lower(), known, n=1)
    hint = f"did you mean {near[0]!r}? " if near else ""
    return (
        f"unknown result backend {mask_url(setting)!r}: {hint}expected one of {', '.join(sorted(known))}, or "
        "the 'module:Class' of your own"
    )


def resolve(path: str, what: str) -> Any:
    """Import what a dotted path names, ``module:name`` or ``module.name``.

    Args:
        what: What the path was given for, for errors.

    Raises:
        ImproperlyConfigured: There is no such thing.
    """
    module, found, name = path.partition(":")
    if not found:
        module, _, name = path.rpartition(".")
    try:
        target: Any = importlib.import_module(module) if module else None
        for part in name.split("."):
            target = getattr(target, part)
    except (ImportError, AttributeError, ValueError) as error:
        raise ImproperlyConfigured(
            f"expected {what} to be a path such as 'package.module:name' that can be imported, got: {path!r} ({error})"
        ) from error
    return target
