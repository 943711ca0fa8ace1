"""The scheduler by a clock of the test's own: what it sends, with what, and what it remembers."""

from __future__ import annotations

import json
import logging
from collections.abc import Callable
from datetime import datetime, timedelta, timezone
from typing import Any

import pytest

import amqptasks.beat
from amqptasks import App
from amqptasks.beat import BeatLazyFunc, PersistentScheduler, ScheduleEntry, Scheduler
from amqptasks.beat.entries import firing_id
from amqptasks.beat.service import Beat, make_scheduler
from amqptasks.beat.state import EntryState, State, to_us
from amqptasks.exceptions import ImproperlyConfigured
from amqptasks.schedules import crontab, schedule
from amqptasks.wire.message import EncodedMessage

START = datetime(2026, 3, 1, 12, 0, 0, tzinfo=timezone.utc)
OUR_IDS = "a schedule"


class Clock:
    """The time, as the test says."""

    now = START

    def forward(self, seconds: float) -> None:
        self.now += timedelta(seconds=seconds)


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def app() -> App:
    return App("shop", broker="amqp://127.0.0.1:1", set_as_current=False)


@pytest.fixture
def make(app: App, clock: Clock) -> Callable[..., Scheduler]:
    def made(entries: dict[str, Any], kind: type[Scheduler] = Scheduler, **options: Any) -> Scheduler:
        app.conf.beat_schedule = entries
        timed = type(kind.__name__, (kind,), {"now": lambda _self: clock.now})
        scheduler: Scheduler = timed(app, title=OUR_IDS, **options)
        scheduler.restore(None)
        return scheduler

    return made


def sent(scheduler: Scheduler) -> list[EncodedMessage]:
    found = [each.message for each in scheduler.outbox]
    scheduler.outbox = []
    return found


def ids(scheduler: Scheduler) -> list[str | None]:
    return [each.correlation_id for each in sent(scheduler)]


def test_a_new_entry_is_sent_when_its_interval_is_over(make: Callable[..., Scheduler], clock: Clock) -> None:
    # Given a new entry of ten seconds
    scheduler = make({"ten": {"task": "t.ten", "schedule": 10}})

    # When it is looked at before and after
    assert scheduler.tick() == scheduler.max_interval and not sent(scheduler)
    clock.forward(7.5)
    assert scheduler.tick() == 2.5 and not sent(scheduler)
    clock.forward(2.5)
    scheduler.tick()

    # Then it is sent at its time, under the id of that time, and again ten seconds after that, not after the look
    assert ids(scheduler) == [firing_id(OUR_IDS, "ten", START + timedelta(seconds=10))]
    clock.forward(9.75)
    assert scheduler.tick() == 0.25
    clock.forward(0.5)
    scheduler.tick()
    assert ids(scheduler) == [firing_id(OUR_IDS, "ten", START + timedelta(seconds=20))]
    assert scheduler.schedule["ten"].total_run_count == 2


def test_a_message_is_what_apply_async_would_send(app: App, make: Callable[..., Scheduler], clock: Clock) -> None:
    # Given an entry with arguments, some worked out when it is sent, and options
    @app.task(name="t.known")
    def known(*args: Any, **kwargs: Any) -> None: ...

    counter = iter(range(10))
    entry = {
        "task": "t.known", "schedule": timedelta(seconds=1), "args": (1, BeatLazyFunc(next, counter)),
        "kwargs": {"k": BeatLazyFunc(dict, a=1)},
        "options": {"queue": "mail", "expires": 60, "priority": 3, "headers": {"mine": "yes"}},
    }  # fmt: skip
    scheduler = make({"one": entry, "unknown here": {"task": "t.elsewhere", "schedule": 1, "args": [5]}})

    # When it is sent twice
    for _ in range(2):
        clock.forward(1)
        scheduler.tick()
    messages = sent(scheduler)

    # Then its messages are those of calls, marked as beat's
    assert [each.routing_key for each in messages] == ["mail", "celery", "mail", "celery"]
    assert [json.loads(each.body)[:2] for each in messages[::2]] == [[[1, n], {"k": {"a": 1}}] for n in range(2)]
    for text in (b"celery_beat_task", b"periodic_task_name", b"mine", b"expires"):
        assert text in messages[0].properties
    assert messages[0].correlation_id != messages[2].correlation_id
    # And what the entry says is not changed by that
    assert app.conf.beat_schedule["one"]["options"]["headers"] == {"mine": "yes"}


