"""Logging as a worker sets it up: its formats, the task's name and id, what is printed, and whose handlers stay."""

from __future__ import annotations

import io
import json
import logging
import os
import re
import sys
import threading
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from amqptasks import App, signals
from amqptasks.app.log import Logging
from amqptasks.logs import (
    TASK_LOGGER,
    ColorFormatter,
    LoggingStream,
    TaskFormatter,
    bind_task,
    get_task_logger,
    parse_level,
    redirect_stdouts,
    setup_worker_logging,
    supports_color,
)
from amqptasks.settings import Conf


@pytest.fixture(autouse=True)
def logging_as_before() -> Iterator[None]:
    """Undo what a test does to the process's logging."""
    names = ("", "pika", "amqptasks.redirected", TASK_LOGGER, TASK_LOGGER + ".trace")
    loggers = [logging.getLogger(name) for name in names]
    before = [(each.handlers[:], each.level, each.propagate) for each in loggers]
    streams = sys.stdout, sys.stderr
    Logging.already_setup = False
    yield
    Logging.already_setup = False
    logging.captureWarnings(False)
    sys.stdout, sys.stderr = streams
    for each, (handlers, level, propagate) in zip(loggers, before, strict=True):
        for handler in set(each.handlers) - set(handlers):
            handler.close()
        each.handlers[:], each.propagate = handlers, propagate
        each.setLevel(level)


def conf(**settings: Any) -> Conf:
    made = Conf()
    made.update({"worker_redirect_stdouts": False, **settings})
    return made


def setup(level: int = logging.INFO, logfile: str | None = None, **settings: Any) -> io.StringIO:
    stream = io.StringIO()
    made = conf(**settings)
    setup_worker_logging(made, level, logfile, stream=stream)
    if made.worker_redirect_stdouts:
        redirect_stdouts(made.worker_redirect_stdouts_level)
    return stream


# ---- Levels and names


@pytest.mark.parametrize(
    ("given", "level"),
    [(None, 30), ("info", 20), ("INFO", 20), ("Warning", 30), ("10", 10), (15, 15), ("critical", 50), ("fatal", 50)],
)
def test_a_level_may_be_a_name_or_a_number(given: Any, level: int) -> None:
    assert parse_level(given) == level


@pytest.mark.parametrize("wrong", ["loud", "", "inf"])
def test_an_unknown_level_is_named_with_what_there_is(wrong: str) -> None:
    with pytest.raises(ValueError, match=r"expected a log level \(debug, info, .*\), got: '" + wrong):
        parse_level(wrong)


@pytest.mark.parametrize("name", ["amqptasks", "amqptasks.task", "celery", "celery.task"])
def test_names_that_are_taken_are_refused(name: str) -> None:
    with pytest.raises(RuntimeError, match="is reserved; use __name__"):
        get_task_logger(name)


# ---- A worker's lines


def test_a_workers_lines_look_like_celerys() -> None:
    stream = setup()
    logging.getLogger("proj").info("hello %s", "you")
    logging.getLogger("proj").debug("not this")
    line = stream.getvalue()
    assert re.fullmatch(r"\[\d{4}-\d\d-\d\d \d\d:\d\d:\d\d,\d{3}: INFO/MainProcess\] hello you\n", line)


def test_a_tasks_own_lines_carry_its_name_and_id() -> None:
    # Given a logger for tasks / When it is used inside and outside of one
    stream = setup()
    logger = get_task_logger("proj.tasks")
    undo = bind_task("proj.add", "id-1")
    logger.info("adding")
    undo()
    logger.info("idle")
    # Then the lines say where they come from, once each
    inside, outside = stream.getvalue().splitlines()
    assert inside.endswith("INFO/MainProcess] proj.add[id-1]: adding")
    assert outside.endswith("INFO/MainProcess] ???[???]: idle")


def test_the_lines_about_tasks_name_them_only_once() -> None:
    stream = setup()
    undo = bind_task("proj.add", "id-1")
    logging.getLogger(TASK_LOGGER + ".trace").info("Task proj.add[id-1] succeeded")
    undo()
    assert stream.getvalue().endswith("INFO/MainProcess] Task proj.add[id-1] succeeded\n")
    assert stream.getvalue().count("id-1") == 1


def test_the_formats_are_settings() -> None:
    stream = setup(worker_log_format="W %(message)s", worker_task_log_format="T %(task_name)s %(message)s")
    logging.getLogger("proj").warning("one")
    get_task_logger("proj.tasks").warning("two")
    assert stream.getvalue().splitlines() == ["W one", "T ??? two"]


