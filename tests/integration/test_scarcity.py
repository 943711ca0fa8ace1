"""A machine that runs out of something: the worker says so, does not spin, loses nothing, and goes on when it can."""

from __future__ import annotations

import os
import re
import resource
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.proxy import Proxy
from tests.running import Workshop
from tests.support import ROOT, WorkerProcess, eventually

SOURCE = """
    import errno

    app.conf.broker_connection_retry_interval_max = 0.5

    @app.task
    def add(x, y=0):
        return x + y

    @app.task(acks_late=True)
    def late(name, text):
        note(f"begun {text}")
        gate(name)
        note(f"done {text}")
        return text

    fork = os.fork

    def fork_if_there_is_room():
        if (HERE / "no-more-processes").exists():
            raise BlockingIOError(errno.EAGAIN, os.strerror(errno.EAGAIN))
        return fork()

    # What the system does where a user may have no more processes; it never does so to root.
    os.fork = fork_if_there_is_room
"""


@pytest.fixture
def shop(tmp_path: Path, broker_url: str) -> Iterator[Workshop]:
    """A project for one test, which starts its own workers."""
    with Workshop(tmp_path, broker_url, SOURCE) as made:
        yield made


def limit(pid: int, what: int, soft: int | None) -> None:
    """Change a limit of a process that runs; None takes it away, as far as it goes."""
    _soft, hard = resource.prlimit(pid, what)
    resource.prlimit(pid, what, (hard if soft is None else soft, hard))


def busy_s(pid: int) -> float:
    """How long a process has kept a processor busy, seconds."""
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


def said(worker: WorkerProcess, pattern: str, times: int) -> None:
    """Wait until the log matches this many times."""
    eventually(lambda: len(re.findall(pattern, worker.log)) >= times, 30)


def running(shop: Workshop) -> tuple[Any, Any]:
    """Send a late-ack task that stops at a gate, and wait until it has begun."""
    gate = shop.gate()
    result = shop.tasks.late.delay(gate.name, "it")
    shop.noted("begun it")
    return gate, result


def test_a_worker_without_descriptors_waits_for_them(shop: Workshop, broker_url: str) -> None:
    # Given a worker that runs a task / When it may open nothing more, and loses its connections and its child
    with Proxy(broker_url) as proxy:
        worker = shop.start("-c", "1", env={"AMQPTASKS_BROKER_URL": proxy.url})
        gate, result = running(shop)
        waiting = [shop.tasks.add.delay(number) for number in range(5)]
        limit(worker.pid, resource.RLIMIT_NOFILE, 3)
        proxy.cut()
        os.kill(worker.children()[0], signal.SIGKILL)
        # Then it says of each what it cannot have, and tries again, now and then
        before = busy_s(worker.pid)
        said(worker, r"worker consumer: cannot connect to \S+: .*Too many open files.*\. Trying again in", 4)
        said(worker, r"worker publisher: cannot connect to \S+: .*Too many open files.*\. Trying again in", 4)
        said(worker, r"Cannot start another ForkPoolWorker-1: .*Too many open files; trying again in 1 s", 2)
        assert busy_s(worker.pid) - before < 1.0, worker.log
        assert "Traceback" not in worker.log and len(worker.log.splitlines()) < 200, worker.log
        # And when it can have them again, everything is run
        limit(worker.pid, resource.RLIMIT_NOFILE, None)
        shop.noted("begun it", times=2)
        gate.open()
        assert result.get(timeout=20) == "it"
        assert [each.get(timeout=20) for each in waiting] == list(range(5))
        assert worker.stop() == 0
        shop.is_waiting(0)


SENDER = """
import resource, sys
from amqptasks import App
from amqptasks.exceptions import OperationalError

app = App("sender", broker=sys.argv[1])
app.conf.task_default_queue = sys.argv[2]
add = app.task(name="add")(lambda x: x)
add.delay(1)
soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
resource.setrlimit(resource.RLIMIT_NOFILE, (3, hard))
print("cut me off", flush=True)
sys.stdin.readline()
app.conf.broker_publish_timeout = 2.0
sys.stdout.write("sending\\n")
sys.stdout.flush()
try:
    add.delay(2)
except OperationalError as error:
    print(f"{type(error).__name__}: {error}", flush=True)
resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
app.conf.broker_publish_timeout = 20.0
add.delay(3)
print("sent", flush=True)
"""


