"""``app.log``: logging as workers have it, for programs of one's own. The work is done by `amqptasks.logs`."""

from __future__ import annotations

import logging
from typing import Any, Protocol, TextIO

from amqptasks.logs import (
    LoggingStream,
    get_logger,
    parse_level,
    redirect_stdouts,
    setup_worker_logging,
    supports_color,
)

__all__ = ["Logging"]


class LoggingApp(Protocol):
    """What logging needs of the app."""

    @property
    def conf(self) -> Any:
        """The settings."""


class Logging:
    """Sets up logging by the settings of an app. For the main thread, before there are others.

    Attributes:
        already_setup: Whether logging was set up in this process, by any app: it is done once. False allows it again.
    """

    already_setup = False

    def __init__(self, app: LoggingApp) -> None:
        self._app = app

    def setup(
        self, loglevel: int | str | None = None, logfile: str | None = None, redirect_stdouts: bool = False,
        redirect_level: int | str = "WARNING", colorize: bool | None = None, hostname: str | None = None,
    ) -> list[Any] | None:  # fmt: skip
        """Set logging up as a worker does, unless that was done before.

        Args:
            logfile: Where to; ``%n``, ``%h``, ``%i`` and their kin as in ``worker --logfile``.
            redirect_stdouts: What is printed goes to the log too, at ``redirect_level``.
            colorize: Overrides ``worker_log_color``.
            hostname: The node's name, for the name of the file.

        Returns:
            What receivers of ``setup_logging`` returned, in whose hands it is then; None if it was done before.

        Raises:
            ValueError: There is no such level.
            OSError: The file cannot be opened.
            Exception: What a receiver of ``setup_logging`` raised.
        """
        answers = self.setup_logging_subsystem(loglevel, logfile, colorize=colorize, hostname=hostname)
        if redirect_stdouts and not answers:
            self.redirect_stdouts(redirect_level)
        logging.captureWarnings(True)
        return answers

    def setup_logging_subsystem(
        self, loglevel: int | str | None = None, logfile: str | None = None, format: str | None = None,
        colorize: bool | None = None, hostname: str | None = None, stream: TextIO | None = None,
    ) -> list[Any] | None:  # fmt: skip
        """Do what `setup` does, but for what is printed."""
        if Logging.already_setup:
            return None
        answers = setup_worker_logging(
            self._app.conf, parse_level(loglevel), logfile, hostname or "", stream, colorize=colorize, format=format
        )
        Logging.already_setup = True
        return answers

    def redirect_stdouts(self, loglevel: int | str | None = None, name: str | None = None) -> None:
        """Log what this process and its children print."""
        redirect_stdouts(loglevel, None if name is None else get_logger(name))

    def redirect_stdouts_to_logger(
        self, logger: logging.Logger, loglevel: int | str | None = None, stdout: bool = True, stderr: bool = True
    ) -> LoggingStream:
        """Log what this process and its children print, by a logger of one's own."""
        return redirect_stdouts(loglevel, logger, stdout=stdout, stderr=stderr)

    def supports_color(self, colorize: bool | None = None, logfile: str | None = None) -> bool:
        """Whether the log would be coloured."""
        return supports_color(logfile, self._app.conf.worker_log_color if colorize is None else colorize)

    def get_default_logger(self, name: str = "amqptasks") -> logging.Logger:
        """Return the package's logger."""
        return get_logger(name)
