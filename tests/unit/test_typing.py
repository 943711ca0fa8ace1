"""A type checker knows how tasks are called: mypy, run on a program that is right in some lines and wrong in others."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import pytest

from tests.support import ROOT

#: A line that ends with ``# E: code`` must be refused with that code, and no other line may be.
PROGRAM = """
from typing import Any
from typing_extensions import assert_type
from amqptasks import App, Task, current_app, current_task, shared_task

app = App("proj")

@app.task
def add(x: int, y: int = 0) -> int:
    return x + y

add.delay(1, 2)
add.delay(1)
add.delay(x=1, y=2)
add.delay("x")  # E: arg-type
add.delay(1, 2, 3)  # E: call-arg
add.delay()  # E: call-arg
add.delay(1, z=2)  # E: call-arg

async def program() -> None:
    assert_type((await add.adelay(1, 2)).id, str)
    await add.adelay("x")  # E: arg-type
    await add.adelay()  # E: call-arg
    await add.aapply_async((1, 2), countdown=3)
    await (await add.adelay(1))
    async with app.abulk():
        await app.asend_task("other", (1,))

@app.task
async def later(x: int) -> str:
    return str(x)

later.delay(1)
later.delay("x")  # E: arg-type

assert_type(add(1, 2), int)
add("x")  # E: arg-type
add.apply_async((1, 2), countdown=3)
assert_type(add.delay(1).id, str)

@app.task(name="other", max_retries=5)
def named(text: str) -> str:
    return text

named.delay("x")
named.delay(1)  # E: arg-type

@app.task(bind=True)
def bound(self: Task[..., Any], x: int) -> str:
    assert_type(self.request.id, str | None)
    return str(x)

bound.delay(1)
bound.delay("x")  # E: arg-type
bound.delay(bound, 1)  # E: call-arg
assert_type(bound(1), str)
assert_type(bound(1), int)  # E: assert-type

@app.task(bind=False)
def free(x: int) -> None: ...

free.delay(1)
free.delay("x")  # E: arg-type

class Base(Task[..., Any]):
    def helper(self) -> int:
        return 1

@app.task(bind=True, base=Base)
def based(self: Base, x: int) -> int:
    return self.helper() + x

based.delay(1)
based.delay("x")  # E: arg-type

@shared_task
def shared(x: int) -> int:
    return x

shared.delay(1)
shared.delay("x")  # E: arg-type

@shared_task(bind=True, ignore_result=True)
def shared_bound(self: Task[..., Any], x: int) -> int:
    return x

shared_bound.delay(1)
shared_bound.delay("x")  # E: arg-type

class Count(Task[[int], int]):
    def run(self, by: int) -> int:
        return by

count = app.register_task(Count)
assert_type(count, Count)
count.delay(1)
count.delay("x")  # E: arg-type
app.register_task(Count()).delay(1)

@app.task
async def slow(x: int) -> int:
    return x

slow.delay(1)
slow.delay("x")  # E: arg-type
app.task(1)  # E: call-overload
assert_type(current_app, App)
assert_type(current_task.request.retries, int)
add.s(1) | named.s()
"""


@pytest.mark.deadline(240)
def test_mypy_accepts_right_calls_and_refuses_wrong_ones(tmp_path: Path) -> None:
    # Given a program with right and wrong calls / When mypy checks it, strictly
    program = tmp_path / "program.py"
    program.write_text(PROGRAM)
    done = subprocess.run(
        [
            *(sys.executable, "-m", "mypy", "--strict", "--show-error-codes", "--no-error-summary", "--no-pretty"),
            *("--follow-imports=silent", "--config-file=", "--cache-dir", str(tmp_path / "cache"), str(program)),
        ],
        cwd=tmp_path, env={"MYPYPATH": str(ROOT), "PATH": ""}, capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert done.returncode in (0, 1), done.stdout + done.stderr
    # Then it complains of the wrong lines, rightly, and of no other
    found = {}
    for line in done.stdout.splitlines():
        parsed = re.fullmatch(r"\S*program\.py:(\d+): error: .*\[([\w-]+)\]", line)
        if parsed:
            found.setdefault(int(parsed[1]), parsed[2])
        else:
            assert ": note: " in line, f"{line}\n{done.stderr}"
    lines = PROGRAM.splitlines()
    expected = {number: line.partition("# E: ")[2] for number, line in enumerate(lines, 1) if "# E: " in line}
    assert found == expected, "\n".join(lines[number - 1] for number in found.keys() ^ expected.keys())