def test_dates_are_written_as_the_settings_say() -> None:
    stream = setup(
        worker_log_format="W %(asctime)s", worker_log_datefmt="<%Y>",
        worker_task_log_format="T %(asctime)s", worker_task_log_datefmt="[%Y]",
    )  # fmt: skip
    logging.getLogger("proj").warning("one")
    get_task_logger("proj.tasks").warning("two")
    assert re.fullmatch(r"W <\d{4}>\nT \[\d{4}\]\n", stream.getvalue())


def test_setting_up_twice_writes_each_line_once() -> None:
    setup()
    stream = setup()
    logging.getLogger("proj").info("once")
    get_task_logger("proj.tasks").info("once")
    assert len(stream.getvalue().splitlines()) == 2


def test_a_log_file_gets_everything(tmp_path: Path) -> None:
    path = tmp_path / "worker.log"
    stream = setup(logfile=str(path))
    logging.getLogger("proj").info("größer")
    get_task_logger("proj.tasks").info("two")
    assert stream.getvalue() == ""
    assert [line.rpartition(" ")[2] for line in path.read_text(encoding="utf-8").splitlines()] == ["größer", "two"]


def test_colours_are_for_terminals() -> None:
    assert "\x1b[" not in _one_error(setup(worker_log_format="%(message)s"))
    assert _one_error(setup(worker_log_format="%(message)s", worker_log_color=True)) == "\x1b[1;31mno\x1b[0m\n"
    formatter = ColorFormatter(logging.Formatter("%(message)s"))
    assert formatter.format(logging.makeLogRecord({"msg": "plain", "levelname": "INFO"})) == "plain"


def _one_error(stream: io.StringIO) -> str:
    logging.getLogger("proj").error("no")
    return stream.getvalue()


def test_a_programs_own_handlers_stay_where_the_worker_may_not_take_over() -> None:
    # Given a program that has set up its logging / When a worker starts without taking over
    mine = logging.StreamHandler(io.StringIO())
    logging.getLogger().addHandler(mine)
    setup(worker_hijack_root_logger=False)
    assert mine in logging.getLogger().handlers
    # When it takes over, as is the default / Then they are gone
    setup()
    assert mine not in logging.getLogger().handlers


def test_a_receiver_of_setup_logging_does_it_all_itself() -> None:
    # Given a receiver / When a worker sets its logging up / Then it is told how, and nothing else happens
    told: list[dict[str, Any]] = []

    def receive(**named: Any) -> None:
        told.append(named)

    handlers = logging.getLogger().handlers[:]
    signals.setup_logging.connect(receive)
    try:
        setup(logging.DEBUG)
    finally:
        signals.setup_logging.disconnect(receive)
    assert logging.getLogger().handlers == handlers
    assert told[0]["loglevel"] == logging.DEBUG and told[0]["logfile"] is None and told[0]["colorize"] is False


def test_receivers_may_add_to_what_was_set_up() -> None:
    told: dict[str, logging.Logger] = {}

    def root(logger: logging.Logger, **_named: Any) -> None:
        told["root"] = logger

    def task(logger: logging.Logger, **_named: Any) -> None:
        told["task"] = logger

    signals.after_setup_logger.connect(root)
    signals.after_setup_task_logger.connect(task)
    try:
        setup()
    finally:
        signals.after_setup_logger.disconnect(root)
        signals.after_setup_task_logger.disconnect(task)
    assert told == {"root": logging.getLogger(), "task": logging.getLogger(TASK_LOGGER)}


# ---- What is printed


def test_what_is_printed_becomes_log_lines() -> None:
    stream = setup(worker_log_format="%(levelname)s %(message)s", worker_redirect_stdouts=True)
    print("one line")
    print("two", end=" ")
    print("parts\nand a third", file=sys.stdout)
    print("to stderr", file=sys.stderr)
    print("   ")
    assert stream.getvalue().splitlines() == [
        "WARNING one line", "WARNING two parts", "WARNING and a third", "WARNING to stderr",
    ]  # fmt: skip


def test_what_is_printed_stays_where_it_is_if_it_is_to() -> None:
    before = sys.stdout, sys.stderr
    setup(worker_redirect_stdouts=False)
    assert (sys.stdout, sys.stderr) == before


def test_what_is_printed_gets_the_level_that_is_asked_for() -> None:
    stream = setup(worker_log_format="%(levelname)s %(message)s")
    redirect_stdouts("info")
    print("hello")
    assert stream.getvalue() == "INFO hello\n"


