"""Logging as users of a worker see it: what tasks print, JSON, colours in a terminal, files and their rotation."""

from __future__ import annotations

import json
import os
import re
import shutil
import signal
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.command import Terminal
from tests.running import Workshop
from tests.support import ROOT, WorkerProcess, eventually

SOURCE = """
import logging, warnings
from amqptasks import signals
from amqptasks.utils.log import get_task_logger

mine = get_task_logger(__name__)

@signals.beat_init.connect
def begins(**named):
    print("beat begins")

@app.task
def talk(text):
    print(text)
    print("complaint of", text, file=sys.stderr)
    mine.info("said %s", text)
    logging.getLogger("library").warning("library of %s", text)
    warnings.warn("beware of " + text)
    return os.getpid()

@app.task
def fail():
    raise KeyError("why\\nso")
"""


@pytest.fixture(scope="module")
def shop(tmp_path_factory: pytest.TempPathFactory, broker_url: str) -> Iterator[Workshop]:
    with Workshop(tmp_path_factory.mktemp("logging"), broker_url, SOURCE) as made:
        yield made


def log_of(directory: Path, name: str, *patterns: str) -> str:
    """The text of a log file, once it has all of these."""
    path = directory / name

    def look() -> str:
        text = path.read_text() if path.exists() else ""
        for pattern in patterns:
            assert re.search(pattern, text), f"no {pattern} in:\n{text}"
        return text

    return eventually(look, 20.0)


def test_what_tasks_print_is_in_the_log_at_the_level(shop: Workshop, tmp_path: Path) -> None:
    # Given a worker whose log has a file for each child, and a level for what is printed
    worker = shop.start(
        "-c", "1", "-f", str(tmp_path / "w%I.log"), "--", "worker_redirect_stdouts_level=ERROR", ready=False
    )
    # When a task prints, logs and is warned
    pid = shop.tasks.talk.delay("ducks").get(timeout=30)
    assert pid != worker.pid
    name = f"{shop.project.name}.talk"
    text = log_of(tmp_path, "w-1.log", r"beware of ducks", r"Task .* succeeded")
    # Then each is a line of the child's file, once, in its form
    for pattern in (
        r"ERROR/ForkPoolWorker-1\] ducks$", r"ERROR/ForkPoolWorker-1\] complaint of ducks$",
        rf"INFO/ForkPoolWorker-1\] {name}\[[\w-]+\]: said ducks$", r"WARNING/ForkPoolWorker-1\] library of ducks$",
        r"WARNING/ForkPoolWorker-1\] .*UserWarning: beware of ducks$",
    ):  # fmt: skip
        assert len(re.findall(pattern, text, re.MULTILINE)) == 1, f"{pattern} in:\n{text}"
    # When both files are moved away, as logrotate does, and later copied and emptied
    (tmp_path / "w-1.log").rename(tmp_path / "w-1.log.1")
    (tmp_path / "w.log").rename(tmp_path / "w.log.1")
    shop.tasks.talk.delay("geese").get(timeout=30)
    log_of(tmp_path, "w-1.log", "said geese")
    log_of(tmp_path, "w.log", "received")
    shutil.copy(tmp_path / "w-1.log", tmp_path / "w-1.log.2")
    os.truncate(tmp_path / "w-1.log", 0)
    shop.tasks.talk.delay("swans").get(timeout=30)
    # Then the lines go on, in the new file and from its beginning
    text = log_of(tmp_path, "w-1.log", "said swans", "Task .* succeeded")
    assert text.startswith("[") and "geese" not in text and "\0" not in text
    assert "swans" not in (tmp_path / "w-1.log.1").read_text()
    worker.finish()
    # And the worker's own words are in its own
    assert "warm shutdown" in (tmp_path / "w.log").read_text()


def test_a_log_of_json_is_json_to_the_last_line(shop: Workshop, tmp_path: Path) -> None:
    # Given a worker that logs JSON / When tasks print odd things and fail
    worker = shop.start("-c", "1", "-f", str(tmp_path / "w.log"), "--", "worker_log_json=yes", ready=False)
    talk = shop.tasks.talk.delay('"quotes" \\ \u2028 \x1b[31m')
    talk.get(timeout=30)
    failed = shop.tasks.fail.delay()
    failed.get(timeout=30, propagate=False)
    worker.finish()
    # Then every line is an object, and those of and about a task say which
    lines: list[dict[str, Any]] = [json.loads(line) for line in (tmp_path / "w.log").read_text().splitlines()]
    name = f"{shop.project.name}.talk"
    of_talk = [line["message"] for line in lines if line.get("task_id") == talk.id]
    assert f"Task {name}[{talk.id}] received" in of_talk
    assert {'said "quotes" \\ \u2028 \x1b[31m', 'library of "quotes" \\ \u2028 \x1b[31m'} <= set(of_talk)
    assert all(line["task_name"] == name for line in lines if line.get("task_id") == talk.id)
    failure = next(line for line in lines if line.get("task_id") == failed.id and "exception" in line)
    assert failure["level"] == "ERROR" and "KeyError" in failure["exception"]
    assert {line["process"] for line in lines} == {"MainProcess", "ForkPoolWorker-1"}


def test_what_is_printed_stays_where_it_is_if_it_is_to(shop: Workshop) -> None:
    worker = shop.start("-P", "solo", "--", "worker_redirect_stdouts=no")
    shop.tasks.talk.delay("crows").get(timeout=30)
    worker.finish()
    assert re.search(r"^crows$", worker.log, re.MULTILINE)


def test_a_terminal_gets_colours_unless_they_are_not_wanted(shop: Workshop) -> None:
    # Given a worker in a terminal / When it has something to warn of / Then that is coloured
    arguments = ("-A", shop.project.name, "worker", "-P", "solo", "-n", f"{shop.project.name}@%h")
    environment = {"PYTHONPATH": f"{shop.directory}", "TERM": "xterm"}
    with Terminal(shop.directory, *arguments, env=environment | {"NO_COLOR": ""}) as terminal:
        terminal.expect("ready.")
        terminal.process.send_signal(signal.SIGTERM)
        terminal.expect(r"\x1b\[1;33m\[[^\n]*warm shutdown[^\n]*\x1b\[0m")
        assert terminal.process.wait(20) == 0
    # When NO_COLOR is set / Then it is not
    with Terminal(shop.directory, *arguments, env=environment | {"NO_COLOR": "1"}) as terminal:
        terminal.expect("ready.")
        terminal.process.send_signal(signal.SIGTERM)
        assert "\x1b" not in terminal.expect(r"[^\n]*warm shutdown[^\n]*")[0]
        assert terminal.process.wait(20) == 0


def test_beat_logs_as_a_worker_does(shop: Workshop, tmp_path: Path) -> None:
    # Given a beat with a log of JSON, in a program that prints when beat begins
    log = tmp_path / "beat.log"
    command = [sys.executable, "-m", "amqptasks", "-A", shop.project.name, "beat", "-l", "INFO", "-f", str(log)]
    environment = os.environ | {"PYTHONPATH": str(ROOT), "AMQPTASKS_WORKER_LOG_JSON": "yes"}
    beat = WorkerProcess(command, directory=shop.directory, log=tmp_path / "printed", env=environment)
    try:
        log_of(tmp_path, "beat.log", "beat: Starting...", "beat begins")
    finally:
        assert beat.stop() == 0
    # Then every line is JSON, what is printed among them
    lines = [json.loads(line) for line in log.read_text().splitlines()]
    assert next(line for line in lines if line["message"] == "beat begins")["level"] == "WARNING"
