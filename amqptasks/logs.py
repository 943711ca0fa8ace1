"""Logging as Celery's users know it: its formats, its logger names, and the task's name and id in a task's own lines.

Nothing is configured before a worker asks for it: a program that sends tasks keeps its own logging.
"""

from __future__ import annotations

import contextlib
import json
import logging
import os
import re
import sys
import threading
from collections.abc import Callable
from contextvars import ContextVar
from datetime import datetime, timezone
from typing import Any, Final, TextIO

from amqptasks import signals

TASK_LOGGER = "amqptasks.task"
_TRACE = TASK_LOGGER + ".trace"
#: What is printed is logged under this name.
REDIRECTED_LOGGER = "amqptasks.redirected"

LOG_FORMAT = "[%(asctime)s: %(levelname)s/%(processName)s] %(message)s"
TASK_LOG_FORMAT = "[%(asctime)s: %(levelname)s/%(processName)s] %(task_name)s[%(task_id)s]: %(message)s"

_COLORS = {"DEBUG": 34, "WARNING": 33, "ERROR": 31, "CRITICAL": 35}

_task: ContextVar[tuple[str | None, str | None] | None] = ContextVar("amqptasks_log_task", default=None)


def get_logger(name: str) -> logging.Logger:
    """Return a logger by name."""
    return logging.getLogger(name)


def get_task_logger(name: str) -> logging.Logger:
    """Return a logger for use in tasks: its lines carry the name and id of the task that is running.

    Raises:
        RuntimeError: The name is one that this package uses itself.
    """
    if name in ("amqptasks", TASK_LOGGER, "celery", "celery.task"):
        raise RuntimeError(f"the logger name {name!r} is reserved; use __name__")
    logger = logging.getLogger(name)
    base = logging.getLogger(TASK_LOGGER)
    if logger.parent is not base and logger is not base:
        logger.parent = base
    return logger


def bind_task(name: str | None, task_id: str | None) -> Callable[[], None]:
    """Put a task's name and id into the lines logged in this context; call what this returns to undo it."""
    token = _task.set((name, task_id))
    return lambda: _task.reset(token)


class TaskFormatter(logging.Formatter):
    """Adds ``task_name`` and ``task_id``; ``???`` outside tasks."""

    def format(self, record: logging.LogRecord) -> str:
        """Format one record."""
        name, task_id = _task.get() or (None, None)
        record.__dict__.setdefault("task_name", name or "???")
        record.__dict__.setdefault("task_id", task_id or "???")
        return super().format(record)


#: What every record has; the rest is what the caller gave as ``extra``.
_FIELDS: Final = frozenset(logging.makeLogRecord({}).__dict__) | {"message", "asctime", "task_name", "task_id"}
#: Of what the caller gave, and of what must be told without JSON's help, no more characters than these.
_MAX_EXTRA: Final = 4096
MAX_TRACEBACK: Final = 131_072


class JsonFormatter(logging.Formatter):
    """Writes a record as one JSON object on one line: ``time`` (ISO 8601, UTC), ``level``, ``logger``, ``message``,
    ``process``, ``pid``; in a task ``task_name`` and ``task_id``; ``exception`` and ``stack`` if there are; ``extra``
    if the caller gave some. It is valid JSON, in ASCII, whatever the record holds.
    """

    def format(self, record: logging.LogRecord) -> str:
        """Format one record."""
        line: dict[str, Any] = {
            "time": datetime.fromtimestamp(record.created, timezone.utc).isoformat(timespec="microseconds"),
            "level": record.levelname,
            "logger": record.name,
            "message": "",
            "process": record.processName,
            "pid": record.process,
        }
        message, args = record.msg, record.args
        if record.name.startswith(_TRACE) and isinstance(args, tuple) and str(message).endswith("\n%s"):
            # How the package tells of an error: its traceback, of bounded length, is the last argument.
            line["exception"] = _text(str(args[-1]), MAX_TRACEBACK)
            message, args = message[:-3], args[:-1]
        line["message"] = _message(message, args)
        task_name, task_id = self._task(record)
        if task_id or task_name:
            line["task_name"], line["task_id"] = task_name, task_id
        if record.exc_info and not record.exc_text:
            # As all formatters: it is kept for the others.
            record.exc_text = self.formatException(record.exc_info)
        if record.exc_text:
            line["exception"] = record.exc_text
        if record.stack_info:
            line["stack"] = record.stack_info
        extra = {key: _plain(value) for key, value in record.__dict__.items() if key not in _FIELDS}
        if extra:
            line["extra"] = extra
        return json.dumps(line, default=_text)

    @staticmethod
    def _task(record: logging.LogRecord) -> tuple[Any, Any]:
        """Return the name and id of the task that a record is of, or about."""
        if record.name.startswith(_TRACE) and str(record.msg).startswith("Task %s[%s]"):
            # The worker's own process is in no task when it says what becomes of one.
            args = record.args
            if isinstance(args, tuple) and len(args) >= 2:
                return _plain(args[0]), _plain(args[1])
        name, task_id = _task.get() or (None, None)
        own = record.__dict__
        return _plain(own.get("task_name", name)), _plain(own.get("task_id", task_id))


