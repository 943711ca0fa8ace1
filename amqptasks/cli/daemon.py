"""What makes a command a daemon: it leaves the terminal, keeps its process id in a file, and gives up its privileges.

Whatever can go wrong at the start is still told in the terminal, with the exit code it has in the foreground:
`Detached` lets go of the terminal only when the command says that it runs.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import grp
import os
import pwd
import shutil
import sys
from collections.abc import Sequence
from types import TracebackType
from typing import Any

import click

from amqptasks.cli.common import EXIT_FAILED, CliError, did_you_mean

__all__ = ["Detached", "Owner", "Pidfile", "octal", "run_again", "run_by"]

_RUNNING = b"+"
#: The most that is read of a pidfile: more than any number of a process.
_PID_BYTES = 32


class Detached:
    """This command going on in the background. Making one forks: the caller's code goes on in the new process only.

    The old process waits until `let_go` is called, and ends with 0; or until the new one ends, and ends like that.
    """

    def __init__(self) -> None:
        for stream in (sys.stdout, sys.stderr):
            stream.flush()
        heard, self._said = os.pipe()
        first = os.fork()
        if first:
            os.close(self._said)
            os._exit(_exit_code_of(first))
        # A session of its own has no terminal; its leader could get one, so it is not the leader who goes on.
        os.setsid()
        second = os.fork()
        if second:
            os.close(self._said)
            if os.read(heard, 1) == _RUNNING:
                os._exit(0)
            os._exit(_exit_code_of(second))
        os.close(heard)
        # Whatever else was inherited, such as the pipes of an ssh session that waits for their end.
        for name in os.listdir("/dev/fd"):
            if int(name) > 2 and int(name) != self._said:
                with contextlib.suppress(OSError):
                    os.close(int(name))

    def let_go(self, logfile: str | None) -> None:
        """Say that it runs. What is printed from now on goes to the log file, or nowhere."""
        for stream in (sys.__stdout__, sys.__stderr__):
            if stream is not None:
                stream.flush()
        nowhere = os.open(os.devnull, os.O_RDWR)
        # Not only logging writes there: so do C libraries, and Python itself when it dies.
        output = os.open(logfile, os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o666) if logfile else nowhere
        os.dup2(nowhere, 0)
        os.dup2(output, 1)
        os.dup2(output, 2)
        for descriptor in {nowhere, output}:
            if descriptor > 2:
                os.close(descriptor)
        os.write(self._said, _RUNNING)
        os.close(self._said)


def _exit_code_of(pid: int) -> int:
    code = os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])
    # As shells say it: 137 for what SIGKILL ended.
    return code if code >= 0 else 128 - code


class Pidfile:
    """A file that holds this process's id and is locked while it lives: ``with Pidfile(path): …``.

    The lock belongs to the process and ends with it, however it ends: what a killed worker or a reboot left behind is
    taken over, even if another process has that id by now.

    Raises:
        CliError: On entering: another process holds it, or it cannot be written.
    """

    def __init__(self, path: str) -> None:
        self.path = os.path.abspath(path)
        self._descriptor = -1
        self._pid = -1

    def __enter__(self) -> Pidfile:
        try:
            self._lock()
            stale = os.read(self._descriptor, _PID_BYTES).strip()
            os.ftruncate(self._descriptor, 0)
            os.pwrite(self._descriptor, b"%d\n" % os.getpid(), 0)
        except OSError as error:
            raise CliError(f"cannot write the pidfile {self.path!r}: {error.strerror}") from error
        self._pid = os.getpid()
        if stale:
            click.echo(f"took over the pidfile {self.path} of process {stale.decode(errors='replace')}, "
                       "which no longer holds it", err=True)  # fmt: skip
        return self

    def _lock(self) -> None:
        while True:
            self._descriptor = os.open(self.path, os.O_RDWR | os.O_CREAT, 0o644)
            try:
                fcntl.lockf(self._descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except OSError as error:
                pid = os.read(self._descriptor, _PID_BYTES).decode(errors="replace").strip()
                os.close(self._descriptor)
                if error.errno not in (errno.EACCES, errno.EAGAIN):
                    raise
                raise CliError(
                    f"the pidfile {self.path!r} belongs to a process that runs{f' ({pid})' if pid else ''}: "
                    f"stop that one first, or give this one another --pidfile",
                    EXIT_FAILED,
                ) from None
            # Its owner may have deleted it between our opening and locking: then we hold a file that nobody sees.
            try:
                if os.path.samestat(os.fstat(self._descriptor), os.stat(self.path)):
                    return
            except FileNotFoundError:
                pass  # deleted, and nobody has made another: the next turn does
            os.close(self._descriptor)

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._pid != os.getpid():
            return
        try:
            # Deleted before it is unlocked: nobody can lock it meanwhile.
            os.unlink(self.path)
        except OSError as problem:
            click.echo(f"cannot delete the pidfile {self.path!r}: {problem.strerror}", err=True)
        os.close(self._descriptor)


class Owner:
    """The user and group that the worker shall run as; either may be None.

    Args:
        uid: A user's name or number.
        gid: A group's name or number; without, the user's own group.

    Raises:
        CliError: There is no such user or group.
    """

    def __init__(self, uid: str | None, gid: str | None) -> None:
        self.name: str | None = None
        self.uid: int | None = None
        self.gid: int | None = None if gid is None else _group(gid)
        if uid is not None:
            user = _user(uid)
            if user is not None:
                self.name, self.uid = user.pw_name, user.pw_uid
                self.gid = user.pw_gid if self.gid is None else self.gid
            elif self.gid is not None:
                self.uid = int(uid)
            else:
                raise CliError(f"--uid: there is no user {uid} on this machine, so --gid must name a group")

    def take_over(self) -> None:
        """Make this process theirs, for good.

        Raises:
            CliError: This process may not.
        """
        if self.uid in (None, os.geteuid()) and self.gid in (None, os.getegid()):
            return
        if os.geteuid() != 0:
            raise CliError("--uid and --gid: only root can become another user; this process is not root")
        try:
            if self.gid is not None:
                if self.name is not None:
                    os.initgroups(self.name, self.gid)
                elif self.uid is not None:
                    os.setgroups([self.gid])
                os.setgid(self.gid)
            if self.uid is not None:
                os.setuid(self.uid)
        except (OSError, OverflowError) as error:
            raise CliError(f"cannot become user {self.uid} of group {self.gid}: {error}", EXIT_FAILED) from error
        for path in (os.__file__, __file__):
            # What is not imported yet could not be: a riddle about missing modules.
            if not os.access(path, os.R_OK):
                who = self.name or self.uid if self.uid is not None else f"group {self.gid}"
                raise CliError(f"{who} may not read {path!r}: give them a Python of their own", EXIT_FAILED)


def _user(text: str) -> Any:
    """Return the entry of a user; None for the number of one without, as containers have them."""
    try:
        return pwd.getpwuid(int(text)) if text.isdigit() else pwd.getpwnam(text)
    except KeyError:
        if text.isdigit():
            return None
        near = did_you_mean(text, (each.pw_name for each in pwd.getpwall()))
        raise CliError(f"--uid: there is no user {text!r} on this machine{near}") from None
    except OverflowError:
        raise CliError(f"--uid: expected a user's name or number, got: {text}") from None


def _group(text: str) -> int:
    try:
        return int(text) if text.isdigit() else grp.getgrnam(text).gr_gid
    except KeyError:
        near = did_you_mean(text, (each.gr_name for each in grp.getgrall()))
        raise CliError(f"--gid: there is no group {text!r} on this machine{near}") from None


def octal(_ctx: click.Context, _param: click.Parameter, value: str | None) -> int | None:
    """Read ``022`` as a umask; a click callback."""
    if value is None:
        return None
    try:
        number = int(value, 8)
    except ValueError:
        number = -1
    if not 0 <= number <= 0o777:
        raise click.BadParameter(f"expected an octal number from 0 to 777, such as 022, got: {value!r}")
    return number


def run_by(executable: str, argv: Sequence[str], start_directory: str | None) -> None:
    """Go on with the same command line in another Python, unless it is this one. Does not return then.

    Raises:
        CliError: There is no such program.
    """
    found = shutil.which(executable)
    if found is None:
        raise CliError(f"--executable: there is no program {executable!r}")
    path = os.path.abspath(found)
    if path == sys.executable:
        return
    os.environ.pop("AMQPTASKS_WORKER_EXECUTABLE", None)
    # It shall find everything as we did, --workdir included.
    if start_directory is not None:
        os.chdir(start_directory)
    for stream in (sys.stdout, sys.stderr):
        stream.flush()
    os.execv(path, [path, "-m", "amqptasks", *_without(argv, "--executable")])


def run_again(argv: Sequence[str], start_directory: str | None, leave_out: Sequence[str]) -> None:
    """Begin anew with the same command line, in this same process; does not return.

    Args:
        leave_out: Flags, and environment variables, that are done with.
    """
    for name in leave_out:
        os.environ.pop(name, None)
    if start_directory is not None:
        os.chdir(start_directory)
    for stream in (sys.stdout, sys.stderr):
        stream.flush()
    end = list(argv).index("--") if "--" in argv else len(argv)
    words = [word for at, word in enumerate(argv) if at > end or word not in leave_out]
    os.execv(sys.executable, [sys.executable, "-m", "amqptasks", *words])


def _without(argv: Sequence[str], option: str) -> list[str]:
    """Return a command line without an option and its value."""
    left: list[str] = []
    words = iter(argv)
    for word in words:
        if word == "--":
            return [*left, word, *words]
        if word == option:
            next(words, None)
        elif not word.startswith(f"{option}="):
            left.append(word)
    return left
