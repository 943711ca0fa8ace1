"""The house rules that a program can check: who may import what, and how long things may get.

Imports inside functions and under TYPE_CHECKING count like all others: a ring that goes underground is still a ring.
"""

from __future__ import annotations

import ast
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.support import ROOT

PACKAGE = "amqptasks"

#: Lowest floor first. A name stands for the module `amqptasks/<name>.py` or for everything in the folder `<name>/`;
#: "settings" for `settings_<something>.py` too. Rooms of one floor do not know each other, except on the lowest.
FLOORS: tuple[tuple[str, ...], ...] = (
    ("_version", "exceptions", "entities", "states", "clock", "signals", "logs", "urls", "contrib"),
    ("settings", "wire"),
    ("broker",),
    ("events",),
    ("results",),
    ("canvas",),
    ("app",),
    ("worker", "beat", "monitor"),
    ("testing",),
    ("cli",),
)
#: The faces of the package, which users import and nothing inside it does: they may look at anything below `cli`.
FACES = ("__init__", "progress", "result", "schedules", "serialization", "utils")
#: Where each third-party library may be imported. What is not named here may not be imported at all.
HOMES: dict[str, tuple[str, ...]] = {
    "pika": ("broker",),
    "tenacity": ("broker",),
    "msgpack": ("wire",),
    "click": ("cli",),
    "IPython": ("cli",),
    "bpython": ("cli",),
    "yaml": ("wire",),
    "cryptography": ("wire",),
    "zstandard": ("wire",),
    "redis": ("results",),
    "sqlalchemy": ("results",),
    "pymongo": ("results",),
    "pymemcache": ("results",),
    "django": ("results", "app", "contrib"),
    "ephem": ("beat",),
    "pydantic": ("app",),
    "tornado": ("monitor",),
    "setproctitle": ("worker",),
}
MODULE_LINES = 500
FUNCTION_LINES = 70

FILES = {
    ".".join((PACKAGE, *path.relative_to(ROOT / PACKAGE).with_suffix("").parts)).removesuffix(".__init__"): path
    for path in sorted((ROOT / PACKAGE).rglob("*.py"))
}
TREES = {name: ast.parse(path.read_text(encoding="utf-8"), str(path)) for name, path in FILES.items()}


def imports(name: str, *, tree: ast.AST | None = None, known: object = None) -> Iterator[tuple[str, int]]:
    """Every module that module `name` imports, with the line. ``from package import submodule`` is the submodule."""
    known = FILES if known is None else known
    package = name if FILES.get(name, Path()).name == "__init__.py" else name.rpartition(".")[0]
    for node in ast.walk(TREES[name] if tree is None else tree):
        if isinstance(node, ast.Import):
            for alias in node.names:
                yield alias.name, node.lineno
        elif isinstance(node, ast.ImportFrom):
            base = node.module or ""
            if node.level:
                above = package.split(".")[: len(package.split(".")) - node.level + 1]
                base = ".".join([*above, *filter(None, [node.module])])
            for alias in node.names:
                submodule = f"{base}.{alias.name}"
                yield (submodule if submodule in known else base), node.lineno  # type: ignore[operator]


def room(name: str) -> str:
    """The part of the package that a module belongs to: ``worker`` for amqptasks.worker.pools.prefork."""
    part = name.split(".")[1] if "." in name else "__init__"
    return "settings" if part.startswith("settings_") else part


def floor(name: str) -> int:
    """How high the module stands; -1 if nobody has said."""
    part = room(name)
    if part == "__main__":
        return len(FLOORS)
    if part in FACES:
        return len(FLOORS) - 2
    return next((height for height, parts in enumerate(FLOORS) if part in parts), -1)


def own(name: str) -> bool:
    return name == PACKAGE or name.startswith(PACKAGE + ".")


def misplaced(name: str, tree: ast.AST | None = None) -> Iterator[str]:
    """What is wrong with the imports of one module."""
    for target, line in imports(name, tree=tree):
        where = f"{name}:{line} imports {target}"
        if not own(target):
            library = target.partition(".")[0]
            if library not in sys.stdlib_module_names and room(name) not in HOMES.get(library, ()):
                homes = " and ".join(f"{each}/" for each in HOMES.get(library, ())) or "none yet: see HOMES"
                yield f"{where}, whose home is {homes}"
        elif target == PACKAGE and room(name) not in FACES:
            yield f"{where}, the package's face: import from the module that defines it"
        elif room(target) == room(name):
            pass
        elif room(target) in FACES and room(name) not in FACES:
            yield f"{where}, a face for users: import from the module that defines it"
        elif floor(target) > floor(name) or (floor(target) == floor(name) > 0 and room(name) not in FACES):
            yield f"{where}, which is not on a lower floor"


def test_every_module_stands_on_a_floor() -> None:
    assert [name for name in FILES if floor(name) < 0] == []


def test_imports_go_down_and_each_library_has_one_home() -> None:
    problems = [problem for name in FILES for problem in misplaced(name)]
    assert not problems, "\n".join(problems)


def test_no_modules_import_each_other_in_a_ring() -> None:
    assert rings({name: {target for target, _ in imports(name) if own(target)} for name in FILES}) == []


def rings(graph: dict[str, set[str]]) -> list[list[str]]:
    """Rings in a graph of imports, as lists of names; at least one if there is any."""
    found: list[list[str]] = []
    finished: set[str] = set()

    def walk(name: str, path: list[str]) -> None:
        if name in path:
            found.append([*path[path.index(name) :], name])
            return
        if name in finished:
            return
        for target in sorted(graph.get(name, ())):
            if target != name:
                walk(target, [*path, name])
        finished.add(name)

    for name in sorted(graph):
        walk(name, [])
    return found


def test_modules_and_functions_stay_short() -> None:
    problems = []
    for name, path in FILES.items():
        lines = len(path.read_text(encoding="utf-8").splitlines())
        if lines > MODULE_LINES:
            problems.append(f"{name} has {lines} lines, more than {MODULE_LINES}")
        for node in ast.walk(TREES[name]):
            if isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef)):
                length = (node.end_lineno or node.lineno) - node.lineno + 1
                if length > FUNCTION_LINES:
                    problems.append(f"{name}.{node.name} has {length} lines, more than {FUNCTION_LINES}")
    assert not problems, "\n".join(problems)


def test_no_module_is_a_drawer() -> None:
    drawers = ("utils", "common", "helpers", "base", "misc")
    allowed = (f"{PACKAGE}.cli.common", f"{PACKAGE}.utils")
    assert [name for name in FILES if name.rpartition(".")[2] in drawers and name not in allowed] == []


@pytest.mark.parametrize(
    ("module", "source"),
    [
        ("wire.serializers", "def late():\n    from amqptasks.app.app import App"),
        (
            "results.backend",
            "from typing import TYPE_CHECKING\nif TYPE_CHECKING:\n    from amqptasks.canvas import chain",
        ),
        ("app", "import pika"),
        ("app", "from pika.spec import Basic"),
        ("broker", "import requests"),
        ("canvas.signature", "from amqptasks import exceptions, App"),
        ("worker", "from amqptasks.cli import main"),
        ("results.backend", "from ..canvas.signature import Signature"),
    ],
)
def test_the_rules_notice_a_planted_fault(module: str, source: str) -> None:
    assert list(misplaced(f"{PACKAGE}.{module}", ast.parse(source)))


def test_the_rules_notice_a_planted_ring() -> None:
    assert rings({"a": {"b"}, "b": {"c"}, "c": {"b"}, "d": set()}) == [["b", "c", "b"]]
