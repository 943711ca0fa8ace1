"""Which brokers an app connects to: its URLs for reading and for writing, and the order in which they are tried."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from amqptasks.app.discovery import named_object
from amqptasks.exceptions import ImproperlyConfigured
from amqptasks.settings import Conf, broker_urls

if TYPE_CHECKING:
    # Comes in with the first connection: a program that only defines tasks should not pay for pika.
    from amqptasks.broker.failover import Brokers, Strategy

__all__ = ["brokers_of"]


def brokers_of(conf: Conf, name: str, *, reads: bool) -> Brokers:
    """Return the brokers for one connection, which RabbitMQ is to know by ``name``.

    Args:
        reads: It consumes tasks, from `broker_read_url`. All else goes over `broker_write_url`.

    Raises:
        ImproperlyConfigured: A URL, a TLS option or the strategy cannot be used.
    """
    from amqptasks.broker.failover import Brokers
    from amqptasks.broker.parameters import endpoints

    urls = broker_urls(conf, "broker_read_url" if reads else "broker_write_url")
    made = endpoints(
        urls,
        heartbeat_s=conf.broker_heartbeat,
        connection_timeout_s=conf.broker_connection_timeout,
        ssl=conf.broker_use_ssl,
        login_method=conf.broker_login_method,
        name=name,
    )
    return Brokers.of(made, urls, _strategy(conf.broker_failover_strategy))


def _strategy(given: Any) -> Strategy:
    from amqptasks.broker.failover import STRATEGIES

    known = STRATEGIES.get(given or "round-robin") if isinstance(given, (str, type(None))) else None
    strategy = known or (named_object(given, "broker_failover_strategy") if isinstance(given, str) else given)
    if not callable(strategy):
        raise ImproperlyConfigured(f"expected broker_failover_strategy to name a function, got: {strategy!r}")
    found: Strategy = strategy
    return found
