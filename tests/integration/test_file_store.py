"""The store of files where it meets the world: crowds, half-written files, odd ids, outages, old results, a worker."""

from __future__ import annotations

import errno
import json
import os
import shutil
import subprocess
import sys
import textwrap
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from amqptasks.app.app import App
from amqptasks.exceptions import BackendGetMetaError, EncodeError, ImproperlyConfigured
from amqptasks.results import polled
from amqptasks.results.files import FileBackend, Files
from amqptasks.results.keyvalue import Keys
from amqptasks.results.payload import Payloads
from amqptasks.results.record import ResultRecord
from tests.running import Workshop
from tests.support import ROOT, eventually

LONG_AGO = 1_000_000_000


def success(task_id: str, value: Any = 1) -> ResultRecord:
    return ResultRecord.now(task_id, "SUCCESS", value)


@pytest.fixture
def place(tmp_path: Path) -> Path:
    """The directory of the results."""
    return tmp_path / "results"


@pytest.fixture
def backend(place: Path) -> Iterator[Callable[..., FileBackend]]:
    """Make the backend of an app with these settings."""
    made: list[App] = []

    def make(url: str = f"file://{place}", **settings: Any) -> FileBackend:
        made.append(App("files", backend=url, set_as_current=False, **settings))
        result = made[-1].backend
        assert isinstance(result, FileBackend)
        return result

    yield make
    for app in made:
        app.close()


def names(place: Path) -> set[str]:
    """Names of the files that are results or groups, or might be taken for such."""
    return {name for name in os.listdir(place) if not name.startswith(".amqptasks-lock-")}


def locks() -> list[str]:
    return Path("/proc/locks").read_text().splitlines()


# ---- Names and rights


def test_a_result_is_one_file_with_the_name_that_celery_gives_it(place: Path, backend: Any) -> None:
    store = backend()
    store.store(success("id", {"a": 1}))
    store.save_group("g", [["g", None], []])
    assert names(place) == {"celery-task-meta-id", "celery-taskset-meta-g"}
    plain = json.loads((place / "celery-task-meta-id").read_text())
    assert (plain["task_id"], plain["status"], plain["result"]) == ("id", "SUCCESS", {"a": 1})


def test_a_prefix_keeps_fleets_apart(place: Path, backend: Any) -> None:
    north, south = (
        backend(result_backend_transport_options={"global_keyprefix": name}) for name in ("north", "south.")
    )
    north.store(success("id", "north"))
    south.store(success("id", "south"))
    assert names(place) == {"north_celery-task-meta-id", "south.celery-task-meta-id"}
    assert (north.fetch("id").result, south.fetch("id").result) == ("north", "south")
    with pytest.raises(ImproperlyConfigured, match="global_keyprefix"):
        backend(result_backend_transport_options={"global_keyprefix": 7})


@pytest.mark.parametrize("task_id", ["../../escaped", "/etc/passwd", "a/b", "nul\x00", "x" * 300, "half\ud800", ".."])
def test_an_id_cannot_lead_out_of_the_directory(place: Path, backend: Any, task_id: str) -> None:
    # Given an id that a stranger chose / When its result is stored
    store = backend()
    if "\ud800" in task_id:
        with pytest.raises(EncodeError):
            store.store(success(task_id))
        assert store.fetch(task_id) is None
        return
    store.store(success(task_id))
    store.save_group(task_id, [1])
    # Then it can be read, and nothing is anywhere else
    assert store.fetch(task_id).task_id == task_id
    assert store.fetch_group(task_id) == [1]
    assert len(names(place)) == 2
    assert sorted(os.listdir(place.parent)) == ["results"]
    store.forget(task_id)
    store.delete_group(task_id)
    assert names(place) == set()


def test_files_have_the_rights_that_all_files_get(place: Path, backend: Any) -> None:
    before = os.umask(0o022)
    try:
        backend().store(success("id"))
    finally:
        os.umask(before)
    assert (place / "celery-task-meta-id").stat().st_mode & 0o777 == 0o644


@pytest.mark.parametrize("url", ["file://", "file:///", "file", "filesystem"])
def test_a_directory_must_be_named(url: str) -> None:
    with pytest.raises(ImproperlyConfigured, match=r"as in file:///var/lib/shop/results"):
        assert App("files", backend=url, set_as_current=False).backend


