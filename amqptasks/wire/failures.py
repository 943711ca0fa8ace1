"""Exceptions to plain data and back, in Celery's form: ``{"exc_type", "exc_message": [args], "exc_module"}``.

Writing never fails, whatever the exception does when it is looked at. Reading never fails either and imports nothing:
a name from the wire becomes a class only if that class is already loaded and is an ordinary `Exception`; anything else
becomes a `RemoteError` of that name. So a result can name ``os.system`` or ``SystemExit`` as it likes.
"""

from __future__ import annotations

import re
import sys
import types
from functools import lru_cache
from typing import Any

from amqptasks import exceptions
from amqptasks.wire.serializers import dumps

__all__ = ["RemoteError", "RemoteTraceback", "format_traceback", "from_plain", "to_plain"]

#: Characters of a traceback that travel; the middle of a longer one is left out.
MAX_TRACEBACK = 64 * 1024
# A failure must fit where its task did: what is beyond these is told in short.
_MAX_ARGS = 100
_MAX_ARG_BYTES = 64 * 1024
_MAX_REPR = 4096
_MAX_NAME = 200


class RemoteError(Exception):
    """An exception of another process whose class is not loaded here: its subclasses bear the foreign names."""


class RemoteTraceback(Exception):
    """Stands as the cause of an exception from another process, and shows the traceback it had there."""

    def __init__(self, text: str) -> None:
        super().__init__(text)
        self.text = text

    def __str__(self) -> str:
        return f'\n"""\n{self.text}\n"""'


# ---- writing


def to_plain(exc: BaseException, serializer: str = "json") -> dict[str, Any]:
    """Describe an exception by values that the serializer can carry; an argument that it cannot is sent as its repr.

    Never raises (but for KeyboardInterrupt, and ImproperlyConfigured where there is no such serializer).
    """
    kind = type(exc)
    return {
        "exc_type": _class_name(kind),
        "exc_message": _plain_args(exc, serializer),
        "exc_module": _module_name(kind),
    }


#: Errors of ours that Celery has under the same name travel under its name, so that its clients catch their own class.
THEIR_HOMES = {
    name: module
    for module, names in {
        "celery.exceptions": (
            "AlreadyRegistered BackendError BackendGetMetaError BackendStoreError ChordError Ignore "
            "ImproperlyConfigured IncompleteStream InvalidTaskError MaxRetriesExceededError NotRegistered "
            "QueueNotFound Reject Retry SecurityError TaskError TaskPredicate TaskRevokedError TimeoutError "
            "WorkerShutdown WorkerTerminate"
        ),
        "billiard.exceptions": "SoftTimeLimitExceeded Terminated TimeLimitExceeded WorkerLostError",
        "kombu.exceptions": "ContentDisallowed DecodeError EncodeError OperationalError",
    }.items()
    for name in names.split()
}

# type's own attributes, past whatever a metaclass puts before them.
_qualname = type.__dict__["__qualname__"].__get__


def _class_name(kind: type) -> str:
    return _writable(str(_qualname(kind)))[:_MAX_NAME]


def _module_name(kind: type) -> str:
    module = type.__getattribute__(kind, "__module__")
    if module == exceptions.__name__:
        module = THEIR_HOMES.get(_class_name(kind), module)
    return _writable(module)[:_MAX_NAME] if isinstance(module, str) else "builtins"


def _plain_args(exc: BaseException, serializer: str) -> list[Any]:
    # BaseException's own attribute: a subclass may have put a property of the name before it.
    args: tuple[Any, ...] = BaseException.__dict__["args"].__get__(exc)
    if len(args) <= _MAX_ARGS and _fits(list(args), serializer):
        return list(args)
    plain = [arg if _fits(arg, serializer) else _short(arg) for arg in args[:_MAX_ARGS]]
    if len(args) > _MAX_ARGS:
        plain.append(f"… ({len(args) - _MAX_ARGS} more arguments)")
    return plain


def _fits(value: Any, serializer: str) -> bool:
    try:
        return len(dumps(value, serializer)[2]) <= _MAX_ARG_BYTES
    except (KeyboardInterrupt, exceptions.ImproperlyConfigured):
        raise
    except BaseException:  # noqa: BLE001 - the value's own code may raise anything; "no" is the answer then
        return False


