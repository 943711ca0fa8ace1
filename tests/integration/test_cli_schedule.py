"""``amqptasks schedule``: asked of a real beat, by the command as users type it."""

from __future__ import annotations

import io
import json
import re
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import pytest

from amqptasks.beat import RemoteSchedule
from tests.beats import BeatShop, leads
from tests.command import Shell, here
from tests.support import WorkerProcess, eventually

SOURCE = """
    from amqptasks.schedules import crontab

    app.conf.task_ignore_result = True
    app.conf.timezone = "Asia/Tokyo"

    @app.task
    def report(lines=3): ...

    @app.task
    def add(x, y): ...

    app.conf.beat_schedule = {
        "report": {"task": report.name, "schedule": crontab(hour=7, minute=30), "kwargs": {"lines": 9}},
        "hourly": {"task": add.name, "schedule": 3600.0, "args": [1, 2], "options": {"expires": 60}},
        "astray": {
            "task": add.name, "schedule": 3600.0, "args": [1, 2],
            "options": {"exchange": "amq.direct", "routing_key": "nobody's"},
        },
    }
    for number in range(int(os.environ.get("MANY", "0"))):
        app.conf.beat_schedule[f"many {number:05}"] = {"task": report.name, "schedule": 3600.0 + number}
"""

MOMENT = r"\d{4}-\d\d-\d\d \d\d:\d\d:\d\d"

Told = tuple[str, str]
Run = Callable[..., Told]


@pytest.fixture(scope="module")
def shop(tmp_path_factory: pytest.TempPathFactory, broker_url: str) -> Iterator[BeatShop]:
    with BeatShop(tmp_path_factory.mktemp("schedule"), broker_url, SOURCE) as made:
        yield made


def alive(shop: BeatShop) -> list[WorkerProcess]:
    return [each for each in shop.workers if each.process.poll() is None]


def stop_all(shop: BeatShop) -> None:
    for each in alive(shop):
        each.stop()


@pytest.fixture
def beat(shop: BeatShop) -> WorkerProcess:
    """The one beat that runs, that of the test before if it can be."""
    running = alive(shop)
    if len(running) == 1 and "MANY" not in running[0].log:
        return running[0]
    stop_all(shop)
    made = shop.beat()
    leads(made)
    return made