@pytest.mark.parametrize("when", ["before it sends", "while it sends"])
def test_a_sender_without_descriptors_is_told_and_goes_on_when_it_can(
    shop: Workshop, broker_url: str, when: str
) -> None:
    path = shop.directory / "sender.py"
    path.write_text(SENDER)
    with Proxy(broker_url) as proxy:
        # Given a program that has sent a task / When it may open nothing more, and loses its connection
        command = [sys.executable, str(path), proxy.url, shop.queue]
        env = os.environ | {"PYTHONPATH": str(ROOT)}
        pipe = subprocess.PIPE
        with subprocess.Popen(command, env=env, stdin=pipe, stdout=pipe, stderr=subprocess.STDOUT, text=True) as sender:
            assert sender.stdout is not None
            assert sender.stdin is not None
            assert sender.stdout.readline() == "cut me off\n"
            if when == "before it sends":
                proxy.cut()
            else:
                proxy.stall()
                sender.stdin.write("go on\n")
                sender.stdin.flush()
                assert sender.stdout.readline() == "sending\n"
                proxy.cut()
                proxy.heal()
            output, _ = sender.communicate("go on\n", timeout=50)
    # Then its next task is not sent, and it is told why, whether or not it had noticed the loss before
    assert re.search(r"^(BrokerUnavailable|NotSent|MaybeSent): .*Too many open files", output, re.MULTILINE), output
    # And the one after that, when it may open things again, is
    assert output.endswith("sent\n"), output
    shop.is_waiting(2)


def test_a_worker_that_cannot_fork_goes_on_when_it_can(shop: Workshop) -> None:
    # Given a worker that runs a task / When its child dies, and there may be no other
    worker = shop.start("-c", "1")
    gate, result = running(shop)
    (shop.directory / "no-more-processes").touch()
    os.kill(worker.children()[0], signal.SIGKILL)
    # Then it says so, and tries again
    said(worker, r"Cannot start another ForkPoolWorker-1: .*Resource temporarily unavailable; trying again in 1 s", 2)
    assert "Traceback" not in worker.log
    # And when there may be one, it runs the task again
    (shop.directory / "no-more-processes").unlink()
    shop.noted("begun it", times=2)
    gate.open()
    assert result.get(timeout=20) == "it"
    assert worker.stop() == 0
    shop.is_waiting(0)


def test_a_worker_whose_log_cannot_be_written_works_on_and_says_so(shop: Workshop) -> None:
    # Given a worker that logs into a file / When there is no room for that any more
    log = shop.directory / "worker.log"
    worker = shop.start("-c", "1", "-f", str(log), ready=False)
    for number in range(10):
        assert shop.tasks.add.delay(number).get(timeout=20) == number
    # What it says of that goes into a file too, a shorter one.
    assert log.stat().st_size > 2 * worker.log_path.stat().st_size
    everyone = [worker.pid, *worker.children()]
    for pid in everyone:
        limit(pid, resource.RLIMIT_FSIZE, log.stat().st_size)
    # Then it works on, and says so where it can, and not for each line
    assert [shop.tasks.add.delay(number).get(timeout=20) for number in range(20)] == list(range(20))
    worker.wait_for(r"The log file \S+worker\.log cannot be written: .*File too large")
    assert worker.log.count("cannot be written") <= 3 * len(everyone), worker.log
    # And where there is room again, the file goes on, and says that lines may be missing
    for pid in everyone:
        limit(pid, resource.RLIMIT_FSIZE, None)
    shop.tasks.add.delay(1).get(timeout=20)
    eventually(lambda: "The log file can be written again; lines may be missing here, up to " in log.read_text(), 20)
    assert worker.stop() == 0


def test_a_worker_whose_output_cannot_be_written_can_be_stopped(shop: Workshop) -> None:
    # Given a worker whose log and whose output go to a full disk / When it is told to stop / Then it does
    worker = shop.start("-c", "1")
    for pid in (worker.pid, *worker.children()):
        limit(pid, resource.RLIMIT_FSIZE, 0)
    assert shop.tasks.add.delay(1, 1).get(timeout=20) == 2
    assert worker.stop() == 0
    assert "Warm shutdown" not in worker.log
