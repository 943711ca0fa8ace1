"""Fixtures of all tests: a RabbitMQ, unique names, real workers. Also random order and a deadline per test.

Environment:
    AMQPTASKS_TEST_BROKER_URL   a RabbitMQ to use; without it the first test that needs one starts a private node
    AMQPTASKS_TEST_BROKER_DIR   the directory of scripts/rabbitmq behind that URL, so that tests may use rabbitmqctl
    AMQPTASKS_TEST_POSTGRES_URL a PostgreSQL to use; without it the first test that needs one starts a private server
    AMQPTASKS_TEST_MONGODB_URL  a MongoDB to use; without it the tests that need one use a stand-in over mongomock
    AMQPTASKS_TEST_REDIS_URL    a Redis to use; without it the first test that needs one starts a private server
    AMQPTASKS_TEST_MEMCACHED_URL
                                a memcached to use, cache+memcached://…; without it the same
    AMQPTASKS_TEST_SEED         the seed of the order, to repeat a run; generated examples are then always the same
    AMQPTASKS_TEST_PART         "1/3:seed" for a third of the modules, in that order; scripts/test runs all at once
"""

from __future__ import annotations

import faulthandler
import os
import random
import signal
import sys
import tempfile
import uuid
from collections.abc import Callable, Generator, Iterator
from pathlib import Path
from types import FrameType
from typing import TYPE_CHECKING, Any, TypeVar

import pytest
from hypothesis import settings

from tests.support import (
    ROOT,
    PrivateBroker,
    PrivateDatabase,
    PrivateMemcached,
    PrivateRedis,
    PrivateServer,
    Project,
    WorkerProcess,
)

Server = TypeVar("Server", bound=PrivateServer)

if TYPE_CHECKING:
    from tests.mongo_server import MongoServer

#: "1/3:4711": the first third of the modules, in the order of this seed. How scripts/test runs three parts at once.
PART, _, PART_SEED = os.environ.get("AMQPTASKS_TEST_PART", "1/1").partition(":")
SEED = os.environ.get("AMQPTASKS_TEST_SEED") or PART_SEED or str(random.randrange(10**6))
DEADLINE_S = 60.0
#: How long a test that missed its deadline has for its clean-up before the whole run is ended.
GRACE_S = 30.0
#: Standard error as it was before pytest began to capture it: what is written while a run is being ended must show.
STDERR = 2


# Its deadline of 200 ms an example asks how busy the machine is. A given seed repeats the examples with the order.
settings.register_profile("amqptasks", deadline=None, derandomize="AMQPTASKS_TEST_SEED" in os.environ)
settings.load_profile("amqptasks")


def pytest_configure() -> None:
    global STDERR
    STDERR = os.dup(2)


def pytest_report_header() -> str:
    return f"order: AMQPTASKS_TEST_SEED={SEED}" + ("" if PART == "1/1" else f", part {PART} of the modules")


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    # Modules in random order and tests in random order within them: what a module shares is then still made once.
    chance = random.Random(SEED)
    modules: dict[str, list[pytest.Item]] = {}
    for item in items:
        modules.setdefault(item.nodeid.partition("::")[0], []).append(item)
    groups = list(modules.values())
    chance.shuffle(groups)
    for group in groups:
        chance.shuffle(group)
    part, parts = map(int, PART.split("/"))

    def part_of(number: int, group: list[pytest.Item]) -> int:
        # By far the longest module always goes to the first: in the order that CI takes that has least to do.
        return 1 if group[0].nodeid.startswith("tests/chaos/") else number % parts + 1

    left_out = [item for number, group in enumerate(groups) if part_of(number, group) != part for item in group]
    items[:] = [item for number, group in enumerate(groups) if part_of(number, group) == part for item in group]
    if left_out:
        config.hook.pytest_deselected(items=left_out)


@pytest.hookimpl(wrapper=True)
def pytest_runtest_protocol(item: pytest.Item) -> Generator[None, Any, Any]:
    """Fail a test that misses its deadline. If even that does not free it, print every stack and end the run."""
    marker = item.get_closest_marker("deadline")
    seconds = float(marker.args[0]) if marker else DEADLINE_S

    def too_late(number: int, frame: FrameType | None) -> None:
        faulthandler.dump_traceback(file=STDERR, all_threads=True)
        pytest.fail(f"missed its deadline of {seconds:g} s", pytrace=True)

    faulthandler.dump_traceback_later(seconds + GRACE_S, exit=True, file=STDERR)
    before = signal.signal(signal.SIGALRM, too_late)
    signal.setitimer(signal.ITIMER_REAL, seconds)
    try:
        return (yield)
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)
        faulthandler.cancel_dump_traceback_later()


@pytest.fixture(scope="session")
def broker() -> Iterator[PrivateBroker | None]:
    """The node behind `broker_url`, or None if it is not ours to command."""
    url, directory = os.environ.get("AMQPTASKS_TEST_BROKER_URL"), os.environ.get("AMQPTASKS_TEST_BROKER_DIR")
    if url:
        shared = PrivateBroker(directory) if directory else None
        if shared:
            shared.url = url
        yield shared
        return
    node = PrivateBroker(Path(tempfile.mkdtemp(prefix="amqptasks-test-")))
    node.start()
    yield node
    node.delete()


@pytest.fixture(scope="session")
def broker_url(broker: PrivateBroker | None) -> str:
    """The URL of a RabbitMQ that runs."""
    return broker.url if broker else os.environ["AMQPTASKS_TEST_BROKER_URL"]


@pytest.fixture(scope="session")
def rabbitmqctl(broker: PrivateBroker | None) -> Callable[..., str]:
    """Run rabbitmqctl on the node of `broker_url`: ``rabbitmqctl("list_queues", "name")`` returns what it printed."""
    if broker is None:
        pytest.skip("rabbitmqctl needs a node of our own: unset AMQPTASKS_TEST_BROKER_URL")
    return broker.ctl


