"""``amqptasks events`` as its users see it: lines, JSON, cameras, and a screen in a real terminal."""

from __future__ import annotations

import json
import os
import re
import signal
import sys
import uuid
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from amqptasks import App
from amqptasks.broker.admin import Admin
from tests.command import Shell, environment
from tests.proxy import Proxy
from tests.support import WorkerProcess, eventually
from tests.terminal import DrawnTerminal

pytestmark = pytest.mark.broker

PROJECT = """
from pathlib import Path
from amqptasks import App
from amqptasks.events.snapshot import Polaroid

app = App("watched", broker={broker!r})
app.conf.event_exchange = {exchange!r}
app.conf.task_queue_prefix = {exchange!r}

class Camera(Polaroid):
    clear_after = True

    def on_shutter(self, state):
        if not state.event_count:
            return
        with open("pictures", "a") as file:
            print(sorted(state.workers), sorted(task.name for task in state.tasks.values()), file=file)

class Broken(Polaroid):
    def on_shutter(self, state):
        raise ValueError("no film")
"""

HOSTILE = "\x1b]0;owned\x07\x1b[2J\u202e\nforged"


class Stage:
    """A project whose events nobody else hears, and somebody who tells them."""

    def __init__(self, directory: Path, broker_url: str) -> None:
        self.exchange = f"events-{uuid.uuid4().hex[:12]}"
        self.shell = Shell(directory)
        self.shell.write("watched.py", PROJECT.format(broker=broker_url, exchange=self.exchange))
        self.app = App("teller", broker=broker_url, set_as_current=False)
        self.app.conf.event_exchange = self.exchange
        self.teller = self.app.events.Dispatcher(hostname="w1@box")

    def task(self, *events: str, name: str = "shop.mail", **fields: Any) -> str:
        """Tell some events of a new task."""
        task_id = str(uuid.uuid4())
        for each in events:
            told: dict[str, Any] = {"name": name, "args": "(1,)", "kwargs": "{}"} if each == "received" else {}
            self.teller.send(f"task-{each}", uuid=task_id, **{**told, **fields})
        return task_id

    def beat(self, hostname: str = "w1@box") -> None:
        """Tell that a worker lives."""
        teller = self.app.events.Dispatcher(hostname=hostname)
        teller.send("worker-heartbeat", freq=2.0, active=0, processed=1, loadavg=[0.1, 0.2, 0.3])

    def start(self, *arguments: str) -> WorkerProcess:
        """Run the command beside the test."""
        directory = self.shell.directory
        command = [sys.executable, "-m", "amqptasks", "-A", "watched", "events", *arguments]
        return WorkerProcess(
            command, directory=directory, log=directory / f"log-{uuid.uuid4().hex}",
            env=environment({"PYTHONUNBUFFERED": "1"}),
        )  # fmt: skip

    def until(self, tell: Callable[[], object], done: Callable[[], bool]) -> None:
        """Tell the same again and again until it is heard: nobody knows when a monitor begins to listen."""

        def look() -> bool:
            tell()
            return done()

        eventually(look, 20.0, 0.1)


@pytest.fixture(scope="module")
def stage(tmp_path_factory: pytest.TempPathFactory, broker_url: str) -> Iterator[Stage]:
    made = Stage(tmp_path_factory.mktemp("watched"), broker_url)
    yield made

    with Admin(made.app.endpoints("clean-up")) as admin:
        admin._request("exchange.delete", lambda channel, then: channel.exchange_delete(made.exchange, callback=then))
    made.app.close()


# -- lines


def test_events_are_printed_as_celery_prints_them(stage: Stage) -> None:
    # Given somebody who dumps events / When a worker lives, and a task is run
    dump = stage.start("--dump")
    stage.until(stage.beat, lambda: "heartbeat" in dump.log)
    task_id = stage.task("received", "started")
    stage.teller.send("task-succeeded", uuid=task_id, result="'done'", runtime=0.5)
    dump.wait_for("succeeded")
    # Then it has said that it listens
    lines = dump.log.splitlines()
    assert lines[0] == "-> evdump: starting capture..."
    # And printed a line for each, in Celery's form
    moment = r"\[\d{4}-\d\d-\d\d \d\d:\d\d:\d\d(\.\d+)?\+00:00\]"
    assert re.match(rf"w1@box {moment} heartbeat: active=0, clock=\d+, freq=2.0, .*processed=1", lines[1])
    task = rf"shop\.mail\({task_id}\) args=\(1,\) kwargs={{}}"
    assert re.search(rf"^w1@box {moment} task received: {task} clock=\d+, ", dump.log, re.MULTILINE)
    assert re.search(
        rf"^w1@box {moment} task succeeded: {task} clock=\d+, .*result='done', runtime=0.5, ", dump.log, re.MULTILINE
    )
    # And TERM ends it without a word
    assert dump.stop() == 0


