"""Starts and stops the workers of ``amqptasks multi``: real processes in the background, known by their pidfiles."""

from __future__ import annotations

import contextlib
import fcntl
import os
import signal
import struct
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Sequence

import click

from amqptasks.cli.common import EXIT_FAILED, CliError, plural
from amqptasks.cli.daemon import Owner
from amqptasks.cli.nodes import Node, Places

__all__ = ["Cluster", "Talk", "holder", "places"]

#: How long a worker may take until it runs in the background. It does not wait for its broker there.
START_TIMEOUT_S = 300.0
LOOK_EVERY_S = 0.1
#: How often a wait says that it goes on.
SAY_EVERY_S = 5.0
#: How long a killed process may take to be gone.
KILL_TIMEOUT_S = 10.0


def places() -> Places:
    """Return where pidfiles and log files are: the system's directories for root, the user's own for a user."""
    if os.geteuid() == 0:
        return Places("/var/run/amqptasks/%n.pid", "/var/log/amqptasks/%n%I.log")
    state = os.environ.get("XDG_STATE_HOME") or "~/.local/state"
    return Places(f"{state}/amqptasks/%n.pid", f"{state}/amqptasks/%n%I.log")


class Talk:
    """What is said: to standard output, more or less of it."""

    def __init__(self, *, quiet: bool, verbose: bool, nosplash: bool, no_color: bool) -> None:
        self.verbose = verbose and not quiet
        self._quiet = quiet
        self._nosplash = nosplash
        self._no_color = no_color

    def splash(self, version: str) -> None:
        """Say who speaks."""
        if not self._nosplash:
            self.say(self.color(f"amqptasks multi v{version}", "cyan"))

    def say(self, text: str, *, line: bool = True) -> None:
        """Say something, unless quiet."""
        if not self._quiet:
            click.echo(text, nl=line)

    def color(self, text: str, name: str) -> str:
        """Return it in a colour, if colours are wanted."""
        return text if self._no_color else click.style(text, fg=name)

    @property
    def ok(self) -> str:
        """The word for what went well."""
        return self.color("OK", "green")

    @property
    def failed(self) -> str:
        """The word for what did not."""
        return self.color("FAILED", "red")

    @property
    def down(self) -> str:
        """The word for what does not run."""
        return self.color("DOWN", "magenta")


class Cluster:
    """The workers that one command line means.

    Args:
        nodes: Each with its own name and pidfile.
        talk: Where to say what happens.
        timeout_s: How long workers may take to stop.
    """

    def __init__(self, nodes: Sequence[Node], talk: Talk, timeout_s: float) -> None:
        self._nodes = nodes
        self._talk = talk
        self._timeout_s = timeout_s

    def start(self) -> bool:
        """Start all of them, one after the other; tell whether all now run."""
        self._talk.say("> Starting nodes...")
        # All are tried, whatever becomes of the first.
        failed = [node for node in self._nodes if not self._start(node)]
        return not failed

    def stop(self, number: signal.Signals, *, wait: bool) -> bool:
        """Tell those that run to stop; with ``wait``, wait for their end. Tell whether all did as asked."""
        ok, _left = self._stop(number, self._say_down, lambda _node: None, wait=wait)
        return ok

    def restart(self, number: signal.Signals) -> bool:
        """Stop all, and start each as soon as it is down; tell whether all now run."""
        started: list[bool] = []

        def again(node: Node) -> None:
            self._talk.say(self._talk.color(f"> Restarting node {node.name}: ", "blue"), line=False)
            started.append(self._start(node, "OK"))

        ok, left = self._stop(number, again, again, wait=True)
        return ok and not left and all(started)

    def kill(self) -> bool:
        """End all at once, by SIGKILL; tell whether all are gone. Their children end when they notice."""
        ok = True
        for node in self._nodes:
            pid = holder(node.pidfile)
            if pid is None:
                self._say_down(node)
                continue
            self._talk.say(f"Sending SIGKILL to node {node.name} ({pid})")
            ok = _signalled(node, pid, signal.SIGKILL) and self._gone(node, KILL_TIMEOUT_S) and ok
        return ok

    # -- steps

    def _start(self, node: Node, word: str = "") -> bool:
        if not word:
            self._talk.say(f"\t> {node.name}: ", line=False)
        problem, said = self._launch(node)
        self._talk.say(self._talk.failed if problem else self._talk.ok)
        if self._talk.verbose and not problem:
            click.echo(said, nl=False)
        elif said:
            click.echo(said, err=True, nl=False)
        if problem:
            CliError(f"{node.name}: {problem}", EXIT_FAILED).show()
        return not problem

    def _launch(self, node: Node) -> tuple[str, str]:
        """Start a worker; return what is wrong, if anything, and what it printed."""
        try:
            _make_directories(node)
        except CliError as error:
            return error.format_message(), ""
        command = [node.options.get("--executable") or sys.executable, *node.words()]
        if self._talk.verbose:
            click.echo(f"  {' '.join(command)}")
        # A file, not a pipe: nobody waits for the end of what a process in the background might still say.
        with tempfile.TemporaryFile("w+", encoding="utf-8", errors="replace") as output:
            errors = subprocess.STDOUT if self._talk.verbose else output
            try:
                code = subprocess.run(
                    command, stdin=subprocess.DEVNULL, stdout=output if self._talk.verbose else subprocess.DEVNULL,
                    stderr=errors, timeout=START_TIMEOUT_S, check=False,
                ).returncode  # fmt: skip
            except OSError as error:
                return f"cannot run {command[0]!r}: {error.strerror}", ""
            except subprocess.TimeoutExpired:
                return f"did not run in the background within {START_TIMEOUT_S:g} s", ""
            output.seek(0)
            said = output.read()
        if code < 0:
            return f"was ended by signal {-code}", said
        return (f"ended with exit code {code}" if code else ""), said

    def _stop(
        self, number: signal.Signals, on_down: Callable[[Node], None], on_end: Callable[[Node], None], *, wait: bool
    ) -> tuple[bool, list[Node]]:  # fmt: skip
        """Signal those that run; call `on_down` with each that did not run, and `on_end` with each that ended."""
        running = {}
        for node in self._nodes:
            pid = holder(node.pidfile)
            if pid is not None:
                running[node.name] = (node, pid)
        down = [node for node in self._nodes if node.name not in running]
        ok = True
        if running:
            self._talk.say(self._talk.color("> Stopping nodes...", "blue"))
        for node, pid in list(running.values()):
            self._talk.say(f"\t> {node.name}: {number.name} -> {pid}")
            if not _signalled(node, pid, number):
                ok = False
                del running[node.name]
        for node in down:
            on_down(node)
        if not wait:
            return ok, [node for node, _pid in running.values()]
        left = self._await(running, on_end)
        for node in left:
            CliError(
                f"{node.name} still runs after {self._timeout_s:g} s: it finishes its tasks. Wait again with stopwait, "
                f"or end it with kill",
                EXIT_FAILED,
            ).show()
        return ok and not left, left

    def _await(self, running: dict[str, tuple[Node, int]], on_end: Callable[[Node], None]) -> list[Node]:
        """Wait until these are down; return those that are not when the time is over."""
        deadline = time.monotonic() + self._timeout_s
        say_at = 0.0
        while running:
            for node, _pid in list(running.values()):
                if holder(node.pidfile) is None:
                    del running[node.name]
                    self._talk.say(f"\t> {node.name}: {self._talk.ok}")
                    on_end(node)
            now = time.monotonic()
            if now >= deadline:
                break
            if running and now >= say_at:
                if say_at:
                    pids = ", ".join(str(pid) for _node, pid in running.values())
                    self._talk.say(
                        self._talk.color(f"> Waiting for {plural(len(running), 'node')} -> {pids}...", "blue")
                    )
                say_at = now + SAY_EVERY_S
            if running:
                time.sleep(LOOK_EVERY_S)
        return [node for node, _pid in running.values()]

    def _gone(self, node: Node, within_s: float) -> bool:
        deadline = time.monotonic() + within_s
        while holder(node.pidfile) is not None:
            if time.monotonic() >= deadline:
                CliError(f"{node.name} is still there {within_s:g} s after SIGKILL", EXIT_FAILED).show()
                return False
            time.sleep(LOOK_EVERY_S)
        # It could not delete it itself, and the next one would wonder.
        with contextlib.suppress(OSError):
            os.unlink(node.pidfile)
        return True

    def _say_down(self, node: Node) -> None:
        self._talk.say(f"> {node.name}: {self._talk.down}")


