"""``amqptasks multi`` on real workers in the background: started, stopped, waited for, started anew, killed."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import tempfile
import uuid
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.command import Shell, here
from tests.running import Workshop
from tests.support import eventually

SOURCE = """
@app.task(name="shop.add")
def add(x, y):
    return x + y

@app.task(name="shop.wait")
def wait(name):
    gate(name)
"""
PLACES = ("--pidfile=run/%n.pid", "--logfile=log/%n%I.log")


class Herd(Workshop):
    """A workshop whose workers `multi` starts, all in its directory."""

    def multi(self, *words: str, code: int = 0, before: tuple[str, ...] = ()) -> subprocess.CompletedProcess[str]:
        return Shell(self.directory)(*before, "multi", *words, *PLACES, code=code)

    def start(self, *words: str) -> subprocess.CompletedProcess[str]:  # type: ignore[override]
        return self.multi("start", *words, "-A", self.project.name, "-P", "solo", "-l", "INFO")

    def pid(self, name: str) -> int:
        return int((self.directory / f"run/{name}.pid").read_text())

    def pids(self) -> dict[str, int]:
        """The workers that run, and the process of each: what lies in a pidfile may be of one that was killed."""
        found = {}
        for path in self.directory.rglob("*.pid"):
            pid, command = int(path.read_text()), Path(f"/proc/{path.read_text().strip()}/cmdline")
            if command.exists() and self.project.name in command.read_text():
                found[path.stem] = pid
        return found

    def close(self) -> None:
        self.open_gates()
        for pid in self.pids().values():
            os.kill(pid, signal.SIGKILL)
            eventually(lambda pid=pid: not Path(f"/proc/{pid}").exists(), 20.0)
        super().close()


@pytest.fixture
def herd(broker_url: str) -> Iterator[Herd]:
    with (
        tempfile.TemporaryDirectory(prefix="amqptasks-multi-") as name,
        Herd(Path(name), broker_url, SOURCE) as made,
    ):
        yield made


def test_workers_are_started_each_with_its_own_options_and_stopped(herd: Herd) -> None:
    # When two workers are started, one of them for a queue of its own
    other = f"images-{uuid.uuid4().hex[:12]}"
    herd.also_delete(other)
    done = herd.start("mail", "images", "-Q:images", other, "-Q", herd.queue)
    # Then each is told of, and both run in the background under their names
    host = os.uname().nodename
    assert done.stdout.splitlines()[1:] == [
        "> Starting nodes...", f"\t> mail@{host}: OK", f"\t> images@{host}: OK",
    ]  # fmt: skip
    assert done.stderr == ""
    pids = herd.pids()
    assert sorted(pids) == ["images", "mail"]
    # And a task of each queue runs where it belongs
    assert herd.tasks.add.delay(1, 1).get(timeout=20) == 2
    assert herd.tasks.add.apply_async((2, 2), queue=other).get(timeout=20) == 4
    assert "shop.add" in (herd.directory / "log/images.log").read_text()
    # When they are started again / Then it is told that they run, by their own words, and the exit code says so
    again = herd.multi("start", "mail", "-A", herd.project.name, "-P", "solo", code=1)
    assert f"\t> mail@{host}: FAILED" in again.stdout
    assert "belongs to a process that runs" in again.stderr
    assert herd.pid("mail") == pids["mail"]
    # When they are told to stop and waited for / Then they are gone, and so are their pidfiles
    done = herd.multi("stopwait", "mail", "images")
    assert f"\t> mail@{host}: SIGTERM -> {pids['mail']}" in done.stdout
    assert done.stdout.count(": OK") == 2
    assert herd.pids() == {} and list(herd.directory.rglob("*.pid")) == []
    # When once more / Then it is said that they are down, which is no failure
    assert herd.multi("stop", "mail", "images").stdout.splitlines()[1:] == [
        f"> mail@{host}: DOWN", f"> images@{host}: DOWN",
    ]  # fmt: skip


def test_a_restart_waits_for_running_tasks_and_starts_what_is_down(herd: Herd) -> None:
    herd.start("1")
    before = herd.pid("celery1")
    # Given a worker in the middle of a task
    gate = herd.gate()
    running = herd.tasks.wait.delay(gate.name)
    gate.reached()
    # When there is no patience / Then it is said that it still runs
    done = herd.multi("stopwait", "1", "--timeout", "0.3", code=1)
    (said,) = done.stderr.splitlines()
    assert "still runs after 0.3 s" in said
    # When it is restarted, with another that does not run
    command = [
        "restart", "2", "-A", herd.project.name, "-P", "solo", "-l", "INFO", "-n", os.uname().nodename, "--quiet",
    ]  # fmt: skip
    gate.open()
    assert herd.multi(*command).stdout == ""
    # Then the task has finished, and two new ones run
    assert running.get(timeout=20) is None
    after = herd.pids()
    assert sorted(after) == ["celery1", "celery2"] and before not in after.values()


def test_a_signal_of_the_users_and_a_kill(herd: Herd) -> None:
    herd.start("2")
    pids = herd.pids()
    # When one is told to stop at once
    done = herd.multi("stopwait", "1", "-QUIT")
    assert f"SIGQUIT -> {pids['celery1']}" in done.stdout
    assert sorted(herd.pids()) == ["celery2"]
    # When all are killed / Then the one that was left is gone at once, with its pidfile
    done = herd.multi("kill", "2")
    assert f"Sending SIGKILL to node celery2@{os.uname().nodename} ({pids['celery2']})" in done.stdout
    assert not Path(f"/proc/{pids['celery2']}").exists() or herd.pids() == {}
    assert list(herd.directory.rglob("*.pid")) == []


def test_a_number_that_was_left_behind_is_never_signalled(herd: Herd) -> None:
    # Given a pidfile with the number of a process that is not a worker
    bystander = subprocess.Popen(["sleep", "60"])
    (herd.directory / "run").mkdir()
    (herd.directory / "run/celery1.pid").write_text(f"{bystander.pid}\n")
    # When the worker is killed, by the number
    done = herd.multi("kill", "1")
    # Then it is down, and the other lives
    assert "DOWN" in done.stdout
    assert bystander.poll() is None
    bystander.kill()
    bystander.wait(10)


def test_what_would_be_started_is_shown(capfd: pytest.CaptureFixture[str]) -> None:
    def shell(*words: str, code: int = 0) -> tuple[str, str]:
        return here(capfd, *words, code=code)

    # Given options before `multi` and behind it / When the commands are shown / Then each has its own, ready to be run
    done = shell("-A", "proj", "-b", "amqp://rabbit", "multi", "show", "2", "-c:1", "5", "--pidfile=%n.pid")
    first, second = done[0].splitlines()
    assert " -m amqptasks -A proj -b amqp://rabbit worker --detach --pidfile=celery1.pid -c 5 -n celery1@" in first
    assert "-c" not in second.split()
    # And as JSON
    found = json.loads(shell("multi", "show", "2", "--json")[0])
    assert [each.partition("@")[0] for each in found] == ["celery1", "celery2"]
    assert shell("multi", "names", "2", "-n", "lan")[0].split() == ["celery1@lan", "celery2@lan"]
    assert shell("multi", "expand", "/run/%n@%h", "a", "-n", "lan")[0] == "/run/a@lan\n"
    assert "-c 7" in shell("multi", "get", "b", "a", "b", "-c:b", "7")[0]
    assert "no node is called 'c'" in shell("multi", "get", "c", "a", "b", code=1)[1]
    assert "range" in shell("multi", "help")[0]


@pytest.mark.parametrize(
    ("words", "says"),
    [
        (["strat", "2"], "no command 'strat' (did you mean 'start'?)"),
        (["start"], "which nodes?"),
        (["start", "2", "--pidfle=x"], "did you mean '--pidfile'?"),
        (["start", "2", "-D"], "they always go to the background"),
        (["start", "2", "--pidfile=w.pid"], "write %n"),
        (["show", "2", "-c:9", "1"], "there is no node 9"),
    ],
)
def test_a_mistake_is_one_line_and_starts_nothing(
    tmp_path: Path, words: list[str], says: str, capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    (said,) = here(capfd, "multi", *words, code=2)[1].splitlines()
    assert says in said
    assert list(tmp_path.iterdir()) == []
