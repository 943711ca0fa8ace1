"""A very small HTTP server on the worker's loop, for probes and for what collects metrics: `worker --http`.

It answers GET, one request a connection, and trusts nobody: requests are bounded in size and time, visitors in number.
It never waits: what a visitor does not take is kept until he does or his time is over. Pages are made when they are
asked for, on the loop's thread, so they must be cheap. Since it lives on the loop, a loop that hangs does not answer.
"""

from __future__ import annotations

import contextlib
import errno
import logging
import os
import socket
import weakref
from collections.abc import Callable, Mapping
from http import HTTPStatus
from typing import TYPE_CHECKING, Any, Final

from amqptasks.exceptions import ImproperlyConfigured

if TYPE_CHECKING:
    from amqptasks.broker.declarer import Declarer
    from amqptasks.broker.link import Connection
    from amqptasks.broker.loop import Loop

__all__ = ["Page", "StatusServer"]

logger = logging.getLogger(__name__)

#: What a page is: its status, its content type, its text.
Page = tuple[HTTPStatus, str, str]

#: No request is longer than this: that of a probe has some 100 bytes.
MAX_REQUEST: Final = 8192
#: A visitor has so long to ask, and to take what he gets. Seconds.
PATIENCE_S: Final = 5.0
MAX_VISITORS: Final = 16
#: How long nobody is let in after there was no descriptor for a visitor, seconds.
PAUSE_S: Final = 1.0
TEXT: Final = "text/plain; charset=utf-8"


class StatusServer:
    """Answers over HTTP: a `Service`. Belongs to the loop's thread.

    Args:
        host, port: Where to listen; port 0 takes a free one, see `address`.
        pages: What makes each page, by its path.

    Raises:
        ImproperlyConfigured: It cannot listen there.
    """

    def __init__(self, loop: Loop, host: str, port: int, pages: Mapping[str, Callable[[], Page]]) -> None:
        self._loop = loop
        self._pages = dict(pages)
        self._visitors: set[_Visitor] = set()
        try:
            family, _kind, _protocol, _name, where = socket.getaddrinfo(
                host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE
            )[0]
            self._socket = socket.create_server(where[:2], family=family, backlog=MAX_VISITORS)
        except OSError as error:
            why = error.strerror if isinstance(error, socket.gaierror) else os.strerror(error.errno or 0)
            raise ImproperlyConfigured(f"cannot listen on {host}:{port}: {why}") from error
        self._socket.setblocking(False)
        #: Where it listens.
        self.address: tuple[str, int] = self._socket.getsockname()[:2]
        self._is_listening = False
        self._listen()
        _forget_in_children(self)
        logger.info("Listening on http://%s:%d", *self.address)

    def _listen(self) -> None:
        if self._socket.fileno() >= 0 and not self._is_listening:
            self._is_listening = True
            self._loop.add_handler(self._socket.fileno(), self._on_visit, self._loop.READ)

    def _ignore(self) -> None:
        if self._is_listening:
            self._is_listening = False
            self._loop.remove_handler(self._socket.fileno())

    def _on_visit(self, _fd: int, _events: int) -> None:
        try:
            sock, _address = self._socket.accept()
        except BlockingIOError:
            return
        except OSError as error:
            if error.errno in (errno.EMFILE, errno.ENFILE, errno.ENOBUFS, errno.ENOMEM):
                # He still waits, and the loop would turn for him without end.
                self._ignore()
                self._loop.call_later(PAUSE_S, self._listen)
            return
        if len(self._visitors) >= MAX_VISITORS:
            sock.close()
            return
        sock.setblocking(False)
        self._visitors.add(_Visitor(self._loop, sock, self.answer, self._visitors.discard))

    def answer(self, request: bytes) -> bytes:
        """Return the whole answer to a request, of which the head is here."""
        line = request.split(b"\r\n", 1)[0].decode("latin-1")
        words = line.split(" ")
        extra = ""
        if len(words) != 3 or not words[2].startswith("HTTP/1."):
            page: Page = HTTPStatus.BAD_REQUEST, TEXT, "expected a request of HTTP/1.1\n"
        elif words[0] != "GET":
            page, extra = (HTTPStatus.METHOD_NOT_ALLOWED, TEXT, "expected GET\n"), "Allow: GET\r\n"
        else:
            make = self._pages.get(words[1].split("?", 1)[0])
            page = HTTPStatus.NOT_FOUND, TEXT, f"expected one of {', '.join(self._pages)}\n"
            if make is not None:
                page = _made(make)
        status, kind, text = page
        body = text.encode("utf-8", "replace")
        head = (
            f"HTTP/1.1 {status.value} {status.phrase}\r\nContent-Type: {kind}\r\nContent-Length: {len(body)}\r\n"
            f"Cache-Control: no-store\r\nX-Content-Type-Options: nosniff\r\n{extra}Connection: close\r\n\r\n"
        )
        return head.encode() + body

    def forget(self) -> None:
        """Close this process's copies, in a forked child whose parent goes on."""
        self._socket.close()
        for visitor in self._visitors:
            visitor.forget()

    # -- the service

    def up(self, connection: Connection, declarer: Declarer, version: tuple[int, ...] | None) -> None:
        """Nothing: pages are made when they are asked for."""

    def down(self, reason: str) -> None:
        """Nothing, as `up`."""

    def ready(self) -> None:
        """Nothing: it listens from the start."""

    def stopping(self) -> None:
        """Nothing: it listens to the end."""

    def close(self) -> None:
        """Answer no more."""
        self._ignore()
        self._socket.close()
        for visitor in list(self._visitors):
            visitor.close()


