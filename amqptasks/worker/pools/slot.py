"""A slot: the place of one running task, seen from both sides.

`Slot` is the parent's side, on the loop; `serve` is the other end's main loop, in a child process or a thread. Between
them
are a socket pair for frames and a few bytes of shared memory in which the runner marks what it has begun. The mark
costs
nothing and survives the runner's death, so the parent knows exactly which tasks had started. A lock makes "begin" and
"take back" exclude each other: a task sent ahead is either begun or taken back, never both.
"""

from __future__ import annotations

import contextlib
import logging
import mmap
import socket
import struct
import threading
import time
from collections import deque
from collections.abc import Callable, Iterator
from typing import Any, Final, Protocol

from amqptasks.app.coroutines import close_loop
from amqptasks.broker.loop import Loop
from amqptasks.wire.pipe import FrameReader, encode_frame
from amqptasks.worker.outcome import OUTCOME, RETIRED, FollowUp, Outcome, Told, said_from_plain
from amqptasks.worker.pools.recycling import Recycling
from amqptasks.worker.request import Request

logger = logging.getLogger(__name__)

#: More than this would be mapped and unmapped again by the C library for each read.
RECEIVE_BYTES: Final = 1 << 16
#: The parent waits this long for the lock before it leaves a runner alone for now, seconds.
GATE_WAIT_S: Final = 0.05
#: Reports of finished tasks may be held back this long, to send several at once. Seconds.
HOLD_S: Final = 0.002

_BEGUN = struct.Struct("=Qd")
_NUMBER = struct.Struct("=Q")
_WITHDRAWN_AT = _BEGUN.size
_KEPT_AT = _WITHDRAWN_AT + _NUMBER.size
_INTERRUPTED_AT = _KEPT_AT + _NUMBER.size
_CONDEMNED_AT = _INTERRUPTED_AT + _NUMBER.size
_READY_AT = _CONDEMNED_AT + _NUMBER.size
_REPORTS_AT = _READY_AT + _NUMBER.size
MARK_BYTES: Final = _REPORTS_AT + (1 << 16)


class Gate(Protocol):
    """A lock that works between the two sides."""

    def acquire(self, block: bool = True, timeout: float | None = None) -> bool:
        """Take it."""

    def release(self) -> None:
        """Give it back."""


class Mark:
    """The shared memory of one slot: what was begun, when, up to where tasks were taken back, and reports held back."""

    def __init__(self) -> None:
        self.memory = mmap.mmap(-1, MARK_BYTES)

    def begin(self, number: int) -> None:
        """Note that a task begins now. Under the gate."""
        _BEGUN.pack_into(self.memory, 0, number, time.monotonic())

    def begun(self) -> tuple[int, float]:
        """Return the number of the task begun last, and when, on the machine's monotonic clock."""
        number, started = _BEGUN.unpack_from(self.memory, 0)
        return number, started

    def withdraw(self, number: int) -> None:
        """Take back every task up to this number that has not begun. Under the gate."""
        _NUMBER.pack_into(self.memory, _WITHDRAWN_AT, number)

    def withdrawn(self) -> int:
        """Return the number up to which tasks were taken back."""
        number: int = _NUMBER.unpack_from(self.memory, _WITHDRAWN_AT)[0]
        return number

    def interrupt(self, number: int) -> None:
        """Ask the runner to interrupt this task, should it still run when the runner looks."""
        _NUMBER.pack_into(self.memory, _INTERRUPTED_AT, number)

    def interrupted(self) -> int:
        """Return the number of the task that is to be interrupted; 0 for none."""
        number: int = _NUMBER.unpack_from(self.memory, _INTERRUPTED_AT)[0]
        return number

    def condemn(self, number: int) -> None:
        """Note that the runner is to be ended by a signal because of this task."""
        _NUMBER.pack_into(self.memory, _CONDEMNED_AT, number)

    def is_condemned(self) -> bool:
        """Whether it is to be ended because of the task that it runs."""
        number: int = _NUMBER.unpack_from(self.memory, _CONDEMNED_AT)[0]
        return number > 0 and number == self.begun()[0]

    def ready(self) -> None:
        """Note that the runner takes tasks from now on."""
        _NUMBER.pack_into(self.memory, _READY_AT, 1)

    def is_ready(self) -> bool:
        """Whether the runner takes tasks."""
        return bool(_NUMBER.unpack_from(self.memory, _READY_AT)[0])

    def keep(self, report: bytes) -> bool:
        """Put a report that is held back where it survives the runner. False when it does not fit."""
        size = _NUMBER.unpack_from(self.memory, _KEPT_AT)[0]
        start = _REPORTS_AT + size
        if start + len(report) > MARK_BYTES:
            return False
        # The size last: until then the report is not there for who reads.
        self.memory[start : start + len(report)] = report
        _NUMBER.pack_into(self.memory, _KEPT_AT, size + len(report))
        return True

    def drop_kept(self) -> None:
        """Forget the reports: they were sent."""
        _NUMBER.pack_into(self.memory, _KEPT_AT, 0)

    def kept(self) -> bytes:
        """Return the reports that were held back and, as far as is known here, not sent."""
        size = _NUMBER.unpack_from(self.memory, _KEPT_AT)[0]
        return self.memory[_REPORTS_AT : _REPORTS_AT + size]


