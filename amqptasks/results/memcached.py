"""Results in memcached: ``cache+memcached://host:11211``, several servers with ``;`` between them, or a socket's path.

Keys and values are Celery's, so that workers and callers of both can share the servers; a success is never overwritten.
What is done in the servers is in `memcached_servers.py`, imported with the first use.
"""

from __future__ import annotations

import importlib.util
import logging
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, Final, cast

from amqptasks.exceptions import ImproperlyConfigured
from amqptasks.results.backend import ResultBackend
from amqptasks.results.keyvalue import Keys
from amqptasks.results.memory import MemoryBackend
from amqptasks.results.payload import Payloads
from amqptasks.results.polled import Store, StoreBackend
from amqptasks.results.registry import BackendApp
from amqptasks.results.retries import StoreRetries
from amqptasks.urls import mask_url
from amqptasks.wire.reprs import printable

if TYPE_CHECKING:
    from amqptasks.results.memcached_servers import Servers

__all__ = ["MemcachedBackend", "from_app"]

logger = logging.getLogger(__name__)

#: Schemes of Celery's. All of them are pymemcache there too.
SCHEMES: Final = ("memcache", "memcached", "pylibmc", "pymemcache")
_SERVERS: Final = ";"
#: Options that Celery takes and that do nothing here: of pylibmc, and of pymemcache's own retries.
_IDLE: Final = (
    "behaviors", "binary", "retry_attempts", "retry_delay", "retry_for", "do_not_retry_for", "default_noreply"
)  # fmt: skip


def from_app(url: str, app: BackendApp) -> ResultBackend:
    """Make the backend that the settings ask for; ``url`` is what follows ``cache+``; empty: ``cache_backend``."""
    conf = app.conf
    url = url.removeprefix("cache://") or conf.cache_backend or ""
    scheme = url.partition("://")[0]
    if scheme == "memory":
        return MemoryBackend(conf.result_cache_max)
    if scheme not in SCHEMES:
        raise ImproperlyConfigured(
            "expected the result backend cache+memcached://host:11211 or cache+memory://, or one of the two in "
            f"cache_backend, got: {mask_url(f'cache+{url}' if url else 'cache')}"
        )
    options = conf.cache_backend_options or {}
    idle = sorted(set(_IDLE) & set(options))
    if idle:
        logger.warning("cache_backend_options: %s has no effect", ", ".join(idle))
    return MemcachedBackend(
        url, {key: value for key, value in options.items() if key not in idle}, Keys.of(conf),
        Payloads.of(conf, app.limits()), StoreRetries.of(conf), conf.result_expires,
        conf.result_expires if conf.result_chord_expires is None else conf.result_chord_expires,
    )  # fmt: skip


class MemcachedBackend(StoreBackend):
    """A result store in memcached. Safe from any thread; a forked child opens connections of its own.

    Args:
        url: Without ``cache+``.
        options: Of pymemcache's clients.
        expires_s: How long results are kept; None or 0 for ever, or until memcached needs their place.
        chord_expires_s: The same for what counts the parts of a chord of Celery's.

    Raises:
        ImproperlyConfigured: No server is named, or pymemcache is not installed.
    """

    # memcached forgets what has expired.
    cleans_up = False
    counts_chords = True
    joins_stored = True

    def __init__(
        self, url: str, options: Mapping[str, Any] | None = None, keys: Keys | None = None,
        payloads: Payloads | None = None, retries: StoreRetries | None = None, expires_s: float | None = 86_400.0,
        chord_expires_s: float | None = 86_400.0,
    ) -> None:  # fmt: skip
        self._servers = [each for each in url.partition("://")[2].rstrip("/").split(_SERVERS) if each]
        if not self._servers:
            raise ImproperlyConfigured(f"the result backend cache+{mask_url(url)} names no server")
        if importlib.util.find_spec("pymemcache") is None:
            raise ImproperlyConfigured(
                f"the result backend {self.as_uri()} needs pymemcache: pip install 'amqptasks[memcached]'"
            )
        self._options = dict(options or {})
        self._keys = keys or Keys()
        self._payloads = payloads or Payloads()
        self._expires_s = expires_s
        self._chord_expires_s = chord_expires_s
        super().__init__(retries)

    def open(self) -> Store:
        """Make the clients, without connecting."""
        from amqptasks.results.memcached_servers import Servers

        return Servers(
            self._servers, self._options, self._keys, self._payloads, (self._expires_s, self._chord_expires_s),
            self.as_uri(),
        )  # fmt: skip

    def as_uri(self) -> str:
        """Return the URL. There are no passwords."""
        return mask_url(f"cache+memcached://{_SERVERS.join(self._servers)}/")

    # -- chords of Celery's kind

    def begin_chord(self, group_id: str, size: int, plain: Any, *, is_nested: bool, is_again: bool) -> None:
        """Write what Celery's and our workers count by."""
        del size, is_nested
        what = f"begin chord {printable(group_id, 64)}"
        self._write(what, lambda store: cast("Servers", store).begin_chord(group_id, plain, is_again), brief=False)

    def count_part(
        self, group_id: str, task_id: str, index: int | None, state: str, value: Any, size: int | None = None
    ) -> bool:
        """Count the end of a part as Celery does, trying again as for results. Its result must be stored."""
        del state, value
        what = f"count task {printable(task_id, 64)} in its chord"
        return self._write(
            what, lambda store: cast("Servers", store).count_part(group_id, task_id, index, size), brief=False
        )

    # -- errors

    def may_pass(self, error: Exception, retry: int) -> bool:
        """Whether trying again may help."""
        from amqptasks.results.memcached_servers import may_pass

        del retry
        return may_pass(error)

    def is_refused(self, error: BaseException) -> bool:
        """Whether a key or a value is none for memcached."""
        from amqptasks.results.memcached_servers import is_refused

        return is_refused(error)

    def reason(self, error: BaseException) -> str:
        """Say why in one line."""
        from amqptasks.results.memcached_servers import shown

        return super().reason(Exception(shown(error)))
