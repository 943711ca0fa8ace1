"""The measurements, one after another, each side in turn; then the table and a JSON file.

Every figure is the median of ``--repeats`` runs. The queue is durable and messages are persistent everywhere; ours is
a quorum queue (our default), the peers' are classic (theirs). Dramatiq runs its default of eight threads a process,
which is faster than one.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import statistics
import subprocess
import sys
import tempfile
import time
import uuid
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

import pika

from benchmark.processes import Running, cpu_s, pss_bytes
from benchmark.sides import AMQPTASKS, CELERY, ROOT, SIDES, Side, environment
from benchmark.table import ROWS, render

TIMEOUT_S = 180.0
SETTLE_S = 1.0
#: Messages a child may have waiting (worker_prefetch_multiplier), ours and Celery's; "" leaves it at their defaults.
#: Dramatiq stays at its own default throughout.
PREFETCH = "64"

#: The rows that need a worker and results by rpc.
CALLING = ("call", "in-flight", "chain", "group", "chord", "chord-group")

Results = dict[str, dict[str, float]]


def progress(text: str) -> None:
    """Say on stderr what is being measured."""
    print(f"  {text}", file=sys.stderr, flush=True)


class Bench:
    """Runs measurements on one broker and collects the figures."""

    def __init__(self, url: str, options: argparse.Namespace) -> None:
        self.url = url
        self.sides = [SIDES[name] for name in options.sides]
        self.rows: set[str] = set(options.rows)
        self.repeats: int = options.repeats
        self.scale: float = options.scale
        self.raw = options.raw
        self.results: Results = {}
        self.failures: list[str] = []
        self._directory = tempfile.TemporaryDirectory(prefix="amqptasks-bench-")
        self._log = Path(self._directory.name) / "worker.log"
        self._samples: dict[tuple[str, str], list[float]] = {}

    def wants(self, *rows: str) -> bool:
        """Whether any of the rows was asked for."""
        return bool(self.rows & set(rows))

    def note(self, row: str, column: str, value: float) -> None:
        """Add one run's figure."""
        if row in self.rows:
            samples = self._samples.setdefault((row, column), [])
            samples.append(value)
            self.results.setdefault(row, {})[column] = statistics.median(samples)

    @contextmanager
    def queue(self) -> Iterator[str]:
        """A queue name of its own, deleted afterwards with its relatives."""
        name = f"bench-{uuid.uuid4().hex[:8]}"
        yield name
        with pika.BlockingConnection(pika.URLParameters(self.url)) as connection:
            for each in (name, f"{name}.dead", f"{name}.DQ", f"{name}.XQ"):
                connection.channel().queue_delete(each)

    def depth(self, queue: str) -> Callable[[], int]:
        """A function that says how many messages wait in the queue."""
        channel = pika.BlockingConnection(pika.URLParameters(self.url)).channel()
        return lambda: int(channel.queue_declare(queue, passive=True).method.message_count)

    def program(self, *arguments: str, env: dict[str, str]) -> dict[str, float]:
        """Run a client in a process of its own and return the figures that it prints."""
        done = subprocess.run(
            [sys.executable, *arguments], env=env, capture_output=True, text=True, timeout=TIMEOUT_S, check=False
        )
        if done.returncode:
            raise RuntimeError(f"{' '.join(arguments)} ended with {done.returncode}:\n{done.stderr}")
        figures: dict[str, float] = json.loads(done.stdout.splitlines()[-1])
        return figures

    def client(self, side: Side, measurement: str, count: int, env: dict[str, str]) -> dict[str, float]:
        """Run one of the measurements of `client`."""
        return self.program("-m", "benchmark.client", side.name, measurement, str(count), env=env)

    def worker(self, side: Side, env: dict[str, str]) -> Running:
        """The side's worker with two children."""
        return Running([sys.executable, *side.worker], env, self._log)

    def drain(self, side: Side, queue_type: str, suffix: str = "", prefetch: str = PREFETCH) -> None:
        """Fill a queue, start a worker, and watch the queue between 5 % and 95 % done; then weigh the worker."""
        count = int(side.drain * self.scale)
        with self.queue() as queue:
            env = environment(self.url, queue, queue_type=queue_type)
            self.client(
                side, "fill", count, environment(self.url, queue, confirm=side is AMQPTASKS, queue_type=queue_type)
            )
            depth = self.depth(queue)
            self.wait(lambda: depth() >= count, f"{count} messages in {queue}")
            with self.worker(side, env | {"BENCH_PREFETCH": prefetch}) as worker:
                begin = self.pass_level(depth, 0.95 * count, worker)
                end = self.pass_level(depth, 0.05 * count, worker)
                tasks, elapsed_s = begin[0] - end[0], end[1] - begin[1]
                self.note(f"drain{suffix}", side.name, tasks / elapsed_s)
                self.note(f"cpu{suffix}", side.name, (end[2] - begin[2]) / tasks * 1e6)
                self.wait(lambda: depth() == 0, "an empty queue")
                time.sleep(SETTLE_S)
                if not suffix:
                    self.note("memory", side.name, pss_bytes(worker.pid) / 1e6)

    def pass_level(self, depth: Callable[[], int], level: float, worker: Running) -> tuple[int, float, float]:
        """Wait until at most ``level`` messages are left; return how many, when, and the worker's CPU until then."""
        deadline = time.monotonic() + TIMEOUT_S
        while True:
            left, now = depth(), time.perf_counter()
            if left <= level:
                return left, now, cpu_s(worker.pid)
            worker.check()
            if time.monotonic() > deadline:
                raise RuntimeError(f"{left} messages are left after {TIMEOUT_S} s:\n{worker.output()}")
            time.sleep(0.005)

    def wait(self, condition: Callable[[], bool], what: str) -> None:
        """Wait for a condition."""
        deadline = time.monotonic() + TIMEOUT_S
        while not condition():
            if time.monotonic() > deadline:
                raise RuntimeError(f"waited {TIMEOUT_S} s for {what}")
            time.sleep(0.02)

    def sending(self, side: Side) -> None:
        """The figures that need no worker."""
        for row, measurement, key, confirm, count in (
            ("send-cpu", "send_cpu", "us", False, 5_000),
            ("send-wall", "send_wall", "ms", True, 1_000),
            ("bulk", "fill", "per_s", True, 20_000 if side is AMQPTASKS else 3_000),
        ):
            if self.wants(row):
                with self.queue() as queue:
                    env = environment(self.url, queue, confirm=confirm)
                    self.note(row, side.name, self.client(side, measurement, count, env)[key])
        if side is AMQPTASKS and (self.wants("delayed") or self.wants("delayed-part")):
            with self.queue() as queue:
                env = environment(self.url, queue, confirm=True) | {"BENCH_PREFIX": queue}
                figures = self.client(side, "delayed", 4_000, env)
                self.note("delayed", side.name, figures["per_s"])
                self.note("delayed-part", side.name, figures["part"])

    def calling(self, side: Side, backend: str = "rpc://", suffix: str = "") -> None:
        """The figures with a worker and results."""
        with self.queue() as queue:
            # As each system comes: confirms on with us, off with Celery.
            env = environment(self.url, queue, confirm=side is AMQPTASKS, backend=backend)
            with self.worker(side, env):
                if self.wants(f"call{suffix}"):
                    self.note(f"call{suffix}", side.name, self.client(side, "call", 1_000, env)["ms"])
                if self.wants(f"in-flight{suffix}"):
                    self.note(f"in-flight{suffix}", side.name, self.client(side, "in_flight", 2_000, env)["per_s"])
                if not suffix:
                    self.canvases(side, env)

    def canvases(self, side: Side, env: dict[str, str]) -> None:
        """The figures of chains, groups and chords, with results by rpc."""
        if self.wants("chain"):
            self.note("chain", side.name, self.client(side, "chain", 100, env)["ms"])
        if self.wants("group"):
            self.note("group", side.name, self.client(side, "group", 1_000, env)["ms"])
        if self.wants("chord", "chord-group") and side is AMQPTASKS:
            figures = self.client(side, "chord", 1_000, env)
            self.note("chord", side.name, figures["ms"])
            self.note("chord-group", side.name, figures["ratio"])

    def calling_over_redis(self, side: Side) -> None:
        """The same with results in a Redis of its own."""
        server = [str(ROOT / "scripts" / "redis"), "--dir", str(Path(self._directory.name) / "redis")]
        # A file, not a pipe: the server that stays behind would keep it open.
        with tempfile.TemporaryFile("w+") as output:
            subprocess.run([*server, "--owner", str(os.getpid()), "up"], stdout=output, check=True, timeout=TIMEOUT_S)
            output.seek(0)
            url = output.read().strip()
        try:
            self.calling(side, url, "-redis")
        finally:
            subprocess.run([*server, "down"], check=True, timeout=TIMEOUT_S)

    def importing(self) -> None:
        """Wall time of whole programs; the first run of each only writes the byte code."""
        app = "app = {0}('x', broker='amqp://')\n@app.task\ndef add(x, y):\n    return x + y\n"
        programs = {
            "amqptasks": "from amqptasks import App\n" + app.format("App"),
            "celery": "from celery import Celery\n" + app.format("Celery"),
            "dramatiq": "import dramatiq\nfrom dramatiq.brokers.rabbitmq import RabbitmqBroker\n"
            "dramatiq.set_broker(RabbitmqBroker(url='amqp://127.0.0.1'))\n"
            "@dramatiq.actor\ndef add(x, y):\n    return x + y\n",
            "raw": "import pika\n",
        }
        wanted = {side.name for side in self.sides} | ({"raw"} if self.raw else set())
        env = environment(self.url, "none")
        for turn in range(11):
            for name, source in programs.items():
                if name in wanted:
                    started = time.perf_counter()
                    # With a pipe its end is noticed at once; without, a deadline is kept by looking every 50 ms.
                    subprocess.run(
                        [sys.executable, "-c", source], env=env, check=True, timeout=60, stdout=subprocess.PIPE
                    )
                    if turn:
                        self.note("import", name, (time.perf_counter() - started) * 1e3)

    def floor(self) -> None:
        """What pika alone does."""

        def run(measurement: str, count: int, queue_type: str = "quorum") -> dict[str, float]:
            with self.queue() as queue:
                env = environment(self.url, queue, queue_type=queue_type)
                return self.program("-m", "benchmark.raw", measurement, str(count), env=env)

        for suffix, queue_type in (("", "quorum"), ("-classic", "classic")):
            if self.wants(f"drain{suffix}", f"cpu{suffix}"):
                figures = run("drain", int(60_000 * self.scale), queue_type)
                self.note(f"drain{suffix}", "raw", figures["per_s"])
                self.note(f"cpu{suffix}", "raw", figures["us"])
        if self.wants("send-cpu"):
            self.note("send-cpu", "raw", run("send_cpu", 10_000)["us"])
        if self.wants("send-wall"):
            self.note("send-wall", "raw", run("send_wall", 1_000)["ms"])
        if self.wants("call"):
            with self.queue() as queue:
                env = environment(self.url, queue)
                with Running([sys.executable, "-m", "benchmark.raw", "echo", "0"], env, self._log):
                    self.note("call", "raw", self.program("-m", "benchmark.raw", "call", "1000", env=env)["ms"])

    def attempt(self, what: str, measure: Callable[[], None], *rows: str) -> None:
        """Take one measurement if a row needs it. If it fails the others are still taken, and the failure is kept."""
        if self.wants(*rows):
            progress(what)
            try:
                measure()
            except (RuntimeError, subprocess.SubprocessError, pika.exceptions.AMQPError) as error:
                self.failures.append(f"{what}: {error}")
                progress(f"failed: {self.failures[-1]}")

    def run(self) -> None:
        """Everything that was asked for."""
        for turn in range(self.repeats):
            again = f"run {turn + 1} of {self.repeats}"
            for side in self.sides:
                self.run_side(side, f"{side.title}, {again}")
            if self.raw:
                self.attempt(f"raw pika, {again}", self.floor, *(set(self.rows) - {"import"}))
        self.attempt("whole programs, 10 runs each", self.importing, "import")

    def run_side(self, side: Side, name: str) -> None:
        """One turn of one side."""
        ours = side is AMQPTASKS
        self.attempt(f"{name}: draining", lambda: self.drain(side, "quorum"), "drain", "cpu", "memory")
        self.attempt(
            f"{name}: draining with its default prefetch",
            lambda: self.drain(side, "quorum", "-default", prefetch=""),
            "drain-default", "cpu-default",
        )  # fmt: skip
        if ours:
            self.attempt(
                f"{name}: draining a classic queue",
                lambda: self.drain(side, "classic", "-classic"),
                "drain-classic", "cpu-classic",
            )  # fmt: skip
        rows = ("send-cpu", "send-wall", "bulk", *(("delayed", "delayed-part") if ours else ()))
        self.attempt(f"{name}: sending", lambda: self.sending(side), *rows)
        if ours or side is CELERY:
            self.attempt(f"{name}: calling", lambda: self.calling(side), *CALLING)
            self.attempt(
                f"{name}: calling, results in Redis",
                lambda: self.calling_over_redis(side),
                "call-redis", "in-flight-redis",
            )  # fmt: skip