def test_an_entry_that_cannot_be_sent_does_not_stop_the_others(
    make: Callable[..., Scheduler], clock: Clock, caplog: pytest.LogCaptureFixture
) -> None:
    # Given an argument that fails to be worked out, beside a good entry
    entries = {
        "bad": {"task": "t.bad", "schedule": 1, "args": [BeatLazyFunc(lambda: 1 / 0)]},
        "good": {"task": "t.good", "schedule": 1},
    }
    scheduler = make(entries)
    clock.forward(1)

    # When they are due / Then the good one is sent, and the other's fault told
    scheduler.tick()
    assert len(sent(scheduler)) == 1
    assert "Couldn't apply scheduled task bad: division by zero" in caplog.text


@pytest.mark.parametrize(("missed", "expected"), [("skip", 0), ("once", 1), ("all", 6)])
def test_missed_runs_are_made_up_for_as_the_entry_says(
    make: Callable[..., Scheduler], app: App, clock: Clock, missed: str, expected: int
) -> None:
    # Given entries of each minute, one that says itself what becomes of missed runs, one that leaves it to the setting
    app.conf.beat_missed_runs, app.conf.beat_missed_runs_max = missed, 6
    scheduler = make({
        "theirs": {"task": "t.theirs", "schedule": crontab()},
        "own": {"task": "t.own", "schedule": crontab(), "missed": "all"},
    })  # fmt: skip

    # When they are missed for ten minutes and a half
    clock.forward(630 + 5)
    scheduler.tick()

    # Then that is what they do, oldest first
    messages = ids(scheduler)
    times = [START + timedelta(minutes=number) for number in range(5, 11)]
    assert messages.count(None) == 0
    assert [each for each in messages if each in {firing_id(OUR_IDS, "own", time) for time in times}] == [
        firing_id(OUR_IDS, "own", time) for time in times
    ]
    assert len(messages) == 6 + expected


def test_runs_that_are_too_late_are_left_out_by_the_setting(
    make: Callable[..., Scheduler], app: App, clock: Clock
) -> None:
    # Given a limit of ten minutes, a crontab and an interval
    app.conf.beat_cron_starting_deadline = 600
    cron = {"task": "t.cron", "schedule": crontab(minute=0, hour=13)}
    scheduler = make({"cron": cron, "often": {"task": "t.often", "schedule": 3600}})

    # When both are looked at eleven minutes late / Then the crontab is left out
    clock.forward(3600 + 660)
    scheduler.tick()
    assert ids(scheduler) == [firing_id(OUR_IDS, "often", START + timedelta(hours=1))]


def test_the_next_leader_goes_on_where_the_last_one_was(make: Callable[..., Scheduler], clock: Clock) -> None:
    # Given a leader that has sent two runs
    entries = {"ten": {"task": "t.ten", "schedule": 10}, "daily": {"task": "t.daily", "schedule": crontab(0, 13)}}
    scheduler = make(entries)
    for _ in range(2):
        clock.forward(10)
        scheduler.tick()
    changes = scheduler.take_changes()
    assert changes.entries.keys() == {"ten", "daily"} and not scheduler.take_changes()
    state = State("l", 2, 2, scheduler.all_states())

    # When another takes over, after three seconds
    clock.forward(3)
    other = make(entries)
    other.restore(state)
    other.tick()
    assert not sent(other)
    clock.forward(7)
    other.tick()

    # Then it sends the third, at its time, and counts on
    assert ids(other) == [firing_id(OUR_IDS, "ten", START + timedelta(seconds=30))]
    assert other.schedule["ten"].total_run_count == 3
    assert other.take_changes().entries.keys() == {"ten"}


def test_a_leader_that_could_not_send_decides_the_same_again(make: Callable[..., Scheduler], clock: Clock) -> None:
    # Given a tick of which it is not known whether it was sent
    scheduler = make({"ten": {"task": "t.ten", "schedule": 10}})
    state = State("l", 1, 1, scheduler.all_states())
    clock.forward(10)
    scheduler.tick()
    first = ids(scheduler)

    # When the memory of before is restored / Then the same is sent again, under the same id
    scheduler.restore(state)
    scheduler.tick()
    assert ids(scheduler) == first != []


