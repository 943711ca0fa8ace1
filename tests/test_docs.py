"""The pages say what is so: their examples are run, their links lead somewhere, what they name exists.

Comments in the pages, which readers do not see, say what is done with the block that follows:

    <!-- file: NAME -->        the block is a file of the page's project
    <!-- run -->               bash runs a console block, one session all python blocks: they must print what is shown
    <!-- worker: MODULE -->    a worker is started on a module of the project, and runs to the end of the page
    <!-- wait: QUEUE COUNT --> that many messages must come to wait in the queue

``...`` in a block stands for any text.
"""

from __future__ import annotations

import ast
import doctest
import importlib.util
import os
import re
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

import amqptasks
from amqptasks import App, Signature, Task, chord, group, schedules, signals
from amqptasks.broker.admin import Admin
from amqptasks.broker.parameters import endpoints
from amqptasks.cli.main import COMMANDS
from amqptasks.cli.worker import worker as worker_command
from amqptasks.exceptions import ImproperlyConfigured
from amqptasks.result import AsyncResult
from amqptasks.settings_table import SETTINGS
from amqptasks.worker.worker import POOLS
from tests.support import ROOT, PrivateBroker, WorkerProcess, eventually

PAGES = sorted([*ROOT.glob("*.md"), *(ROOT / "docs").glob("*.md")])
RUN = ("README.md", "docs/guide.md", "docs/operations.md")
README = (ROOT / "README.md").read_text(encoding="utf-8")

_STEP = re.compile(
    r"<!-- (?P<verb>file|worker|wait|run)(?:: (?P<what>[^>]*?))? -->\n(?:```(?P<language>\w+)\n(?P<body>.*?)^```$)?",
    re.DOTALL | re.MULTILINE,
)
_BLOCK = re.compile(r"^```(?P<language>\w*)\n(?P<body>.*?)^```$", re.DOTALL | re.MULTILINE)


def ids(path: Path) -> str:
    return str(path.relative_to(ROOT))


# -- examples


@dataclass
class Stage:
    """The directory that a page's examples run in, its workers, its broker."""

    directory: Path
    url: str
    workers: list[WorkerProcess]

    @property
    def environment(self) -> dict[str, str]:
        paths = [str(self.directory / "bin"), os.environ["PATH"]]
        ours = {"PATH": os.pathsep.join(paths), "PYTHONPATH": str(ROOT), "NO_COLOR": "1", "LC_ALL": "C.UTF-8"}
        known = {key: value for key, value in os.environ.items() if not key.startswith("AMQPTASKS_")}
        return known | ours | {"AMQPTASKS_BROKER_URL": self.url}

    def start_worker(self, module: str) -> None:
        command = [sys.executable, "-m", "amqptasks", "-A", module, "worker", "-l", "INFO", "-c", "2"]
        log = self.directory / "worker.log"
        worker = WorkerProcess(command, directory=self.directory, log=log, env=self.environment)
        self.workers.append(worker)
        worker.wait_ready()

    def wait(self, queue: str, count: int) -> None:
        with Admin(endpoints([self.url], heartbeat_s=None, connection_timeout_s=5, name="a test")) as admin:
            eventually(lambda: admin.counts(queue) is not None and admin.counts(queue)[0] == count)  # type: ignore[index]

    def console(self, block: str, where: str) -> list[str]:
        """Run the commands of a block in one shell; returns what differs from the page."""
        commands = re.split(r"^\$ ", block, flags=re.MULTILINE)[1:]
        mark = "-- end of command --"
        lines = [each.split("\n", 1)[0] for each in commands]
        script = "\n".join(f"(exit $status)\n{line}\nstatus=$?; echo '{mark}'" for line in lines)
        done = subprocess.run(
            ["bash", "-c", f"exec 2>&1; status=0\n{script}"], cwd=self.directory, env=self.environment,
            stdin=subprocess.DEVNULL, capture_output=True, text=True, timeout=50,
        )  # fmt: skip
        got = done.stdout.split(f"{mark}\n")
        expected = [each.split("\n", 1)[1] for each in commands]
        return [
            f"{where}: $ {line}\nshown:\n{wanted}\nprinted:\n{printed}"
            for line, wanted, printed in zip(lines, expected, got, strict=False)
            if not same(wanted.rstrip("\n"), printed.rstrip("\n"))
        ]

    def session(self, page: str, blocks: list[tuple[int, str]]) -> None:
        """Run python blocks as one session, at the line numbers that they have on the page."""
        text: list[str] = []
        for line, body in blocks:
            text += [""] * (line - len(text) - 1) + body.splitlines() + [""]
        name = page.replace("/", "-").replace(".md", ".txt")
        (self.directory / name).write_text("\n".join(text), encoding="utf-8")
        done = subprocess.run(
            [sys.executable, "-W", "error", "-m", "doctest", "-o", "ELLIPSIS", name], cwd=self.directory,
            env=self.environment, stdin=subprocess.DEVNULL, capture_output=True, text=True, timeout=50,
        )  # fmt: skip
        assert done.returncode == 0, done.stdout + done.stderr