def machine() -> dict[str, Any]:
    """Where and with what it was measured."""
    from importlib.metadata import version

    names = ("amqptasks", "celery", "kombu", "dramatiq", "pika", "redis")
    return {
        "time": datetime.now(timezone.utc).isoformat(timespec="seconds"),
        "python": platform.python_version(),
        "system": platform.platform(),
        "processors": os.cpu_count(),
        "packages": {name: version(name) for name in names},
    }


def broker_version(url: str) -> str:
    """RabbitMQ's version."""
    with pika.BlockingConnection(pika.URLParameters(url)) as connection:
        return str(connection._impl.server_properties.get("version", b""))


def main() -> None:
    """Parse the options, measure, print, write."""
    rows = [row.name for row in ROWS]
    parser = argparse.ArgumentParser(prog="scripts/bench", description="Measure amqptasks beside Celery and Dramatiq.")
    parser.add_argument("--broker", default=os.environ["BENCH_BROKER_URL"], help="URL (default: a private node)")
    parser.add_argument("--rows", nargs="+", choices=rows, default=rows, metavar="ROW", help=", ".join(rows))
    parser.add_argument("--sides", nargs="+", choices=list(SIDES), default=list(SIDES))
    parser.add_argument("--no-raw", dest="raw", action="store_false", help="leave out the floor")
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--scale", type=float, default=1.0, help="multiplies the number of tasks to drain")
    parser.add_argument("--markdown", action="store_true")
    parser.add_argument("--json", type=Path, default=None, help="where to write (default: bench-<time>.json)")
    options = parser.parse_args()
    bench = Bench(options.broker, options)
    about = machine() | {"rabbitmq": broker_version(options.broker)}
    try:
        bench.run()
    finally:
        if bench.results:
            print(json.dumps(about))
            print(render(bench.results, markdown=options.markdown))
            path = options.json or ROOT / f"bench-{datetime.now():%Y%m%d-%H%M%S}.json"
            samples = {f"{row} {column}": values for (row, column), values in bench._samples.items()}
            path.write_text(
                json.dumps(
                    {"about": about, "results": bench.results, "samples": samples, "failures": bench.failures}, indent=1
                )
                + "\n"
            )
            print(f"written to {path}", file=sys.stderr)
    if bench.failures:
        sys.exit("\n".join(("failed:", *bench.failures)))


if __name__ == "__main__":
    main()
