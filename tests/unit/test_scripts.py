"""The scripts' shared shell: what it does to the environment that it is given."""

from __future__ import annotations

import os
import subprocess
from pathlib import Path

from tests.support import ROOT


def checkout(directory: Path) -> Path:
    """Make a directory that looks like a checkout, with an environment whose Python tells what it is asked to do."""
    python = directory / ".venv" / "bin" / "python"
    python.parent.mkdir(parents=True)
    (directory / "scripts").mkdir()
    (directory / "scripts" / "lib.sh").write_text((ROOT / "scripts" / "lib.sh").read_text())
    for name in ("setup.cfg", "pyproject.toml"):
        (directory / name).write_text("")
    log = directory / "asked"
    python.write_text(f'#!/bin/sh\necho "$@" >> {log}\ncase "$1" in -c) echo 3.11;; esac\n')
    python.chmod(0o755)
    return directory


def installs(here: Path, environment: Path) -> tuple[str, str]:
    """Run `ensure_venv` in a checkout with an environment: what was installed, and which code is imported first."""
    script = f". {here}/scripts/lib.sh; ensure_venv test; echo ${{PYTHONPATH:-}}"
    done = subprocess.run(
        ["bash", "-euc", script], env=os.environ | {"AMQPTASKS_VENV": str(environment), "PYTHONPATH": ""},
        capture_output=True, text=True, timeout=30, check=True,
    )  # fmt: skip
    log = environment.parent / "asked"
    asked = log.read_text().splitlines() if log.exists() else []
    return "\n".join(line for line in asked if "install" in line), done.stdout.strip()


def test_an_environment_of_its_own_gets_the_project(tmp_path: Path) -> None:
    here = checkout(tmp_path / "here")
    installed, path = installs(here, here / ".venv")
    assert f"-e {here}[test]" in installed and path == ""


def test_the_environment_of_another_checkout_is_used_as_it_is(tmp_path: Path) -> None:
    # Given two checkouts / When one uses the environment of the other / Then nothing is installed there, and it is
    # its own code that runs
    here, there = checkout(tmp_path / "here"), checkout(tmp_path / "there")
    installed, path = installs(here, there / ".venv")
    assert (installed, path.rstrip(":")) == ("", str(here))
