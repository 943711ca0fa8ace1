"""``amqptasks shell`` and ``amqptasks completion``, in real terminals and with a real bash."""

from __future__ import annotations

import os
import subprocess
import sys
import textwrap
from pathlib import Path

import pytest

from tests.command import Shell, Terminal, environment

SHOP = """
from amqptasks import App

app = App("shop", broker="amqp://127.0.0.1:1//", task_queues=["mail", "images"], task_always_eager=True)
print("the app speaks while it is imported")

@app.task(name="shop.add")
def add(x, y):
    return x + y

@app.task(name="shop.other.add")
def another_add(x, y):
    return x + y

@app.task(name="shop.group")
def group():
    return "a task that is called like something of ours"
"""

#: A shell that says what it is, in place of one that need not be installed.
STAND_IN = """
def start_ipython(argv, user_ns):
    print("NAME has", user_ns["add"].name)

def embed(locals_, args, banner):
    print(banner)
    print("NAME has", locals_["add"].name)
"""


@pytest.fixture
def shell(tmp_path: Path) -> Shell:
    made = Shell(tmp_path)
    made.write("shop.py", SHOP)
    return made


def without_others(shell: Shell) -> dict[str, str]:
    """An environment where neither IPython nor bpython can be imported, whatever this machine has."""
    shell.write("lean/sitecustomize.py", "import sys\nsys.modules['IPython'] = sys.modules['bpython'] = None\n")
    return {"PYTHONPATH": os.pathsep.join([str(shell.directory / "lean"), environment()["PYTHONPATH"]])}


# -- a terminal


def test_the_shell_knows_the_app_its_tasks_and_the_canvas(shell: Shell) -> None:
    with Terminal(shell.directory, "-A", "shop", "shell", "--python") as terminal:
        # Given a shell / Then it says what it has
        terminal.expect(r"amqptasks \S+, Python \S+, app shop\n")
        terminal.expect(r"tasks: add, another_add\n")
        terminal.expect(r"under app\.tasks\['shop\.group'\] only: its short name is taken\n")
        # When its names are used / Then they are the app's
        terminal.type("print('sum', add(20, 22), app.main, celery is app)")
        terminal.expect(r"\nsum 42 shop True\n")
        terminal.type("print(group(add.s(1, 1), add.s(2, 2)).tasks, chain, chord, signature, subtask is signature)")
        terminal.expect(r"shop\.add\(1, 1\), .*True\n")
        terminal.type("AsyncResult, GroupResult, Task.__name__")
        terminal.expect(r"AsyncResult'>, .*'Task'\)")
        # When a line is wrong / Then the shell goes on
        terminal.type("1 / 0")
        terminal.expect("ZeroDivisionError")
        terminal.type("print('still', 'here')")
        terminal.expect(r"\nstill here\n")
        assert terminal.close() == 0


def test_tasks_can_be_left_out(shell: Shell) -> None:
    for arguments, env in ((["-T"], {}), ([], {"AMQPTASKS_SHELL_WITHOUT_TASKS": "1"})):
        with Terminal(shell.directory, "-A", "shop", "shell", "--python", *arguments, env=env) as terminal:
            terminal.expect(r"tasks: none\n")
            terminal.type("'add' in globals(), app.tasks['shop.add'](1, 1)")
            terminal.expect(r"\(False, 2\)")
            assert terminal.close() == 0


@pytest.mark.parametrize(
    ("installed", "arguments", "chosen"),
    [
        (["IPython", "bpython"], [], "IPython has shop.add"),
        (["IPython", "bpython"], ["-B"], "bpython has shop.add"),
        (["IPython", "bpython"], ["--bpython"], "bpython has shop.add"),
        (["IPython", "bpython"], ["--python"], ">>> "),
        (["bpython"], [], "bpython has shop.add"),
        (["bpython"], ["-I"], "Error: IPython is not installed here: pip install ipython"),
        (["IPython"], ["--ipython"], "IPython has shop.add"),
        ([], [], ">>> "),
        ([], ["--bpython"], "Error: bpython is not installed here: pip install bpython"),
    ],
)
def test_the_best_shell_there_is_or_the_one_asked_for(
    shell: Shell, installed: list[str], arguments: list[str], chosen: str
) -> None:
    env = without_others(shell)
    for name in installed:
        shell.write(f"{name}.py", STAND_IN.replace("NAME", name))
    if installed:
        # Only what is not there is hidden.
        hidden = {"IPython", "bpython"} - set(installed)
        shell.write("lean/sitecustomize.py", "import sys\n" + "".join(f"sys.modules[{n!r}] = None\n" for n in hidden))
    with Terminal(shell.directory, "-A", "shop", "shell", *arguments, env=env) as terminal:
        terminal.expect(chosen)