def _message(message: Any, args: Any) -> str:
    try:
        # As LogRecord.getMessage does it.
        return str(message) % args if args else str(message)
    except Exception as error:
        # Wrong arguments, or an argument whose text raises. The line is worth more than the complaint.
        return f"{_text(message)} {_text(args)} (cannot be put together: {type(error).__name__})"


def _plain(value: Any) -> Any:
    """Return a value as JSON can write it."""
    if isinstance(value, str):
        return value[:_MAX_EXTRA]
    try:
        text = json.dumps(value, allow_nan=False)
        if len(text) <= _MAX_EXTRA:
            return json.loads(text)
    except (TypeError, ValueError, RecursionError):
        pass  # told as a text
    return _text(value)


def _text(value: Any, most: int = _MAX_EXTRA) -> str:
    try:
        return (value if isinstance(value, str) else repr(value))[:most]
    except Exception as error:
        return f"<{type(value).__name__}, whose text raised {type(error).__name__}>"


class ColorFormatter(logging.Formatter):
    """Colours the lines that matter, for a terminal."""

    def __init__(self, inner: logging.Formatter) -> None:
        super().__init__()
        self._inner = inner

    def format(self, record: logging.LogRecord) -> str:
        """Format one record."""
        text = self._inner.format(record)
        color = _COLORS.get(record.levelname)
        return f"\x1b[1;{color}m{text}\x1b[0m" if color else text


class _Writing(threading.local):
    """What one thread is writing: the tasks of a pool of threads print at once."""

    part = ""
    is_busy = False


class LoggingStream:
    """A text stream whose lines become log records: what tasks print goes to the log. Safe from any thread."""

    encoding = "utf-8"
    errors = "replace"
    mode = "w"
    name = None
    closed = False

    def __init__(self, logger: logging.Logger, level: int) -> None:
        self._logger = logger
        self._level = level
        self._writing = _Writing()

    def write(self, text: Any) -> int:
        """Log each complete line."""
        if not isinstance(text, str):
            # As every text stream: click writes bytes to see whether it may, and would go on with them.
            raise TypeError(f"write() argument must be str, not {type(text).__name__}")
        if not self._writing.is_busy:
            *lines, self._writing.part = (self._writing.part + text).split("\n")
            self._log(lines)
        # Else the handler itself printed: logging that again would never end.
        return len(text)

    def _log(self, lines: list[str]) -> None:
        self._writing.is_busy = True
        try:
            for line in lines:
                if line.strip():
                    # As an argument: what is printed is no format.
                    self._logger.log(self._level, "%s", line.rstrip())
        finally:
            self._writing.is_busy = False

    def writelines(self, lines: Any) -> None:
        """Write several texts."""
        for line in lines:
            self.write(line)

    def flush(self) -> None:
        """Log what has no line end yet."""
        if not self._writing.is_busy:
            part, self._writing.part = self._writing.part, ""
            self._log([part])

    def isatty(self) -> bool:
        """Never a terminal."""
        return False

    def writable(self) -> bool:
        """Always."""
        return True

    def close(self) -> None:
        """Flush."""
        self.flush()


