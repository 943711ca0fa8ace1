"""Every signal of Celery that concerns publishing, tasks, workers and logging: sent by a real program and a real
worker, by the sender and with the arguments that Celery 5.7 has for it."""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any

import celery.signals
import pytest

from amqptasks import signals
from amqptasks.signals import Signal
from tests.running import Workshop

#: Each signal, what its receivers get, and who sends it: a task, a task's name, a node's name, or a kind of object.
TABLE: dict[str, tuple[set[str], str]] = {
    "before_task_publish": (
        {"body", "exchange", "routing_key", "headers", "properties", "declare", "retry_policy"}, "{add}",
    ),
    "after_task_publish": ({"body", "exchange", "routing_key", "headers"}, "{add}"),
    "task_received": ({"request"}, "Deliveries"),
    "task_prerun": ({"task_id", "task", "args", "kwargs"}, "task {add}"),
    "task_postrun": ({"task_id", "task", "args", "kwargs", "retval", "state"}, "task {add}"),
    "task_success": ({"result", "runtime"}, "task {add}"),
    "task_retry": ({"request", "reason", "einfo"}, "task {again}"),
    "task_failure": ({"task_id", "exception", "args", "kwargs", "traceback", "einfo"}, "task {fail}"),
    "task_internal_error": (
        {"task_id", "args", "kwargs", "request", "exception", "traceback", "einfo"}, "task {broken}",
    ),
    "task_revoked": ({"request", "terminated", "signum", "expired"}, "task {add}"),
    "task_unknown": ({"message", "exc", "name", "id"}, "Deliveries"),
    "task_rejected": ({"message", "exc"}, "Deliveries"),
    "celeryd_init": ({"instance", "conf", "options"}, "{node}"),
    "celeryd_after_setup": ({"instance", "conf"}, "{node}"),
    "import_modules": (set(), "App"),
    "worker_init": (set(), "Worker"),
    "worker_before_create_process": (set(), "PreforkPool"),
    "worker_process_init": (set(), "{node}"),
    "worker_process_shutdown": ({"pid", "exitcode"}, "None"),
    "worker_ready": (set(), "Worker"),
    "worker_shutting_down": ({"sig", "how", "exitcode"}, "{node}"),
    "worker_shutdown": (set(), "Worker"),
    "setup_logging": ({"loglevel", "logfile", "format", "colorize"}, "None"),
    "after_setup_logger": ({"logger", "loglevel", "logfile", "format", "colorize"}, "None"),
    "after_setup_task_logger": ({"logger", "loglevel", "logfile", "format", "colorize"}, "None"),
}  # fmt: skip
#: Those of beat, of events, of pools and programs that are not here, and one that Celery itself has given up.
ELSEWHERE = {
    "beat_init", "beat_embedded_init", "heartbeat_sent", "eventlet_pool_started", "eventlet_pool_preshutdown",
    "eventlet_pool_postshutdown", "eventlet_pool_apply", "user_preload_options", "task_sent",
}  # fmt: skip
#: What Celery sends, and does not list among the arguments.
UNLISTED = {
    "after_task_publish": {"headers"}, "task_postrun": {"state"}, "worker_process_shutdown": {"pid", "exitcode"},
    "worker_shutting_down": {"sig", "how", "exitcode"},
}  # fmt: skip

SOURCE = """
import functools, json
from amqptasks import signals
from amqptasks.app.task import Task

def tell(which, /, sender=None, signal=None, **named):
    if isinstance(sender, Task):
        who = f"task {sender.name}"
    elif sender is None or isinstance(sender, str):
        who = str(sender)
    else:
        who = type(sender).__name__
    shown = {key: value if isinstance(value, (str, int, bool, type(None))) else type(value).__name__
             for key, value in named.items()}
    note(json.dumps([which, who, shown, os.getpid()]))

if "TELLS" in os.environ:
    for name, signal in list(vars(signals).items()):
        # A receiver of setup_logging sets it up: then nothing else is told of it.
        if isinstance(signal, signals.Signal) and name != os.environ["TELLS"]:
            signal.connect(functools.partial(tell, name), weak=False)

@signals.celeryd_init.connect(weak=False)
def by_name(conf=None, options=None, **named):
    assert options["concurrency"] == 1
    conf.task_track_started = True

@app.task
def add(x, y=0):
    return x + y

@app.task
def fail():
    raise KeyError("why")

@app.task(bind=True, max_retries=3)
def again(self):
    if not self.request.retries:
        raise self.retry(countdown=0)

@app.task(resultrepr_maxsize="no number")
def broken():
    return list(range(100))
"""

