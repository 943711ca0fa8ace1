"""Rewrites Python sources that use Celery for amqptasks: its imports, and names that come by them. Pure.

The tree says what stands where; the text is changed there and nowhere else, so comments and layout survive. What has no
counterpart is left as it is, and told of by its line.
"""

from __future__ import annotations

import ast
import functools
import importlib
import importlib.util
import re
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field

__all__ = ["Edit", "Remark", "Source", "counterpart", "imports"]

OURS = "amqptasks"
#: What is not where Celery has it: old module and name, new module and name.
MOVED: dict[tuple[str, str], tuple[str, str]] = {
    ("celery.app", "shared_task"): (OURS, "shared_task"),
    ("celery.app.base", "Celery"): (OURS, "Celery"),
    ("celery.app.task", "Task"): (OURS, "Task"),
    ("celery.contrib.abortable", "AbortableTask"): ("", ""),
    ("celery.decorators", "task"): (OURS, "shared_task"),
    ("celery.task", "Task"): (OURS, "Task"),
    ("celery.task", "current"): (OURS, "current_task"),
    ("celery.task", "task"): (OURS, "shared_task"),
    ("celery.task.schedules", "crontab"): (f"{OURS}.schedules", "crontab"),
    ("celery.task.sets", "subtask"): (OURS, "signature"),
    ("celery", "subtask"): (OURS, "signature"),
    ("celery.canvas", "subtask"): (OURS, "signature"),
    ("django_celery_results.models", "GroupResult"): (f"{OURS}.contrib.django.models", "GroupResult"),
    ("django_celery_results.models", "TaskResult"): (f"{OURS}.contrib.django.models", "TaskResult"),
    ("kombu", "Exchange"): (OURS, "Exchange"),
    ("kombu", "Queue"): (OURS, "Queue"),
    ("kombu", "binding"): (OURS, "binding"),
    ("kombu", "uuid"): (OURS, "uuid"),
    ("kombu.common", "Broadcast"): (OURS, "Broadcast"),
    ("kombu.common", "uuid"): (OURS, "uuid"),
    ("kombu.entity", "Exchange"): (OURS, "Exchange"),
    ("kombu.entity", "Queue"): (OURS, "Queue"),
    ("kombu.utils", "uuid"): (OURS, "uuid"),
    ("kombu.utils.uuid", "uuid"): (OURS, "uuid"),
}
#: Where modules of these names went, with all that both have.
MODULES = {
    "billiard.exceptions": f"{OURS}.exceptions",
    "kombu.exceptions": f"{OURS}.exceptions",
    "kombu.serialization": f"{OURS}.serialization",
}
#: What stands in the place of a module that is not there, for the remark.
INSTEAD = {
    "celery.beat": "schedules are in amqptasks.schedules",
    "celery.bootsteps": "a worker has no bootsteps: the signals worker_init, worker_ready and worker_shutdown",
    "celery.concurrency": "pools are chosen by worker_pool",
    "celery.contrib.abortable": "revoke with terminate=True, or ask a flag of your own",
    "celery.contrib.migrate": "the command amqptasks migrate",
    "celery.five": "Python 2 is gone",
    "celery.platforms": "options of amqptasks worker, such as --uid",
    "django_celery_beat": "not there",
    "eventlet": "the pools asyncio and threads",
    "gevent": "the pools asyncio and threads",
    "kombu": "amqptasks speaks to RabbitMQ itself; for more than queues use pika",
}
#: Packages that are rewritten, or remarked on.
FOREIGN = ("celery", "kombu", "billiard", "django_celery_results", "django_celery_beat")


@dataclass(frozen=True, slots=True, order=True)
class Edit:
    """Replace the text between two offsets."""

    start: int
    end: int
    text: str


@dataclass(frozen=True, slots=True, order=True)
class Remark:
    """What the user has to look at, and in which line."""

    line: int
    text: str


