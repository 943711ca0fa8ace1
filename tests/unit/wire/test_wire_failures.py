"""A failure arrives as the exception that it was, and nothing that a result names is run (reliability X2)."""

from __future__ import annotations

import dataclasses
import gc
import json
import os
import sys
import traceback
import types
from collections.abc import Callable
from datetime import datetime
from typing import Any, ClassVar

import pytest

from amqptasks import exceptions
from amqptasks.wire import failures, serializers
from amqptasks.wire.failures import RemoteError, RemoteTraceback, format_traceback, from_plain, to_plain


class Plain(Exception):
    class Inner(Exception):
        pass


class Picky(Exception):
    def __init__(self, a: int, *, b: int) -> None:
        super().__init__(f"{a} and {b}")


@dataclasses.dataclass(frozen=True)
class Frozen(Exception):
    code: int


def travelled(exc: BaseException, name: str = "json") -> BaseException:
    content_type, encoding, body = serializers.dumps(to_plain(exc, name), name)
    return from_plain(serializers.loads(body, content_type, encoding, serializers.accepted([name])))


@pytest.mark.parametrize("name", ["json", "msgpack"])
@pytest.mark.parametrize(
    "exc",
    [
        ValueError("bad", 3), KeyError("k"), Plain(), Plain.Inner(1, None), OSError(2, "No such file"),
        Exception("naïve 🐇"),
        exceptions.NotRegistered("proj.add"), exceptions.MaxRetriesExceededError("no more"), UserWarning("careful"),
        UnicodeDecodeError("utf-8", b"\xff", 0, 1, "why"), ValueError(datetime(2024, 1, 1), b"\xff"),
        Plain([1, {"a": [2]}]),
    ],
    ids=repr,
)  # fmt: skip
def test_a_loaded_exception_arrives_as_it_was(exc: Exception, name: str) -> None:
    arrived = travelled(exc, name)
    assert type(arrived) is type(exc)
    assert arrived.args == exc.args


def test_it_has_celerys_form() -> None:
    assert to_plain(Plain.Inner("a", 1)) == {
        "exc_type": "Plain.Inner", "exc_message": ["a", 1], "exc_module": __name__,
    }  # fmt: skip


def test_an_exception_that_cannot_be_built_from_its_args_arrives_under_its_name() -> None:
    arrived = travelled(Picky(1, b=2))
    assert isinstance(arrived, RemoteError)
    assert type(arrived).__name__ == "Picky"
    assert type(arrived).__module__ == __name__
    assert arrived.args == ("1 and 2",)


def test_an_unknown_exception_arrives_under_its_name_and_its_class_is_the_same_each_time() -> None:
    data = {"exc_type": "Outer.Declined", "exc_message": ["card", 5], "exc_module": "shop.not_loaded"}
    first, second = from_plain(data), from_plain(data)
    assert type(first) is type(second)
    assert (type(first).__name__, type(first).__qualname__) == ("Declined", "Outer.Declined")
    assert first.args == ("card", 5)
    assert traceback.format_exception_only(type(first), first) == ["shop.not_loaded.Outer.Declined: ('card', 5)\n"]
    assert "shop.not_loaded" not in sys.modules


@pytest.mark.parametrize(
    "module", ["celery.exceptions", "billiard.exceptions", "kombu.exceptions", "amqptasks.exceptions"]
)
@pytest.mark.parametrize("name", ["TimeLimitExceeded", "WorkerLostError", "NotRegistered", "OperationalError"])
def test_celerys_errors_arrive_as_ours_of_the_same_name(name: str, module: str) -> None:
    arrived = from_plain({"exc_type": name, "exc_message": ["x"], "exc_module": module})
    assert type(arrived) is getattr(exceptions, name)


# ---- the remote traceback


def failed() -> Exception:
    try:
        raise ValueError("deep in the task")
    except ValueError as exc:
        return exc