class SlotOwner(Protocol):
    """Who is told what happens in a slot."""

    def on_outcome(self, slot: Slot, request: Request, outcome: Outcome) -> None:
        """A task has ended."""

    def on_message(self, slot: Slot, request: Request, message: FollowUp | Told) -> None:
        """A running task sends something, such as a state."""

    def on_retired(self, slot: Slot) -> None:
        """The other end begins nothing any more: what was sent ahead to it is still to be run."""

    def on_broken(self, slot: Slot) -> None:
        """The other end is gone."""


class Slot:
    """The parent's side of one slot. Belongs to the loop's thread.

    Attributes:
        is_shared: Many tasks run in it at once: ``places`` of them. See `pools/asyncio_pool.py`.
        index: Its place in the pool; its name counts from 1.
        is_leaving: It ends once it has nothing to do. It is not replaced then, for the pool is to be smaller,
        is_replaced: or it is, for the pool is restarted.
        timed_out: The task because of whose hard limit, in seconds, it is being ended.
    """

    is_shared = False
    places = 1
    index = 0
    is_leaving = False
    is_replaced = False

    def __init__(self, loop: Loop, owner: SlotOwner, sock: socket.socket, mark: Mark, gate: Any, name: str) -> None:
        self.name = name
        self.pid = 0
        self.born = time.monotonic()
        self.mark = mark
        #: Tasks sent and not reported, oldest first: at most one of them is running.
        self.assigned: deque[Request] = deque()
        self.is_retiring = False
        self.timed_out: tuple[Request, float] | None = None
        self._loop = loop
        self._owner = owner
        self._sock = sock
        self._gate = gate
        self._number = 0
        self._out: list[bytes] = []
        self._unsent = b""
        self._scheduled = False
        self._reader = FrameReader()
        self._is_open = True
        self._write_wanted = False
        sock.setblocking(False)
        loop.add_handler(sock.fileno(), self._on_event, loop.READ)

    def __repr__(self) -> str:
        return f"<Slot {self.name} pid={self.pid} assigned={len(self.assigned)}>"

    @property
    def is_open(self) -> bool:
        """Whether tasks can be sent to it."""
        return self._is_open and not self.is_retiring

    @property
    def written(self) -> int:
        """How many tasks were sent to it."""
        return self._number

    def assign(self, request: Request) -> None:
        """Send a task; what is assigned in one turn of the loop leaves together."""
        self._number += 1
        request.number = self._number
        self.assigned.append(request)
        self._out.append(encode_frame(request.to_frame(self._number)))
        if not self._scheduled:
            self._scheduled = True
            self._loop.at_turn_end(self._flush)

    def begun(self) -> tuple[int, float]:
        """Return the number of the task begun last, and when."""
        return self.mark.begun()

    def newly_begun(self) -> list[Request]:
        """Return what has begun since the last call. For shared slots, whose tasks begin in any order."""
        return []

    def take_back(self) -> list[Request]:
        """Return the tasks that have not begun, and make sure that they never will here. Empty if that cannot be had
        now."""
        if self.timed_out is not None or not self._gate.acquire(True, GATE_WAIT_S):
            return []
        try:
            begun, _started = self.mark.begun()
            self.mark.withdraw(self._number)
        finally:
            self._gate.release()
        taken = [each for each in self.assigned if each.number > begun]
        for _ in taken:
            self.assigned.pop()
        return taken

    def started(self, request: Request) -> float | None:
        """Return when a task began, on the machine's monotonic clock; None if it has not, or has ended."""
        begun, started = self.mark.begun()
        return started if begun == request.number else None

    def interrupt(self, request: Request, error: BaseException) -> bool:
        """Raise an error in a task that runs, where the kind of slot can. False if it does not run."""
        return False

    def give_up(self, request: Request) -> bool:
        """Free the place of a task that runs, where the kind of slot can. False if it has ended meanwhile."""
        return False

    def freeze(self, request: Request) -> bool:
        """Let nothing begin here any more, for the other end is to be killed. False if this is not the task that runs,
        or that cannot be made sure of now."""
        if not self._gate.acquire(True, GATE_WAIT_S):
            return False
        if self.mark.begun()[0] != request.number:
            self._gate.release()
            return False
        self.is_retiring = True
        return True

    def drain(self) -> None:
        """Read what the other end reported before it went, and what it held back: those tasks have ended too."""
        while self._is_open and self._receive(at_end=True):
            pass
        self._take_in(FrameReader().feed(self.mark.kept()))

    def abandon(self) -> list[Request]:
        """Return everything assigned, begun or not: the other end is gone."""
        assigned, self.assigned = list(self.assigned), deque()
        return assigned

    def close(self) -> None:
        """Close the parent's end; the other end then finishes. Safe twice."""
        if self._is_open:
            self._is_open = False
            self._loop.remove_handler(self._sock.fileno())
            self._sock.close()

    def fileno(self) -> int:
        """The parent's descriptor; -1 once closed."""
        return self._sock.fileno()

    def _flush(self) -> None:
        self._scheduled = False
        if self._out:
            self._unsent += b"".join(self._out)
            self._out.clear()
        self._send()

    def _send(self) -> None:
        if not self._is_open or not self._unsent:
            return
        try:
            sent = self._sock.send(self._unsent)
        except BlockingIOError:
            sent = 0
        except OSError:
            # Its end is noticed by reading, with everything it reported before.
            self._unsent = b""
            return
        self._unsent = self._unsent[sent:]
        is_waiting = bool(self._unsent)
        if is_waiting != self._write_wanted:
            self._write_wanted = is_waiting
            events = self._loop.READ | self._loop.WRITE if is_waiting else self._loop.READ
            self._loop.update_handler(self._sock.fileno(), events)

    def _on_event(self, _fd: int, events: int) -> None:
        if events & self._loop.WRITE:
            self._send()
        if events & (self._loop.READ | self._loop.ERROR):
            self._receive()

    def _receive(self, at_end: bool = False) -> bool:
        try:
            data = self._sock.recv(RECEIVE_BYTES)
        except BlockingIOError:
            return False
        except OSError:
            data = b""
        if not data:
            self.close()
            if not at_end:
                self._owner.on_broken(self)
            return False
        self._take_in(self._reader.feed(data))
        return True

    def _take_in(self, frames: Iterator[Any]) -> None:
        assigned = self.assigned
        for frame in frames:
            number = frame[1]
            # Reports come in order. A task that was taken back is skipped on the other side and has left this queue.
            while assigned and assigned[0].number < number:
                assigned.popleft()
            if not assigned or assigned[0].number != number:
                if frame[0] == RETIRED:
                    self._owner.on_retired(self)
                continue
            if frame[0] == OUTCOME:
                self._owner.on_outcome(self, assigned.popleft(), Outcome.from_frame(frame))
            else:
                self._owner.on_message(self, assigned[0], said_from_plain(frame[2]))


