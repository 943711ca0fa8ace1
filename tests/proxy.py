"""A TCP proxy that misbehaves on demand: what stands between a program and its broker in the tests of faults.

    with Proxy(broker_url) as proxy:
        app = App(broker=proxy.url)
        proxy.stall()           # nothing moves any more, in either direction
        proxy.heal()

Each verb has taken effect when it returns. Two traps were learnt the hard way (reliability.md §4). A thread that blocks
in recv() keeps a closed socket alive, and then no RST ever leaves: so one selector thread does everything here. And
without TCP_NODELAY every confirm takes 40 ms, which looks like a hang.
"""

from __future__ import annotations

import contextlib
import selectors
import socket
import struct
import threading
from collections import deque
from collections.abc import Callable
from types import TracebackType
from urllib.parse import urlsplit, urlunsplit

CHUNK = 1 << 16
#: What one direction holds back before it stops reading, bytes.
HELD = 1 << 20
ANSWER_S = 10.0
#: SO_LINGER on, for no time at all: close() sends RST instead of FIN.
RESET = struct.pack("ii", 1, 0)


class _End:
    """One of the two sockets of a passage, and what waits to be written to it."""

    def __init__(self, sock: socket.socket) -> None:
        sock.setblocking(False)
        sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        self.sock = sock
        self.waiting = bytearray()


class _Passage:
    """One connection through the proxy: the client's end and the broker's end."""

    def __init__(self, client: socket.socket, broker: socket.socket) -> None:
        self.client = _End(client)
        self.broker = _End(broker)
        self.is_stalled = False
        #: The broker's bytes vanish; the client's arrive. So confirms are lost.
        self.is_one_way = False

    def other(self, end: _End) -> _End:
        return self.broker if end is self.client else self.client

    @property
    def ends(self) -> tuple[_End, _End]:
        return self.client, self.broker


