"""Tasks as a program defines them: names, classes, shared tasks, annotations, discovery. Without a broker."""

from __future__ import annotations

import copy
import pickle
import sys
import textwrap
import threading
import weakref
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from amqptasks import App, Task, current_app, current_task, shared_task
from amqptasks.app import current
from amqptasks.exceptions import AlreadyRegistered, ImproperlyConfigured, NotRegistered


@pytest.fixture
def app() -> App:
    return App("proj")


@pytest.fixture
def no_app(monkeypatch: pytest.MonkeyPatch) -> None:
    """As if no app had been made."""
    monkeypatch.setattr(current, "_current", None)


@pytest.fixture(autouse=True)
def own_makers(monkeypatch: pytest.MonkeyPatch) -> None:
    """What a test shares is for its own apps alone, and its app is the current one for its own length."""
    monkeypatch.setattr(current, "_current", None)
    monkeypatch.setattr(current, "_makers", [])
    monkeypatch.setattr(current, "_apps", weakref.WeakSet())


# -- the current app


def own_tasks(app: App) -> dict[str, Any]:
    """The tasks of an app, without those that every app has."""
    return {name: task for name, task in app.tasks.items() if not name.startswith("celery.")}


def test_the_app_made_last_is_the_current_one_in_every_thread(app: App) -> None:
    other = App("other", set_as_current=False)
    seen: list[Any] = []
    thread = threading.Thread(target=lambda: seen.append(current_app.main))
    thread.start()
    thread.join()
    assert seen == ["proj"]
    assert current_app == app and current_app != other and isinstance(current_app, App)
    # When another is chosen / Then it is that
    other.set_default()
    assert current_app._get_current_object() is other  # type: ignore[attr-defined]
    current_app.conf.task_default_queue = "elsewhere"
    assert other.conf.task_default_queue == "elsewhere"


def test_without_an_app_the_error_says_what_to_do(no_app: None) -> None:
    with pytest.raises(ImproperlyConfigured, match="none has been made: import the module that makes your App"):
        current_app.conf  # noqa: B018
    # But it may be asked what it is, as tools do with whatever they meet
    assert not isinstance(current_app, App)


def test_the_current_task_is_the_one_that_runs(app: App) -> None:
    @app.task
    def inner() -> list[Any]:
        return [current_task.name, app.current_task.name, app.current_worker_task and app.current_worker_task.name]

    @app.task(bind=True)
    def outer(self: Task[..., Any]) -> list[Any]:
        assert current_task == self and current_task.request.id == self.request.id
        return [*inner(), current_task.name]

    assert outer.apply().get() == [inner.name, inner.name, outer.name, outer.name]
    assert not current_task and app.current_task is None and repr(current_task) == "None"


# -- shared tasks


def test_a_shared_task_belongs_to_every_app() -> None:
    # Given an app that is finalized, one that is not, and one that comes later
    early, other = App("early"), App("other")
    early.finalize()

    @shared_task(name="lib.add", bind=True, max_retries=7)
    def add(self: Any, x: int, y: int) -> tuple[str, int]:
        """Add."""
        return self.app.main, x + y

    late = App("late")
    # Then each has a task of its own
    for each in (early, other, late):
        task = each.tasks["lib.add"]
        assert task.app is each and task.max_retries == 7
        # And the function's name stands for that of the current app
        each.set_current()
        assert add.app is each and add == task and hash(add) == hash(task)
        assert add(1, 2) == (each.main, 3)
        assert repr(add) == repr(task)


def test_a_shared_task_is_used_like_any_other(app: App) -> None:
    @shared_task
    def double(x: int) -> int:
        """Double it."""
        return 2 * x

    app.conf.task_always_eager = True
    assert double.delay(4).get() == double.s(4).apply().get() == 8
    assert isinstance(double, Task) and callable(double)
    assert (double.__name__, double.__doc__) == ("double", "Double it.")  # type: ignore[attr-defined]
    assert pickle.loads(pickle.dumps(double)) is app.tasks[double.name]
    assert copy.copy(double) == double and "apply_async" in dir(double)
    # When something is set on it / Then it is set on the task
    double.rate_limit = "3/m"
    assert app.tasks[double.name].rate_limit == "3/m"


def test_a_shared_task_needs_no_app_to_be_called_as_a_function(no_app: None) -> None:
    @shared_task(bind=True)
    def hello(self: Any, name: str) -> str:
        assert self.request.called_directly
        return f"hello {name}"

    assert hello("you") == "hello you"
    assert isinstance(hello, Task) and hello.__doc__ is None
    # But it can only be sent by an app
    with pytest.raises(ImproperlyConfigured, match=r"shared task .*hello needs an app"):
        hello.delay("you")


