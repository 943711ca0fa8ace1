"""Hearing events for a command: until it ends, over as many connections as it takes."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING, Any

from amqptasks.broker.link import Backoff
from amqptasks.exceptions import OperationalError

if TYPE_CHECKING:
    from amqptasks.app.app import App
    from amqptasks.broker.listener import Listener

__all__ = ["heard"]


def heard(
    app: App, handler: Callable[[dict[str, Any]], Any], *, on_lost: Callable[[OperationalError], None],
    on_up: Callable[[Listener], None] = lambda connection: None, every_s: float = 1.0,
) -> Iterator[None]:  # fmt: skip
    """Hand every event to a function, for ever; gives control back every ``every_s`` seconds, and after each burst.

    Args:
        on_lost: Told when the connection is lost, and after each attempt to connect again that failed.
        on_up: Called with each connection once events come over it.

    Raises:
        OperationalError: There is no connection from the start, or the broker refuses.
    """
    receiver = app.events.Receiver(handlers={"*": handler})
    failures = 0
    with app.connection_for_read() as connection:
        connection.connect()
        is_first = True
        while True:
            try:
                receiver.open(connection)
                is_first, failures = False, 0
                on_up(connection)
                while True:
                    connection.wait(every_s)
                    while receiver.handle_next(connection):
                        pass
                    yield
            except OperationalError as error:
                if is_first:
                    raise
                on_lost(error)
            failures += 1
            for _ in connection.pauses(Backoff().delay_s(failures), every_s):
                yield