def test_the_remote_traceback_is_shown_where_the_exception_is_raised() -> None:
    exc = failed()
    arrived = from_plain(to_plain(exc), format_traceback(exc))
    assert isinstance(arrived.__cause__, RemoteTraceback)
    shown = "".join(traceback.format_exception(type(arrived), arrived, None))
    assert 'raise ValueError("deep in the task")' in shown
    assert "in failed" in shown


def test_an_exception_that_refuses_to_be_changed_still_shows_it() -> None:
    arrived = from_plain({"exc_type": "Frozen", "exc_message": [7], "exc_module": __name__}, "Traceback …")
    assert isinstance(arrived, Frozen)
    assert isinstance(arrived.__cause__, RemoteTraceback)


@pytest.mark.parametrize("text", [None, "", 3, [], {"a": 1}, b"x"])
def test_a_traceback_that_is_none_is_left_out(text: Any) -> None:
    assert from_plain({"exc_type": "ValueError", "exc_module": "builtins"}, text).__cause__ is None


def test_a_remote_traceback_cannot_steer_a_terminal() -> None:
    arrived = from_plain({"exc_type": "ValueError", "exc_module": "builtins"}, "a\n\tb\x1b[31m\r\x00\x9b\u202e\ud800c")
    assert str(arrived.__cause__) == '\n"""\na\n\tb\\x1b[31m\\r\\x00\\x9b\\u202e\\ud800c\n"""'


def test_a_long_traceback_keeps_its_head_and_its_tail() -> None:
    exc = ValueError("begin" + "x" * 1_000_000 + "end")
    text = format_traceback(exc)
    assert len(text) < failures.MAX_TRACEBACK + 100
    assert text.startswith("ValueError: begin")
    assert text.endswith("end\n")
    assert "characters left out" in text


# ---- exceptions that resist


def hostile(**members: Any) -> BaseException:
    """An exception of a class with these members."""
    kind = type("Hostile", (Exception,), members)
    return kind("arg")  # type: ignore[no-any-return]


def explode(*_: Any, **__: Any) -> Any:
    raise RuntimeError("no")


def leave(*_: Any, **__: Any) -> Any:
    raise SystemExit(3)


class Unshowable:
    __repr__ = __str__ = explode


class Leaving:
    __repr__ = __str__ = __json__ = leave


class NoText:
    def __repr__(self) -> Any:
        return 3


class Surrogate:
    def __repr__(self) -> str:
        return "\ud800"


class OddMeta(type):
    __getattribute__ = explode


endless: list[Any] = []
endless.append(endless)


def chain_of_causes(length: int) -> BaseException:
    exc = ValueError("first")
    for step in range(length):
        following = ValueError(step)
        following.__cause__ = exc
        exc = following
    return exc


# Made by the test, not before: pytest itself stumbles over some of them.
RESISTING: dict[str, Callable[[], BaseException]] = {
    "str raises": lambda: hostile(__str__=explode),
    "repr raises": lambda: hostile(__repr__=explode),
    "str and repr leave": lambda: hostile(__str__=leave, __repr__=leave),
    "args raise": lambda: hostile(args=property(explode)),
    "args are a number": lambda: hostile(args=3),
    "module is a number": lambda: hostile(__module__=5),
    "module raises": lambda: hostile(__module__=property(explode)),
    "every attribute raises": lambda: hostile(__getattribute__=explode),
    "class raises": lambda: hostile(__class__=property(explode)),
    "every attribute of its class raises": lambda: OddMeta("Odd", (Exception,), {})("x"),
    "arg without repr": lambda: Exception(Unshowable()),
    "arg leaves": lambda: Exception(Leaving()),
    "repr is no text": lambda: Exception(NoText()),
    "repr is a surrogate": lambda: Exception(Surrogate()),
    "surrogate": lambda: Exception("\ud800"),
    "nan": lambda: Exception(float("nan")),
    "long integer": lambda: Exception(10**5000),
    "endless list": lambda: Exception(endless),
    "set": lambda: Exception({1, 2}),
    "odd keys": lambda: Exception({(1, 2): 3}),
    "long text": lambda: Exception("x" * 10_000_000),
    "long text in a list": lambda: Exception(["x" * 10_000_000]),
    "many args": lambda: Exception(*range(100_000)),
    "many surrogates": lambda: Exception(*["\ud800"] * 1000),
    "exception in it": lambda: Exception(object(), ValueError("inner")),
    "interrupt": KeyboardInterrupt,
    "exit": lambda: SystemExit(1),
    "generator": GeneratorExit,
    "base": lambda: BaseException("b"),
    "long chain of causes": lambda: chain_of_causes(2000),
    "odd syntax error": lambda: SyntaxError("s", ("f", "line", object(), 3)),
}  # fmt: skip


