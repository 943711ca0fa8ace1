"""What tests share: waiting for a condition, a private RabbitMQ, a real worker process.

The fixtures over these are in `conftest.py`.
"""

from __future__ import annotations

import importlib
import os
import re
import signal
import subprocess
import sys
import textwrap
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from types import ModuleType
from typing import Any, TypeVar, cast

ROOT = Path(__file__).resolve().parent.parent
READY = re.compile(r"\bready\.\s*$", re.MULTILINE)

T = TypeVar("T")


def eventually(assertion: Callable[[], T], within_s: float = 10.0, every_s: float = 0.02) -> T:
    """Call `assertion` until it neither raises AssertionError nor returns False; return what it returns.

    After `within_s` seconds its last failure is the test's failure.
    """
    deadline = time.monotonic() + within_s
    while True:
        try:
            value = assertion()
            if value is not False:
                return value
            problem = AssertionError(f"still False: {assertion!r}")
        except AssertionError as error:
            problem = error
        if time.monotonic() >= deadline:
            raise AssertionError(f"not so within {within_s} s: {problem}") from problem
        threading.Event().wait(every_s)


def in_thread(function: Callable[[], T], within_s: float = 30.0) -> Callable[[], T]:
    """Start a thread; the function returned joins it and gives what it returned or raised."""
    outcome: list[tuple[Any, BaseException | None]] = []

    def run() -> None:
        try:
            outcome.append((function(), None))
        except BaseException as error:
            outcome.append((None, error))

    thread = threading.Thread(target=run, daemon=True)
    thread.start()

    def join() -> T:
        thread.join(within_s)
        assert not thread.is_alive(), "it still waits"
        value, error = outcome[0]
        if error is not None:
            raise error
        return cast(T, value)

    return join


class PrivateServer:
    """A server of the tests' own, run by a script in scripts/. It ends with this process, however that ends."""

    script = ROOT / "scripts" / "none"

    def __init__(self, directory: str | Path) -> None:
        self.directory = str(directory)
        self.url = ""

    def _script(self, *arguments: str, timeout_s: float = 120.0) -> str:
        # Files, not pipes: the node that `up` leaves behind must not keep us waiting for the end of its output.
        command = [str(self.script), "--dir", self.directory, *arguments]
        done = subprocess.run(command, stdin=subprocess.DEVNULL, capture_output=True, text=True, timeout=timeout_s)
        if done.returncode != 0:
            raise RuntimeError(f"{' '.join(command)} ended with {done.returncode}: {done.stderr or done.stdout}")
        return done.stdout.strip()

    def start(self) -> str:
        """Start it, again with the same port and data if it ran before, and return its URL."""
        self.url = self._script("--owner", str(os.getpid()), "up")
        return self.url

    def stop(self) -> None:
        """Stop it cleanly; its data stays."""
        self._script("stop")

    def kill(self) -> None:
        """Kill it as a power cut would; its data stays."""
        self._script("kill")

    def delete(self) -> None:
        """Stop it and delete its data."""
        self._script("down")

    @classmethod
    def missing(cls) -> str:
        """Say why there is none on this machine; empty if there is."""
        done = subprocess.run([str(cls.script), "where"], capture_output=True, text=True, timeout=20.0)
        return "" if done.returncode == 0 else done.stderr.strip()


class PrivateBroker(PrivateServer):
    """A RabbitMQ node."""

    script = ROOT / "scripts" / "rabbitmq"

    def ctl(self, *arguments: str) -> str:
        """Run rabbitmqctl on the node and return what it printed."""
        return self._script("ctl", "-q", *arguments)

    def freeze(self) -> None:
        """Stop its process as it is, until `thaw`: connections stay open, and nothing answers."""
        self._script("freeze")

    def thaw(self) -> None:
        """Let it go on."""
        self._script("thaw")


class Cluster:
    """Three RabbitMQ nodes in one cluster."""

    def __init__(self, directory: Path) -> None:
        self.nodes: list[PrivateBroker] = [PrivateBroker(directory / "0")]
        self.nodes += [_JoiningBroker(directory / str(number), self.nodes[0]) for number in (1, 2)]

    def start(self) -> None:
        """Start them all."""
        for node in self.nodes:
            node.start()

    @property
    def urls(self) -> str:
        """The URLs of all nodes, as `broker_url` takes them."""
        return ";".join(node.url for node in self.nodes)

    def delete(self) -> None:
        """Stop them and delete their data."""
        for node in reversed(self.nodes):
            node.delete()


class _JoiningBroker(PrivateBroker):
    """A RabbitMQ node in a cluster with another."""

    def __init__(self, directory: str | Path, other: PrivateBroker) -> None:
        super().__init__(directory)
        self._other = other

    def start(self) -> str:
        """Start it, in the other's cluster."""
        self.url = self._script("--owner", str(os.getpid()), "--join", self._other.directory, "up")
        return self.url


class TlsBroker(PrivateBroker):
    """A RabbitMQ node that speaks TLS too, with the certificates of a directory (see `tests.certificates`)."""

    def __init__(self, directory: str | Path, certificates: Path) -> None:
        super().__init__(directory)
        self._certificates = certificates
        self.tls_url = ""

    def start(self) -> str:
        """Start it and return its URL without TLS; ``tls_url`` is the one with it."""
        self.url = self._script("--owner", str(os.getpid()), "--tls", str(self._certificates), "up")
        self.tls_url = self._script("tls-url")
        return self.url


class PrivateDatabase(PrivateServer):
    """A PostgreSQL server; `url` is that of its database."""

    script = ROOT / "scripts" / "postgres"