@dataclass(slots=True)
class Source:
    """A Python source, its tree, and what is to be changed in it."""

    text: str
    tree: ast.Module = field(init=False)
    edits: set[Edit] = field(default_factory=set)
    remarks: set[Remark] = field(default_factory=set)
    _starts: list[int] = field(init=False)
    _lines: list[str] = field(init=False)

    def __post_init__(self) -> None:
        self.tree = ast.parse(self.text)
        # As Python counts lines, which str.splitlines does not.
        self._lines = re.findall(r"[^\r\n]*(?:\r\n|\r|\n)|[^\r\n]+$", self.text)
        self._starts = [0]
        for line in self._lines:
            self._starts.append(self._starts[-1] + len(line))

    def offset(self, line: int, column: int) -> int:
        """Return the place of a line and a column of the tree, which counts bytes."""
        start = self._starts[line - 1]
        text = self._lines[line - 1] if line <= len(self._lines) else ""
        return start + len(text.encode()[:column].decode(errors="ignore"))

    def span(self, node: ast.expr | ast.stmt | ast.alias | ast.keyword) -> tuple[int, int]:
        """Return where a node begins and ends."""
        assert node.end_lineno is not None and node.end_col_offset is not None
        return self.offset(node.lineno, node.col_offset), self.offset(node.end_lineno, node.end_col_offset)

    def replace(self, node: ast.expr | ast.stmt, text: str) -> None:
        """Put a text in the place of a node."""
        self.edits.add(Edit(*self.span(node), text))

    def remark(self, node: ast.AST, text: str) -> None:
        """Tell the user something about a node."""
        self.remarks.add(Remark(getattr(node, "lineno", 1), text))

    def rewritten(self) -> str:
        """Return the text with all changes made."""
        text = self.text
        for edit in sorted(self.edits, reverse=True):
            text = text[: edit.start] + edit.text + text[edit.end :]
        return text


# -- what is where


def is_foreign(module: str) -> bool:
    """Whether a module is Celery's, or one of its libraries'."""
    return module.partition(".")[0] in FOREIGN


@functools.cache
def counterpart(module: str, name: str) -> tuple[str, str] | None:
    """Return module and name of what stands here for a name of Celery's; None if nothing does."""
    moved = MOVED.get((module, name))
    if moved is not None:
        return moved if moved[0] else None
    target = _module(module)
    if target is None or name.startswith("_"):
        return None
    found = importlib.import_module(target)
    if hasattr(found, name) or _is_module(f"{target}.{name}"):
        return target, name
    return None


@functools.cache
def _module(module: str) -> str | None:
    """Return the module that stands here for one of Celery's; None if none does."""
    head, _, tail = module.partition(".")
    target = MODULES.get(module)
    if target is None and head == "celery":
        target = f"{OURS}.{tail}" if tail else OURS
    return target if target is not None and _is_module(target) else None


def _is_module(name: str) -> bool:
    try:
        if importlib.util.find_spec(name) is None:
            return False
        importlib.import_module(name)
    except Exception:
        # One that cannot be imported here, such as Django's models without a project, is none that we can promise.
        return False
    return True


def instead(module: str) -> str:
    """Say what to do without a module."""
    parts = module.split(".")
    for length in range(len(parts), 0, -1):
        found = INSTEAD.get(".".join(parts[:length]))
        if found:
            return f": {found}"
    return ""


# -- imports


def imports(source: Source) -> None:
    """Rewrite the imports of a source, and the names that it reaches through them."""
    for node in ast.walk(source.tree):
        if isinstance(node, ast.ImportFrom):
            if node.level == 0 and node.module and is_foreign(node.module):
                _from(source, node, node.module)
        elif isinstance(node, ast.Import):
            for alias in node.names:
                if is_foreign(alias.name):
                    _plain(source, node, alias)


def _from(source: Source, node: ast.ImportFrom, module: str) -> None:
    groups: dict[str, list[str]] = {}
    is_renamed = False
    for alias in node.names:
        found = None if alias.name == "*" else counterpart(module, alias.name)
        if found is None:
            groups.setdefault(module, []).append(_aliased(alias.name, alias.asname))
            hint = instead(f"{module}.{alias.name}") or instead(module)
            source.remark(node, f"{module}.{alias.name} has no counterpart{hint}")
            continue
        target, name = found
        is_renamed = is_renamed or name != alias.name
        bound = alias.asname or alias.name
        groups.setdefault(target, []).append(_aliased(name, None if bound == name else bound))
    if list(groups) == [module]:
        return
    if len(groups) == 1 and not is_renamed:
        start, end = source.span(node)
        match = re.compile(r"from(?:\s|\\\r?\n)+" + re.escape(module)).match(source.text, start, end)
        if match is not None:
            source.edits.add(Edit(match.end() - len(module), match.end(), next(iter(groups))))
            return
    parts = [f"from {target} import {', '.join(names)}" for target, names in groups.items()]
    source.replace(node, _between(source, node).join(parts))


