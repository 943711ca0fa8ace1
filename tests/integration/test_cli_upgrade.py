"""``amqptasks upgrade`` on a real Celery project: shown, asked for, written, and run by a real worker."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import pytest

from tests.command import Shell, Terminal, environment, here
from tests.support import ROOT, WorkerProcess

FILES = {
    "shop/__init__.py": "from .celery import app as celery_app\n",
    "shop/celery.py": """
        '''The shop's app.'''
        import celery
        from celery import Celery
        from kombu import (
            Exchange,  # where orders come in
            Queue,
        )

        app = Celery("shop", include=["shop.tasks"])
        app.config_from_object("shop.celeryconfig")
        app.conf.update(CELERY_TRACK_STARTED=True)
        app.conf.task_queues = [Queue(app.conf.task_default_queue, Exchange("", "direct"))]

        seen = []

        class Careful(celery.Task):
            def before_start(self, task_id, args, kwargs):
                seen.append(task_id)
        """,
    "shop/celeryconfig.py": """
        import os
        # Where it runs
        BROKER_URL = os.environ["SHOP_BROKER"]
        CELERY_RESULT_BACKEND = "rpc://"
        CELERY_TASK_SERIALIZER = "json"
        CELERY_DEFAULT_QUEUE = os.environ["SHOP_QUEUE"]
        CELERYD_PREFETCH_MULTIPLIER = 1  # one at a time
        CELERYD_POOL = "solo"
        BROKER_POOL_LIMIT = 10
        """,
    "shop/tasks.py": """
        from celery import chain, group, shared_task; import random
        from celery.exceptions import Reject
        from celery.signals import task_success
        from celery.utils.log import get_task_logger

        from shop.celery import Careful, app

        logger = get_task_logger(__name__)

        @app.task(bind=True, base=Careful, max_retries=3, default_retry_delay=0.1)
        def total(self, numbers):
            if self.request.retries == 0:
                raise self.retry()
            logger.info("total of %s", numbers)
            return sum(numbers)

        @shared_task
        def double(number):
            return 2 * number

        def order():
            return chain(group(double.s(each) for each in (1, 2, 3)), total.s())
        """,
    "run.py": """
        from celery import states
        from shop.tasks import order

        result = order().delay()
        print(result.get(timeout=30), result.state == states.SUCCESS)
        """,
    "Procfile": "worker: celery -A shop worker -l INFO\n",
    ".venv/lib/x.py": "import celery\n",
}


@pytest.fixture
def shell(tmp_path: Path) -> Shell:
    made = Shell(tmp_path)
    for name, text in FILES.items():
        made.write(name, text)
    return made


def contents(shell: Shell) -> dict[str, str]:
    return {name: (shell.directory / name).read_text() for name in FILES}


def test_a_celery_project_is_upgraded_and_runs(shell: Shell, broker_url: str, queue_name: str) -> None:
    env = environment({"SHOP_BROKER": broker_url, "SHOP_QUEUE": queue_name})
    # Given a project that works with Celery
    program = "import shop.tasks; print(shop.tasks.app.conf.task_default_queue, shop.tasks.total.name)"
    known = subprocess.run(
        [sys.executable, "-c", program], cwd=shell.directory, env=env, capture_output=True, text=True, timeout=50
    )
    assert known.stdout == f"{queue_name} shop.tasks.total\n", known.stderr
    # When it is upgraded
    done = shell("upgrade", "project", ".", "-f")
    # Then it is shown, and what needs a look is named with its line
    assert "-from celery import chain, group, shared_task; import random" in done.stdout
    assert "+from amqptasks import chain, group, shared_task; import random" in done.stdout
    assert done.stdout.endswith("4 files changed; what was is in FILE.orig.\n")
    assert "shop/celeryconfig.py:10: BROKER_POOL_LIMIT (now broker_pool_limit) does nothing" in done.stderr
    assert "Procfile:1: calls the command celery; the new one is amqptasks" in done.stderr
    assert done.stderr.count("\n") == 2
    # And comments and layout are as they were, and so are other files
    after = contents(shell)
    assert "    Exchange,  # where orders come in\n    Queue,\n)" in after["shop/celery.py"]
    assert "worker_prefetch_multiplier = 1  # one at a time" in after["shop/celeryconfig.py"]
    assert after[".venv/lib/x.py"] == FILES[".venv/lib/x.py"] and after["Procfile"] == FILES["Procfile"]
    assert (shell.directory / "shop/tasks.py.orig").read_text().count("celery") == 5
    assert not any(
        re.search(r"^\s*(from|import) (celery|kombu)", text, re.M) for name, text in after.items() if "venv" not in name
    )
    # When a worker serves it / Then its chord, with a retry on the way, has its result
    worker = WorkerProcess(
        [sys.executable, "-m", "amqptasks", "-A", "shop", "worker", "-l", "INFO"], directory=shell.directory,
        log=shell.directory / "worker.log", env=env | {"PYTHONPATH": str(ROOT)},
    )  # fmt: skip
    try:
        worker.wait_ready()
        ran = subprocess.run(
            [sys.executable, "run.py"], cwd=shell.directory, env=env, capture_output=True, text=True, timeout=50
        )
        assert ran.stdout == "12 True\n", ran.stderr + worker.log
        assert "total of [2, 4, 6]" in worker.log
    finally:
        worker.finish()
    # And once more there is nothing to do
    again = shell("upgrade", "project", ".")
    assert again.stdout == "Does not seem to require any changes :-)\n"


def test_nothing_is_written_without_a_yes(shell: Shell) -> None:
    before = contents(shell)
    assert "4 files would be changed." in shell("upgrade", "project", "shop", "run.py", "--dry-run").stdout
    done = shell("upgrade", "project", ".", answer="n\n", code=1)
    assert "Write 4 files? [y/N]:" in done.stdout
    assert contents(shell) == before
    assert list(shell.directory.rglob("*.orig")) == []
    # And with a yes all is written, without a copy if so wanted
    shell("upgrade", "project", ".", "--no-backup", answer="y\n")
    assert contents(shell) != before and list(shell.directory.rglob("*.orig")) == []


def test_files_keep_their_rights_and_their_places(shell: Shell) -> None:
    # Given a settings module that only its owner may read, behind a link, upgraded twice
    secret = shell.directory / "secret"
    secret.mkdir()
    path = secret / "celeryconfig.py"
    path.write_text("BROKER_URL = 'amqp://user:password@rabbit'\n")
    path.chmod(0o600)
    link = shell.directory / "celeryconfig.py"
    link.symlink_to(path)
    shell("upgrade", "settings", "celeryconfig.py", "-f")
    path.write_text("BROKER_URL = 'amqp://other:password@rabbit'\n")
    shell("upgrade", "settings", "celeryconfig.py", "-f")
    # Then it is still a link, and nobody may read what nobody could; both that was is kept
    assert link.is_symlink() and path.read_text() == "broker_url = 'amqp://other:password@rabbit'\n"
    assert {each.name: each.stat().st_mode & 0o777 for each in secret.iterdir()} == {
        "celeryconfig.py": 0o600, "celeryconfig.py.orig": 0o600, "celeryconfig.py.orig2": 0o600,
    }  # fmt: skip


def test_settings_alone(shell: Shell) -> None:
    # When a settings module is upgraded / Then it is what Celery's own command makes of it
    (shell.directory / "theirs.py").write_text(FILES["shop/celeryconfig.py"].replace("\n        ", "\n"))
    subprocess.run(
        [sys.executable, "-m", "celery", "upgrade", "settings", "theirs.py"], cwd=shell.directory, env=environment(),
        capture_output=True, check=True, timeout=50,
    )  # fmt: skip
    shell("upgrade", "settings", "shop/celeryconfig.py", "-f")
    ours = (shell.directory / "shop/celeryconfig.py").read_text().strip()
    assert ours == (shell.directory / "theirs.py").read_text().strip()
    # And Django's keeps its prefix, by its look or by an option
    shell.write("settings.py", "INSTALLED_APPS = []\nCELERYD_CONCURRENCY = 2\n")
    shell("upgrade", "settings", "settings.py", "-f")
    assert (shell.directory / "settings.py").read_text() == "INSTALLED_APPS = []\nCELERY_WORKER_CONCURRENCY = 2\n"


def test_files_that_are_no_python_are_left_and_told_of(shell: Shell) -> None:
    (shell.directory / "old.py").write_text("print 'x'\nimport celery\n")
    (shell.directory / "latin.py").write_bytes(
        b"# -*- coding: latin-1 -*-\r\nimport celery  # \xe4\r\ncelery.group()\r\n"
    )
    done = shell("upgrade", "project", "old.py", "latin.py", "-f", code=1)
    assert "old.py:1: left alone, for it cannot be read" in done.stderr
    # And encodings and line ends stay
    latin = (shell.directory / "latin.py").read_bytes()
    assert latin == b"# -*- coding: latin-1 -*-\r\nimport amqptasks  # \xe4\r\namqptasks.group()\r\n"


def test_the_patch_is_coloured_at_a_terminal(shell: Shell) -> None:
    with Terminal(shell.directory, "upgrade", "project", "run.py", env={"NO_COLOR": ""}) as terminal:
        terminal.expect(r"\x1b\[31m-from celery import states\x1b\[0m\n\x1b\[32m\+from amqptasks import states")
        terminal.expect(r"Write 1 file\? \[y/N\]: $")
        terminal.type("y")
        assert terminal.process.wait(20) == 0


@pytest.mark.parametrize(
    ("words", "says"),
    [
        (["settings"], "missing FILENAME..."),
        (["settings", "nowhere.py"], "cannot read 'nowhere.py': No such file or directory"),
        (["settings", "shop"], "'shop' is a directory: amqptasks upgrade project shop"),
        (["project", "nowhere"], "there is no file or directory 'nowhere'"),
        (["setings", "x.py"], "did you mean 'settings'?"),
    ],
)
def test_a_mistake_is_one_line(
    shell: Shell, words: list[str], says: str, capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(shell.directory)
    (said,) = here(capfd, "upgrade", *words, code=2)[1].splitlines()
    assert says in said