class Reporter:
    """Sends reports to the parent, several at once where tasks are short. One per runner.

    A report is held back only while another task is waiting to run, and a second thread sees to it that a task which
    then takes long does not keep the reports before it. Should the runner die meanwhile, the parent finds them in the
    shared memory.
    """

    def __init__(self, sock: socket.socket, mark: Mark) -> None:
        self._sock = sock
        self._mark = mark
        self._lock = threading.Lock()
        self._held: list[bytes] = []
        self._held_since = 0.0
        self._wake = threading.Event()
        self._is_stopped = False
        self._thread: threading.Thread | None = None

    def send(self, frame: bytes) -> None:
        """Send a frame, and everything held back before it, now."""
        with self._lock:
            self._held.append(frame)
            self._send_held()

    def hold(self, frame: bytes) -> None:
        """Send a frame soon."""
        with self._lock:
            held = self._held
            held.append(frame)
            if not self._mark.keep(frame):
                self._send_held()
            elif len(held) == 1:
                self._held_since = time.monotonic()
                if not self._wake.is_set():
                    self._start()
                    self._wake.set()
            elif time.monotonic() - self._held_since > HOLD_S:
                self._send_held()

    def stop(self) -> None:
        """End the second thread."""
        self._is_stopped = True
        self._wake.set()

    def _send_held(self) -> None:
        data = b"".join(self._held)
        self._held.clear()
        self._sock.sendall(data)
        # Only now: what arrives twice is taken in once.
        self._mark.drop_kept()

    def _start(self) -> None:
        if self._thread is None:
            self._thread = threading.Thread(target=self._watch, name="amqptasks-reports", daemon=True)
            self._thread.start()

    def _watch(self) -> None:
        while not self._is_stopped:
            self._wake.wait()
            time.sleep(HOLD_S * 2)
            with self._lock:
                if not self._held:
                    self._wake.clear()
                elif time.monotonic() - self._held_since > HOLD_S:
                    with contextlib.suppress(OSError):
                        # The parent is gone; the runner's own next read ends it.
                        self._send_held()