Told = dict[str, list[tuple[str, dict[str, Any], int]]]


def told_by(shop: Workshop) -> Told:
    """What receivers were told: signal, then sender, arguments and process."""
    told: Told = {}
    for line in shop.ledger():
        name, sender, named, pid = json.loads(line)
        told.setdefault(name, []).append((sender, named, pid))
    return told


@pytest.fixture(scope="module")
def told(tmp_path_factory: pytest.TempPathFactory, broker_url: str) -> Iterator[tuple[Workshop, Told, str, int]]:
    """Everything that happens in the life of a worker, and what receivers were told of it."""
    with Workshop(tmp_path_factory.mktemp("signals"), broker_url, SOURCE) as shop, pytest.MonkeyPatch.context() as env:
        worker = shop.start("-c", "1", env={"TELLS": "setup_logging"})
        env.setenv("TELLS", "setup_logging")
        tasks = shop.tasks
        try:
            results = [tasks.add.delay(1, y=2), tasks.fail.delay(), tasks.again.delay(), tasks.broken.delay()]
            results += [tasks.add.apply_async((1,), expires=-1), shop.app.send_task("no.such.task")]
            for result in results:
                result.get(timeout=20, propagate=False)
            shop.publish(b"no task", {"task": tasks.add.name, "id": "unreadable"}, content_type="application/json")
            shop.dead_letter(lambda found: found.headers.get("id") == "unreadable")
        finally:
            for value in vars(signals).values():
                if isinstance(value, Signal):
                    value._receivers = ()
        node = worker.command[worker.command.index("-n") + 1]
        worker.finish()
        yield shop, told_by(shop), node, worker.process.pid


@pytest.mark.parametrize("name", sorted(ELSEWHERE & set(vars(signals))))
def test_a_signal_that_is_sent_elsewhere_or_never_declares_what_celerys_does(name: str) -> None:
    assert getattr(signals, name).providing_args == getattr(celery.signals, name).providing_args


def test_the_table_has_every_signal_of_celery() -> None:
    theirs = {name for name, value in vars(celery.signals).items() if isinstance(value, celery.signals.Signal)}
    assert theirs - set(TABLE) == ELSEWHERE
    assert {name for name, value in vars(signals).items() if isinstance(value, Signal)} >= set(TABLE)


@pytest.mark.parametrize("name", TABLE)
def test_a_signal_declares_what_celerys_does(name: str) -> None:
    theirs = getattr(celery.signals, name).providing_args | UNLISTED.get(name, set())
    assert TABLE[name][0] == theirs
    assert getattr(signals, name).providing_args == theirs


@pytest.mark.parametrize("name", sorted(set(TABLE) - {"setup_logging"}))
def test_a_signal_is_sent_with_its_arguments(name: str, told: tuple[Workshop, Told, str, int]) -> None:
    # Given a receiver of every signal / When a program and a worker do what there is to do
    shop, heard, node, _pid = told
    arguments, sender = TABLE[name]
    names = {task: f"{shop.project.name}.{task}" for task in ("add", "again", "fail", "broken")}
    # Then each was told, by the sender and with the arguments that Celery has
    assert name in heard, f"{name} was never sent; {sorted(heard)} were"
    assert {frozenset(named) for _sender, named, _process in heard[name]} == {frozenset(arguments)}
    assert sender.format(node=node, **names) in {each for each, _named, _process in heard[name]}


def test_what_they_tell_is_so(told: tuple[Workshop, Told, str, int]) -> None:
    shop, heard, node, worker_pid = told

    def one(name: str, sender: str = "") -> dict[str, Any]:
        return next(named for each, named, _process in heard[name] if sender in each)

    assert one("before_task_publish") | {"headers": 0} == {
        "body": "tuple", "exchange": "", "routing_key": shop.queue, "headers": 0, "properties": "dict",
        "declare": "list", "retry_policy": "dict",
    }  # fmt: skip
    assert one("after_task_publish")["body"] == "tuple"
    assert one("task_success", "add")["result"] == 3
    assert (one("task_postrun", "add")["retval"], one("task_postrun", "add")["state"]) == (3, "SUCCESS")
    assert {named["state"] for _s, named, _p in heard["task_postrun"]} >= {"SUCCESS", "FAILURE", "RETRY"}
    failure = one("task_failure", "fail")
    assert (failure["exception"], failure["traceback"]) == ("KeyError", "traceback")
    assert failure["einfo"] == one("task_internal_error")["einfo"] == "ExceptionInfo"
    assert one("task_retry")["reason"] == "Retry"
    assert one("task_revoked") | {"request": 0} == {
        "request": 0, "terminated": False, "signum": None, "expired": True,
    }  # fmt: skip
    assert (one("task_unknown")["name"], one("task_unknown")["exc"]) == ("no.such.task", "NotRegistered")
    assert one("worker_shutting_down") == {"sig": "SIGTERM", "how": "Warm", "exitcode": 0}
    assert one("celeryd_init") == {"instance": "Worker", "conf": "Conf", "options": "dict"}
    assert one("worker_process_shutdown")["exitcode"] == 0
    # What belongs to a child is told in the child, all else in the worker's own process
    for name, processes in {
        "worker_process_init": False, "worker_process_shutdown": False, "task_prerun": False,
        "worker_before_create_process": True, "worker_init": True, "worker_ready": True, "task_received": True,
    }.items():  # fmt: skip
        assert all((pid == worker_pid) is processes for _sender, _named, pid in heard[name]), name