def test_a_place_that_is_no_directory_is_refused(tmp_path: Path, backend: Any) -> None:
    (tmp_path / "file").write_text("")
    for path in ("file", "file/results", "missing/results"):
        store = backend(f"file://localhost{tmp_path}/{path}")
        with pytest.raises(ImproperlyConfigured, match="to be a directory that can be written"):
            store.prepare()
        with pytest.raises(ImproperlyConfigured, match="to be a directory that can be written"):
            store.store(success("id"))


def test_a_reader_makes_no_directory(place: Path, backend: Any) -> None:
    store = backend()
    assert store.fetch("id") is None and store.fetch_group("g") is None
    store.forget("id")
    assert store.cleanup() == 0
    assert not place.exists()


# ---- Many at once


CROWD = """
    import sys
    from amqptasks.results.files import FileBackend
    from amqptasks.results.record import ResultRecord
    store = FileBackend(sys.argv[1])
    for number in range(40):
        store.store(ResultRecord.now(f"shared-{number}", "STARTED"))
        store.store(ResultRecord.now(f"shared-{number}", "FAILURE", None))
        store.store(ResultRecord.now(f"shared-{number}", "SUCCESS", sys.argv[2]))
        first = store.fetch(f"shared-{number}").result
        store.store(ResultRecord.now(f"shared-{number}", "SUCCESS", "late"))
        assert store.fetch(f"shared-{number}").result == first
"""


def test_a_success_stands_however_many_write_at_once(place: Path) -> None:
    command = [sys.executable, "-c", textwrap.dedent(CROWD), f"file://{place}"]
    started = [
        subprocess.Popen([*command, str(number)], cwd=ROOT, stderr=subprocess.PIPE, text=True) for number in range(3)
    ]
    for each in started:
        errors = each.communicate(timeout=40)[1]
        assert each.returncode == 0, errors
    assert len(names(place)) == 40


def test_nobody_reads_half_of_a_result(backend: Any) -> None:
    # Given a writer of large values, and a reader of the same id
    store, reader = backend(), backend()
    store.store(ResultRecord.now("id", "PROGRESS", "x" * 200_000))
    seen: list[int | None] = []
    done = threading.Event()

    def read() -> None:
        while not done.is_set():
            record = reader.fetch("id")
            seen.append(None if record is None else len(record.result))

    thread = threading.Thread(target=read)
    thread.start()
    # When it writes again and again / Then each read finds one of them whole, never nothing
    for number in range(100):
        store.store(ResultRecord.now("id", "PROGRESS", "x" * (200_000 + number)))
    eventually(lambda: bool(seen))
    done.set()
    thread.join(10)
    assert set(seen) <= {200_000 + number for number in range(100)}


def test_who_replaces_a_result_keeps_others_out(place: Path, backend: Any) -> None:
    # Given somebody who is about to store a success, and has looked already
    store = backend()
    store.prepare()
    other = Files(str(place), Payloads(), Keys(), None)
    with other._locked("celery-task-meta-id"):
        # When a late failure comes in between
        late = threading.Thread(target=store.store, args=(ResultRecord.now("id", "FAILURE"),))
        late.start()
        # Then it waits for its turn (the kernel marks those who do with an arrow)
        inodes = {f":{path.stat().st_ino}" for path in place.glob(".amqptasks-lock-*")}
        eventually(lambda: any("->" in line and line.split()[6].endswith(tuple(inodes)) for line in locks()))
        (place / "celery-task-meta-id").write_text(json.dumps(success("id", "first").to_plain()))
    # And finds that it comes too late
    late.join(10)
    assert store.fetch("id").result == "first"


def test_a_file_that_celery_is_writing_is_waited_for(place: Path, backend: Any) -> None:
    # Given a file that somebody has begun, as Celery does: in its place
    store = backend()
    store.prepare()
    path = place / "celery-task-meta-id"
    path.write_text('{"task_id": "id", "status": "SUC')
    # When it is young / Then it is nothing yet; when it is not, then the trouble is told
    assert store.fetch("id") is None
    os.utime(path, (LONG_AGO, LONG_AGO))
    with pytest.raises(BackendGetMetaError, match="cannot read the result of task id in file://"):
        store.fetch("id")
    # And a result takes its place
    store.store(success("id"))
    assert store.fetch("id").result == 1


# ---- Outages