def test_events_are_printed_as_json(stage: Stage) -> None:
    # Given somebody who wants JSON / When events come, one of which is hostile
    dump = stage.start("--json")
    stage.until(stage.beat, lambda: "heartbeat" in dump.log)
    task_id = stage.task("received", name=HOSTILE)
    dump.wait_for(task_id)
    dump.stop()
    # Then every line is an event, whole, and nothing else is there
    events = [json.loads(line) for line in dump.log.splitlines()]
    assert {each["type"] for each in events} == {"worker-heartbeat", "task-received"}
    received = events[-1]
    assert (received["uuid"], received["name"], received["hostname"]) == (task_id, HOSTILE, "w1@box")
    assert dump.log.isascii()


def test_no_event_breaks_a_line_or_steers_the_terminal(stage: Stage) -> None:
    # Given events whose every text is hostile, and some that lack what events have / When they are dumped
    dump = stage.start("--dump")
    stage.until(stage.beat, lambda: "heartbeat" in dump.log)
    hostile = stage.app.events.Dispatcher(hostname=HOSTILE)
    hostile.send(f"task-{HOSTILE}", uuid=HOSTILE, **{HOSTILE: HOSTILE})
    hostile.send("task-received", uuid=[1], name={"a": HOSTILE}, args=None)
    hostile.send("worker-online", timestamp="soon", hostname=None)
    hostile.send("worker-heartbeat", timestamp=1e10, freq=-1)
    last = stage.task("received")
    dump.wait_for(last)
    dump.stop()
    # Then each is one line without control characters
    lines = [line for line in dump.log.splitlines() if " heartbeat: active" not in line]
    assert len(lines) == 6
    assert all(line.isprintable() for line in lines)
    assert dump.log.count("\\x1b[2J") >= 3


@pytest.mark.parametrize(
    ("arguments", "said", "code"),
    [
        ((), "the screen needs a terminal: add --dump or --json to print lines", 2),
        (("--dump", "--json"), "--dump, --json and --camera exclude each other", 2),
        (("--detach",), "--detach and --pidfile are for a camera: add --camera", 2),
        (("-c", "watched.Kamera"), "cannot find 'watched.Kamera', named by --camera", 2),
        (("-c", "watched.Camera", "-r", "often"), "expected a rate like 10/m, 2/s or 100/h, got: 'often'", 2),
        (("-c", "watched.Camera", "-f", "/nowhere/log"), "cannot write the log file '/nowhere/log'", 2),
    ],
)
def test_a_mistake_is_told_in_one_line(stage: Stage, arguments: tuple[str, ...], said: str, code: int) -> None:
    # Given a command line that cannot be meant / When it is run / Then one line says why
    done = stage.shell("-A", "watched", "events", *arguments, code=code)
    assert said in done.stderr
    assert done.stderr.count("\n") == 1


@pytest.mark.parametrize("option", ["--dump", "--json"])
def test_a_broker_that_is_away_is_told(stage: Stage, option: str) -> None:
    # Given no broker / When events are asked for / Then one line says so, and the code is 69
    done = stage.shell("-b", "amqp://127.0.0.1:1//", "events", option, code=69)
    assert "no broker could be reached" in done.stderr and done.stderr.count("\n") == 1


def test_a_lost_connection_is_opened_again(stage: Stage) -> None:
    # Given a monitor whose connection goes through a proxy
    with Proxy(stage.app.conf.broker_url) as proxy:
        stage.shell.write("proxied.py", PROJECT.format(broker=proxy.url, exchange=stage.exchange))
        command = [sys.executable, "-m", "amqptasks", "-A", "proxied", "events", "--dump"]
        dump = WorkerProcess(
            command, directory=stage.shell.directory, log=stage.shell.directory / "proxied.log", env=environment({})
        )
        stage.until(stage.beat, lambda: "heartbeat" in dump.log)
        # When that is cut / Then it says so, and hears events again
        proxy.cut()
        dump.wait_for("-> Connection lost, attempting reconnect: ")
        before = dump.log.count("task received")
        stage.until(lambda: stage.task("received"), lambda: dump.log.count("task received") > before)
        assert dump.stop() == 0


