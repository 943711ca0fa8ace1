"""Orders to the leader: what is carried out, what is refused and why, and what comes from the wire."""

from __future__ import annotations

import json
from collections.abc import Mapping
from datetime import datetime, timedelta, timezone
from types import SimpleNamespace
from typing import Any

import pytest

from amqptasks import App
from amqptasks.beat import Scheduler
from amqptasks.beat.additions import checked
from amqptasks.beat.commands import PAGE, carry_out
from amqptasks.beat.orders import MAX_ORDER_BYTES, OrderError, read_answer
from amqptasks.beat.state import BASE, CHANGES, Record, State, read_record, to_us, write_record
from amqptasks.beat.views import EntryView, plain_copy, words
from amqptasks.exceptions import DecodeError
from amqptasks.schedules import crontab, schedule

START = datetime(2026, 3, 1, 12, 0, 0, tzinfo=timezone.utc)
TEN = {"type": "schedule", "every": 10.0, "relative": False}
#: An entry as it is kept.
POLL = {"task": "shop.poll", "schedule": TEN, "args": ["far"], "kwargs": {}, "options": {}, "missed": None}


class Clock:
    """The time, as the test says."""

    now = START

    def forward(self, seconds: float) -> None:
        self.now += timedelta(seconds=seconds)


class Leader:
    """A scheduler that leads, and whoever asks it."""

    def __init__(
        self, entries: Mapping[str, Any], clock: Clock, kind: type[Scheduler] = Scheduler, **conf: Any
    ) -> None:
        self.app = App("shop", broker="amqp://127.0.0.1:1", set_as_current=False)
        self.app.conf.update(beat_schedule=dict(entries), **conf)

        @self.app.task(name="shop.poll")
        def poll(place: str) -> None: ...

        self.clock = clock
        self._kind = type(kind.__name__, (kind,), {"now": lambda _self: clock.now})
        self.scheduler: Scheduler = self._kind(self.app, title="shop")
        self.scheduler.restore(None)
        self.state = State("a")
        self.remember()

    def ask(self, command: str, is_again: bool = False, **arguments: Any) -> Any:
        """Give an order; return what is answered."""
        body = json.dumps({"v": 1, "command": command, "arguments": arguments}).encode()
        return self.answer(body, is_again=is_again)

    def answer(self, body: bytes, *, is_again: bool = False, reply_to: str = "answers") -> Any:
        properties = SimpleNamespace(reply_to=reply_to, correlation_id="an id")
        message = carry_out(self.scheduler, body, properties, is_again=is_again).answer()
        assert message is not None and (message.routing_key, message.correlation_id) == ("answers", "an id")
        self.remember()
        return read_answer(message.body)

    def remember(self) -> None:
        """Add to the state what has changed, by way of the wire."""
        changes = self.scheduler.take_changes()
        record = Record(
            CHANGES, number=self.state.number + 1, lineage="a", entries=changes.entries, added=changes.added,
            gone=changes.gone,
        )  # fmt: skip
        self.state.apply(read_record(write_record(record), 1_000_000))

    def next_leader(self) -> None:
        """Another beat takes over, from what was remembered."""
        self.scheduler = self._kind(self.app, title="shop")
        self.scheduler.restore(self.state)

    def names(self) -> list[str]:
        return [each["name"] for each in self.ask("list")["entries"]]

    def fired(self) -> list[str]:
        """The tasks' names of what is sent now."""
        self.scheduler.tick()
        found = [each.what.partition(" ")[0] for each in self.scheduler.outbox]
        self.scheduler.outbox = []
        return found


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def leader(clock: Clock) -> Leader:
    return Leader({"minute": {"task": "shop.count", "schedule": 60, "missed": "all"}}, clock)


# -- reading


def test_the_list_has_all_there_is_to_know_at_a_glance(leader: Leader, clock: Clock) -> None:
    # Given an entry of the config that was sent once, and one that was added
    leader.ask("add", name="a poll", definition=POLL)
    clock.forward(60)
    assert leader.fired() == ["a", "minute"]
    # When they are listed / Then they come by name, with their times
    (poll, minute) = map(EntryView.from_plain, leader.ask("list")["entries"])
    assert (poll.name, poll.task, poll.words, poll.source) == ("a poll", "shop.poll", "every 10 seconds", "run time")
    assert (minute.source, minute.runs, minute.missed, minute.paused) == ("config", 1, "all", False)
    assert minute.last_run == clock.now and minute.next_run == clock.now + timedelta(seconds=60)
    assert poll.next_run == clock.now + timedelta(seconds=10) and poll.missed == "once"