@pytest.mark.parametrize("name", ["json", "msgpack"])
@pytest.mark.parametrize("kind", RESISTING)
def test_whatever_an_exception_does_it_is_described(kind: str, name: str) -> None:
    exc = RESISTING[kind]()
    # When it is described / Then that works, stays small, and travels, and an Exception comes out of it
    plain = to_plain(exc, name)
    assert set(plain) == {"exc_type", "exc_message", "exc_module"}
    body = serializers.dumps([plain, format_traceback(exc)], name)[2]
    assert len(body) < 8 * 1024 * 1024
    assert isinstance(travelled(exc, name), Exception)


def test_an_argument_that_cannot_travel_is_sent_as_its_repr() -> None:
    assert to_plain(ValueError("kept", {1}, 2))["exc_message"] == ["kept", "{1}", 2]


def test_a_real_interrupt_is_not_swallowed() -> None:
    def interrupt(_self: object) -> str:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        to_plain(Exception(type("Busy", (), {"__repr__": interrupt})()))


# ---- X2: what a result may not name


@pytest.mark.parametrize(
    ("module", "name"),
    [
        ("os", "system"), ("os", "popen"), ("subprocess", "Popen"), ("builtins", "eval"), ("builtins", "exec"),
        ("builtins", "object"), ("builtins", "type"), ("builtins", "ValueError.__init__"), ("builtins",
        "ValueError.mro"),
        ("builtins", "SystemExit"), ("builtins", "KeyboardInterrupt"), ("builtins", "GeneratorExit"),
        ("builtins", "BaseException"), ("builtins", "BaseExceptionGroup"), ("amqptasks.exceptions", "WorkerShutdown"),
        ("amqptasks.exceptions", "WorkerTerminate"), ("celery.exceptions", "WorkerShutdown"),
        ("celery.exceptions", "builtins.eval"), ("amqptasks.exceptions", "builtins.ValueError"),
        ("os", "path.genericpath.os.system"), ("sys", "modules"), ("sys", "exit"), ("", "ValueError"), ("builtins", ""),
        ("builtins", "."), ("builtins", "ValueError."), ("builtins", ".ValueError"), ("builtins", "__class__"),
        ("types", "ModuleType"), ("pathlib", "Path"), ("a" * 100_000, "b" * 100_000), ("a.b", "c." * 10_000),
        ("x\ny", "ValueError\n\x1b[31mCRITICAL\u202e"), ("\0", "\0"), ("\ud800", "\udfff"),
    ],
    ids=lambda text: ascii(text)[:40],
)  # fmt: skip
def test_nothing_but_a_loaded_exception_class_is_built(module: str, name: str, tmp_path: Any) -> None:
    # Given a result that claims to be a failure of that kind / When it is read
    target = tmp_path / "touched"
    arrived = from_plain({"exc_type": name, "exc_module": module, "exc_message": [f"touch {target}"]}, "text")
    # Then it is a neutral error that says what came, and nothing was run
    assert isinstance(arrived, RemoteError)
    assert arrived.args == (f"touch {target}",)
    assert not target.exists()
    shown = "".join(traceback.format_exception_only(type(arrived), arrived))
    assert shown.rstrip("\n").isprintable()
    assert len(shown) < 1000