def _short(value: Any) -> str:
    if type(value) is str:
        text = _writable(value)
        return _cut(text, _MAX_ARG_BYTES // 4)  # a character takes up to 4 bytes
    try:
        return _writable(_cut(str(repr(value)), _MAX_REPR))
    except KeyboardInterrupt:
        raise
    except BaseException as error:  # noqa: BLE001 - as above
        return f"<{_class_name(type(value))} whose repr raised {_class_name(type(error))}>"


def _writable(text: str) -> str:
    """The text without lone surrogates, which no serializer carries."""
    return text.encode("utf-8", "backslashreplace").decode("utf-8")


def _cut(text: str, limit: int) -> str:
    """The text with its middle left out if it is longer than the limit: the end says most, the head where it began."""
    if len(text) <= limit:
        return text
    head = limit // 4
    tail = limit - head
    return f"{text[:head]}\n… ({len(text) - limit} characters left out) …\n{text[-tail:]}"


def format_traceback(exc: BaseException) -> str:
    """The traceback as Python would print it, at most about 64 KiB: the middle of a longer one is left out. Characters
    that would steer a terminal are escaped.

    Never raises (but for KeyboardInterrupt); an exception that cannot be shown is named by its class.
    """
    import traceback

    try:
        text = "".join(traceback.format_exception(type(exc), exc, exc.__traceback__))
        return _CONTROL.sub(_escaped, _cut(_writable(text), MAX_TRACEBACK))
    except KeyboardInterrupt:
        raise
    except BaseException as error:  # noqa: BLE001 - showing an exception runs its own code, which may raise anything
        name = _class_name(type(exc))
        return f"{_module_name(type(exc))}.{name} (its traceback cannot be shown: {_class_name(type(error))})\n"


# ---- reading

# Celery and its libraries raise errors that are ours under the same name.
_OURS = frozenset(
    {"celery.exceptions", "billiard.exceptions", "billiard.common", "kombu.exceptions", exceptions.__name__}
)
_NOT_NAME = re.compile(r"[^\w.<>]")
# Characters that move a cursor, colour a terminal or turn text around; a traceback keeps its newlines and tabs.
_CONTROL = re.compile("[\x00-\x08\x0b-\x1f\x7f-\x9f\u061c\u200e\u200f\u2028-\u202e\u2066-\u2069]")


def from_plain(data: Any, traceback: str | None = None) -> BaseException:
    """Rebuild an exception from what `to_plain`, or Celery, wrote; from anything else, a `RemoteError` that shows it.

    Never raises (but for KeyboardInterrupt) and always gives an `Exception`, ready to be raised, whose cause shows
    the remote traceback.
    """
    exc = _rebuild(data)
    if isinstance(traceback, str) and traceback:
        text = _CONTROL.sub(_escaped, _cut(traceback, MAX_TRACEBACK))
        # BaseException's own: an exception that is a frozen dataclass refuses to be set.
        BaseException.__setattr__(exc, "__cause__", RemoteTraceback(_writable(text)))
    return exc


def _escaped(match: re.Match[str]) -> str:
    return ascii(match.group())[1:-1]


def _rebuild(data: Any) -> Exception:
    if isinstance(data, Exception):  # only pickle gives one, and only to those who accept pickle
        return data
    if not isinstance(data, dict) or not isinstance(data.get("exc_type"), str):
        return RemoteError(_short(data))
    name = data["exc_type"]
    module = data.get("exc_module")
    module = module if isinstance(module, str) else ""
    message = data.get("exc_message")
    if message is None:
        args: tuple[Any, ...] = ()
    else:
        args = tuple(message) if isinstance(message, (list, tuple)) else (message,)
    kind = _loaded(module, name)
    exc = None if kind is None else _construct(kind, args)
    return _foreign(name[: 2 * _MAX_NAME], module[: 2 * _MAX_NAME])(*args) if exc is None else exc


def _construct(kind: type[Exception], args: tuple[Any, ...]) -> Exception | None:
    try:
        exc: Any = kind(*args)
    except KeyboardInterrupt:
        raise
    except BaseException:  # noqa: BLE001 - the class's own code; what it takes may not be its args
        return None
    return exc if isinstance(exc, Exception) else None


def _loaded(module: str, name: str) -> type[Exception] | None:
    if module in _OURS:
        ours = _exception_in(exceptions, name)
        if ours is not None:
            return ours
    loaded = sys.modules.get(module)
    return _exception_in(loaded, name) if isinstance(loaded, types.ModuleType) else None


def _exception_in(module: types.ModuleType, name: str) -> type[Exception] | None:
    # Namespaces are read, attributes never asked for: a module's or metaclass's __getattr__ may import or run things.
    found: Any = module
    namespace = types.ModuleType.__getattribute__(module, "__dict__")
    for part in name.split("."):
        found = namespace.get(part)
        if not isinstance(found, type):
            return None
        namespace = type.__dict__["__dict__"].__get__(found)
    # Not SystemExit, KeyboardInterrupt and the like: raised by whoever reads the result they would end it.
    return found if issubclass(found, Exception) else None


@lru_cache(maxsize=256)  # bounded: the names come from the wire
def _foreign(name: str, module: str) -> type[RemoteError]:
    qualname = _NOT_NAME.sub("?", name)[:_MAX_NAME] or "RemoteError"
    short = qualname.rpartition(".")[2] or qualname
    namespace = {
        "__module__": _NOT_NAME.sub("?", module)[:_MAX_NAME] or __name__,
        "__qualname__": qualname,
        "__doc__": "An exception of another process whose class is not loaded here, or cannot be built from its args.",
    }
    return type(short, (RemoteError,), namespace)