def same(wanted: str, printed: str) -> bool:
    return doctest.OutputChecker().check_output(wanted, printed, doctest.ELLIPSIS)


@pytest.fixture(scope="module")
def node() -> Iterator[PrivateBroker]:
    """A RabbitMQ of these tests' own: the pages use names as a user would, such as celery."""
    broker = PrivateBroker(tempfile.mkdtemp(prefix="amqptasks-docs-"))
    broker.start()
    yield broker
    broker.delete()


@pytest.fixture
def stage(tmp_path: Path, node: PrivateBroker) -> Iterator[Stage]:
    (tmp_path / "bin").mkdir()
    for name, module in (("amqptasks", "-m amqptasks"), ("python", "")):
        program = tmp_path / "bin" / name
        program.write_text(f'#!/bin/sh\nexec {sys.executable} {module} "$@"\n')
        program.chmod(0o755)
    made = Stage(tmp_path, node.url, [])
    yield made
    for worker in made.workers:
        worker.finish()


@pytest.mark.deadline(120)
@pytest.mark.parametrize("page", RUN)
def test_the_examples_of_a_page_do_what_it_shows(page: str, stage: Stage) -> None:
    # Given a page / When its files are written and its examples run, in order
    text = (ROOT / page).read_text(encoding="utf-8")
    problems: list[str] = []
    python: list[tuple[int, str]] = []
    for step in _STEP.finditer(text):
        line = text.count("\n", 0, step.start("body")) + 1 if step["body"] else 0
        if step["verb"] == "file":
            (stage.directory / step["what"]).write_text(step["body"], encoding="utf-8")
        elif step["verb"] == "worker":
            stage.start_worker(step["what"])
        elif step["verb"] == "wait":
            queue, count = step["what"].split()
            stage.wait(queue, int(count))
        elif step["language"] == "console":
            problems += stage.console(step["body"], f"{page}:{line}")
        else:
            python.append((line, step["body"]))
    # Then they print what the page shows
    assert not problems, "\n\n".join(problems)
    if python:
        stage.session(page, python)


def test_a_page_that_shows_something_else_is_noticed(stage: Stage) -> None:
    assert stage.console("$ echo one\none\n$ (exit 3)\n$ echo $?\n3\n$ echo two\n...\n", "here") == []
    assert len(stage.console("$ echo one\ntwo\n$ echo two\ntwo\n", "here")) == 1
    with pytest.raises(AssertionError, match="line 7"):
        stage.session("page.md", [(3, ">>> 1 + 1\n2\n"), (7, ">>> 1 + 1\n3\n")])


@pytest.mark.parametrize("page", PAGES, ids=ids)
def test_every_python_block_can_be_compiled(page: Path) -> None:
    for block in _BLOCK.finditer(page.read_text(encoding="utf-8")):
        if block["language"] == "python":
            if ">>> " in block["body"]:
                source = "".join(each.source for each in doctest.DocTestParser().get_examples(block["body"]))
            else:
                source = block["body"]
            compile(source, str(page), "exec")