def test_entries_come_go_and_change_with_the_configuration(make: Callable[..., Scheduler], clock: Clock) -> None:
    # Given what was remembered of three entries, an hour ago
    state = State("l", 1, 1, make({
        "same": {"task": "t.a", "schedule": 7200}, "other": {"task": "t.a", "schedule": 7200},
        "gone": {"task": "t.a", "schedule": 1},
    }).all_states())  # fmt: skip
    clock.forward(3600)

    # When one has gone from the configuration, one has another schedule, and one is new
    scheduler = make({
        "same": {"task": "t.b", "schedule": 7200}, "other": {"task": "t.a", "schedule": 7100},
        "new": {"task": "t.a", "schedule": 7000},
    })  # fmt: skip
    scheduler.restore(state)
    changes = scheduler.take_changes()

    # Then that one goes on, and the others begin now
    assert scheduler.next_run("same") == START + timedelta(seconds=7200)
    assert scheduler.next_run("other") == clock.now + timedelta(seconds=7100)
    assert scheduler.next_run("new") == clock.now + timedelta(seconds=7000)
    assert changes.gone == ("gone",) and scheduler.next_run("gone") is None


def test_entries_added_at_run_time_and_held_back_stay_so(
    make: Callable[..., Scheduler], clock: Clock, caplog: pytest.LogCaptureFixture
) -> None:
    # Given a memory with entries that were added, one of which cannot be used, and one that is held back
    definition = {"task": "t.added", "schedule": schedule(5).describe(), "args": [1]}
    state = State(
        "l", 1, 1, {"held": EntryState(to_us(START), mark="?", paused=True)},
        {"added": definition, "bad": {"task": "t.bad", "schedule": {"type": "os.system"}}, "held": definition},
    )  # fmt: skip
    scheduler = make({"held": {"task": "t.held", "schedule": 5}})

    # When it is restored, and time goes on
    scheduler.restore(state)
    clock.forward(5)
    scheduler.tick()

    # Then the added one is sent, the other is told of, and the held one is not sent
    assert [json.loads(each.body)[0] for each in sent(scheduler)] == [[1]]
    assert "'bad', added at run time, cannot be used" in caplog.text
    # Kept for a beat that can use it: perhaps this is an older one
    assert scheduler.added.keys() == {"added", "bad"}
    # And let go it is sent again
    scheduler.schedule["held"].is_paused = False
    scheduler.touch("held")
    scheduler.tick()
    assert len(sent(scheduler)) == 1
    assert not scheduler.state_of("held").paused


def test_an_entry_can_be_sent_now(make: Callable[..., Scheduler], clock: Clock) -> None:
    # Given an entry that is due in ten seconds / When it is sent after four, by hand
    scheduler = make({"ten": {"task": "t.ten", "schedule": 10}})
    clock.forward(4)
    task_id = scheduler.run_now("ten")

    # Then it was sent, and is still due at its time
    assert ids(scheduler) == [task_id]
    assert scheduler.tick() == pytest.approx(5.0)
    assert scheduler.next_run("ten") == START + timedelta(seconds=10)
    assert scheduler.schedule["ten"].total_run_count == 1


class Bookkeeper(Scheduler):
    """As users write them: entries from elsewhere."""

    table: dict[str, Any] = {}  # noqa: RUF012

    def setup_schedule(self) -> None:
        self.update_from_dict(self.table)
        self.synced_times = 0

    def sync(self) -> None:
        self.synced_times += 1


def test_a_class_of_ones_own_takes_entries_from_elsewhere(make: Callable[..., Scheduler], clock: Clock) -> None:
    # Given a scheduler with a table of its own
    Bookkeeper.table = {"a": {"task": "t.a", "schedule": 1}}
    scheduler = make({}, Bookkeeper)

    # When that changes / Then so does what is sent
    clock.forward(1)
    scheduler.tick()
    assert len(sent(scheduler)) == 1
    scheduler.add(name="b", task="t.b", schedule=2, last_run_at=clock.now)
    scheduler.tick()
    clock.forward(5)
    scheduler.tick()
    assert len(sent(scheduler)) == 2
    scheduler.close()
    assert isinstance(scheduler, Bookkeeper) and scheduler.synced_times == 1


