"""Logging as Celery's users know it: its formats, its logger names, and the task's name and id in a task's own lines.

Nothing is configured before a worker asks for it: a program that sends tasks keeps its own logging.
"""

from __future__ import annotations

import contextlib
import logging
import os
import re
import sys
from collections.abc import Callable
from contextvars import ContextVar
from typing import Any, TextIO

from amqptasks import signals

TASK_LOGGER = "amqptasks.task"

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


class LoggingStream:
    """A text stream whose lines become log records: what tasks print goes to the log."""

    encoding = "utf-8"
    errors = "replace"
    closed = False

    def __init__(self, logger: logging.Logger, level: int) -> None:
        self._logger = logger
        self._level = level
        self._part = ""
        self._busy = False

    def write(self, text: Any) -> int:
        """Log each complete line."""
        if not isinstance(text, str):
            # As every text stream: click writes bytes to see whether it may, and would go on with them.
            raise TypeError(f"write() argument must be str, not {type(text).__name__}")
        if self._busy:
            # The handler itself printed: logging that again would never end.
            return len(text)
        self._busy = True
        try:
            *lines, self._part = (self._part + text).split("\n")
            for line in lines:
                if line.strip():
                    self._logger.log(self._level, line.rstrip())
        finally:
            self._busy = False
        return len(text)

    def writelines(self, lines: Any) -> None:
        """Write several texts."""
        for line in lines:
            self.write(line)

    def flush(self) -> None:
        """Log what has no line end yet."""
        part, self._part = self._part, ""
        if part.strip():
            self._logger.log(self._level, part.rstrip())

    def isatty(self) -> bool:
        """Never a terminal."""
        return False

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


def setup_worker_logging(
    conf: Any, level: int, logfile: str | None, nodename: str = "", stream: TextIO | None = None
) -> None:
    """Configure logging for a worker, unless a ``setup_logging`` receiver does it instead.

    Args:
        logfile: What `expand_path` takes.
    """
    stream = stream or sys.__stderr__
    colored = conf.worker_log_color
    if colored is None:
        colored = logfile is None and stream is not None and stream.isatty()
    path = logfile and expand_path(logfile, nodename)
    given = {"loglevel": level, "logfile": path, "format": conf.worker_log_format or LOG_FORMAT, "colorize": colored}
    if signals.setup_logging.send(None, **given):
        return
    datefmt = conf.worker_log_datefmt
    root = logging.getLogger()
    if conf.worker_hijack_root_logger:
        root.handlers.clear()
    task_logger = logging.getLogger(TASK_LOGGER)
    if not root.handlers:
        root.addHandler(_handler(logfile, nodename, stream, logging.Formatter(given["format"], datefmt), colored))
    root.setLevel(level)
    task_logger.handlers.clear()
    task_logger.addHandler(
        _handler(
            logfile,
            nodename,
            stream,
            TaskFormatter(conf.worker_task_log_format or TASK_LOG_FORMAT, conf.worker_task_log_datefmt),
            colored,
        )
    )
    task_logger.setLevel(level)
    task_logger.propagate = False
    # The lines about tasks (received, succeeded) name the task themselves.
    trace = logging.getLogger(TASK_LOGGER + ".trace")
    trace.handlers.clear()
    trace.addHandler(_handler(logfile, nodename, stream, logging.Formatter(given["format"], datefmt), colored))
    trace.propagate = False
    # pika tells every failed attempt in several lines and a traceback; links tell it in one.
    logging.getLogger("pika").setLevel(max(level, logging.CRITICAL))
    signals.after_setup_logger.send(None, logger=root, **given)
    signals.after_setup_task_logger.send(None, logger=task_logger, **given)
    if conf.worker_redirect_stdouts:
        redirect_stdouts(conf.worker_redirect_stdouts_level)


def redirect_stdouts(level: int | str) -> None:
    """Log what is printed in this process and its children."""
    logger = logging.getLogger("amqptasks.redirected")
    sys.stdout = LoggingStream(logger, parse_level(level))
    sys.stderr = LoggingStream(logger, parse_level(level))


def _handler(
    logfile: str | None, nodename: str, stream: TextIO | None, formatter: logging.Formatter, colored: bool
) -> logging.Handler:
    handler = LogFile(logfile, nodename) if logfile else logging.StreamHandler(stream)
    handler.setFormatter(ColorFormatter(formatter) if colored else formatter)
    return handler