def test_they_come_in_celerys_order(told: tuple[Workshop, Told, str, int]) -> None:
    _shop, heard, _node, worker_pid = told
    lines = [json.loads(line) for line in _shop.ledger()]
    order = [name for name, _sender, _named, pid in lines if pid == worker_pid]
    life = [
        "celeryd_init", "after_setup_logger", "after_setup_task_logger", "import_modules", "celeryd_after_setup",
        "worker_init", "worker_before_create_process", "worker_ready", "worker_shutting_down", "worker_shutdown",
    ]  # fmt: skip
    assert [name for name in order if name in life] == life
    run = [name for name, sender, _named, pid in lines if pid != worker_pid and sender.endswith(".add")]
    assert [name for name in run if name.startswith("task_")][:3] == ["task_prerun", "task_success", "task_postrun"]


@pytest.mark.parametrize(("pool", "times"), [("solo", 1), ("threads", 0)])
def test_a_pool_without_processes_tells_of_one_only_if_it_is_solo(
    pool: str, times: int, tmp_path_factory: pytest.TempPathFactory, broker_url: str
) -> None:
    # Given a pool whose tasks run in the worker's process / When it starts, runs a task and stops
    with Workshop(tmp_path_factory.mktemp(pool), broker_url, SOURCE) as shop:
        worker = shop.start("-P", pool, "-c", "1", env={"TELLS": "setup_logging"})
        assert shop.tasks.add.delay(1, 1).get(timeout=20) == 2
        worker.finish()
        heard = told_by(shop)
    # Then worker_process_init is told as by Celery's pools of these names, and nothing of processes that there are not
    assert len(heard.get("worker_process_init", ())) == times
    assert "worker_before_create_process" not in heard and "worker_process_shutdown" not in heard
    assert "task_success" in heard


def test_who_receives_setup_logging_sets_it_up(tmp_path_factory: pytest.TempPathFactory, broker_url: str) -> None:
    # Given a receiver of setup_logging, which logs as it likes
    source = """
    from amqptasks import signals
    import logging

    @signals.setup_logging.connect
    def mine(loglevel=None, logfile=None, format=None, colorize=None, **named):
        note(f"{loglevel} {logfile} {type(format).__name__} {colorize}")
        logging.basicConfig(level=loglevel, format="MINE %(message)s")

    @signals.after_setup_logger.connect
    def theirs(**named):
        note("after_setup_logger")

    @app.task
    def add(x, y):
        return x + y
    """
    with Workshop(tmp_path_factory.mktemp("logging"), broker_url, source) as shop:
        worker = shop.start("-c", "1", ready=False)
        assert shop.tasks.add.delay(1, 1).get(timeout=30) == 2
        worker.finish()
        # Then nothing else is set up, and the worker's words come in its form
        assert shop.ledger() == ["20 None str False"]
        assert "MINE Task " in worker.log
    # The project was imported here too, and its functions may live on for a while.
    for each in (signals.setup_logging, signals.after_setup_logger):
        each._receivers = ()


def test_what_a_receiver_of_import_modules_raises_keeps_the_worker_from_starting(
    tmp_path_factory: pytest.TempPathFactory, broker_url: str
) -> None:
    # Given a receiver that imports the tasks, and fails
    source = """
    from amqptasks import signals

    @signals.import_modules.connect
    def find(**named):
        raise ImportError("no tasks today")
    """
    with Workshop(tmp_path_factory.mktemp("imports"), broker_url, source) as shop:
        # When a worker starts / Then it does not go on without them
        worker = shop.start("-c", "1", ready=False, expected_exits=None)
        assert worker.process.wait(timeout=20) != 0
        assert "no tasks today" in worker.log
