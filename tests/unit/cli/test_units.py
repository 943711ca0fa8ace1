"""The systemd units in config/: systemd takes them, and what they run are commands that there are."""

from __future__ import annotations

import re
import shlex
import shutil
import subprocess
from pathlib import Path

import pytest

from amqptasks.cli.main import COMMANDS, cli
from tests.support import ROOT

UNITS = sorted((ROOT / "config").glob("*.service"))


def words_of(unit: Path) -> list[str]:
    """The words behind the program in ExecStart, as systemd hands them on for an instance called mail."""
    line = re.search(r"^ExecStart=(.+)$", unit.read_text(), re.MULTILINE)
    assert line is not None
    program, *words = shlex.split(line[1].replace("%i", "mail").replace("%%", "%"))
    assert Path(program).name == "amqptasks"
    return words


def test_there_are_units_for_one_worker_for_several_and_for_beat() -> None:
    assert [each.name for each in UNITS] == [
        "amqptasks-beat.service", "amqptasks-worker.service", "amqptasks-worker@.service",
    ]  # fmt: skip


@pytest.mark.parametrize("unit", UNITS, ids=lambda each: each.name)
def test_a_unit_runs_a_command_with_options_that_it_has(unit: Path) -> None:
    words = words_of(unit)
    root = cli.make_context("amqptasks", list(words))
    name = words[words.index("proj") + 1]
    assert name in COMMANDS
    command = cli.get_command(root, name)
    assert command is not None
    context = command.make_context(name, words[words.index(name) + 1 :], parent=root)
    if name == "worker":
        assert context.params["hostname"] in ("worker@%h", "mail@%h")


@pytest.mark.parametrize("unit", UNITS, ids=lambda each: each.name)
def test_systemd_takes_a_unit(unit: Path, tmp_path: Path) -> None:
    # Given a unit whose program is on this machine
    name = unit.name.replace("@.", "@mail.")
    text = unit.read_text().replace("/opt/proj/.venv/bin/amqptasks", "/bin/true")
    (tmp_path / name).write_text(text)
    if shutil.which("systemd-analyze") is None:
        # Not on this machine: then at least every line is one of a unit.
        assert all(re.fullmatch(r"(#.*|\[\w+\]|\w+=.*|)", line) for line in text.splitlines())
        return
    # When systemd reads it / Then it has nothing to say
    done = subprocess.run(
        ["systemd-analyze", "verify", str(tmp_path / name)], capture_output=True, text=True, timeout=50
    )  # fmt: skip
    assert (done.returncode, done.stdout + done.stderr) == (0, "")