# -- links and names


def anchors(page: Path) -> set[str]:
    """The anchors of a page's headings, as GitHub makes them."""
    text = _BLOCK.sub("", page.read_text(encoding="utf-8"))
    headings = re.findall(r"^#+ (.+)$", text, re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}


def broken_links(page: Path, text: str) -> Iterator[str]:
    for target in re.findall(r"\]\(([^)\s]+)\)", _BLOCK.sub("", text)):
        if re.match(r"[a-z]+:", target):
            continue
        name, _, anchor = target.partition("#")
        place = (page.parent / name).resolve() if name else page
        if not place.exists():
            yield f"{ids(page)}: there is no {target}"
        elif anchor and anchor not in anchors(place):
            yield f"{ids(page)}: {name or 'the page'} has no heading for #{anchor}"


@pytest.mark.parametrize("page", PAGES, ids=ids)
def test_every_relative_link_leads_somewhere(page: Path) -> None:
    assert list(broken_links(page, page.read_text(encoding="utf-8"))) == []


def test_a_broken_link_is_noticed() -> None:
    page = ROOT / "README.md"
    assert len(list(broken_links(page, "[a](docs/nowhere.md) [b](#nothing) [c](docs/guide.md#nothing)"))) == 3


#: Words that look like settings and are none: arguments, attributes, signals have their own.
_NO_SETTINGS = frozenset({"task_id", "task_name", "delay_on_commit"}) | {
    name for name in vars(signals) if not name.startswith("_")
}


@pytest.mark.parametrize("page", PAGES, ids=ids)
def test_every_setting_that_a_page_names_exists(page: Path) -> None:
    words = re.findall(
        r"`((?:accept|broker|task|worker|result|rpc|delay)_\w+)(?: = [^`]*)?`", page.read_text(encoding="utf-8")
    )
    assert sorted({word for word in words if word not in SETTINGS} - _NO_SETTINGS) == []


def names_in(path: Path) -> set[str]:
    """The classes, functions and methods of a module, methods as Class.method."""
    found = set()
    for node in ast.parse(path.read_text(encoding="utf-8")).body:
        if isinstance(node, (ast.ClassDef, ast.FunctionDef, ast.AsyncFunctionDef)):
            found.add(node.name)
        if isinstance(node, ast.ClassDef):
            found |= {f"{node.name}.{each.name}" for each in node.body if isinstance(each, ast.FunctionDef)}
    return found


@pytest.mark.parametrize("page", PAGES, ids=ids)
def test_every_function_that_a_page_names_is_in_its_file(page: Path) -> None:
    missing = []
    for module, name in re.findall(r"`([a-z_/]+\.py):([\w.]+)`", page.read_text(encoding="utf-8")):
        path = ROOT / "amqptasks" / module
        if not path.exists() or name not in names_in(path):
            missing.append(f"{module}:{name}")
    assert missing == []


#: A test, or a row of the chaos table, by its file and name.
_TEST = re.compile(r"(tests/[\w/]+\.py)::(\w+)")


def missing_tests(text: str) -> list[str]:
    """The tests that a text names and that are not in their files."""
    return [
        f"{module}::{name}"
        for module, name in _TEST.findall(text)
        if not (ROOT / module).exists() or name not in names_in(ROOT / module)
    ]


@pytest.mark.parametrize("page", PAGES, ids=ids)
def test_every_test_that_a_page_names_is_in_its_file(page: Path) -> None:
    text = page.read_text(encoding="utf-8")
    assert missing_tests(text) == []
    assert text.count(".py::") == len(_TEST.findall(text)), "a reference to a test is not of the form that is checked"


def test_a_test_that_is_missing_is_noticed() -> None:
    named = "`tests/test_docs.py::names_in` `tests/test_docs.py::nothing` `tests/unit/nowhere.py::test_nothing`"
    assert missing_tests(named) == ["tests/test_docs.py::nothing", "tests/unit/nowhere.py::test_nothing"]