@pytest.fixture
def own_broker() -> Iterator[PrivateBroker]:
    """A node for this test alone, running, to be stopped and killed at will."""
    node = PrivateBroker(Path(tempfile.mkdtemp(prefix="amqptasks-own-")))
    node.start()
    yield node
    node.delete()


@pytest.fixture(scope="session")
def postgres_url() -> Iterator[str]:
    """The URL of a PostgreSQL that runs. Without one on this machine the test is skipped, and in CI it fails."""
    yield from server_url("AMQPTASKS_TEST_POSTGRES_URL", PrivateDatabase)


@pytest.fixture
def own_database() -> Iterator[PrivateDatabase]:
    """A PostgreSQL for this test alone, running, to be stopped and killed at will. Skipped where there is none."""
    yield from own_server(PrivateDatabase)


@pytest.fixture(scope="session")
def redis_url() -> Iterator[str]:
    """The URL of a Redis that runs. Without one on this machine the test is skipped, and in CI it fails."""
    yield from server_url("AMQPTASKS_TEST_REDIS_URL", PrivateRedis)


@pytest.fixture
def own_redis() -> Iterator[PrivateRedis]:
    """A Redis for this test alone, running, to be stopped and killed at will. Skipped where there is none."""
    yield from own_server(PrivateRedis)


@pytest.fixture(scope="session")
def memcached_url() -> Iterator[str]:
    """The URL of a memcached that runs. Without one on this machine the test is skipped, and in CI it fails."""
    yield from server_url("AMQPTASKS_TEST_MEMCACHED_URL", PrivateMemcached)


@pytest.fixture
def own_memcached() -> Iterator[PrivateMemcached]:
    """A memcached for this test alone, running, to be stopped and killed at will. Skipped where there is none."""
    yield from own_server(PrivateMemcached)


def server_url(variable: str, kind: type[PrivateServer]) -> Iterator[str]:
    """Yield the URL in the environment, or that of a new server."""
    url = os.environ.get(variable)
    if url:
        yield url
    else:
        for server in own_server(kind):
            yield server.url


def own_server(kind: type[Server]) -> Iterator[Server]:
    """Start a server, and delete it in the end."""
    missing = kind.missing()
    if missing:
        (pytest.fail if os.environ.get("CI") == "true" else pytest.skip)(missing)
    server = kind(Path(tempfile.mkdtemp(prefix=f"amqptasks-{kind.__name__.lower()}-")))
    server.start()
    yield server
    server.delete()


@pytest.fixture(scope="session")
def mongo_server() -> Iterator[MongoServer]:
    """A stand-in for a MongoDB server. Tests that stop it take one of their own."""
    from tests.mongo_server import MongoServer

    server = MongoServer()
    yield server
    server.stop()


@pytest.fixture
def mongodb_url(mongo_server: MongoServer) -> Iterator[str]:
    """The URL of an empty MongoDB database."""
    from tests.mongo_server import mongodb

    with mongodb(mongo_server) as url:
        yield url


@pytest.fixture
def unique() -> Callable[..., str]:
    """Make names that no other test uses: ``unique("queue")``."""
    return lambda prefix="test": f"{prefix}-{uuid.uuid4().hex[:12]}"


@pytest.fixture
def queue_name(unique: Callable[..., str]) -> str:
    """A queue name that no other test uses."""
    return unique("queue")


@pytest.fixture
def project(tmp_path: Path, broker_url: str, queue_name: str) -> Iterator[Callable[..., Project]]:
    """Write a module of tasks: ``project('''from amqptasks import App …''')`` returns a `Project`."""
    made: list[Project] = []

    def make(source: str, *, name: str | None = None, url: str | None = None, queue: str | None = None) -> Project:
        name = name or f"project_{uuid.uuid4().hex[:12]}"
        made.append(Project(tmp_path, name, source, broker_url=url or broker_url, queue=queue or queue_name))
        return made[-1]

    yield make
    for each in made:
        each.forget()


@pytest.fixture
def worker(tmp_path: Path, project: Callable[..., Project]) -> Iterator[Callable[..., WorkerProcess]]:
    """Start a real worker process on a `Project` (or a source) and wait until it is ready.

    ``worker(project, "-c", "2", ready=False, expected_exits=(0,), env={})``. At the end of the test every worker gets
    TERM and must exit as expected.
    """
    running: list[WorkerProcess] = []

    def start(
        module: Project | str,
        *arguments: str,
        ready: bool = True,
        expected_exits: tuple[int, ...] | None = (0,),
        env: dict[str, str] | None = None,
    ) -> WorkerProcess:
        if isinstance(module, str):
            module = project(module)
        node = f"w{len(running)}-{uuid.uuid4().hex[:6]}@test"
        command = [sys.executable, "-m", "amqptasks", "-A", module.name, "worker", "-l", "INFO", "-n", node, *arguments]
        paths = os.pathsep.join(filter(None, [str(ROOT), os.environ.get("PYTHONPATH")]))
        environment = os.environ | {"PYTHONPATH": paths, "PYTHONUNBUFFERED": "1", "NO_COLOR": "1"} | (env or {})
        log = tmp_path / f"worker-{len(running)}.log"
        process = WorkerProcess(command, directory=tmp_path, log=log, env=environment)
        process.expected_exits = expected_exits
        running.append(process)
        if ready:
            process.wait_ready()
        return process

    yield start
    problems = []
    for process in running:
        try:
            process.finish()
        except AssertionError as error:
            problems.append(str(error))
    if problems:
        pytest.fail("\n".join(problems), pytrace=False)