def test_a_share_that_is_away_is_waited_for(place: Path, backend: Any, caplog: pytest.LogCaptureFixture) -> None:
    # Given a store that has worked, and whose directory then vanishes
    store = backend()
    store.store(success("before"))
    away = place.with_name("away")
    place.rename(away)
    # When a result is to be stored, and waited for
    storing = threading.Thread(target=store.store, args=(success("late", "there"),))
    storing.start()
    eventually(lambda: "Cannot store the result of task late in file://" in caplog.text)
    assert storing.is_alive()
    # Then both come to their end once it is back
    away.rename(place)
    assert backend().wait("late", 20).result == "there"
    storing.join(20)
    assert store.fetch("before").result == 1


def test_an_outage_ends_with_the_retries(place: Path, backend: Any) -> None:
    store = backend(result_backend_max_retries=1, result_backend_base_sleep_between_retries_ms=0)
    store.prepare()
    shutil.rmtree(place)
    with pytest.raises(Exception, match=os.strerror(errno.ENOENT)) as caught:
        store.store(success("id"))
    assert type(caught.value).__name__ == "BackendStoreError"


# ---- Old results


def test_old_results_go_and_new_ones_stay(place: Path, backend: Any) -> None:
    # Given results and a group written long ago, new ones, and files of others
    store = backend(result_expires=3600)
    for name in ("old", "new"):
        store.store(success(name))
        store.save_group(name, [])
    abandoned, foreign = place / ".amqptasks-new-1234", place / "readme"
    for path in (abandoned, foreign):
        path.write_text("?")
    for path in (place / "celery-task-meta-old", place / "celery-taskset-meta-old", abandoned, foreign):
        os.utime(path, (LONG_AGO, LONG_AGO))
    # When somebody cleans up / Then what is old and ours is gone
    assert store.cleanup() == 2
    assert names(place) == {"celery-task-meta-new", "celery-taskset-meta-new", "readme"}


@pytest.mark.parametrize("expires", [None, 0])
def test_nothing_expires_where_nothing_is_to(place: Path, backend: Any, expires: Any) -> None:
    store = backend(result_expires=expires)
    store.store(success("old"))
    os.utime(place / "celery-task-meta-old", (LONG_AGO, LONG_AGO))
    assert store.cleanup() == 0
    assert store.fetch("old") is not None


def test_a_process_that_stores_cleans_up_now_and_then(
    place: Path, backend: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(polled, "CLEANUP_EVERY_S", 0.0)
    store = backend(result_expires=3600)
    store.store(success("old"))
    os.utime(place / "celery-task-meta-old", (LONG_AGO, LONG_AGO))
    store.store(success("new"))
    assert names(place) == {"celery-task-meta-new"}


# ---- A worker


SOURCE = """
    app.conf.update(result_backend=f"file://{HERE}/results", result_extended=True)

    @app.task
    def add(x, y):
        return x + y

    @app.task
    def fail(text):
        raise ValueError(text)

    @app.task(bind=True)
    def progress(self, name):
        self.update_state(state="PROGRESS", meta={"done": 1})
        gate(name)
        return "all"
"""


def test_a_worker_stores_and_everybody_reads(tmp_path: Path, broker_url: str) -> None:
    with Workshop(tmp_path, broker_url, SOURCE) as shop:
        shop.start("-c", "2")
        results = [shop.tasks.add.delay(number, 1) for number in range(20)]
        assert [result.get(timeout=20) for result in results] == list(range(1, 21))
        assert results[0].args == [0, 1]
        with pytest.raises(ValueError, match="no"):
            shop.tasks.fail.delay("no").get(timeout=20)
        gate = shop.gate()
        running = shop.tasks.progress.delay(gate.name)
        gate.reached()
        assert (running.state, running.info) == ("PROGRESS", {"done": 1})
        gate.open()
        assert running.get(timeout=20) == "all"
        running.forget()
        assert running.state == "PENDING"
        # And the task of Celery's name cleans up
        (tmp_path / "results" / "celery-task-meta-old").write_text("{}")
        os.utime(tmp_path / "results" / "celery-task-meta-old", (LONG_AGO, LONG_AGO))
        shop.app.tasks["celery.backend_cleanup"].delay().get(timeout=20)
        assert not (tmp_path / "results" / "celery-task-meta-old").exists()
        assert results[0].state == "SUCCESS"
