"""Which task goes to which slot, and when.

Fair: a task goes to an idle slot. Only while tasks are measured to be short does a busy slot get some ahead, to hide
the
trip to it and back; what was sent ahead and has not begun is taken back when its slot turns out to be busy for long.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterable

from amqptasks.broker.loop import Loop
from amqptasks.clock import monotonic
from amqptasks.worker.pools.slot import Slot
from amqptasks.worker.request import Request

#: Tasks are sent ahead while their mean run time is below this, seconds.
SHORT_S = 0.002
#: As many are sent ahead as fit into this time, seconds.
AHEAD_S = 0.004
MAX_AHEAD = 64
#: A slot that runs one task for longer than this gives back what was sent ahead to it, seconds.
STUCK_S = 0.02
#: How often slots are looked at while something is unfinished in them, seconds.
SWEEP_S = 0.01
#: Weight of the newest run in the mean.
_WEIGHT = 0.1
#: After so many short runs in a row the pace is called short; a run of `LONG_S` seconds ends it.
SHORT_RUNS = 100
LONG_S = 0.05
#: How long the pace is not called short again after it was found not to be: at first, and at most. Seconds.
PACE_HOLD_S = 5.0
PACE_HOLD_MAX_S = 300.0


class Dispatcher:
    """Keeps the tasks that wait for a slot, and hands them out. Belongs to the loop's thread.

    Args:
        slots: The pool's slots, as they are now.
        on_begun: Called with a task once it is known to have begun, if it asks to be acked then.
        on_pace: Called with True when tasks have turned out to be short, with False when that is over.
    """

    def __init__(
        self,
        loop: Loop,
        slots: Callable[[], list[Slot]],
        on_begun: Callable[[Request], None],
        on_pace: Callable[[bool], None],
    ) -> None:
        self.waiting: deque[Request] = deque()
        self.is_paused = False
        #: How many tasks have ended here.
        self.ended = 0
        #: Called with a task whose time has passed while it waited; it is not handed out.
        self.on_expired: Callable[[Request], None] = _unexpected
        #: Called with a slot and a task with a time limit that was given to it.
        self.on_limited: Callable[[Slot, Request], None] = lambda slot, request: None
        #: Called when tasks wait although everything that could be handed out was.
        self.on_full: Callable[[], None] = lambda: None
        self._loop = loop
        self._slots = slots
        self._on_begun = on_begun
        # Begin by believing that tasks are long: sending ahead must be earned.
        self._mean_s = 1.0
        self._scheduled = False
        self._sweeping = False
        self._on_pace = on_pace
        self._is_short = False
        self._short_runs = 0
        self._short_again_at = 0.0
        self._hold_s = PACE_HOLD_S

    def add(self, request: Request) -> None:
        """Take a task in; it is handed out at the end of the turn."""
        self.waiting.append(request)
        self.schedule()

    def add_first(self, requests: Iterable[Request]) -> None:
        """Put tasks that were taken back before all others, in their order."""
        self.waiting.extendleft(reversed(list(requests)))
        self.schedule()

    def schedule(self) -> None:
        """Hand tasks out at the end of the turn."""
        if not self._scheduled:
            self._scheduled = True
            self._loop.at_turn_end(self._hand_out)

    def finished(self, runtime_s: float) -> None:
        """Learn from a run, and hand out more."""
        self.ended += 1
        # One long run ends the sending ahead at once; it takes several short ones to begin it again.
        if runtime_s > SHORT_S:
            self._mean_s = max(runtime_s, self._mean_s)
            self._short_runs = 0
            if runtime_s > LONG_S and self._is_short:
                self._end_short_pace()
        else:
            self._mean_s += (runtime_s - self._mean_s) * _WEIGHT
            self._short_runs += 1
            if self._short_runs == SHORT_RUNS and not self._is_short:
                self._begin_short_pace()
        if self.waiting:
            self.schedule()

    def _begin_short_pace(self) -> None:
        if monotonic() < self._short_again_at:
            self._short_runs = 0
            return
        self._is_short = True
        self._on_pace(True)

    def _end_short_pace(self) -> None:
        self._is_short = False
        self._short_runs = 0
        self._short_again_at = monotonic() + self._hold_s
        self._hold_s = min(self._hold_s * 2, PACE_HOLD_MAX_S)
        self._on_pace(False)

    def take_back_all(self) -> list[Request]:
        """Return every task that has not begun, those already sent to slots included."""
        taken: list[Request] = []
        for slot in self._slots():
            if slot.is_open and len(slot.assigned) > 0:
                taken.extend(slot.take_back())
        taken.extend(self.waiting)
        self.waiting.clear()
        return taken

    def assigned(self) -> list[tuple[Slot, Request]]:
        """Return what the slots have, with the slot of each."""
        return [(slot, each) for slot in self._slots() for each in slot.assigned]

    def unbegun(self) -> list[Request]:
        """Return the tasks that wait here, and those sent to slots that may not have begun."""
        return [*self.waiting, *(each for slot in self._slots() for each in slot.assigned)]

    def pop_beyond(self, count: int) -> list[Request]:
        """Return, and no longer keep, the waiting tasks beyond the first ``count``."""
        popped = [self.waiting.pop() for _ in range(len(self.waiting) - count)]
        return popped[::-1]

    @property
    def running(self) -> int:
        """Tasks that slots have, begun or not."""
        return sum(len(slot.assigned) for slot in self._slots())

    @property
    def active(self) -> int:
        """Tasks that run, give or take those that begin or end just now."""
        return sum(len(slot.assigned) if slot.is_shared else bool(slot.assigned) for slot in self._slots())

    def _ahead(self) -> int:
        if self._mean_s >= SHORT_S:
            return 1
        return min(MAX_AHEAD, 1 + int(AHEAD_S / max(self._mean_s, 1e-6)))

    def _hand_out(self) -> None:
        self._scheduled = False
        waiting = self.waiting
        if self.is_paused or not waiting:
            return
        slots = self._slots()
        for slot in slots:
            # The common case: something has come in, and somebody is idle.
            if not slot.assigned and slot.is_open:
                if waiting[0].expires_at is not None and not self._has_fresh():
                    break
                request = waiting.popleft()
                slot.assign(request)
                if request.limits is not None:
                    self.on_limited(slot, request)
                if not waiting:
                    break
        if waiting:
            self._hand_out_ahead([slot for slot in slots if slot.is_open])
            if waiting:
                self.on_full()
        if not self._sweeping:
            self._sweeping = True
            self._loop.call_later(SWEEP_S, self._sweep)

    def _hand_out_ahead(self, slots: list[Slot]) -> None:
        waiting = self.waiting
        most = self._ahead()
        while waiting and slots:
            # Fewest first: idle slots are served before any gets a second task.
            slot = min(slots, key=_load) if len(slots) > 1 else slots[0]
            places = slot.places if slot.is_shared else most
            if len(slot.assigned) >= places or (waiting[0].expires_at is not None and not self._has_fresh()):
                break
            request = waiting.popleft()
            slot.assign(request)
            if request.limits is not None:
                self.on_limited(slot, request)

    def _has_fresh(self) -> bool:
        """Let go of the first in the line while their time has passed; False if none is left."""
        waiting, now = self.waiting, monotonic()
        while waiting and waiting[0].expires_at is not None and waiting[0].expires_at <= now:
            self.on_expired(waiting.popleft())
        return bool(waiting)

    def _sweep(self) -> None:
        """Ack what has begun, and free what waits behind a task that takes long."""
        now = monotonic()
        is_busy = False
        for slot in self._slots():
            if not slot.assigned:
                continue
            is_busy = True
            if slot.is_shared:
                for request in slot.newly_begun():
                    self._on_begun(request)
                continue
            begun, started = slot.begun()
            for request in slot.assigned:
                if request.number > begun:
                    break
                self._on_begun(request)
            if len(slot.assigned) > 1 and slot.assigned[0].number == begun and now - started > STUCK_S:
                self._mean_s = max(self._mean_s, now - started)
                self.add_first(slot.take_back())
            if self._is_short and slot.assigned and slot.assigned[0].number == begun and now - started > LONG_S:
                self._end_short_pace()
        self._sweeping = is_busy
        if is_busy:
            self._loop.call_later(SWEEP_S, self._sweep)


def _unexpected(request: Request) -> None:
    raise RuntimeError(f"task {request.id} has expired, and nobody takes care of that")


def _load(slot: Slot) -> int:
    return len(slot.assigned)