def test_every_promise_and_every_fault_has_its_proof_or_says_what_is_missing() -> None:
    text = (ROOT / "docs" / "promises.md").read_text(encoding="utf-8")
    twelve, faults = text.split("## The twelve", 1)[1].split("\n## Faults", 1)
    promises = re.split(r"^### \d+\. ", twelve, flags=re.MULTILINE)[1:]
    assert len(promises) == 12
    assert all(_TEST.search(promise) or "Not yet" in promise for promise in promises)
    rows = [[cell.strip() for cell in line.strip("|").split("|")] for line in faults.splitlines() if line[:1] == "|"]
    proofs = {row[0]: row[2] for row in rows[2:]}
    kinds = (("P", range(1, 9)), ("B", range(1, 9)), ("W", range(1, 14)), ("R", range(1, 6)), ("I", range(1, 5)))
    wanted = [f"{kind}{number}" for kind, numbers in (*kinds, ("X", range(1, 6))) for number in numbers]
    assert list(proofs) == wanted
    assert all(_TEST.search(proof) or proof.startswith(("No test", "As ")) for proof in proofs.values())


# -- the table of what is there


def _results_in(url: str) -> Callable[[], bool]:
    def is_there() -> bool:
        app = App("probe", broker="amqp://localhost", backend=url, set_as_current=False)
        try:
            return app.backend is not None
        except (ImproperlyConfigured, ImportError) as error:
            # A store that is there and lacks its library says which.
            return "pip install" in str(error)

    return is_there


def _can_send_chords() -> bool:
    app = App("probe", set_as_current=False)
    try:
        freeze: Callable[[], object] = chord(group(app.signature("a")), app.signature("b")).freeze
        freeze()
    except NotImplementedError:
        return False
    return True


def _acts(setting: str) -> Callable[[], bool]:
    return lambda: SETTINGS[setting].since == "now"


def _command(*names: str) -> Callable[[], bool]:
    return lambda: all(name in COMMANDS for name in names)


def _option(name: str) -> Callable[[], bool]:
    return lambda: any(name in parameter.opts for parameter in worker_command.params)


OF_HEALTH = ("health-file", "http")
OF_CHILDREN = ("autoscale", "max-tasks-per-child")