def test_a_stream_into_the_log_is_a_text_stream(caplog: pytest.LogCaptureFixture) -> None:
    stream = LoggingStream(logging.getLogger("proj"), logging.WARNING)
    assert stream.write("a\nb") == 3
    stream.writelines(["c", "\n", "d"])
    assert not stream.isatty()
    assert caplog.messages == ["a", "bc"]
    # What has no line end yet comes with the flush, once
    stream.flush()
    stream.close()
    assert caplog.messages == ["a", "bc", "d"]


def test_a_handler_that_prints_does_not_run_in_circles() -> None:
    # Given a handler that prints what it gets / When something is printed / Then it is logged once, not for ever
    logger = logging.getLogger("proj.circle")
    stream = LoggingStream(logger, logging.WARNING)
    seen: list[str] = []

    class Printing(logging.Handler):
        def emit(self, record: logging.LogRecord) -> None:
            seen.append(record.getMessage())
            stream.write("printed again\n")

    handler = Printing()
    logger.addHandler(handler)
    stream.write("once\n")
    logger.removeHandler(handler)
    assert seen == ["once"]


def test_threads_that_print_at_once_do_not_lose_or_mix_their_lines() -> None:
    # Given a handler that waits in the middle of a line of one thread / When another thread prints meanwhile
    logger = logging.getLogger("proj.threads")
    stream = LoggingStream(logger, logging.WARNING)
    seen: list[str] = []

    class Meeting(logging.Handler):
        def createLock(self) -> None:  # noqa: N802
            self.lock = None

        def emit(self, record: logging.LogRecord) -> None:
            seen.append(record.getMessage())
            if record.getMessage() == "first":
                other.start()
                other.join(10)

    other = threading.Thread(target=lambda: stream.write("second\n"))
    handler = Meeting()
    logger.addHandler(handler)
    stream.write("begun ")
    begins = threading.Thread(target=lambda: stream.write("first\n"))
    begins.start()
    begins.join(10)
    stream.write("and ended\n")
    logger.removeHandler(handler)
    # Then every line is whole, and none is lost
    assert seen == ["first", "second", "begun and ended"]


def test_what_is_printed_is_no_format(caplog: pytest.LogCaptureFixture) -> None:
    LoggingStream(logging.getLogger("proj"), logging.WARNING).write("100 %s of it\n")
    assert caplog.messages == ["100 %s of it"]


# ---- JSON


def json_lines(stream: io.StringIO) -> list[dict[str, Any]]:
    """The lines that were written: each must be JSON, by the strictest reader."""

    def refuse(constant: str) -> Any:
        raise AssertionError(f"{constant} is not JSON")

    return [json.loads(line, parse_constant=refuse) for line in stream.getvalue().splitlines()]


