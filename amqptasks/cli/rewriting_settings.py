"""Rewrites Celery's settings for amqptasks: old names become today's, what is not there or is meant otherwise is told.

Settings are looked for where Celery's users write them: assignments of a settings module or class, ``app.conf.name``,
``app.conf.update(…)``. Pure.
"""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator
from typing import Any

from amqptasks.cli.rewriting import Edit, Source
from amqptasks.exceptions import AmqptasksError
from amqptasks.settings import Conf
from amqptasks.settings_names import explain_unknown, name_of_old
from amqptasks.settings_table import SETTINGS

__all__ = ["conf_uses", "is_django", "is_settings", "settings"]

NAMESPACE = "CELERY"
#: Names of a settings module that are surely Celery's, and old.
_OLD = re.compile(r"(?:CELERY|CELERYD|CELERYBEAT|BROKER)_[A-Z0-9_]+$")
#: What is meant otherwise, or does nothing here.
_OTHERWISE = {
    "broker_pool_limit": "does nothing: one connection serves the process",
    "broker_transport_options": "does nothing: it is of other brokers; delays need no visibility_timeout here",
    "task_default_queue_type": "is 'quorum' unless set; 'classic' shares queues with Celery",
    "result_expires": "counts for rpc:// queues too, not only for stores",
    "worker_pool_start_method": "does nothing: children come by fork from a small process",
    "worker_state_db": "does nothing: revokes are kept in RabbitMQ",
    "beat_schedule_filename": "is used by beat only where it keeps its state in a file",
}
_BROKERS = ("broker_url", "broker_read_url", "broker_write_url")
#: Arguments of the app that are settings.
_ARGUMENTS = {"broker": "broker_url", "backend": "result_backend"}
_OTHER_STORES = frozenset(
    {
        "arangodb", "azureblockblob", "cassandra", "consul", "cosmosdbsql", "couchbase", "couchdb", "dynamodb",
        "elasticsearch", "gs", "gcs", "riak", "s3", "amqp",
    }
)  # fmt: skip
_POOLS = {"eventlet": "asyncio or threads", "gevent": "asyncio or threads", "processes": "prefork"}


def is_django(source: Source) -> bool:
    """Whether it is a settings module of Django."""
    return "INSTALLED_APPS" in {name.id for name, _value in _assigned(source.tree.body)}


def is_settings(source: Source, filename: str) -> bool:
    """Whether it is a settings module, by its name or by what it assigns."""
    if re.fullmatch(r"celery_?config\.py|config_?celery\.py", filename):
        return True
    return any(_OLD.match(name.id) and name_of_old(name.id) for name, _value in _assigned(source.tree.body))


def settings(source: Source, *, namespace: str = "") -> None:
    """Rewrite the assignments of a settings module, and of the classes in it.

    Args:
        namespace: ``CELERY`` to write names as Django's settings have them, ``CELERY_TASK_SERIALIZER``.
    """
    bodies: list[tuple[ast.AST, list[ast.stmt]]] = [(source.tree, source.tree.body)]
    bodies += [(each, each.body) for each in source.tree.body if isinstance(each, ast.ClassDef)]
    for scope, body in bodies:
        taken = {name.id for name, _value in _assigned(body)}
        for name, value in _assigned(body):
            today = _today(name.id, namespace)
            if today is None:
                if _may_be_setting(name.id, namespace, scope):
                    source.remark(name, explain_unknown(_bare(name.id, namespace)))
                continue
            new, setting = today
            _look_at(source, name, name.id if new == name.id else f"{name.id} (now {new})", setting, value)
            if new == name.id:
                continue
            if new in taken:
                source.remark(name, f"{name.id} is {new} today, which is set here too: delete one of them")
                continue
            _rename(source, scope, name.id, new)


def _rename(source: Source, scope: ast.AST, old: str, new: str) -> None:
    for node in ast.walk(scope):
        if isinstance(node, ast.Name) and node.id == old:
            source.replace(node, new)


def _bare(name: str, namespace: str) -> str:
    if namespace and name.startswith(f"{namespace}_"):
        return name.removeprefix(f"{namespace}_").lower()
    return name


def _may_be_setting(name: str, namespace: str, scope: ast.AST) -> bool:
    """Whether a name that is no setting was meant as one."""
    if namespace:
        return name.startswith(("CELERY_", "CELERYD_", "CELERYBEAT_", "BROKER_"))
    if isinstance(scope, ast.ClassDef):
        return bool(_OLD.match(name))
    return bool(_OLD.match(name)) or (name.islower() and not name.startswith("_") and "_" in name)


def _today(name: str, namespace: str) -> tuple[str, str] | None:
    """Return a setting's name as it is to be written, and as it is called; None if it is no setting."""
    old = name_of_old(name) if not namespace or _OLD.match(name) else None
    setting = name if name in SETTINGS and not namespace else old
    if setting is None and namespace and name.startswith(f"{namespace}_"):
        bare = _bare(name, namespace)
        setting = bare if bare in SETTINGS else None
    if setting is None or setting not in SETTINGS:
        return None
    return (f"{namespace}_{setting.upper()}" if namespace else setting), setting