#: Each row of the README's table, and how to see whether the thing is there. One that says "yes" must be, one that says
#: "not yet" must not be, so whoever brings it in says so in the README too. "In part" is taken at its word.
ROWS: dict[str, Callable[[], bool]] = {
    "App, `@app.task`, `bind`, automatic names, `include` and `imports`": lambda: hasattr(App, "task"),
    "`delay`, `apply_async`, `send_task`, `app.bulk()`": lambda: hasattr(Task, "delay") and hasattr(App, "bulk"),
    "Confirmed sending with a deadline": _acts("broker_publish_timeout"),
    "Settings from code, module, object, environment, command line": lambda: hasattr(App, "config_from_object"),
    "Queues, exchanges, bindings, routes": lambda: _acts("task_queues")() and _acts("task_routes")(),
    "Broadcasts, `worker_direct`, priorities": lambda: hasattr(amqptasks, "Broadcast") and _acts("worker_direct")(),
    "Countdown, ETA, expiry": _acts("delay_queue_type"),
    "Results by `rpc://`": _results_in("rpc://"),
    "Sets of results, callbacks (`then`), trees, progress bars": lambda: hasattr(AsyncResult, "then"),
    "Chains, groups, callbacks, error callbacks": lambda: hasattr(amqptasks.Signature, "link_error"),
    "Worker with `prefork`, `threads` and `solo` pools": lambda: {"prefork", "threads", "solo"} <= set(POOLS),
    "Warm and cold stop, reconnecting": _acts("worker_shutdown_timeout"),
    "Dead letters: kept with their reason, listed, replayed, bounded": _command("dead"),
    "Command line": _command(
        *("amqp", "beat", "call", "control", "events", "graph", "inspect", "list", "logtool", "migrate", "multi"),
        *("purge", "report", "result", "shell", "status", "upgrade", "worker"),
        *("queues", "dead", "doctor", "health", "completion"),
    ),
    "Daemon options: `--detach`, `--pidfile`, `--uid`, …": _option("--detach"),
    "Logs: formats, files for each child, JSON": _acts("worker_log_json"),
    "Health file, `/healthz`, metrics for Prometheus": lambda: all(_option(f"--{each}")() for each in OF_HEALTH),
    "Signals": lambda: hasattr(signals, "task_prerun"),
    "TLS, client certificates": _acts("broker_use_ssl"),
    "`shared_task`, `autodiscover_tasks`": lambda: hasattr(amqptasks, "shared_task"),
    "Django": lambda: hasattr(Task, "delay_on_commit"),
    "Task handlers (`on_success`, `on_failure`, …), `task_annotations`": lambda: hasattr(Task, "on_failure"),
    "Eager mode, `apply()`": lambda: hasattr(Task, "apply"),
    "Results in a database (SQLAlchemy), or kept in RabbitMQ for any process": _results_in("db+sqlite:///results.db"),
    "Signed messages": lambda: hasattr(App, "setup_security"),
    "Retries: `self.retry()`, `autoretry_for`": lambda: hasattr(Task, "retry"),
    "Time limits": _acts("task_time_limit"),
    "Revoking tasks": lambda: hasattr(AsyncResult, "revoke"),
    "Rate limits": _acts("task_default_rate_limit"),
    "`asyncio` pool, `async def` tasks": lambda: "asyncio" in POOLS,
    "Autoscaling, `--max-tasks-per-child`": lambda: all(_option(f"--{each}")() for each in OF_CHILDREN),
    "Chords": _can_send_chords,
    "`map`, `starmap`, `chunks`": lambda: hasattr(Task, "starmap"),
    "`self.replace()`, stamps": lambda: hasattr(Task, "replace") and hasattr(Signature, "stamp"),
    "Results in Redis": _results_in("redis://localhost"),
    "Results in memcached": _results_in("cache+memcached://localhost"),
    "Results in files, MongoDB, a Django project's database or cache, a store of one's own": lambda: all(
        _results_in(url)() for url in ("file:///srv/results", "mongodb://localhost", "django-db", "django-cache")
    ),
    "Events, Flower": _acts("worker_send_task_events"),
    "Remote control: `inspect`, `control`, `status`": _command("inspect", "control", "status"),
    "`multi`": _command("multi"),
    "Schedules: `crontab`, `schedule`, `solar`": lambda: hasattr(schedules, "crontab"),
    "A web monitor of our own": lambda: importlib.util.find_spec("amqptasks.monitor") is not None,
    "Beat: periodic tasks": _command("beat"),
    "`schedule`: periodic tasks looked at and changed while beat runs": _command("schedule"),
}


def status_rows() -> dict[str, str]:
    """The rows of the README's table: what, and its state."""
    section = README.split("## What is there", 1)[1].split("\n## ", 1)[0]
    rows = [[cell.strip() for cell in line.strip("|").split("|")] for line in section.splitlines() if line[:1] == "|"]
    return {row[0]: row[1] for row in rows[2:]}


def test_the_table_has_a_row_for_everything() -> None:
    assert set(status_rows()) == set(ROWS)
    assert set(status_rows().values()) <= {"yes", "in part", "not yet"}


@pytest.mark.parametrize("what", ROWS)
def test_the_table_of_what_is_there_is_honest(what: str) -> None:
    state = status_rows()[what]
    if state != "in part":
        assert ROWS[what]() is (state == "yes"), f"the README says {state!r} of {what!r}: change the one or the other"


def test_the_two_commands_of_the_readme_can_be_run() -> None:
    for name in ("quickstart", "test", "lint", "bench", "rabbitmq"):
        assert f"scripts/{name}" in README
        assert os.access(ROOT / "scripts" / name, os.X_OK)
