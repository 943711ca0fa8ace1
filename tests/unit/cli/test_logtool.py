"""``amqptasks logtool`` on logs of ours, as text and as JSON, and of Celery's."""

from __future__ import annotations

import io
import json
import os
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from amqptasks.cli.logtool import Audit, read_lines
from amqptasks.cli.main import run

LOG = """\
celery@host v0.1.0
[2026-11-21 13:32:34,413: INFO/MainProcess] Task shop.add[id-1] received
[2026-11-21 13:32:34,413: INFO/MainProcess] Task shop.add[id-2] received
[2026-11-21 13:32:34,420: INFO/ForkPoolWorker-1] Task shop.add[id-1] succeeded in 0.25s: 3
[2026-11-21 13:32:34,430: INFO/MainProcess] Task shop.mail[id-3] received
[2026-11-21 13:32:34,440: ERROR/ForkPoolWorker-1] Task shop.mail[id-3] raised unexpected: ValueError('no')
Traceback (most recent call last):
  File "x.py", line 1, in mail
ValueError: no
[2026-11-21 13:32:34,450: INFO/ForkPoolWorker-1] Task shop.late[id-4] retry: Retry in 1s
[2026-11-21 13:32:34,460: INFO/MainProcess] Task shop.add[id-5] received
[2026-11-21 13:32:34,470: INFO/ForkPoolWorker-2] Task shop.add[id-5] succeeded in 0.75s: None
[2026-11-21 13:32:34,480: INFO/MainProcess] Discarding revoked task: shop.late[id-6]
[2026-11-21 13:32:34,490: WARNING/ForkPoolWorker-2] shop.add[id-5]: said by the task itself
"""
EXPECTED = {
    "shop.add": (3, 2, 0, 0), "shop.mail": (1, 0, 1, 0), "shop.late": (0, 0, 0, 1),
}  # fmt: skip


def as_json(log: str) -> str:
    """The same log as `worker_log_json` writes it."""
    lines = []
    for line in read_lines([io.StringIO(log)]):
        facts = {"time": "2026-11-21T13:32:34+00:00", "level": line.level, "message": line.message}
        lines.append(json.dumps(facts | ({"exception": "\n".join(line.more)} if line.more else {})))
    return "\n".join(lines) + "\n"


@pytest.mark.parametrize("log", [LOG, as_json(LOG)], ids=["text", "json"])
def test_tasks_are_counted_by_what_became_of_them(log: str) -> None:
    audit = Audit()
    for line in read_lines([io.StringIO(log)]):
        audit.feed(line)
    assert {
        name: (each.received, each.ends["succeeded"], each.ends["failed"], each.ends["revoked"])
        for name, each in audit.tasks.items()
    } == EXPECTED
    assert audit.tasks["shop.late"].retries == 1
    assert audit.open == {"id-2": "shop.add"}


@pytest.fixture
def log(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "worker.log").write_text(LOG)
    return "worker.log"


def said(capfd: pytest.CaptureFixture[str], *words: str) -> str:
    assert run(["logtool", *words]) == 0
    done = capfd.readouterr()
    assert done.err == ""
    return done.out


def test_what_each_command_shows(log: str, capfd: pytest.CaptureFixture[str]) -> None:
    table = said(capfd, "stats", log)
    head, first, *_rest, last = table.splitlines()
    assert head.split()[:4] == ["TASK", "RECEIVED", "SUCCEEDED", "FAILED"]
    assert first.split() == ["shop.add", "3", "2", "0", "0", "0", "0", "0", "0.500s", "0.750s"]
    assert last == "4 tasks received, 1 not completed"
    facts = json.loads(said(capfd, "stats", log, "--json"))
    assert facts["incomplete"] == 1 and facts["tasks"][0]["mean_s"] == 0.5
    assert "raised unexpected: ValueError('no')" in said(capfd, "errors", log)
    assert said(capfd, "errors", log).count("\n") == 1
    assert said(capfd, "traces", log).endswith('  File "x.py", line 1, in mail\nValueError: no\n')
    assert json.loads(said(capfd, "traces", log, "--json"))["more"][-1] == "ValueError: no"
    assert said(capfd, "incomplete", log) == "Did not complete: id-2  shop.add\n"
    assert json.loads(said(capfd, "incomplete", log, "--json")) == [{"id": "id-2", "task": "shop.add"}]
    assert said(capfd, "debug", log).count("\n") == 1


def test_a_file_that_there_is_not_is_one_line(log: str, capfd: pytest.CaptureFixture[str]) -> None:
    assert run(["logtool", "stats", log, "nowhere.log"]) == 2
    (line,) = capfd.readouterr().err.splitlines()
    assert line == "Error: cannot read 'nowhere.log': No such file or directory"


@given(st.lists(st.sampled_from([*LOG.splitlines(), "{", "{}", '{"message": 1}', "[" * 2000, "\x00", ""])))
def test_any_text_is_read_to_its_end(lines: list[str]) -> None:
    # Given lines in any order, and such as are of no log / When they are read / Then nothing is lost of those that are
    audit = Audit()
    found = [audit.feed(each) for each in read_lines([io.StringIO(os.linesep.join(lines))])]
    assert found.count("received") == sum(each.endswith("] received") for each in lines)