def parse_level(level: int | str | None) -> int:
    """Return a level's number, by number or name in any case.

    Raises:
        ValueError: There is no such level.
    """
    if level is None:
        return logging.WARNING
    if isinstance(level, int):
        return level
    if level.isdigit():
        return int(level)
    number = logging.getLevelName(level.upper())
    if not isinstance(number, int):
        raise ValueError(f"expected a log level (debug, info, warning, error, critical), got: {level!r}")
    return number


class LogFile(logging.FileHandler):
    """A log file that is opened anew when it was moved away, as log rotation does.

    If that fails, or the file of a child process cannot be opened, the one that is open stays in use. If it cannot be
    written, as on a full disk, that is said on standard error, not for each line, and in the file as soon as it can be.

    Args:
        path: What `expand_path` takes.
    """

    def __init__(self, path: str, nodename: str) -> None:
        self._given = (path, nodename)
        self._opened: tuple[int, int] | None = None
        self._unwritten = 0
        super().__init__(expand_path(path, nodename), encoding="utf-8")

    def emit(self, record: logging.LogRecord) -> None:
        """Write one record."""
        # Not WatchedFileHandler: that raises into the caller's code when it cannot open the file again.
        try:
            status = os.stat(self.baseFilename)
            is_same = self._opened == (status.st_dev, status.st_ino)
        except OSError:
            is_same = False
        if not is_same:
            with contextlib.suppress(OSError):
                self._reopen()
        unwritten = self._unwritten
        super().emit(record)
        if unwritten and self._unwritten == unwritten:
            self._unwritten = 0
            text = "The log file can be written again; lines may be missing here, up to %d"
            super().emit(logging.LogRecord(__name__, logging.WARNING, __file__, 0, text, (unwritten,), None))

    def handleError(self, record: logging.LogRecord) -> None:
        """Say what keeps a record from being written."""
        error = sys.exc_info()[1]
        if not isinstance(error, OSError):
            super().handleError(record)
            return
        self._unwritten += 1
        if self._unwritten == 1 and sys.__stderr__:
            with contextlib.suppress(OSError, ValueError):
                print(f"The log file {self.baseFilename} cannot be written: {error}", file=sys.__stderr__, flush=True)

    def enter_child(self, index: int) -> None:
        """Write into the file of a child process from now on."""
        ours, path = self.baseFilename, os.path.abspath(expand_path(*self._given, index))
        if path == ours:
            return
        self.baseFilename = path
        try:
            self._reopen()
        except OSError as error:
            self.baseFilename = ours
            logging.getLogger(__name__).error("Cannot open the log file %s: %s; using %s", path, error, ours)

    def _reopen(self) -> None:
        old, self.stream = self.stream, self._open()
        if old is not None:
            old.close()

    def _open(self) -> Any:
        stream = super()._open()
        status = os.fstat(stream.fileno())
        self._opened = (status.st_dev, status.st_ino)
        return stream


def expand_path(path: str, nodename: str, index: int = 0) -> str:
    """Fill in what ``%`` stands for in the name of a log file or pidfile, as in Celery.

    ``%p`` is the node's full name, ``%n`` the part before the @, ``%h`` that behind it, ``%d`` the host's domain;
    ``%i`` the number of the child process, 0 for the worker's own; ``%I`` the same with a dash, or nothing for 0.
    """
    name, _, host = nodename.partition("@")
    values = {
        "p": nodename, "n": name, "h": host, "d": host.partition(".")[2], "i": str(index),
        "I": f"-{index}" if index else "", "%": "%",
    }  # fmt: skip
    return re.sub(r"%(.)", lambda match: values.get(match[1], match[0]), path)


def enter_child(index: int) -> None:
    """Give a child process, numbered from 1, the log files that ``%i`` and ``%I`` make its own."""
    for name in (None, TASK_LOGGER, TASK_LOGGER + ".trace"):
        for handler in logging.getLogger(name).handlers:
            if isinstance(handler, LogFile):
                handler.enter_child(index)