def test_one_entry_is_shown_with_its_next_runs(clock: Clock) -> None:
    leader = Leader(
        {"report": {"task": "shop.report", "schedule": crontab(minute=30, hour=7), "args": (1, START, {2}),
                    "kwargs": {"lines": 3}, "options": {"queue": "slow"}}}, clock,
    )  # fmt: skip
    found = EntryView.from_plain(leader.ask("show", name="report"))
    assert found.words == "crontab 30 7 * * *"
    assert found.next_runs == tuple(START.replace(hour=7, minute=30, day=day) for day in range(2, 7))
    # And what JSON has no words for is shown all the same
    assert found.args == [1, repr(START), "{2}"] and found.kwargs == {"lines": 3} and found.options == {"queue": "slow"}


def test_ten_thousand_entries_are_listed_in_pages(clock: Clock) -> None:
    leader = Leader({f"entry {number:05}": {"task": "t", "schedule": 60 + number} for number in range(10_000)}, clock)
    found, after, most = [], None, 0
    while True:
        page = leader.ask("list", after=after)
        most = max(most, len(page["entries"]))
        found += [each["name"] for each in page["entries"]]
        after = page["after"]
        if after is None:
            break
    assert found == [f"entry {number:05}" for number in range(10_000)] and most <= PAGE


# -- sending, pausing


def test_an_entry_is_sent_now_and_its_times_stay(leader: Leader, clock: Clock) -> None:
    # When an entry is sent twenty seconds before it is due
    clock.forward(40)
    given = "0b0a5b4e-7a0e-4f0e-9d5c-3a8f5a3c1d11"
    assert leader.ask("run", name="minute", id=given) == {"name": "minute", "id": given}
    (sent,) = leader.scheduler.outbox
    assert sent.message.correlation_id == given
    # Then it is due at the same time as ever, and counts as sent
    assert leader.fired() == ["minute"]
    clock.forward(19)
    assert leader.fired() == []
    clock.forward(1)
    assert leader.fired() == ["minute"]
    assert leader.ask("show", name="minute")["runs"] == 2
    # And an id that is none is refused
    with pytest.raises(OrderError, match="expected id to be a UUID, got: 'mine'"):
        leader.ask("run", name="minute", id="mine")


def test_what_the_broker_refuses_is_told_to_who_ordered_it(leader: Leader) -> None:
    # Given an order to send a task
    body = json.dumps({"v": 1, "command": "run", "arguments": {"name": "minute"}}).encode()
    carried = carry_out(leader.scheduler, body, SimpleNamespace(reply_to="answers", correlation_id="x"))
    # When the broker refuses the task / Then that is the answer
    leader.scheduler.outbox[0].error = RuntimeError("no such queue")
    message = carried.answer()
    assert message is not None
    with pytest.raises(OrderError, match="it was not sent: no such queue"):
        read_answer(message.body)


def test_a_pause_outlives_its_leader_and_is_not_made_up_for(leader: Leader, clock: Clock) -> None:
    # Given an entry that makes up for all missed runs, and is paused
    assert leader.ask("pause", name="minute") == {"name": "minute", "changed": True, "next_run": None}
    assert leader.ask("pause", name="minute")["changed"] is False
    # When hours pass, and another beat takes over
    clock.forward(7200)
    leader.next_leader()
    # Then nothing is sent, unless somebody asks for it
    assert leader.fired() == [] and leader.ask("show", name="minute")["paused"] is True
    leader.ask("run", name="minute")
    assert leader.fired() == ["minute"] and leader.fired() == []
    # When it is resumed / Then it goes on from there, and nothing is made up for
    clock.forward(7230)
    assert leader.ask("resume", name="minute")["next_run"] == to_us(clock.now + timedelta(seconds=60))
    assert leader.ask("resume", name="minute")["changed"] is False
    assert leader.fired() == []
    clock.forward(60)
    assert leader.fired() == ["minute"]


# -- adding, removing