class PrivateRedis(PrivateServer):
    """A Redis server. With a directory of certificates (see `tests.certificates`) it speaks TLS too."""

    script = ROOT / "scripts" / "redis"

    def __init__(self, directory: str | Path, certificates: Path | None = None, *, sentinel: bool = False) -> None:
        super().__init__(directory)
        self.certificates = certificates
        self._options = ["--tls", str(certificates)] if certificates else []
        self._options += ["--sentinel"] if sentinel else []

    def start(self) -> str:
        """Start it and return its URL without TLS."""
        self.url = self._script("--owner", str(os.getpid()), *self._options, "up")
        return self.url

    def other_url(self, kind: str) -> str:
        """Return its "tls", "socket" or "sentinel" URL."""
        return self._script(f"{kind}-url")

    def cli(self, *arguments: str) -> str:
        """Run redis-cli on it and return what it printed."""
        return self._script("cli", *arguments)


class PrivateMemcached(PrivateServer):
    """A memcached. Its URL begins with cache+."""

    script = ROOT / "scripts" / "memcached"


class Project:
    """A module of tasks in a directory of its own, which workers and the test itself can both import.

    Its source may use two names that stand at its top: BROKER, the broker's URL, and QUEUE, a queue name that no other
    test uses.
    """

    def __init__(self, directory: Path, name: str, source: str, *, broker_url: str, queue: str) -> None:
        self.directory = directory
        self.name = name
        self.queue = queue
        self._module: ModuleType | None = None
        head = f"BROKER = {broker_url!r}\nQUEUE = {queue!r}\n"
        (directory / f"{name}.py").write_text(head + textwrap.dedent(source), encoding="utf-8")

    @property
    def module(self) -> ModuleType:
        """The module, imported into this process on first use."""
        if self._module is None:
            if str(self.directory) not in sys.path:
                sys.path.insert(0, str(self.directory))
            importlib.invalidate_caches()
            self._module = importlib.import_module(self.name)
        return self._module

    def forget(self) -> None:
        """Undo the import."""
        if self._module is not None:
            sys.modules.pop(self.name, None)
            self._module = None
        if str(self.directory) in sys.path:
            sys.path.remove(str(self.directory))

    def __getattr__(self, name: str) -> Any:
        if name.startswith("_"):
            raise AttributeError(name)
        return getattr(self.module, name)


class WorkerProcess:
    """A real ``amqptasks … worker`` (or another command that logs) in a process group of its own."""

    def __init__(self, command: Sequence[str], *, directory: Path, log: Path, env: Mapping[str, str]) -> None:
        self.command = list(command)
        self.log_path = log
        self.expected_exits: tuple[int, ...] | None = (0,)
        with log.open("ab") as output:
            self.process = subprocess.Popen(
                self.command,
                cwd=directory,
                env=dict(env),
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=subprocess.STDOUT,
                start_new_session=True,
            )

    @property
    def pid(self) -> int:
        """The process id of the parent."""
        return self.process.pid

    @property
    def log(self) -> str:
        """Everything it has printed so far."""
        return self.log_path.read_text(encoding="utf-8", errors="replace")

    def wait_for(self, pattern: str | re.Pattern[str], within_s: float = 20.0) -> re.Match[str]:
        """Wait until its output matches; fail with the output if it ends first or time runs out."""
        deadline = time.monotonic() + within_s
        while True:
            ended = self.process.poll() is not None
            found = re.search(pattern, self.log)
            if found:
                return found
            if ended or time.monotonic() >= deadline:
                what = f"ended with {self.process.returncode}" if ended else f"printed no such thing in {within_s} s"
                raise AssertionError(f"the worker {what}; expected {pattern!r} in:\n{self.log}")
            threading.Event().wait(0.02)

    def wait_ready(self, within_s: float = 20.0) -> None:
        """Wait until it says that it consumes."""
        self.wait_for(READY, within_s)

    def signal(self, number: int) -> None:
        """Send a signal to the parent process."""
        self.process.send_signal(number)

    def children(self) -> list[int]:
        """Process ids of its child processes, oldest first."""
        found = []
        for task in Path(f"/proc/{self.pid}/task").glob("*/children"):
            found += [int(pid) for pid in task.read_text().split()]
        return sorted(found)

    def wait(self, within_s: float = 20.0) -> int:
        """Wait for its end and return its exit code (negative: killed by that signal)."""
        try:
            return self.process.wait(within_s)
        except subprocess.TimeoutExpired:
            raise AssertionError(f"the worker has not ended within {within_s} s; it printed:\n{self.log}") from None

    def stop(self, within_s: float = 20.0) -> int:
        """Ask it to stop warmly (TERM) and return its exit code."""
        if self.process.poll() is None:
            self.signal(signal.SIGTERM)
        return self.wait(within_s)

    def kill(self) -> None:
        """Kill parent and children with SIGKILL, and stop expecting a clean exit."""
        self.expected_exits = None
        self.kill_group()

    def kill_group(self) -> None:
        """Kill whatever is left of the process group and reap the parent."""
        try:
            os.killpg(self.pid, signal.SIGKILL)
        except ProcessLookupError:
            pass  # all gone already, which is what was wanted
        self.process.wait(10)

    def finish(self) -> None:
        """Stop it and fail unless it ended as expected (`expected_exits`; None: any way will do)."""
        try:
            code = self.stop()
        finally:
            self.kill_group()
        if self.expected_exits is not None and code not in self.expected_exits:
            raise AssertionError(
                f"the worker ended with {code}, expected {self.expected_exits}; it printed:\n{self.log}"
            )
