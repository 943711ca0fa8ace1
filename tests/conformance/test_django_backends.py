"""The suite of `test_result_backends.py`, asked of Django's stores: in a process of their own."""

from __future__ import annotations

import os
import re
import subprocess
import sys

import pytest

from tests.support import ROOT


@pytest.mark.deadline(240)
def test_djangos_stores_keep_what_every_backend_promises(postgres_url: str) -> None:
    command = [
        sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", "tests/conformance/test_result_backends.py",
    ]  # fmt: skip
    environment = os.environ | {"AMQPTASKS_TEST_DJANGO": "1", "AMQPTASKS_TEST_POSTGRES_URL": postgres_url}
    # Whatever part of the suite this is: all of that one module.
    environment.pop("AMQPTASKS_TEST_PART", None)
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, timeout=220)
    assert done.returncode == 0, done.stdout[-8000:] + done.stderr[-2000:]
    found = re.search(r"(\d+) passed", done.stdout)
    # Three stores, and each is asked everything.
    assert found is not None and int(found[1]) >= 3 * 30
    assert not re.search("skipped|deselected", done.stdout)