def test_sharing_twice_or_what_is_no_function_is_refused() -> None:
    with pytest.raises(TypeError, match="applied twice"):
        shared_task(shared_task(len))
    with pytest.raises(TypeError, match="takes one function"):
        shared_task("add")  # type: ignore[call-overload]


def test_a_task_of_an_app_is_shared_if_it_says_so(app: App) -> None:
    @app.task(shared=True)
    def everywhere() -> None: ...

    @app.task
    def here() -> None: ...

    other = App("other")
    assert everywhere.name in other.tasks and here.name not in other.tasks
    assert other.tasks[everywhere.name].app is other


# -- finalizing


def test_the_first_look_at_the_tasks_finalizes(app: App) -> None:
    told: list[str] = []
    app.on_after_finalize.connect(lambda sender, **_: told.append(sender.main), weak=False)

    class Told(Task[..., Any]):
        @classmethod
        def on_bound(cls, app: App) -> None:
            told.append(f"bound to {app.main} with {app.conf.task_default_queue}")

    app.task(base=Told, name="early")(len)
    assert told == []
    app.conf.task_default_queue = "set-later"
    assert "early" in app.tasks
    assert told == ["bound to proj with set-later", "proj"]
    # When a task comes later still / Then it is bound at once
    app.task(base=Told, name="late")(abs)
    assert told[2:] == ["bound to proj with set-later"]
    app.finalize()
    assert len(told) == 3


def test_an_app_may_insist_on_being_finalized_by_hand() -> None:
    app = App("strict", autofinalize=False, set_as_current=False)
    app.task(name="len")(len)
    with pytest.raises(RuntimeError, match="call finalize"):
        app.tasks  # noqa: B018
    app.finalize()
    assert list(own_tasks(app)) == ["len"]


# -- functions and classes


def test_a_filter_takes_the_tasks_place(app: App) -> None:
    taken: Any = app.task(name="len", filter=lambda task: ("filtered", task.name))(len)
    assert taken == ("filtered", "len")
    assert "len" in app.tasks


def test_a_class_is_registered_by_itself_or_as_an_instance(app: App) -> None:
    made = []

    class Count(Task[[int], int]):
        """Counts."""

        def __init__(self) -> None:
            made.append(self)
            self.total = 0

        def run(self, by: int = 1) -> int:
            self.total += by
            return self.total

    # When the class is registered / Then one instance is made, and named after the class
    first = app.register_task(Count)
    assert made == [first] and isinstance(first, Count) and first.app is app
    assert first.name == f"{__name__}.Count"
    # And an instance keeps the name it has, and takes options
    second = Count()
    second.name = "count.again"
    assert app.register_task(second, ignore_result=True) is second and second.ignore_result
    # And each keeps its own state from call to call
    assert [first(2), first.apply((3,)).get(), second(1)] == [2, 5, 1]
    # And calls are checked against run
    with pytest.raises(TypeError, match="too many positional arguments"):
        first.delay(1, 2)  # type: ignore[call-arg]


def test_one_class_may_serve_two_apps(app: App) -> None:
    class Where(Task[[], Any]):
        name = "where"

        def run(self) -> Any:
            return self.app.main

    other = App("other", set_as_current=False)
    assert [app.register_task(Where)(), other.register_task(Where)(), app.tasks["where"]()] == ["proj", "other", "proj"]


def test_what_is_no_task_is_not_registered(app: App) -> None:
    with pytest.raises(TypeError, match="takes a Task subclass"):
        app.register_task(len)  # type: ignore[arg-type]
    app.task(name="taken")(len)
    with pytest.raises(AlreadyRegistered, match="two functions claim the task name 'taken'"):
        app.task(name="taken")(abs)


def test_a_class_without_run_says_so(app: App) -> None:
    class Empty(Task[..., Any]):
        pass

    with pytest.raises(ImproperlyConfigured, match=r"has no run method: define run\(\)"):
        app.register_task(Empty)()


@pytest.mark.parametrize("by_name", [False, True])
def test_an_app_may_build_its_tasks_on_a_class_of_its_own(by_name: bool) -> None:
    app = App(set_as_current=False, task_cls=f"{__name__}.Plus" if by_name else Plus)
    sys.modules.setdefault(__name__, sys.modules[Plus.__module__])
    task = app.task(name="len")(len)
    assert isinstance(task, Plus) and task.extra() == "len"
    # And a task may choose another
    assert not isinstance(app.task(name="abs", base=Task)(abs), Plus)


class Plus(Task[..., Any]):
    def extra(self) -> str:
        return self.name


