"""Results in a Django project's own database: ``django-db``.

The tables are those of the Django app ``amqptasks.contrib.django``, or of django-celery-results where a project has
that one alone: workers and callers of both then share it. What is done there is in `django_rows.py`, imported with the
first use.
"""

from __future__ import annotations

import importlib.util
from typing import TYPE_CHECKING

from amqptasks.exceptions import ImproperlyConfigured
from amqptasks.results.payload import Payloads
from amqptasks.results.polled import StoreBackend
from amqptasks.results.registry import BackendApp
from amqptasks.results.retries import StoreRetries

if TYPE_CHECKING:
    from amqptasks.results.django_rows import Rows

__all__ = ["DjangoDatabaseBackend", "from_app", "needs_django"]


def from_app(url: str, app: BackendApp) -> DjangoDatabaseBackend:
    """Make the backend that the settings ask for."""
    del url
    conf = app.conf
    payloads = Payloads.of(conf, app.limits())
    return DjangoDatabaseBackend(payloads, StoreRetries.of(conf), conf.result_expires, conf.result_serializer)


def needs_django(name: str) -> None:
    """Refuse a backend where there is no Django.

    Raises:
        ImproperlyConfigured: It is not installed.
    """
    if importlib.util.find_spec("django") is None:
        raise ImproperlyConfigured(f"the result backend {name} needs Django: pip install 'amqptasks[django]'")


class DjangoDatabaseBackend(StoreBackend):
    """A result store in two tables of a Django project. Safe from any thread, and in forked children.

    Args:
        expires_s: How long results are kept after they were stored; None or 0 for ever.
        serializer: The one that ``payloads`` writes with: rows name its content type.

    Raises:
        ImproperlyConfigured: Django is not installed.
    """

    def __init__(
        self, payloads: Payloads | None = None, retries: StoreRetries | None = None,
        expires_s: float | None = 86_400.0, serializer: str = "json",
    ) -> None:  # fmt: skip
        needs_django("django-db")
        self._payloads = payloads or Payloads()
        self._expires_s = expires_s
        self._serializer = serializer
        super().__init__(retries)

    def open(self) -> Rows:
        """Find the tables' models."""
        from amqptasks.results.django_rows import Rows

        return Rows(self._payloads, self._expires_s, self._serializer)

    def as_uri(self) -> str:
        """Return its name."""
        return "django-db://"

    def may_pass(self, error: Exception, retry: int) -> bool:
        """Whether the database was away or busy."""
        from amqptasks.results.django_rows import may_pass

        return may_pass(error)

    def is_refused(self, error: BaseException) -> bool:
        """Whether the database takes no such value, now or ever."""
        from amqptasks.results.django_rows import is_refused

        return is_refused(error)
