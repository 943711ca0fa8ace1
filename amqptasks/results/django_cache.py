"""Results in one of a Django project's caches: ``django-cache``, and the cache's name in ``cache_backend``.

Keys and values are those of django-celery-results, so that both can share a cache. What is done there is in
`django_values.py`, imported with the first use.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from amqptasks.results.django_db import needs_django
from amqptasks.results.keyvalue import Keys
from amqptasks.results.payload import Payloads, accepted_results
from amqptasks.results.polled import StoreBackend
from amqptasks.results.registry import BackendApp
from amqptasks.results.retries import StoreRetries

if TYPE_CHECKING:
    from amqptasks.results.django_values import Values

__all__ = ["DjangoCacheBackend", "from_app"]


def from_app(url: str, app: BackendApp) -> DjangoCacheBackend:
    """Make the backend that the settings ask for."""
    del url
    conf = app.conf
    # Caches keep objects, and compress them as they like.
    payloads = Payloads(conf.result_serializer, accepted_results(conf), app.limits())
    return DjangoCacheBackend(
        conf.cache_backend or "default", payloads, StoreRetries.of(conf), conf.result_expires, Keys.of(conf)
    )


class DjangoCacheBackend(StoreBackend):
    """A result store in a cache of a Django project. Safe from any thread, and in forked children.

    Args:
        name: The cache's, in Django's ``CACHES``.
        expires_s: How long results are kept after they were stored; None or 0 for as long as the cache likes.

    Raises:
        ImproperlyConfigured: Django is not installed.
    """

    compresses = False
    cleans_up = False

    def __init__(
        self, name: str = "default", payloads: Payloads | None = None, retries: StoreRetries | None = None,
        expires_s: float | None = 86_400.0, keys: Keys | None = None,
    ) -> None:  # fmt: skip
        needs_django("django-cache")
        self._name = name
        self._payloads = payloads or Payloads()
        self._expires_s = expires_s
        self._keys = keys or Keys()
        super().__init__(retries)

    def open(self) -> Values:
        """Find the cache."""
        from amqptasks.results.django_values import Values

        return Values(self._name, self._payloads, self._keys, self._expires_s)

    def as_uri(self) -> str:
        """Return its name, and the cache's."""
        return f"django-cache://{self._name}"

    def may_pass(self, error: Exception, retry: int) -> bool:
        """Whether the cache was away: unless a value is at fault, that is what its errors mean."""
        return not self.is_refused(error)

    def is_refused(self, error: BaseException) -> bool:
        """Whether the cache takes no such key or value, now or ever."""
        from amqptasks.results.django_values import is_refused

        return is_refused(error)