def test_a_class_that_cannot_be_found_is_named() -> None:
    app = App(set_as_current=False, task_cls="nowhere.Task")
    with pytest.raises(ImproperlyConfigured, match="cannot find 'nowhere.Task', named by task_cls"):
        app.task(len)


def test_a_call_of_the_classs_own_is_what_runs(app: App) -> None:
    # Given a class whose __call__ does something around the run, as frameworks want it
    class Around(Task[..., Any]):
        def __call__(self, *args: Any, **kwargs: Any) -> Any:
            return ["around", self.request.id, super().__call__(*args, **kwargs)]

    @app.task(base=Around, bind=True)
    def inner(self: Any, x: int) -> Any:
        return [self.request.id, x]

    # Then it is called as a function, and as a task; the request is the same within
    assert inner(1) == ["around", None, [None, 1]]
    result = inner.apply((1,))
    assert result.get() == ["around", result.id, [result.id, 1]]


def test_typing_may_be_off_for_an_app_or_a_task() -> None:
    def one(x: int) -> int:
        return x

    loose, strict = App(set_as_current=False, strict_typing=False), App(set_as_current=False)
    for app in (loose, strict):
        app.conf.task_always_eager = True
    assert loose.task(one).delay(1, 2).state == "FAILURE"  # type: ignore[call-arg]
    assert strict.task(name="b", typing=False)(one).delay(1, 2).state == "FAILURE"  # type: ignore[call-arg]
    for checked in (strict.task(one), loose.task(name="c", typing=True)(one)):
        with pytest.raises(TypeError, match="too many positional arguments"):
            checked.delay(1, 2)  # type: ignore[call-arg]


def test_limits_that_contradict_each_other_are_refused(app: App) -> None:
    task = app.task(time_limit=1, soft_time_limit=2)(len)
    with pytest.raises(ValueError, match="soft_time_limit of task .* must be at most time_limit, got: 2 > 1"):
        task.delay("x")


def test_a_backend_for_one_task_is_refused(app: App) -> None:
    with pytest.raises(ImproperlyConfigured, match="asks for a result backend of its own"):
        app.task(backend="rpc://")(len)


def test_requests_can_be_pushed_for_a_test(app: App) -> None:
    @app.task(bind=True)
    def who(self: Any) -> Any:
        return self.request.id

    who.push_request(id="pushed", called_directly=False)
    try:
        assert who.run() == "pushed"
        assert who.add_trail("child") == "child" and who.request.children == ["child"]
    finally:
        who.pop_request()
    assert who.request.id is None
    with pytest.raises(RuntimeError, match="not the one that is running"):
        who.pop_request()


# -- annotations


def test_annotations_change_attributes_of_all_tasks_and_of_one(app: App) -> None:
    app.conf.task_annotations = {"*": {"rate_limit": "10/s", "priority": 1}, "a": {"rate_limit": "1/s"}}
    app.task(name="a")(len)
    app.task(name="b")(abs)
    tasks = app.tasks
    # Then what is said of one task holds for it, and the rest of what is said of all
    assert [(tasks[name].rate_limit, tasks[name].priority) for name in "ab"] == [("1/s", 1), ("10/s", 1)]


def test_annotations_wrap_methods(app: App) -> None:
    calls: list[Any] = []

    def around(method: Any) -> Any:
        def wrapped(*args: Any, **kwargs: Any) -> Any:
            calls.append(args)
            return method(*args, **kwargs)

        return wrapped

    app.conf.task_annotations = {
        "plain": {"@run": around},
        "bound": {"@run": around},
        "called": {"@__call__": around},
    }
    plain = app.task(name="plain")(lambda x: x)
    bound = app.task(name="bound", bind=True)(lambda self, x: (self.name, x))
    called = app.task(name="called")(lambda x: x)
    # Then the wrapper is called as the method is, from the first call on
    assert (plain(1), bound(2), called(3)) == (1, ("bound", 2), 3)
    assert calls == [(1,), (bound, 2), (called, 3)]
    assert (plain.apply((1,)).get(), called.apply((3,)).get()) == (1, 3)
    assert calls[3:] == [(1,), (called, 3)]


def test_annotations_give_handlers(app: App) -> None:
    failed = []

    def on_failure(self: Any, exc: Any, task_id: str, args: Any, kwargs: Any, einfo: Any) -> None:
        failed.append((self.name, exc, einfo.exception, str(einfo).splitlines()[-1]))

    app.conf.task_annotations = {"*": {"on_failure": on_failure}}
    app.task(name="bad")(lambda: 1 / 0).apply()
    ((name, exc, same, line),) = failed
    assert (name, line) == ("bad", "ZeroDivisionError: division by zero") and exc is same