def test_a_class_that_remembers_itself_is_believed_where_beat_knows_nothing(
    app: App, make: Callable[..., Scheduler], clock: Clock
) -> None:
    # Given entries from a database that knows when they ran, in naive UTC, and one that is new there
    def known(name: str, last_run_at: datetime | None, count: int) -> ScheduleEntry:
        return ScheduleEntry(name, "t.task", last_run_at, count, schedule(60), app=app)

    before = (START - timedelta(seconds=50)).replace(tzinfo=None)
    Bookkeeper.table = {"old": known("old", before, 7), "new": known("new", None, 0)}
    scheduler = make({}, Bookkeeper)

    # When time goes on / Then the old one goes on from there, and the new one begins now
    assert scheduler.next_run("old") == START + timedelta(seconds=10)
    assert scheduler.next_run("new") == START + timedelta(seconds=60)
    clock.forward(10)
    scheduler.tick()
    state = scheduler.state_of("old")
    assert (state.count, state.sent, state.anchor) == (8, to_us(clock.now), to_us(clock.now))
    # And what beat remembers is believed from then on
    clock.forward(5)
    scheduler.restore(State("l", 1, 1, {"old": EntryState(to_us(clock.now), None, 9, state.mark)}))
    assert scheduler.next_run("old") == clock.now + timedelta(seconds=60)


def test_entries_have_celerys_surface(app: App) -> None:
    # Given an entry / Then it behaves as in Celery
    entry = ScheduleEntry("name", "t.task", START, 3, schedule(5), (1,), {"k": 2}, {"queue": "q"}, app=app)
    after = next(entry)
    assert (after.total_run_count, after.last_run_at > START) == (4, True)
    assert after == entry and after.args == (1,) and dict(after)["options"] == {"queue": "q"}
    assert repr(entry) == "<ScheduleEntry: name t.task(1, k=2) <freq: 5.00 seconds>>"
    assert entry.is_due().is_due
    assert entry != ScheduleEntry("name", "t.task", START, 3, schedule(6), (1,), {"k": 2}, {"queue": "q"}, app=app)
    changed = ScheduleEntry("name", "t.other", schedule=1, app=app)
    changed.update(entry)
    assert changed == entry


@pytest.mark.parametrize(
    ("entry", "words"),
    [
        (5, "to be a mapping"),
        ({"schedule": 5}, "to name its task"),
        ({"task": "t"}, "to have a schedule"),
        ({"task": "t", "schedule": "5"}, "expected a schedule"),
        ({"task": "t", "schedule": 0}, "more than zero"),
        ({"task": "t", "schedule": 5, "queue": "mail"}, "has 'queue', which is not known.*options of the call go into"),
        ({"task": "t", "schedule": 5, "args": 5}, "args of .* to be a list"),
        ({"task": "t", "schedule": 5, "kwargs": [5]}, "kwargs of .* to be a mapping"),
        ({"task": "t", "schedule": 5, "missed": "twice"}, "one of skip, once, all"),
    ],
)
def test_a_mistake_in_the_schedule_is_told_by_the_entrys_name(app: App, entry: Any, words: str) -> None:
    # Given an entry with a mistake / When the scheduler is made / Then the error names both
    app.conf.beat_schedule = {"mine": entry}
    with pytest.raises(ImproperlyConfigured, match=words) as caught:
        make_scheduler(app)
    assert "beat_schedule['mine']" in str(caught.value)


def test_the_scheduler_is_chosen_by_setting_or_option(app: App) -> None:
    # Given none / Then it is ours; Celery's names of its own mean that too
    assert type(make_scheduler(app)) is PersistentScheduler
    assert type(make_scheduler(app, "celery.beat:PersistentScheduler")) is PersistentScheduler
    # And it is the one that is named
    Bookkeeper.table = {}
    app.conf.beat_scheduler = f"{__name__}:Bookkeeper"
    assert type(make_scheduler(app)) is Bookkeeper
    assert type(make_scheduler(app, Scheduler)) is Scheduler
    for wrong in ("nowhere:Nothing", "json:JSONDecoder"):
        with pytest.raises(ImproperlyConfigured):
            make_scheduler(app, wrong)


