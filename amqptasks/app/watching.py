"""What an app has for watching: events, and connections to hear them by."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import cached_property
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    # With the first use: most programs watch nothing.
    from amqptasks.app.events import Events
    from amqptasks.broker.listener import Listener
    from amqptasks.broker.parameters import Endpoint
    from amqptasks.settings import Conf


class Watching:
    """A part of `App`."""

    if TYPE_CHECKING:

        @property
        def conf(self) -> Conf:
            """The settings."""

        def endpoints(self, purpose: str, *, reads: bool = False) -> tuple[Endpoint, ...]:
            """The brokers to connect to."""

    #: Where a worker runs tasks: sends an event of the running task; False if none of it runs here.
    event_reporter: Callable[[str, Mapping[str, Any]], bool] | None = None

    @cached_property
    def events(self) -> Events:
        """Events of tasks and workers: to be received, kept as a state, or sent."""
        from amqptasks.app.events import Events

        return Events(self)

    # -- connections

    def connection(self, hostname: str | None = None, **_options: Any) -> Listener:
        """Make a connection of the caller's own to the broker, such as an event receiver wants; it opens when needed.

        It serves for hearing events, and to look at queues; tasks are sent without one.

        Args:
            hostname: Another broker's URL.
        """
        return self.connection_for_write(hostname)

    def connection_for_write(self, url: str | None = None, **_options: Any) -> Listener:
        """Make a connection to the broker that tasks are sent to, as `connection`."""
        return self._listener(url, reads=False)

    def connection_for_read(self, url: str | None = None, **_options: Any) -> Listener:
        """Make a connection to the broker that tasks are consumed from, as `connection`."""
        return self._listener(url, reads=True)

    def _listener(self, url: str | None, *, reads: bool) -> Listener:
        from amqptasks.broker.listener import Listener

        if url is None:
            return Listener(self.endpoints("connection", reads=reads))
        from amqptasks.broker.parameters import endpoints

        conf = self.conf
        return Listener(
            endpoints(
                [url], heartbeat_s=conf.broker_heartbeat, connection_timeout_s=conf.broker_connection_timeout,
                name="amqptasks connection",
            )
        )  # fmt: skip

    def tell_event(self, type: str, fields: Mapping[str, Any], hostname: str | None = None) -> None:
        """Send an event: through the worker where one runs this, else over the program's own connection.

        Nobody waits for it, and it is lost where the broker cannot be reached.

        Raises:
            EncodeError: A field cannot be serialized.
        """
        if self.event_reporter is None or not self.event_reporter(type, fields):
            self.events.tell(type, fields, hostname)