# -- cameras


def test_a_camera_is_handed_what_is_known(stage: Stage) -> None:
    # Given a camera in the background, with a pidfile and a log
    pidfile = stage.shell.directory / "cam.pid"
    done = stage.shell(
        "-A", "watched", "events", "-c", "watched.Camera", "-F", "0.1", "-l", "DEBUG", "--detach", "--pidfile",
        "cam.pid", "-f", "cam.log",
    )  # fmt: skip
    assert "-> evcam: Taking snapshots with watched.Camera (every 0.1 secs.)" in done.stdout
    pid = int(pidfile.read_text())
    pictures = stage.shell.directory / "pictures"

    def taken() -> str:
        return pictures.read_text() if pictures.exists() else ""

    try:
        # When events come
        stage.until(lambda: (stage.beat(), stage.task("received")), lambda: "shop.mail" in taken())
        # Then it is handed the state with them, while nothing changes in it
        assert "['w1@box'] ['shop.mail'" in taken()
        # And a second one is refused
        done = stage.shell("-A", "watched", "events", "-c", "watched.Camera", "--pidfile", "cam.pid", code=1)
        assert f"belongs to a process that runs ({pid})" in done.stderr
    finally:
        os.kill(pid, signal.SIGTERM)
    # And after TERM it leaves nothing behind
    eventually(lambda: not pidfile.exists())
    assert "Shutter: " in (stage.shell.directory / "cam.log").read_text()


def test_a_camera_that_fails_goes_on(stage: Stage) -> None:
    # Given a camera without film / When it is to take pictures / Then that is logged each time, and it goes on
    camera = stage.start("-c", "watched.Broken", "-F", "0.05")
    camera.wait_for(r"(?s)(ValueError: no film.*){3}")
    assert camera.stop() == 0


# -- the screen


@pytest.fixture
def terminal(stage: Stage) -> Iterator[DrawnTerminal]:
    with DrawnTerminal(stage.shell.directory, "-A", "watched", "events") as made:
        made.shows("amqptasks events v", "No task selected", "Keys: j:down k:up")
        yield made


def told_on(terminal: DrawnTerminal, stage: Stage, *events: str, **fields: Any) -> str:
    task_id = stage.task(*events, **fields)
    terminal.shows(task_id[:20])
    return task_id


def test_the_screen_shows_tasks_and_workers(stage: Stage, terminal: DrawnTerminal) -> None:
    # Given the screen / When workers live, and tasks are run
    stage.beat()
    stage.beat("w2@box")
    task_id = told_on(terminal, stage, "received", "started", name="shop.images")
    terminal.shows("STARTED")
    stage.teller.send("task-succeeded", uuid=task_id, result="42", runtime=1.5)
    # Then it shows each, as of now
    terminal.shows("SUCCESS", "Workers online: w1@box, w2@box", "Info: events: 5 tasks: 1 workers: 2/2")
    row = terminal.display[terminal.row_of(task_id[:20])]
    assert re.search(r"w1@box +shop\.images +\d\d:\d\d:\d\d SUCCESS", row)


def test_keys_choose_a_task_and_show_it(stage: Stage, terminal: DrawnTerminal) -> None:
    # Given two tasks, one of which has failed
    good = told_on(terminal, stage, "received")
    stage.teller.send("task-succeeded", uuid=good, result="'" + "long " * 40 + "end'", runtime=0.25)
    bad = told_on(terminal, stage, "received", name="shop.breaks")
    traceback = "Traceback (most recent call last):\n" + "".join(f"  line {n}\n" for n in range(60)) + "ValueError: why"
    stage.teller.send("task-failed", uuid=bad, exception="ValueError('why')", traceback=traceback)
    terminal.shows("FAILURE", "SUCCESS")
    # When j is pressed / Then the first is chosen
    terminal.press("j")
    terminal.shows("Selected: args=(1,) kwargs={} exception=ValueError('why')")
    assert terminal.is_reversed(terminal.row_of(bad[:20]))
    # When t is pressed / Then its traceback is there, and j scrolls it
    terminal.press("t")
    terminal.shows(f"Task Exception Traceback for {bad}", "Traceback (most recent call last):", "Press any key")
    terminal.press("jjj")
    terminal.until(lambda: not any("most recent" in line for line in terminal.display))
    # When another key is pressed / Then the tasks are back, and an arrow goes down
    terminal.press("x")
    terminal.shows("Selected: ")
    terminal.press("\x1b[B")
    terminal.until(lambda: terminal.is_reversed(terminal.row_of(good[:20])))
    # And r and i show what is known of it
    terminal.press("r")
    terminal.shows(f"Task Result for {good}", "long long")
    terminal.press("xi")
    terminal.shows(f"Task details for {good}", "name: shop.mail", "runtime: 0.25", "state: SUCCESS")
    # And k goes up again; t has nothing to show of what has succeeded
    terminal.press("xt")
    terminal.shows("Keys: ")
    terminal.press("k")
    terminal.until(lambda: terminal.is_reversed(terminal.row_of(bad[:20])))