def _between(source: Source, node: ast.stmt) -> str:
    """Return what separates statements where this one stands: a line's end if it stands alone."""
    line_start = source.text.rfind("\n", 0, source.span(node)[0]) + 1
    indent = source.text[line_start : source.span(node)[0]]
    return "; " if indent.strip() else f"\n{indent}"


def _aliased(name: str, bound: str | None) -> str:
    return f"{name} as {bound}" if bound and bound != name else name


def _plain(source: Source, node: ast.Import, alias: ast.alias) -> None:
    """Rewrite ``import celery.x`` and ``import celery.x as y``, and what is reached through the name it binds."""
    if alias.asname:
        target = _module(alias.name)
        if target is None:
            source.remark(node, f"{alias.name} has no counterpart{instead(alias.name)}")
            return
        # What is reached through the other name is looked at all the same.
        chains = list(_chains(source.tree, alias.asname))
        missing = [chain for chain, _names in chains if counterpart_of([*alias.name.split("."), *_names[1:]]) is None]
        for chain in missing:
            source.remark(chain, f"{ast.unparse(chain)} has no counterpart")
        if not missing:
            source.edits.add(Edit(*source.span(alias), f"{target} as {alias.asname}"))
        return
    root = alias.name.partition(".")[0]
    if _is_bound_elsewhere(source.tree, root):
        source.remark(node, f"the name {root!r} is also bound to something else here, so what it means cannot be told")
        return
    chains = list(_chains(source.tree, root))
    found = {chain: counterpart_of(names) for chain, names in chains}
    bad = [chain for chain, path in found.items() if path is None]
    for chain in bad:
        shown = ast.unparse(chain)
        source.remark(chain, f"{shown} has no counterpart{instead(shown)}")
    if bad or (not chains and _module(alias.name) is None):
        if not bad:
            source.remark(node, f"{alias.name} has no counterpart{instead(alias.name)}")
        return
    needed = {module for path in found.values() if path for module in [path[0]]}
    if alias.name == root and not needed:
        needed = {OURS}
    if "." in alias.name:
        needed |= {_module(alias.name) or OURS}
    source.edits.add(Edit(*source.span(alias), ", ".join(sorted(needed))))
    for chain, path in found.items():
        if path is not None:
            source.replace(chain, ".".join(path))


def counterpart_of(names: Iterable[str]) -> tuple[str, ...] | None:
    """Return module, name and attributes of a dotted path of Celery's; None if it has no counterpart."""
    parts = list(names)
    if len(parts) == 1:
        return None
    # The longest module first: celery.utils.log.get_task_logger is a name of celery.utils.log.
    for length in range(len(parts) - 1, 0, -1):
        module = ".".join(parts[:length])
        if length > 1 and _module(module) is None and module not in {each for each, _name in MOVED}:
            continue
        found = counterpart(module, parts[length])
        if found is not None:
            return (*found, *parts[length + 1 :])
    return None


def _chains(tree: ast.Module, root: str) -> Iterator[tuple[ast.expr, list[str]]]:
    """Return every dotted path that begins with a name, the longest of each, with its names."""
    inner: set[int] = set()
    for node in ast.walk(tree):
        names: list[str] = []
        each: ast.AST = node
        while isinstance(each, ast.Attribute):
            names.insert(0, each.attr)
            inner.add(id(each.value))
            each = each.value
        if isinstance(each, ast.Name) and each.id == root and id(node) not in inner and isinstance(node, ast.expr):
            yield node, [root, *names]


def _is_bound_elsewhere(tree: ast.Module, name: str) -> bool:
    for node in ast.walk(tree):
        if isinstance(node, ast.Name) and node.id == name and not isinstance(node.ctx, ast.Load):
            return True
        if isinstance(node, ast.arg) and node.arg == name:
            return True
        if isinstance(node, (ast.FunctionDef, ast.ClassDef, ast.AsyncFunctionDef)) and node.name == name:
            return True
        if isinstance(node, (ast.Import, ast.ImportFrom)):
            for alias in node.names:
                if (alias.asname or alias.name) == name and not (isinstance(node, ast.Import) and not alias.asname):
                    return True
    return False