class _Visitor:
    """One connection: a request, its answer, the end."""

    def __init__(
        self, loop: Loop, sock: socket.socket, answer: Callable[[bytes], bytes], gone: Callable[[_Visitor], None]
    ) -> None:
        self._loop = loop
        self._socket = sock
        self._answer = answer
        self._gone = gone
        self._request = b""
        self._left: memoryview | None = None
        loop.add_handler(sock.fileno(), self._on_event, loop.READ)
        self._timer: Any = loop.call_later(PATIENCE_S, self.close)

    def _on_event(self, _fd: int, _events: int) -> None:
        try:
            if self._left is None:
                self._read()
            if self._left is not None:
                self._write()
        except BlockingIOError:
            pass  # later
        except OSError:
            self.close()

    def _read(self) -> None:
        part = self._socket.recv(MAX_REQUEST)
        self._request += part
        if b"\r\n\r\n" in self._request:
            self._left = memoryview(self._answer(self._request))
            self._loop.update_handler(self._socket.fileno(), self._loop.WRITE)
        elif not part or len(self._request) > MAX_REQUEST:
            self.close()

    def _write(self) -> None:
        assert self._left is not None
        self._left = self._left[self._socket.send(self._left) :]
        if not self._left:
            self._socket.shutdown(socket.SHUT_WR)
            self.close()

    def close(self) -> None:
        """End it. Safe twice."""
        if self._socket.fileno() >= 0:
            self._loop.remove_timeout(self._timer)
            self._loop.remove_handler(self._socket.fileno())
            self._socket.close()
            self._gone(self)

    def forget(self) -> None:
        """Close this process's copy."""
        with contextlib.suppress(OSError):
            self._socket.close()


def _made(make: Callable[[], Page]) -> Page:
    try:
        return make()
    except Exception:
        logger.exception("A page of the status server cannot be made")
        return HTTPStatus.INTERNAL_SERVER_ERROR, TEXT, "the page cannot be made; the worker's log says why\n"


def _forget_in_children(server: StatusServer) -> None:
    """Let no child hold the port, or a visitor, when its parent has gone."""
    reference = weakref.ref(server)

    def forget() -> None:
        made = reference()
        if made is not None:
            made.forget()

    os.register_at_fork(after_in_child=forget)