def test_a_log_of_json_has_one_object_a_line() -> None:
    stream = setup(worker_log_json=True, worker_log_color=True)
    logging.getLogger("proj").warning("hello %s", "you", extra={"order": 7})
    (line,) = json_lines(stream)
    assert re.fullmatch(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d{6}\+00:00", line.pop("time"))
    assert line == {
        "level": "WARNING", "logger": "proj", "message": "hello you", "process": "MainProcess", "pid": os.getpid(),
        "extra": {"order": 7},
    }  # fmt: skip


def test_the_lines_of_and_about_a_task_say_which_in_fields() -> None:
    # Given a log of JSON / When a task logs, and the worker logs about a task, outside of it
    stream = setup(worker_log_json=True)
    undo = bind_task("proj.add", "id-1")
    get_task_logger("proj.tasks").info("adding")
    logging.getLogger("proj.plain").info("by any logger")
    undo()
    logging.getLogger(TASK_LOGGER + ".trace.worker").info("Task %s[%s] received", "proj.add", "id-2")
    get_task_logger("proj.tasks").info("idle")
    # Then each says which
    assert [line.get("task_id") for line in json_lines(stream)] == ["id-1", "id-1", "id-2", None]
    assert [line.get("task_name") for line in json_lines(stream)] == ["proj.add"] * 3 + [None]


class Odd:
    """Its text is an error."""

    def __repr__(self) -> str:
        raise ValueError("no text")


ROUND: list[Any] = []
ROUND.append(ROUND)


@pytest.mark.parametrize(
    ("message", "args", "extra"),
    [
        ("two\nlines\r\x1b[31m\u2028\x00", (), {}),
        ("a lone surrogate \ud800", (), {}),
        ("%s %s", ("too few",), {}),
        ("%s", (Odd(),), {}),
        (Odd(), (), {}),
        ({"a": {1, 2}}, (), {}),
        ("x", (), {"value": float("nan")}),
        ("x", (), {"value": ROUND}),
        ("x", (), {"value": {("a", "b"): 1}}),
        ("x", (), {"value": Odd()}),
        ("x", (), {"value": "y" * 100_000}),
        ("x", (), {"task_id": Odd()}),
    ],
)
def test_a_line_is_json_whatever_it_holds(message: Any, args: tuple[Any, ...], extra: dict[str, Any]) -> None:
    stream = setup(worker_log_json=True)
    logging.getLogger("proj").warning(message, *args, extra=extra)
    (line,) = json_lines(stream)
    assert isinstance(line["message"], str)
    assert stream.getvalue().isascii() and stream.getvalue().count("\n") == 1 and len(stream.getvalue()) < 10_000


def test_errors_are_told_in_a_field_of_their_own() -> None:
    stream = setup(worker_log_json=True)
    try:
        raise KeyError("why")
    except KeyError:
        logging.getLogger("proj").exception("it failed", stack_info=True)
    (line,) = json_lines(stream)
    assert line["message"] == "it failed"
    assert line["exception"].startswith("Traceback") and line["exception"].endswith("KeyError: 'why'")
    assert line["stack"].startswith("Stack")


# ---- The door for programs


def app_of(**settings: Any) -> App:
    return App("logging", set_as_current=False, **settings)


def test_logging_is_set_up_once_in_a_process(tmp_path: Path) -> None:
    # Given an app that has set logging up / When another does / Then nothing changes, until it is allowed
    first, second = tmp_path / "first", tmp_path / "second"
    assert app_of().log.setup("INFO", str(first)) == []
    assert app_of().log.already_setup
    assert app_of().log.setup("INFO", str(second)) is None
    logging.getLogger("proj").info("hello")
    assert "hello" in first.read_text() and not second.exists()
    Logging.already_setup = False
    assert app_of().log.setup("INFO", str(second)) == [] and second.exists()


def test_a_program_sets_its_log_up_as_a_worker_does(tmp_path: Path) -> None:
    # Given an app / When its program sets logging up, with what is printed and what Python warns of
    path = tmp_path / "%n.log"
    app = app_of(worker_log_format="%(levelname)s %(message)s")
    app.log.setup("info", str(path), redirect_stdouts=True, redirect_level="ERROR", hostname="me@here")
    print("printed")
    with warnings.catch_warnings():
        warnings.simplefilter("always")
        warnings.warn("odd", RuntimeWarning, stacklevel=1)
    app.log.get_default_logger().info("said")
    # Then it is all in the file
    assert isinstance(sys.stdout, LoggingStream)
    lines = (tmp_path / "me.log").read_text().splitlines()
    assert lines[0] == "ERROR printed" and "RuntimeWarning: odd" in lines[1] and lines[-1] == "INFO said"


def test_what_is_printed_may_go_to_a_logger_of_ones_own(caplog: pytest.LogCaptureFixture) -> None:
    app_of().log.redirect_stdouts_to_logger(logging.getLogger("proj.mine"), "ERROR", stderr=False)
    print("hello")
    print("not this", file=sys.stderr)
    assert [(each.name, each.levelname, each.message) for each in caplog.records] == [("proj.mine", "ERROR", "hello")]


def test_a_receiver_that_raises_keeps_logging_from_being_set_up() -> None:
    def broken(**_named: Any) -> None:
        raise OSError("no log today")

    signals.setup_logging.connect(broken)
    try:
        with pytest.raises(OSError, match="no log today"):
            app_of().log.setup()
    finally:
        signals.setup_logging.disconnect(broken)
    assert not Logging.already_setup


def test_colours_are_for_terminals_unless_they_are_not_wanted(monkeypatch: pytest.MonkeyPatch) -> None:
    class Terminal(io.StringIO):
        def isatty(self) -> bool:
            return True

    monkeypatch.delenv("NO_COLOR", raising=False)
    terminal = Terminal()
    assert supports_color(None, None, terminal) and not supports_color(None, False, terminal)
    assert not supports_color("worker.log", None, terminal) and not supports_color(None, None, io.StringIO())
    assert not app_of(worker_log_color=False).log.supports_color()
    monkeypatch.setenv("NO_COLOR", "1")
    assert not supports_color(None, None, terminal)


def test_a_record_keeps_the_fields_it_brings_itself() -> None:
    formatter = TaskFormatter("%(task_name)s %(task_id)s %(message)s")
    record = logging.makeLogRecord({"msg": "x", "task_name": "own", "task_id": "7"})
    assert formatter.format(record) == "own 7 x"