def serve(
    sock: socket.socket,
    mark: Mark,
    gate: Any,
    run: Callable[[list[Any], Callable[[bytes], None]], Outcome],
    recycling: Recycling | None = None,
) -> None:
    """Run tasks from a socket, one after another, until its other end is closed. The runner's main loop.

    Args:
        run: Runs the task of a frame; the second argument sends a frame to the parent at once.
        recycling: Is asked after each task whether it was the last.
    """
    reader = FrameReader()
    reporter = Reporter(sock, mark)
    sock.setblocking(True)
    try:
        while True:
            data = sock.recv(RECEIVE_BYTES)
            if not data:
                return
            waiting = list(reader.feed(data))
            last = len(waiting) - 1
            for position, frame in enumerate(waiting):
                number = frame[0]
                gate.acquire()
                try:
                    if number <= mark.withdrawn():
                        continue
                    mark.begin(number)
                finally:
                    gate.release()
                report = encode_frame(run(frame, reporter.send).to_frame(number))
                why = "" if recycling is None else recycling.done()
                if why:
                    logger.info("%s: enough, a new process takes its place", why)
                    reporter.send(report + encode_frame([RETIRED, 0]))
                    return
                if position < last:
                    reporter.hold(report)
                else:
                    reporter.send(report)
    except (BrokenPipeError, ConnectionResetError):
        # The parent is gone, and with it everyone who could be told.
        return
    finally:
        reporter.stop()
        close_loop()