def test_what_is_added_stays_and_what_is_removed_does_not_come_back(leader: Leader, clock: Clock) -> None:
    # Given two entries that were added, one of which was removed
    for name in ("poll", "other"):
        added = leader.ask("add", name=name, definition=POLL)
        assert added["next_run"] == to_us(clock.now + timedelta(seconds=10)) and added["warnings"] == []
    leader.ask("remove", name="other")
    # When another beat takes over
    clock.forward(10)
    leader.next_leader()
    # Then it sends the one
    assert leader.names() == ["minute", "poll"] and leader.fired() == ["poll"]
    # When the config loses an entry, and gets one of the other's name
    leader.app.conf.beat_schedule = {"poll": {"task": "shop.mine", "schedule": 5}}
    leader.next_leader()
    # Then the config counts
    (row,) = leader.ask("list")["entries"]
    assert (row["name"], row["task"], row["source"]) == ("poll", "shop.mine", "config")


def test_a_name_that_is_taken_is_refused(leader: Leader, clock: Clock) -> None:
    leader.ask("add", name="poll", definition=POLL)
    with pytest.raises(OrderError, match="there is an entry 'poll' already, added at run time: --replace"):
        leader.ask("add", name="poll", definition=POLL)
    with pytest.raises(OrderError, match="there is an entry 'minute' in the config, which counts"):
        leader.ask("add", name="minute", definition=POLL, replace=True)
    # When it is to be replaced / Then it is, and goes on at the times it had
    clock.forward(7)
    answer = leader.ask("add", name="poll", definition=POLL | {"args": ["near"]}, replace=True)
    assert answer["replaced"] is True and answer["next_run"] == to_us(START + timedelta(seconds=10))
    # Or at those of its new schedule
    answer = leader.ask("add", name="poll", definition=POLL | {"schedule": TEN | {"every": 30}}, replace=True)
    assert answer["next_run"] == to_us(START + timedelta(seconds=37))


def test_an_order_that_comes_twice_is_no_mistake(leader: Leader) -> None:
    # Given orders that a leader has carried out before it died
    leader.ask("add", name="poll", definition=POLL)
    # When the next one is handed the same / Then it answers as that one would have
    assert leader.ask("add", is_again=True, name="poll", definition=POLL)["name"] == "poll"
    leader.ask("remove", name="poll")
    assert leader.ask("remove", is_again=True, name="poll") == {"name": "poll"}
    # But what contradicts is refused
    leader.ask("add", name="poll", definition=POLL)
    with pytest.raises(OrderError, match="already"):
        leader.ask("add", is_again=True, name="poll", definition=POLL | {"args": ["near"]})


def test_an_entry_of_the_config_cannot_be_removed(leader: Leader) -> None:
    with pytest.raises(OrderError, match=r"'minute' comes from the config: take it out of beat_schedule .* pause"):
        leader.ask("remove", name="minute")


@pytest.mark.parametrize("command", ["show", "run", "pause", "resume", "remove"])
def test_a_name_that_there_is_not_is_refused_with_the_nearest(leader: Leader, command: str) -> None:
    with pytest.raises(OrderError, match=r"there is no entry 'minut' \(did you mean 'minute'\?\)"):
        leader.ask(command, name="minut")
    with pytest.raises(OrderError, match="expected name to be the name of an entry, got: 7"):
        leader.ask(command, name=7)


def test_a_task_that_is_not_known_is_a_warning(leader: Leader) -> None:
    (warning,) = leader.ask("add", name="poll", definition=POLL | {"task": "shop.pol"})["warnings"]
    assert warning == "beat knows no task 'shop.pol' (did you mean 'shop.poll'?); it is sent all the same"


def test_an_entry_that_cannot_be_used_here_is_kept_for_a_beat_that_can(
    leader: Leader, clock: Clock, monkeypatch: pytest.MonkeyPatch
) -> None:
    # Given an entry of another kind of schedule than this beat knows
    leader.ask("add", name="poll", definition=POLL)
    leader.state.added["poll"] = POLL | {"schedule": {"type": "lunar"}}
    # When it takes over / Then it says so, and what can be done
    leader.next_leader()
    row = leader.ask("list")["entries"][-1]
    assert row["name"] == "poll" and "expected the description" in row["problem"]
    with pytest.raises(OrderError, match="the entry 'poll' cannot be used"):
        leader.ask("run", name="poll")
    assert leader.ask("show", name="poll")["args"] == ["far"]
    # And the next one has it yet
    leader.remember()
    assert leader.state.added["poll"]["schedule"] == {"type": "lunar"}
    leader.ask("remove", name="poll")
    assert leader.state.added == {} and leader.names() == ["minute"]