class Proxy:
    """Listens on a free loopback port and passes connections on to the broker of a URL. Use it as a context manager.

    Attributes:
        url: The broker's URL with the proxy's port in it.
        accepted: How many connections have come in so far.
    """

    def __init__(self, broker_url: str) -> None:
        parts = urlsplit(broker_url)
        self._target = (parts.hostname or "127.0.0.1", parts.port or 5672)
        self._listener = socket.create_server(("127.0.0.1", 0))
        self._listener.setblocking(False)
        self._port = self._listener.getsockname()[1]
        login = parts.netloc.rpartition("@")[0]
        self.url = urlunsplit(parts._replace(netloc=f"{login}@127.0.0.1:{self._port}"))
        self.accepted = 0
        self._passages: list[_Passage] = []
        self._is_stalling = False
        self._orders: deque[Callable[[], None]] = deque()
        self._waker, self._woken = socket.socketpair()
        self._woken.setblocking(False)
        self._selector = selectors.DefaultSelector()
        self._is_ending = False
        self._thread = threading.Thread(target=self._run, name="fault-proxy", daemon=True)

    def __enter__(self) -> Proxy:
        self._selector.register(self._woken, selectors.EVENT_READ)
        self._selector.register(self._listener, selectors.EVENT_READ)
        self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._order(self._end)
        self._thread.join(ANSWER_S)
        for sock in (self._waker, self._woken, self._listener):
            sock.close()
        self._selector.close()

    # -- faults, for any thread

    @property
    def open(self) -> int:
        """How many connections stand now."""
        return len(self._passages)

    def cut(self) -> None:
        """End every connection by RST, on both sides."""
        self._order(lambda: self._close_all(reset=True))

    def fin(self) -> None:
        """End every connection as a process does that exits: by FIN, on both sides."""
        self._order(lambda: self._close_all(reset=False))

    def stall(self) -> None:
        """Move no byte any more, of these connections and of new ones. They stay open, as behind a dead network."""
        self._order(lambda: self._set_stalled(True, new_ones=True))

    def ghost(self) -> None:
        """As `stall`, for the connections that stand only: new ones work."""
        self._order(lambda: self._set_stalled(True, new_ones=False))

    def one_way(self) -> None:
        """Drop what the broker says on the connections that stand; what it is told still arrives."""

        def drop_answers() -> None:
            for passage in self._passages:
                passage.is_one_way = True

        self._order(drop_answers)

    def refuse(self) -> None:
        """Refuse new connections, as a machine does where nothing listens on the port; cut those that stand."""

        def close() -> None:
            self._close_all(reset=True)
            if self._is_listening():
                self._selector.unregister(self._listener)
                self._listener.close()
                # A socket that is bound and does not listen keeps the port, and the system refuses for it.
                self._listener = socket.socket()
                self._listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
                self._listener.bind(("127.0.0.1", self._port))

        self._order(close)

    def heal(self) -> None:
        """Undo `stall`, `ghost` and `refuse`: what was held back moves on."""

        def undo() -> None:
            if not self._is_listening():
                self._listener.listen()
                self._listener.setblocking(False)
                self._selector.register(self._listener, selectors.EVENT_READ)
            self._set_stalled(False, new_ones=True)

        self._order(undo)

    # -- the proxy's own thread

    def _order(self, order: Callable[[], None]) -> None:
        done = threading.Event()

        def carry_out() -> None:
            order()
            done.set()

        self._orders.append(carry_out)
        self._waker.send(b"!")
        if not done.wait(ANSWER_S):
            raise RuntimeError("the fault proxy does not answer; see what its thread printed")

    def _run(self) -> None:
        while not self._is_ending:
            for key, events in self._selector.select():
                if key.fileobj is self._woken:
                    with contextlib.suppress(BlockingIOError):
                        self._woken.recv(CHUNK)
                elif key.fileobj is self._listener:
                    self._accept()
                else:
                    passage, end = key.data
                    if passage in self._passages:
                        self._on_event(passage, end, events)
            while self._orders:
                self._orders.popleft()()

    def _end(self) -> None:
        self._close_all(reset=True)
        self._is_ending = True

    def _is_listening(self) -> bool:
        return self._listener in self._selector.get_map()

    def _accept(self) -> None:
        try:
            client, _address = self._listener.accept()
        except OSError:
            return
        self.accepted += 1
        try:
            broker = socket.create_connection(self._target, ANSWER_S)
        except OSError:
            client.close()
            return
        passage = _Passage(client, broker)
        passage.is_stalled = self._is_stalling
        self._passages.append(passage)
        for end in passage.ends:
            self._selector.register(end.sock, selectors.EVENT_READ, (passage, end))
        self._watch(passage)

    def _set_stalled(self, is_stalled: bool, *, new_ones: bool) -> None:
        self._is_stalling = is_stalled and new_ones
        for passage in self._passages:
            passage.is_stalled = is_stalled
            self._watch(passage)

    def _watch(self, passage: _Passage) -> None:
        """Tell the selector what this passage waits for: nothing at all while it is stalled."""
        for end in passage.ends:
            events = 0
            if not passage.is_stalled:
                if len(passage.other(end).waiting) < HELD:
                    events |= selectors.EVENT_READ
                if end.waiting:
                    events |= selectors.EVENT_WRITE
            known = end.sock in self._selector.get_map()
            if events and known:
                self._selector.modify(end.sock, events, (passage, end))
            elif events:
                self._selector.register(end.sock, events, (passage, end))
            elif known:
                self._selector.unregister(end.sock)

    def _on_event(self, passage: _Passage, end: _End, events: int) -> None:
        other = passage.other(end)
        try:
            if events & selectors.EVENT_WRITE and end.waiting:
                del end.waiting[: end.sock.send(end.waiting)]
            if events & selectors.EVENT_READ:
                data = end.sock.recv(CHUNK)
                if not data:
                    self._close(passage, reset=False)
                    return
                if not (passage.is_one_way and end is passage.broker):
                    other.waiting += data
                    del other.waiting[: other.sock.send(other.waiting)]
        except BlockingIOError:
            pass  # what could not be written waits for its turn
        except OSError:
            self._close(passage, reset=True)
            return
        self._watch(passage)

    def _close_all(self, *, reset: bool) -> None:
        for passage in list(self._passages):
            self._close(passage, reset=reset)

    def _close(self, passage: _Passage, *, reset: bool) -> None:
        self._passages.remove(passage)
        for end in passage.ends:
            if end.sock in self._selector.get_map():
                self._selector.unregister(end.sock)
            if reset:
                end.sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, RESET)
            end.sock.close()