def test_a_quiet_shell_says_nothing_of_itself(shell: Shell) -> None:
    with Terminal(shell.directory, "-q", "-A", "shop", "shell", "--python") as terminal:
        assert "tasks:" not in terminal.expect(r"[\s\S]*>>> ")[0]


# -- no terminal


def test_what_is_piped_in_is_run_as_a_program(shell: Shell) -> None:
    program = "total = 0\nfor number in range(3):\n    total = add(total, number)\nprint('total', total)\n"
    done = shell("-A", "shop", "shell", answer=program)
    assert done.stdout.splitlines()[-1] == "total 3"
    assert done.stderr == ""
    assert shell("-A", "shop", "shell", answer="").stderr == ""
    shell("-A", "shop", "shell", answer="raise SystemExit(7)", code=7)


def test_a_piped_program_s_error_is_its_own(shell: Shell) -> None:
    done = shell("-A", "shop", "shell", answer="def half(x):\n    return x / 0\nhalf(1)\n", code=1, traceback=True)
    assert done.stderr.splitlines()[:2] == [
        "Traceback (most recent call last):",
        '  File "<stdin>", line 3, in <module>',
    ]
    assert "amqptasks" not in done.stderr
    done = shell("-A", "shop", "shell", answer="x = (\n", code=1)
    assert "SyntaxError" in done.stderr and "amqptasks" not in done.stderr


# -- completion


def complete(shell: Shell, *words: str) -> list[str]:
    """What bash offers for the last of these words."""
    program = shell.directory / "bin" / "amqptasks"
    if not program.exists():
        program.parent.mkdir()
        program.write_text(f'#!/bin/sh\nexec {sys.executable} -m amqptasks "$@"\n')
        program.chmod(0o755)
    script = textwrap.dedent(
        """
        eval "$(amqptasks completion bash)" || exit
        COMP_WORDS=("$@") COMP_CWORD=$(($# - 1))
        _amqptasks_completion amqptasks
        printf '%s\\n' "${COMPREPLY[@]}"
        """
    )
    env = environment({"PATH": f"{program.parent}{os.pathsep}{os.environ['PATH']}"})
    done = subprocess.run(
        ["bash", "-c", script, "bash", "amqptasks", *words],
        cwd=shell.directory, env=env, capture_output=True, text=True, timeout=50,
    )  # fmt: skip
    assert done.stderr == ""
    return done.stdout.split()


@pytest.mark.parametrize(
    ("words", "offered"),
    [
        (["wo"], ["worker"]),
        (["queues", ""], ["declare", "delete", "list", "show"]),
        (["worker", "--prefetch"], ["--prefetch-multiplier"]),
        (["-A", "sh"], ["shop"]),
        (["-A", "shop", "call", "shop.o"], ["shop.other.add"]),
        (["-A", "shop", "result", "-t", "shop.a"], ["shop.add"]),
        (["-A", "shop", "queues", "show", ""], ["images", "mail"]),
        (["-A", "shop", "worker", "-Q", "m"], ["mail"]),
        (["-A", "shop", "worker", "-Q", "mail,"], ["mail,images"]),
        (["-A", "shop", "worker", "-l", "DE"], ["DEBUG"]),
        (["completion", "z"], ["zsh"]),
        (["-A", "no_such_app", "call", ""], []),
    ],
)
def test_bash_completes(shell: Shell, words: list[str], offered: list[str]) -> None:
    assert complete(shell, *words) == offered


@pytest.mark.parametrize("kind", ["bash", "fish", "zsh"])
def test_every_shell_has_a_script(shell: Shell, kind: str) -> None:
    script = shell("completion", kind).stdout
    assert f"_AMQPTASKS_COMPLETE={kind}_complete" in script
    assert shell("completion", env={"SHELL": f"/usr/bin/{kind}"}).stdout == script
    # And what the script asks the program is answered
    env = {"_AMQPTASKS_COMPLETE": f"{kind}_complete", "COMP_WORDS": "amqptasks wo", "COMP_CWORD": "1"}
    env |= {"COMP_CWORD": "wo"} if kind == "fish" else {}
    assert "worker" in shell(env=env).stdout