def test_a_scheduler_whose_entries_are_elsewhere_refuses_additions(clock: Clock) -> None:
    class Elsewhere(Scheduler):
        @property
        def schedule(self) -> Any:  # type: ignore[override]
            return {}

        def setup_schedule(self) -> None: ...

    leader = Leader({}, clock, Elsewhere)
    with pytest.raises(OrderError, match="the scheduler Elsewhere takes its entries from elsewhere"):
        leader.ask("add", name="poll", definition=POLL)


# -- what comes from the wire


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"task": ""}, "expected task to be the name of one"),
        ({"task": ["t"]}, "expected task to be the name of one"),
        ({"task": "t" * 300}, "at most 255"),
        ({"tsk": "t"}, r"an entry has no 'tsk' \(did you mean 'task'\?\)"),
        ({"schedule": None}, "expected the description of one of schedule, crontab, solar"),
        ({"schedule": {"type": "os.system"}}, "expected the description"),
        ({"schedule": TEN | {"every": 0}}, "more than zero"),
        ({"schedule": TEN | {"every": 1e300}}, "expected run_every to be a number of seconds"),
        ({"schedule": {"type": "crontab", "minute": "*"}}, "'hour' is missing"),
        ({"args": {"x": 1}}, "expected args to be a list"),
        ({"args": ["far", "away"]}, "too many positional arguments"),
        ({"kwargs": [1]}, "expected kwargs to be an object"),
        ({"kwargs": {"plaice": 1}}, "unexpected keyword argument 'plaice'"),
        ({"options": [1]}, "expected options to be an object"),
        ({"options": {"task_id": "same"}}, "an entry has no option 'task_id'"),
        ({"options": {"link": ["x"]}}, "an entry has no option 'link'"),
        ({"options": {"priority": True}}, "priority to be a whole number from 0 to 255, got: True"),
        ({"options": {"priority": 256}}, "priority to be a whole number"),
        ({"options": {"expires": "soon"}}, "expires to be a number of seconds above 0, got: 'soon'"),
        ({"options": {"expires": -1}}, "above 0"),
        ({"options": {"queue": "a\nb"}}, "queue to be a text"),
        ({"options": {"serializer": "pikle"}}, "pikle"),
        ({"options": {"compression": "rar"}}, "no compression named 'rar'"),
        ({"options": {"time_limit": 5, "soft_time_limit": 9}}, "at most time_limit"),
        ({"options": {"headers": {"": 1}}}, "headers by name"),
        ({"options": {"headers": {"a": [10**30]}}}, "a header number of at most 64 bits"),
        ({"options": {"headers": {"a": "x" * 100_000}}}, "at most 65536 bytes"),
        ({"args": ["\ud800"]}, "surrogates"),
        ({"args": [json.loads("[" * 200 + "]" * 200)]}, "deeper than the 100 levels"),
        ({"options": {"queue": "ü" * 200}}, "255"),
        ({"missed": "never"}, "expected missed to be one of skip, once, all"),
        ({"args": ["x" * 70_000]}, "at most 65536 bytes"),
    ],
)  # fmt: skip
def test_a_definition_that_is_none_is_refused(leader: Leader, change: dict[str, Any], words: str) -> None:
    with pytest.raises(OrderError, match=words):
        leader.ask("add", name="poll", definition=POLL | change)
    assert leader.names() == ["minute"] and leader.state.added == {}


@pytest.mark.parametrize("name", ["", " poll", "a\nb", "x" * 256, "\x1b[2J", 5, None, ["a"]])
def test_a_name_that_is_none_is_refused(leader: Leader, name: Any) -> None:
    with pytest.raises(OrderError, match="expected the name of an entry to be 1 to 255 characters that can be seen"):
        leader.ask("add", name=name, definition=POLL)


def test_additions_are_bounded_by_what_one_message_holds(clock: Clock) -> None:
    # Given room for some 60 kB of additions
    leader = Leader({}, clock, task_message_max_bytes=240_000)
    big = POLL | {"args": ["x" * 25_000]}
    for name in ("one", "two"):
        leader.ask("add", name=name, definition=big)
    # When there is no more / Then that is said, and what to do
    with pytest.raises(OrderError, match=r"there is no room for it: .* \d+ bytes of that are left. Remove some"):
        leader.ask("add", name="three", definition=big)
    leader.ask("remove", name="one")
    leader.ask("add", name="three", definition=big)
    base = Record(BASE, entries=leader.scheduler.all_states(), added=leader.scheduler.added)
    assert len(write_record(base)) < 60_000