def test_a_name_is_looked_up_without_asking_the_module(monkeypatch: pytest.MonkeyPatch) -> None:
    # Given a module that makes its members when asked, as lazy ones do
    asked: list[str] = []
    module = types.ModuleType("lazy_module")
    module.__getattr__ = lambda name: asked.append(name) or ValueError  # type: ignore[method-assign, assignment, func-returns-value]
    monkeypatch.setitem(sys.modules, "lazy_module", module)
    # When a result names one / Then it was not asked
    assert isinstance(from_plain({"exc_type": "Anything", "exc_module": "lazy_module"}), RemoteError)
    assert asked == []


def test_what_is_no_module_is_not_searched(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "not_a_module", types.SimpleNamespace(ValueError=ValueError))  # type: ignore[arg-type]
    assert isinstance(from_plain({"exc_type": "ValueError", "exc_module": "not_a_module"}), RemoteError)


class Leaves(Exception):
    def __init__(self, *args: Any) -> None:
        raise SystemExit(4)


class Other(Exception):
    def __new__(cls, *args: Any) -> Any:
        return os.environ


class Stop(BaseException):
    built: ClassVar[list[Any]] = []

    def __init__(self, *args: Any) -> None:
        self.built.append(args)


def test_an_exception_that_is_made_to_stop_a_process_is_not_even_built() -> None:
    assert isinstance(from_plain({"exc_type": "Stop", "exc_module": __name__, "exc_message": ["x"]}), RemoteError)
    assert Stop.built == []


@pytest.mark.parametrize("name", ["Leaves", "Other"])
def test_a_class_that_misbehaves_when_built_gives_a_neutral_error(name: str) -> None:
    assert isinstance(from_plain({"exc_type": name, "exc_module": __name__, "exc_message": []}), RemoteError)


@pytest.mark.parametrize(
    "data",
    [
        None, True, 3, 1.5, "text", b"\xff", [], [["exc_type", "ValueError"]], {}, {"exc_type": None}, {"exc_type": 3},
        {"exc_type": ["ValueError"]}, {"exc_message": ["x"]}, {"exc_type": "E", "exc_module": ["builtins"]}, "\ud800",
        {"exc_type": "ValueError", "exc_module": {"a": 1}, "exc_message": {"a": 1}}, {1: 2}, "x" * 1_000_000, object(),
    ],
    ids=lambda data: ascii(data)[:40],
)  # fmt: skip
def test_garbage_becomes_an_exception_too(data: Any) -> None:
    arrived = from_plain(data, "text")
    assert isinstance(arrived, RemoteError)
    assert len(str(arrived)) < 100_000


@pytest.mark.parametrize("message", ["one text", 3, {"a": 1}])
def test_a_message_that_is_not_a_list_is_the_only_argument(message: Any) -> None:
    arrived = from_plain({"exc_type": "ValueError", "exc_module": "builtins", "exc_message": message})
    assert type(arrived) is ValueError
    assert arrived.args == (message,)


def test_names_from_the_wire_do_not_fill_the_memory() -> None:
    for number in range(2000):
        from_plain({"exc_type": f"Error{number}", "exc_module": "foreign"})
    gc.collect()
    kept = [kind for kind in RemoteError.__subclasses__() if kind.__module__ == "foreign"]
    assert 0 < len(kept) <= 256


def test_an_exception_that_pickle_brought_is_kept() -> None:
    exc = ValueError(1)
    assert from_plain(exc) is exc
    assert isinstance(from_plain(SystemExit(1)), RemoteError)


def test_the_plain_form_is_json_as_it_stands() -> None:
    assert json.loads(json.dumps(to_plain(ValueError("x", {1})))) == to_plain(ValueError("x", {1}))