def _assigned(body: list[ast.stmt]) -> Iterator[tuple[ast.Name, ast.expr | None]]:
    """Return the names that statements assign, those in blocks of theirs too, with the values."""
    for node in body:
        if isinstance(node, ast.Assign):
            for target in node.targets:
                if isinstance(target, ast.Name):
                    yield target, node.value
        elif isinstance(node, (ast.AnnAssign, ast.AugAssign)) and isinstance(node.target, ast.Name):
            yield node.target, node.value if isinstance(node, ast.AnnAssign) else None
        elif isinstance(node, ast.If):
            yield from _assigned(node.body)
            yield from _assigned(node.orelse)
        elif isinstance(node, ast.Try):
            for part in (node.body, node.orelse, node.finalbody, *(each.body for each in node.handlers)):
                yield from _assigned(part)


# -- app.conf


def conf_uses(source: Source) -> None:
    """Rewrite ``app.conf.NAME``, ``app.conf["NAME"]`` and ``app.conf.update(NAME=…)`` anywhere in a source."""
    for node in ast.walk(source.tree):
        if isinstance(node, ast.Attribute) and _is_conf(node.value):
            _attribute(source, node)
        elif isinstance(node, ast.Subscript) and _is_conf(node.value):
            _key(source, node.slice, None)
        elif isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute) and _is_conf(node.func.value):
            if node.func.attr in ("update", "setdefault"):
                _call(source, node)
        elif isinstance(node, ast.Call) and _name_of(node.func) in ("Celery", "App"):
            for keyword in node.keywords:
                setting = _ARGUMENTS.get(keyword.arg or "")
                if setting is not None:
                    _look_at(source, keyword, str(keyword.arg), setting, keyword.value)
        elif isinstance(node, ast.Assign):
            for target in node.targets:
                if isinstance(target, ast.Attribute) and _is_conf(target.value) and target.attr in SETTINGS:
                    _look_at(source, target, target.attr, target.attr, node.value)


def _name_of(node: ast.expr) -> str:
    return node.attr if isinstance(node, ast.Attribute) else node.id if isinstance(node, ast.Name) else ""


def _is_conf(node: ast.expr) -> bool:
    return isinstance(node, ast.Attribute) and node.attr == "conf"


def _attribute(source: Source, node: ast.Attribute) -> None:
    new = name_of_old(node.attr)
    if new is not None and new != node.attr:
        end = source.span(node)[1]
        source.edits.add(Edit(end - len(node.attr), end, new))
    elif isinstance(node.ctx, ast.Store) and node.attr not in SETTINGS:
        source.remark(node, explain_unknown(node.attr))


def _call(source: Source, node: ast.Call) -> None:
    for keyword in node.keywords:
        if keyword.arg is None:
            continue
        new = name_of_old(keyword.arg)
        if new is not None:
            start = source.span(keyword)[0]
            source.edits.add(Edit(start, start + len(keyword.arg), new))
        name = new or keyword.arg
        if name in SETTINGS:
            _look_at(source, keyword, name, name, keyword.value)
        elif isinstance(node.func, ast.Attribute) and node.func.attr == "update":
            source.remark(keyword, explain_unknown(name))
    for argument in node.args:
        if isinstance(argument, ast.Dict):
            for key, value in zip(argument.keys, argument.values, strict=True):
                if key is not None:
                    _key(source, key, value)


def _key(source: Source, key: ast.expr, value: ast.expr | None) -> None:
    if not (isinstance(key, ast.Constant) and isinstance(key.value, str)):
        return
    new = name_of_old(key.value)
    if new is not None:
        start, end = source.span(key)
        source.edits.add(Edit(start, end, source.text[start:end].replace(key.value, new)))
    name = new or key.value
    if name in SETTINGS:
        _look_at(source, key, name, name, value)
    else:
        source.remark(key, explain_unknown(name))


# -- what a setting means here


def _look_at(source: Source, node: ast.AST, shown: str, setting: str, value: ast.expr | None) -> None:
    """Remark on a setting that acts otherwise, does not act, or has a value that will not do."""
    row = SETTINGS[setting]
    given = _constant(value)
    if setting in _OTHERWISE:
        source.remark(node, f"{shown} {_OTHERWISE[setting]}")
    elif row.since == "never":
        source.remark(node, f"{shown} does nothing here")
    elif row.since == "later":
        source.remark(node, f"{shown} does nothing yet")
    if given is None:
        return
    if setting == "worker_pool" and given in _POOLS:
        source.remark(node, f"{shown}: there is no pool {given!r}; {_POOLS[given]} is in its place")
        return
    if setting in _BROKERS:
        from amqptasks.broker.parameters import SCHEMES

        urls = given.split(";") if isinstance(given, str) else given
        for scheme in {str(each).partition("://")[0] for each in urls if "://" in str(each)}:
            if scheme.lower() not in SCHEMES:
                source.remark(
                    node, f"{shown}: RabbitMQ is the only broker, expected amqp:// or amqps://, got {scheme}://"
                )
                return
    if setting == "result_backend" and isinstance(given, str) and _store(given) in _OTHER_STORES:
        source.remark(node, f"{shown}: there is no result store {_store(given)}: rpc://, redis://, db+… are some")
        return
    try:
        Conf().update({setting: given})
    except AmqptasksError as error:
        source.remark(node, str(error).partition(" (from ")[0])
    except ImportError as error:
        source.remark(node, f"{shown}: {error}")


def _store(url: str) -> str:
    return re.split(r"://|:|\+", url)[0].lower()


def _constant(value: ast.expr | None) -> Any:
    if value is None:
        return None
    try:
        return ast.literal_eval(value)
    except (ValueError, TypeError, SyntaxError, MemoryError, RecursionError):
        return None