class Annotator:
    def annotate(self, task: Any) -> Any:
        return {"priority": 5} if task.name.startswith("x.") else None


class Second:
    def annotate(self, task: Any) -> Any:
        return {"priority": 9, "queue": "second"}

    def annotate_any(self) -> Any:
        return {"serializer": "msgpack"}


def test_annotations_come_from_objects_and_lists_too(app: App) -> None:
    app.conf.task_annotations = [f"{Annotator.__module__}.Annotator", Second()]
    sys.modules.setdefault(Annotator.__module__, sys.modules[__name__])
    app.task(name="x.a")(len)
    app.task(name="b")(abs)
    # Then the first that has something to say about a task is heard
    found = {name: (each.priority, each.queue, each.serializer) for name, each in own_tasks(app).items()}
    assert found == {"x.a": (5, None, "msgpack"), "b": (9, "second", "msgpack")}


@pytest.mark.parametrize(
    ("setting", "complaint"),
    [
        (7, "expected task_annotations to hold dicts"),
        ("nowhere.Annotator", "cannot find 'nowhere.Annotator', named by task_annotations"),
        ({"*": {"@nothing": len}}, "wraps '@nothing' of task 'len', which has no such method"),
    ],
)
def test_annotations_of_another_form_are_refused(app: App, setting: Any, complaint: str) -> None:
    app.conf.task_annotations = setting
    app.task(name="len")(len)
    with pytest.raises(ImproperlyConfigured, match=complaint):
        app.tasks  # noqa: B018


# -- discovery


@pytest.fixture
def packages(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Any]:
    """Write packages: ``packages({"shop/tasks.py": "…"})``. What they import is undone."""
    monkeypatch.syspath_prepend(str(tmp_path))
    before = set(sys.modules)

    def write(files: dict[str, str]) -> None:
        for name, source in files.items():
            path = tmp_path / name
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(textwrap.dedent(source))

    yield write
    for name in set(sys.modules) - before:
        del sys.modules[name]


def test_task_modules_of_packages_are_found(app: App, packages: Any) -> None:
    source = "from amqptasks import shared_task\n@shared_task\ndef {0}(): ..."
    packages(
        {
            "disc_a/__init__.py": "",
            "disc_a/tasks.py": source.format("one"),
            "disc_a/jobs.py": source.format("two"),
            "disc_b/__init__.py": "",
            "disc_b/apps.py": "class Config: pass",
            "disc_c/__init__.py": source.format("three"),
        }
    )
    # When packages are named, or told by a function / Then nothing is imported before it is needed
    app.autodiscover_tasks(["disc_a", "disc_b"])
    app.autodiscover_tasks(lambda: ["disc_a"], related_name="jobs")
    app.autodiscover_tasks(["disc_c"], related_name=None)
    assert "disc_a" not in sys.modules
    app.import_modules()
    assert set(own_tasks(app)) == {"disc_a.tasks.one", "disc_a.jobs.two", "disc_c.three"}
    # And with force at once; a package may be named by a class in it
    app.autodiscover_tasks(["disc_b.apps.Config"], force=True)


@pytest.mark.parametrize(
    ("package", "error", "complaint"),
    [
        ("disc_missing", ModuleNotFoundError, "disc_missing"),
        ("disc_d.missing", ModuleNotFoundError, r"disc_d\.missing"),
        ("disc_d", ModuleNotFoundError, "not_there"),
        ("disc_e", ZeroDivisionError, "division by zero"),
    ],
)
def test_what_is_wrong_in_discovery_is_not_hidden(
    app: App, packages: Any, package: str, error: type[Exception], complaint: str
) -> None:
    packages(
        {
            "disc_d/__init__.py": "",
            "disc_d/tasks.py": "import not_there",
            "disc_e/__init__.py": "",
            "disc_e/tasks.py": "1 / 0",
        }
    )
    with pytest.raises(error, match=complaint):
        app.autodiscover_tasks([package], force=True)


def test_discovery_takes_a_list_of_packages(app: App) -> None:
    with pytest.raises(ImproperlyConfigured, match="to get a list of packages, got: 'shop'"):
        app.autodiscover_tasks("shop", force=True)
    with pytest.raises(ImproperlyConfigured, match="this is no Django project"):
        app.autodiscover_tasks(force=True)


def test_a_missing_task_is_named_with_the_nearest(app: App) -> None:
    app.task(name="shop.add")(len)
    with pytest.raises(NotRegistered, match=r"no task named 'shop\.ad' is registered \(did you mean 'shop\.add'\?\)"):
        app.tasks["shop.ad"]