def supports_color(logfile: str | None, wanted: bool | None = None, stream: TextIO | None = None) -> bool:
    """Whether a log is coloured: as it is wanted; None for terminals, unless the variable NO_COLOR is set."""
    if wanted is not None:
        return wanted
    stream = stream or sys.__stderr__
    return logfile is None and not os.environ.get("NO_COLOR") and stream is not None and stream.isatty()


def setup_worker_logging(
    conf: Any, level: int, logfile: str | None, nodename: str = "", stream: TextIO | None = None,
    *, colorize: bool | None = None, format: str | None = None,
) -> list[Any]:  # fmt: skip
    """Configure logging for a worker or another program that runs for long, unless a ``setup_logging`` receiver does
    it instead. `app.log.setup` is the door to it.

    Args:
        logfile: What `expand_path` takes; None for standard error.
        stream: Instead of standard error.
        colorize: Overrides the setting.
        format: Overrides the setting.

    Returns:
        What the receivers of ``setup_logging`` returned; empty if there are none.

    Raises:
        Exception: What such a receiver raised.
    """
    color = supports_color(logfile, conf.worker_log_color if colorize is None else colorize, stream)
    is_json = bool(conf.worker_log_json)
    given: dict[str, Any] = {
        "loglevel": level, "logfile": logfile and expand_path(logfile, nodename),
        "format": format or conf.worker_log_format or LOG_FORMAT, "colorize": color and not is_json,
    }  # fmt: skip
    answers = signals.setup_logging.send(None, **given)
    for _receiver, answer in answers:
        if isinstance(answer, Exception):
            raise answer
    if answers:
        return answers
    # pika tells every failed attempt in several lines and a traceback; links tell it in one.
    logging.getLogger("pika").setLevel(max(level, logging.CRITICAL))

    def attach(logger: logging.Logger, formatter: logging.Formatter) -> None:
        handler = LogFile(logfile, nodename) if logfile else logging.StreamHandler(stream or sys.__stderr__)
        handler.setFormatter(ColorFormatter(formatter) if given["colorize"] else formatter)
        logger.addHandler(handler)

    plain = JsonFormatter() if is_json else logging.Formatter(given["format"], conf.worker_log_datefmt)
    root = logging.getLogger()
    if conf.worker_hijack_root_logger:
        _clear(root)
    if not root.handlers:
        attach(root, plain)
    root.setLevel(level)
    signals.after_setup_logger.send(None, logger=root, **given)
    setup_task_logger(conf, level, attach)
    # The lines about tasks (received, succeeded) name the task themselves.
    trace = logging.getLogger(_TRACE)
    _clear(trace)
    attach(trace, plain)
    trace.propagate = False
    signals.after_setup_task_logger.send(None, logger=logging.getLogger(TASK_LOGGER), **given)
    return answers


def setup_task_logger(conf: Any, level: int, attach: Callable[[logging.Logger, logging.Formatter], None]) -> None:
    """Give the loggers of tasks their handler."""
    logger = logging.getLogger(TASK_LOGGER)
    _clear(logger)
    formatter: logging.Formatter = JsonFormatter()
    if not conf.worker_log_json:
        formatter = TaskFormatter(conf.worker_task_log_format or TASK_LOG_FORMAT, conf.worker_task_log_datefmt)
    attach(logger, formatter)
    logger.setLevel(level)
    logger.propagate = False


def _clear(logger: logging.Logger) -> None:
    for handler in logger.handlers:
        if isinstance(handler, LogFile):
            handler.close()
    logger.handlers.clear()


def redirect_stdouts(
    level: int | str | None, logger: logging.Logger | None = None, *, stdout: bool = True, stderr: bool = True
) -> LoggingStream:
    """Log what is printed in this process and its children."""
    made = LoggingStream(logger or logging.getLogger(REDIRECTED_LOGGER), parse_level(level))
    if stdout:
        sys.stdout = made
    if stderr:
        # Two streams: what has no line end yet must not mix.
        sys.stderr = LoggingStream(logger or logging.getLogger(REDIRECTED_LOGGER), parse_level(level))
    return made