def test_settings_say_how_often_to_look_and_to_write(app: App) -> None:
    # Given settings / Then they hold, and what is given counts more
    assert make_scheduler(app).max_interval == 5
    app.conf.update(beat_max_loop_interval=30, beat_schedule_filename="there", beat_sync_every=2)
    scheduler = make_scheduler(app)
    assert isinstance(scheduler, PersistentScheduler)
    assert (scheduler.max_interval, scheduler.schedule_filename) == (30, "there")
    assert make_scheduler(app, max_interval=1).max_interval == 1
    assert not scheduler.should_sync()
    for name in ("a", "b"):
        assert not scheduler.should_sync()
        scheduler.apply_async(scheduler.add(name=name, task="t", schedule=1))
    assert scheduler.should_sync()


def test_the_schedules_name_is_the_apps_unless_it_is_said(app: App) -> None:
    # Given apps / Then each has queues by its name
    assert Beat(app).names.token == "amqptasks.beat.v1.shop"
    assert Beat(App(set_as_current=False)).names.token == "amqptasks.beat.v1.default"
    app.conf.update(beat_schedule_name="the shop's / night", task_queue_prefix="mine")
    assert Beat(app).names.token == "mine.beat.v1.the_shop_s___night"


def test_a_beat_that_is_busy_for_too_long_is_silent(app: App, monkeypatch: pytest.MonkeyPatch) -> None:
    # Given how long beat may be busy, by the settings
    seconds = [0.0]
    monkeypatch.setattr("amqptasks.beat.ping.monotonic", lambda: seconds[0])

    def is_silent_after(busy_s: float, **settings: Any) -> bool:
        app.conf.update(beat_enable_remote_control=True, **settings)
        beat = Beat(app)
        assert beat.ping is not None and not beat._busyness.is_too_long
        beat._busyness.begin()
        seconds[0] += busy_s
        silent = beat._busyness.is_too_long
        beat._busyness.end()
        assert not beat._busyness.is_too_long
        return silent

    # When it is busy for as long, and longer / Then it is silent after that
    assert not is_silent_after(60) and is_silent_after(61)
    assert not is_silent_after(61, beat_max_loop_interval=40) and is_silent_after(81)
    assert is_silent_after(3, beat_remote_control_max_tick_age=2)
    assert not is_silent_after(1e6, beat_remote_control_max_tick_age=0)
    # And without being told to it answers nothing
    assert Beat(app, remote_control=False).ping is None


def test_periodic_tasks_are_added_by_code(caplog: pytest.LogCaptureFixture) -> None:
    # Given an app whose code adds periodic tasks before and after the settings are read
    caplog.set_level(logging.WARNING)
    app = App("shop", set_as_current=False)

    @app.task(name="t.add")
    def add(x: int, y: int) -> int:
        return x + y

    def late(sender: App, **_: Any) -> None:
        sender.add_periodic_task(crontab(hour=7), add.s(2), args=(1,), kwargs={"k": 1}, name="late", missed="all")

    app.add_periodic_task(10, add.s(1, 2), queue="mail", expires=5)
    app.on_after_configure.connect(late, weak=False)
    app.add_defaults({"beat_schedule": {"given": {"task": "t.add", "schedule": 3}}})
    assert app.add_periodic_task(30.0, add, (5, 6), name="task") == "task"

    # When the schedule is read
    entries = dict(app.conf.beat_schedule)

    # Then all of them are there
    assert entries.keys() == {"given", "t.add(1, 2)", "late", "task"}
    assert entries["t.add(1, 2)"]["options"] == {"queue": "mail", "expires": 5}
    assert (entries["late"]["args"], entries["late"]["kwargs"]) == ((1, 2), {"k": 1})
    assert make_scheduler(app).schedule["late"].missed == "all"
    # And a second of the same call replaces it, and says so
    app.add_periodic_task(20, add.s(1, 2))
    assert app.conf.beat_schedule["t.add(1, 2)"]["schedule"] == 20
    assert "replaces another without a name" in caplog.text


def test_celerys_names_are_here() -> None:
    for name in amqptasks.beat.__all__:
        assert getattr(amqptasks.beat, name).__name__ == name
    with pytest.raises(AttributeError):
        amqptasks.beat.Nonsense  # noqa: B018