def _signalled(node: Node, pid: int, number: signal.Signals) -> bool:
    try:
        os.kill(pid, number)
    except ProcessLookupError:
        # It ended just now, which is what was wanted.
        return True
    except PermissionError:
        CliError(f"{node.name}: process {pid} belongs to another user, who alone may signal it", EXIT_FAILED).show()
        return False
    return True


def holder(pidfile: str) -> int | None:
    """Return the process that holds a pidfile, None if none does: a number that was left behind is nobody's.

    Raises:
        CliError: It cannot be read.
    """
    try:
        descriptor = os.open(pidfile, os.O_RDONLY)
    except FileNotFoundError:
        return None
    except OSError as error:
        raise CliError(f"cannot read the pidfile {pidfile!r}: {error.strerror}", EXIT_FAILED) from error
    try:
        text = os.read(descriptor, 32).strip()
        written = int(text) if text.isdigit() else None
        if sys.platform != "linux":
            return written if written is not None and _is_alive(written) else None
        # Asks who has locked it, without a lock of our own that would be in the way of a worker that starts.
        layout = "hhqqi"
        answer = fcntl.fcntl(descriptor, fcntl.F_GETLK, struct.pack(layout, fcntl.F_WRLCK, os.SEEK_SET, 0, 0, 0))
        kind, *_place, pid = struct.unpack(layout, answer)
        if kind == fcntl.F_UNLCK:
            return None
        # 0 or less is how a process in another namespace shows.
        return pid if pid > 0 else written
    finally:
        os.close(descriptor)


def _is_alive(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except PermissionError:
        return True
    except OSError:
        return False
    return True


def _make_directories(node: Node) -> None:
    """Make the directories of the pidfile and the log file, for the user that the worker will be."""
    owner = Owner(node.options.get("--uid"), node.options.get("--gid"))
    for path in (node.pidfile, node.logfile):
        directory = os.path.dirname(path)
        if os.path.isdir(directory):
            continue
        try:
            os.makedirs(directory)
            if os.geteuid() == 0 and (owner.uid is not None or owner.gid is not None):
                os.chown(directory, -1 if owner.uid is None else owner.uid, -1 if owner.gid is None else owner.gid)
        except OSError as error:
            raise CliError(f"cannot make the directory {directory!r}: {error.strerror}", EXIT_FAILED) from error