@pytest.mark.parametrize(
    "body",
    [b"", b"{", b"[]", b"null", b'"x"', b'{"v": 2, "command": "list"}', b'{"v": 1}', b'{"v": 1, "command": ["list"]}',
     b'{"v": 1, "command": "list", "arguments": []}', b'{"v": 1, "command": "list", "arguments": {"x": NaN}}',
     b"[" * 100_000, b"\xff\xfe", b" " * (MAX_ORDER_BYTES + 1)],
    ids=range(13),
)  # fmt: skip
def test_what_is_no_order_is_thrown_away(leader: Leader, body: bytes, caplog: pytest.LogCaptureFixture) -> None:
    properties = SimpleNamespace(reply_to="answers", correlation_id=None)
    assert carry_out(leader.scheduler, body, properties).answer() is None
    assert "threw away what is no order" in caplog.text


def test_orders_that_make_no_sense_are_answered(leader: Leader, caplog: pytest.LogCaptureFixture) -> None:
    with pytest.raises(OrderError, match=r"does not know the order '__class__\\x1b'"):
        leader.ask("__class__\x1b")
    with pytest.raises(OrderError, match="expected after to be the name of an entry"):
        leader.ask("list", after=[1])
    with pytest.raises(OrderError, match="expected the definition of an entry to be an object, got: None"):
        leader.ask("add", name="poll")
    # And an answer that has nowhere to go is none
    body = b'{"v": 1, "command": "ping"}'
    for reply_to in (None, "", b"\xff"):
        properties = SimpleNamespace(reply_to=reply_to, correlation_id="x")
        assert carry_out(leader.scheduler, body, properties).answer() is None


@pytest.mark.parametrize("body", [b"", b"[]", b'{"v": 2, "ok": 1}', b"[" * 100_000])
def test_what_is_no_answer_is_an_error(body: bytes) -> None:
    with pytest.raises(DecodeError):
        read_answer(body)


@pytest.mark.parametrize("plain", [None, [], {}, {"name": 5}])
def test_what_is_no_entry_is_an_error(plain: Any) -> None:
    with pytest.raises(DecodeError):
        EntryView.from_plain(plain)


def test_an_entry_from_the_wire_shows_no_more_than_it_may() -> None:
    hostile = {"name": "x", "task": "\x1b[2J", "runs": "many", "last_run": 10**30, "next_runs": [True, "x"], "words": 7}
    found = EntryView.from_plain(hostile)
    assert (found.task, found.runs, found.last_run, found.next_runs) == ("\\x1b[2J", 0, None, ())


# -- for people


@pytest.mark.parametrize(
    ("rule", "text"),
    [
        (schedule(10), "every 10 seconds"),
        (schedule(1), "every second"),
        (schedule(0.5), "every 0.5 seconds"),
        (schedule(60), "every minute"),
        (schedule(90), "every 1 minute 30 seconds"),
        (schedule(7200, relative=True), "every 2 hours, by the clock"),
        (schedule(timedelta(days=1, hours=1)), "every 1 day 1 hour"),
        (crontab(), "crontab * * * * *"),
        (crontab(minute="*/5", hour=[7, 9], day_of_week="mon - fri"), "crontab */5 7,9 * * mon-fri"),
        (crontab(day_of_month=1, day_of_week="sun", day_or=True), "crontab * * 1 * sun (either day)"),
    ],
)  # fmt: skip
def test_a_schedule_is_told_as_people_read_it(rule: Any, text: str) -> None:
    assert words(rule) == text


def test_large_arguments_are_shown_shortened() -> None:
    assert plain_copy([1, "a"]) == [1, "a"]
    assert len(str(plain_copy(["x" * 1_000_000]))) < 2000
    nested: list[Any] = []
    for _ in range(100_000):
        nested = [nested]
    assert "..." in plain_copy(nested)
    assert plain_copy({(1, 2): 3}) == "{(1, 2): 3}"


def test_a_definition_is_completed() -> None:
    given = {"task": "t", "schedule": {"type": "schedule", "every": 10}}
    assert checked(given) == {
        "task": "t", "schedule": TEN, "args": [], "kwargs": {}, "options": {}, "missed": None,
    }  # fmt: skip