@pytest.fixture
def run(shop: BeatShop, capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> Run:
    """Type a command of ``schedule``."""
    monkeypatch.syspath_prepend(str(shop.directory))
    monkeypatch.setenv("NO_COLOR", "1")

    def act(*words: str, code: int = 0, answer: str = "") -> Told:
        monkeypatch.setattr("sys.stdin", io.StringIO(answer))
        out, err = here(capfd, "-A", shop.project.name, "schedule", *words, code=code)
        assert "guest:guest" not in out + err
        assert code == 0 or len(err.splitlines()) == 1
        return out, err

    return act


@pytest.fixture
def listed(run: Run) -> Callable[[], Mapping[str, Any]]:
    return lambda: {each["name"]: each for each in json.loads(run("list", "--json")[0])}


Listed = Callable[[], Mapping[str, Any]]


# -- reading


def test_the_list_shows_what_runs_when(beat: WorkerProcess, run: Run, listed: Listed, shop: BeatShop) -> None:
    lines = run("list")[0].splitlines()
    assert lines[0].split() == ["NAME", "TASK", "SCHEDULE", "LAST", "RUN", "NEXT", "RUN", "RUNS", "FROM"]
    assert [each.split()[0] for each in lines[1:4]] == ["astray", "hourly", "report"]
    assert re.search(
        rf"hourly +{shop.project.name}.add +every hour +(never|{MOMENT}) +{MOMENT} +\d+ +config$", lines[2]
    )
    # In the app's zone, by name
    assert re.search(r"crontab 30 7 \* \* \* +never +\d{4}-\d\d-\d\d 07:30:00 ", lines[3])
    assert lines[-1] == "3 entries. Times are those of Asia/Tokyo."
    facts = listed()["report"]
    assert facts["next_run"].endswith("T07:30:00+09:00") and facts["last_run"] is None and facts["paused"] is False
    assert (facts["schedule_text"], facts["schedule"]["type"], facts["source"]) == (
        "crontab 30 7 * * *",
        "crontab",
        "config",
    )


def test_one_entry_is_shown_whole(beat: WorkerProcess, run: Run, shop: BeatShop) -> None:
    out, _ = run("show", "report")
    assert '\nkwargs       {"lines": 9}\n' in out and "\nmissed runs  once\n" in out
    assert len(re.findall(r" 07:30:00$", out, re.M)) == 5
    facts = json.loads(run("show", "hourly", "--json")[0])
    assert (facts["args"], facts["options"], len(facts["next_runs"])) == ([1, 2], {"expires": 60}, 5)


# -- changing


def test_an_entry_is_sent_now(beat: WorkerProcess, run: Run, listed: Listed, shop: BeatShop) -> None:
    before = listed()["hourly"]
    # When an entry is run / Then its task is sent, by the id that is printed
    (task_id,) = run("run", "hourly")[0].splitlines()
    found = eventually(lambda: shop.take(shop.queue) or False)
    assert (found.headers["id"], found.headers["periodic_task_name"]) == (task_id, "hourly")
    assert json.loads(found.body)[0] == [1, 2]
    # And it is due when it was
    after = listed()["hourly"]
    assert after["next_run"] == before["next_run"] and after["runs"] == before["runs"] + 1 and after["last_run"]
    # When the broker has no queue for it / Then that is an error
    assert "it was not sent: " in run("run", "astray", code=1)[1]


def test_entries_come_and_go(beat: WorkerProcess, run: Run, listed: Listed, shop: BeatShop) -> None:
    name = shop.project.name
    # When one is added
    out, err = run(
        "add", "poll", "--task", f"{name}.add", "--every", "1h30m", "--args", "[1]", "--kwargs", '{"y": 2}',
        "--queue", shop.queue, "--expires", "30", "--priority", "3", "--option", "shadow=polling", "--missed", "skip",
    )  # fmt: skip
    assert re.fullmatch(rf"added poll, first due {MOMENT}\n", out) and not err
    # Then it is there, and can be run
    facts = json.loads(run("show", "poll", "--json")[0])
    assert (facts["source"], facts["missed"], facts["schedule_text"]) == ("run time", "skip", "every 1 hour 30 minutes")
    assert facts["options"] == {"queue": shop.queue, "expires": 30.0, "priority": 3, "shadow": "polling"}
    (task_id,) = run("run", "poll")[0].splitlines()
    found = eventually(lambda: shop.take(shop.queue) or False)
    assert found.headers["id"] == task_id and json.loads(found.body)[:2] == [[1], {"y": 2}]
    # When it is added again / Then only if that is meant
    again = ("add", "poll", "--task", f"{name}.reprt", "--crontab", "*/5 * * * *")
    assert (
        run(*again, code=1)[1] == "Error: there is an entry 'poll' already, added at run time: --replace replaces it\n"
    )
    out, err = run(*again, "--replace")
    assert out.startswith("replaced poll, first due") and f"did you mean '{name}.report'" in err
    assert listed()["poll"]["runs"] == 1
    # When it is removed / Then it is gone
    assert "Aborted" in run("remove", "poll", code=1, answer="n\n")[1] and "poll" in listed()
    out, _ = run("remove", "poll", answer="y\n")
    assert out == f"poll: {name}.reprt, crontab */5 * * * *\nRemove it? There is no undo [y/N]: removed poll\n"
    assert "poll" not in listed()
    # But not what the config has
    assert "comes from the config: take it out of beat_schedule" in run("remove", "hourly", code=1)[1]
    assert "in the config, which counts" in run("add", "hourly", "--task", "t", "--every", "5", code=1)[1]


def test_a_schedule_may_be_given_as_it_is_shown(beat: WorkerProcess, run: Run, shop: BeatShop) -> None:
    described = json.loads(run("show", "report", "--json")[0])["schedule"]
    run("add", "copy", "--task", f"{shop.project.name}.report", "--schedule", json.dumps(described))
    assert json.loads(run("show", "copy", "--json")[0])["schedule"] == described
    run("remove", "-f", "copy")


@pytest.mark.parametrize(
    ("words", "code", "said"),
    [
        (["show", "hourli"], 1, "there is no entry 'hourli' (did you mean 'hourly'?)"),
        (["run", "nothing at all"], 1, "there is no entry 'nothing at all'"),
        (["add", "x", "--every", "5s"], 2, "which task? Give its name: --task"),
        (["add", "x", "--task", "t"], 2, "Give one of --every, --crontab, --solar, --schedule; got none"),
        (["add", "x", "--task", "t", "--every", "5s", "--crontab", "* * * * *"], 2, "got --every and --crontab"),
        (["add", "x", "--task", "t", "--every", "soon"], 2, "--every: expected a time such as 10s, 5m, 1h30m or 2d"),
        (["add", "x", "--task", "t", "--every", "0"], 2, "--every: expected a time above 0, got: '0'"),
        (["add", "x", "--task", "t", "--every", "nan"], 2, "--every: expected a time above 0"),
        (["add", "x", "--task", "t", "--crontab", "61 * * * *"], 2, "--crontab: Invalid"),
        (["add", "x", "--task", "t", "--crontab", "* * *"], 2, "--crontab: expected five fields"),
        (["add", "x", "--task", "t", "--crontab", "0 0 30 2 *"], 2, "never occurs"),
        (["add", "x", "--task", "t", "--solar", "sunset"], 2, "--solar: expected EVENT,LATITUDE,LONGITUDE"),
        (["add", "x", "--task", "t", "--solar", "moonrise,1,2"], 2, "must be one of"),
        (["add", "x", "--task", "t", "--schedule", "{"], 2, "--schedule: expected JSON"),
        (["add", "x", "--task", "t", "--schedule", '{"type": "x"}'], 2, "--schedule: expected the description"),
        (["add", "x", "--task", "t", "--every", "5s", "--args", "5"], 2, "-a/--args: expected a JSON array"),
        (["add", "x", "--task", "t", "--every", "5s", "--option", "prio"], 2, "--option: expected NAME=VALUE"),
        (["add", "x", "--task", "t", "--every", "5s", "--option", "prioriti=5"], 2, "did you mean 'priority'"),
        (["add", "x", "--task", "t", "--every", "5s", "--queue", "q", "--option", "queue=r"], 2, "given twice"),
        (["add", "x", "--task", "t", "--every", "5s", "--expires", "-5"], 2, "expires to be a number of seconds"),
        (["add", "x", "--task", "t", "--every", "5s", "--missed", "never"], 2, "--missed"),
        (["add", "a\nb", "--task", "t", "--every", "5s"], 2, "characters that can be seen"),
        (["list", "--timeout", "0"], 2, "-t/--timeout"),
    ],
)  # fmt: skip
def test_a_mistake_is_one_line(beat: WorkerProcess, run: Run, words: list[str], code: int, said: str) -> None:
    out, err = run(*words, code=code)
    assert said in err and err.startswith("Error: ") and not out


# -- what outlives what


def test_what_was_paused_and_added_outlives_its_beat(
    beat: WorkerProcess, run: Run, listed: Listed, shop: BeatShop
) -> None:
    # Given an entry of the config that is paused, and one that was added
    assert run("pause", "report")[0] == "paused report\n" and run("pause", "report")[0] == "report is paused already\n"
    run("add", "kept", "--task", f"{shop.project.name}.report", "--every", "2h")
    added = listed()["kept"]
    assert "paused" in run("list")[0].splitlines()[-1]
    # When beat is killed, and started again, with a file of its own
    beat.kill()
    leads(shop.beat("-s", "second-file"))
    # Then both are as they were
    assert listed()["report"]["paused"] is True and listed()["report"]["next_run"] is None
    assert listed()["kept"] == added
    # When RabbitMQ has lost all as well / Then they are in that file
    alive(shop)[0].kill()
    shop.admin.delete(shop.token)
    leads(shop.beat("-s", "second-file"))
    assert listed()["report"]["paused"] is True and listed()["kept"] == added
    # When it is resumed / Then it has a next run
    assert run("resume", "report")[0] == "resumed report\n" and run("resume", "report")[0] == "report is not paused\n"
    assert listed()["report"]["next_run"].endswith("T07:30:00+09:00")
    run("remove", "-f", "kept")


def test_of_two_beats_the_one_that_leads_does_it(beat: WorkerProcess, run: Run, listed: Listed, shop: BeatShop) -> None:
    # Given a second beat, with a file of its own, and an order to the first
    second = shop.beat("-s", "other-file")
    second.wait_for("Standing by")
    run("add", "shared", "--task", f"{shop.project.name}.report", "--every", "2h")
    run("pause", "shared")
    # When the first is killed / Then an order finds the second, which knows what was done
    beat.kill()
    assert run("resume", "shared", "--timeout", "20")[0] == "resumed shared\n"
    assert listed()["shared"]["source"] == "run time" and listed()["shared"]["paused"] is False
    assert "carried out the order resume shared" in second.log
    run("remove", "-f", "shared")


def test_without_a_beat_nothing_is_done(run: Run, listed: Listed, shop: BeatShop) -> None:
    stop_all(shop)
    # When no beat runs / Then that is said, at once
    for words in (["list"], ["show", "report"], ["run", "hourly"], ["remove", "-f", "x"]):
        assert f"no beat runs for the schedule '{shop.project.name}' at amqp://" in run(*words, code=69)[1]
    # And an order that nobody took is not carried out by who comes later
    assert "no beat runs" in run("run", "hourly", "--timeout", "0.2", code=69)[1]
    run("add", "late", "--task", "t", "--every", "5", "--timeout", "0.2", code=69)
    # But who has time waits for one
    made = shop.beat()
    out, _ = run("list", "--json", "--timeout", "30")
    assert "late" not in {each["name"] for each in json.loads(out)}
    leads(made)
    assert shop.take(shop.queue) is None


def test_a_broker_that_is_away_is_told(shop: BeatShop) -> None:
    done = Shell(shop.directory)(
        "-A", shop.project.name, "-b", "amqp://guest:s3cret@127.0.0.1:1", "schedule", "list", code=69
    )
    (said,) = done.stderr.splitlines()
    assert said.startswith("Error: no broker could be reached: amqp://guest@127.0.0.1:1") and "s3cret" not in said


def test_ten_thousand_entries_are_listed(shop: BeatShop, run: Run) -> None:
    # Given as many entries
    stop_all(shop)
    made = shop.beat(env={"MANY": "10000"})
    leads(made, within_s=30.0)
    # When they are listed / Then there is every one
    names = [each["name"] for each in json.loads(run("list", "--json", "--timeout", "20")[0])]
    assert len(names) == 10_003 and names == sorted(names)
    made.stop()


def test_a_program_may_do_it_too(beat: WorkerProcess, shop: BeatShop) -> None:
    with RemoteSchedule(shop.app) as schedule:
        assert schedule.pause("report") is True and schedule.show("report").paused is True
        assert schedule.resume("report") is True
        added = schedule.add("mine", shop.tasks.report.name, 60)
        assert added.next_run is not None and not added.replaced and not added.warnings
        assert [each.name for each in schedule.list()] == ["astray", "hourly", "mine", "report"]
        schedule.remove("mine")
