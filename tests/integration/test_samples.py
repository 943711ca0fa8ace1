"""What ships beside the package works: the sample settings, and the quickstart's tasks on a real worker."""

from __future__ import annotations

import ast
import json
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from amqptasks import App
from tests.support import ROOT, Project, WorkerProcess

EXAMPLE = ROOT / "scripts" / "example"


def test_the_sample_settings_are_valid_and_declare_their_queues(monkeypatch: pytest.MonkeyPatch) -> None:
    # Given the sample module, where a project would have it / When an app reads it
    monkeypatch.syspath_prepend(str(ROOT / "config"))
    # Other tests have modules of this name: neither theirs nor ours may outlive its test.
    monkeypatch.setitem(sys.modules, "celeryconfig", sys)
    del sys.modules["celeryconfig"]
    app = App("sample", set_as_current=False)
    app.config_from_object("celeryconfig", force=True)
    # Then all its settings are known, and its queues are there
    assert app.conf.task_default_queue == "default"
    assert set(app.queues) == {"default", "media", "news", "orders-eu", "urgent", "ledger"}
    assert len(app.queues["media"].all_bindings()) == 2


def test_the_quickstarts_task_counts_a_file(
    project: Callable[..., Project], worker: Callable[..., WorkerProcess], broker_url: str, tmp_path: Path
) -> None:
    # Given a worker with the tasks of the quickstart, and a file of two lines
    source = (EXAMPLE / "proj.py").read_text(encoding="utf-8").replace("from __future__ import annotations\n", "")
    example = project(source + "\napp.conf.update(broker_url=BROKER, task_default_queue=QUEUE)\n")
    file = tmp_path / "input.py"
    file.write_text("import os\nprint(os.name, os)\n")
    worker(example, "-c", "1")
    # When the task is called
    result = example.count.delay(str(file))
    # Then the caller gets the numbers
    expected = {"lines": 2, "words": 6, "identifiers": {"os": 3, "print": 1, "name": 1}}
    assert result.get(timeout=20) == expected
    example.app.close()


def test_the_sample_files_can_be_parsed() -> None:
    json.loads((ROOT / "config" / "definitions.json").read_text())
    for path in sorted(EXAMPLE.glob("*.py")):
        ast.parse(path.read_text(encoding="utf-8"))