def test_a_task_is_revoked_from_the_screen(stage: Stage, terminal: DrawnTerminal) -> None:
    # Given a task that is chosen / When c is pressed / Then it asks, and no is no
    task_id = told_on(terminal, stage, "received")
    terminal.press("jc")
    terminal.shows(f"Revoke shop.mail[{task_id}]?")
    terminal.press("n")
    terminal.shows("Nothing was revoked")
    # When that is confirmed / Then the task is revoked
    terminal.press("cy")
    terminal.shows(f"{task_id} is revoked")
    stream = f"{stage.exchange}.revoked.v1"
    with Admin(stage.app.endpoints("look")) as admin:
        eventually(lambda: admin.counts(stream) == (1, 0))
        admin.delete(stream)


def test_the_screen_follows_its_window(stage: Stage, terminal: DrawnTerminal) -> None:
    # Given a screen with a task / When the window becomes small, tiny and large
    task_id = told_on(terminal, stage, "received")
    for columns, lines in ((60, 12), (20, 5), (3, 2), (140, 40)):
        terminal.resize(columns, lines)
        terminal.take_in(0.3)
    # Then it is drawn for that
    terminal.until(lambda: terminal.row_of("Keys: j:down") == 38)
    assert task_id in terminal.display[terminal.row_of(task_id)]


def test_no_event_steers_the_screen(stage: Stage, terminal: DrawnTerminal) -> None:
    # Given a task whose every text is hostile / When it is shown, with all that is known of it
    stage.beat(HOSTILE)
    task_id = stage.task("received", name=HOSTILE, args=HOSTILE)
    stage.teller.send("task-failed", uuid=task_id, exception=HOSTILE, traceback=HOSTILE)
    terminal.shows(task_id[:20], "FAILURE", r"\x1b]0;owned")
    terminal.press("j")
    terminal.shows("Selected: ")
    terminal.press("t")
    terminal.shows("Task Exception Traceback", r"\x1b[2J\u202e", "forged")
    # Then nothing of it has reached the terminal as it was
    assert b"]0;owned" not in terminal.raw.replace(rb"\x1b]0;owned", b"")
    assert "\u202e".encode() not in terminal.raw


@pytest.mark.parametrize("end", ["q", "\x03", "TERM", "HUP"])
def test_the_terminal_is_left_as_it_was(stage: Stage, terminal: DrawnTerminal, end: str) -> None:
    # Given the screen / When it ends, by a key or by a signal
    if len(end) == 1:
        terminal.press(end)
    else:
        terminal.process.send_signal(getattr(signal, f"SIG{end}"))
    # Then it says that all is well, and the terminal has its modes and its cursor again
    assert terminal.end() == 0
    assert terminal.modes() == terminal.before
    assert not terminal._screen.cursor.hidden


def test_a_terminal_that_cannot_draw_is_told(stage: Stage) -> None:
    # Given a terminal of an unknown kind / When the screen is asked for / Then one line says so
    with DrawnTerminal(stage.shell.directory, "-A", "watched", "events", env={"TERM": "no-such-terminal"}) as terminal:
        assert terminal.end() == 2
        terminal.shows("this terminal (no-such-terminal) cannot show a screen")
    assert terminal.raw.count(b"\n") == 1


def test_the_screen_needs_its_broker(stage: Stage) -> None:
    # Given no broker / When the screen is asked for / Then the terminal says so as it is
    with DrawnTerminal(stage.shell.directory, "-b", "amqp://127.0.0.1:1//", "events") as terminal:
        assert terminal.end() == 69
    assert b"no broker could be reached" in terminal.raw and b"\x1b" not in terminal.raw
