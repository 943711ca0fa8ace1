"""Handles of results beside Celery's own: the same programs, step by step, with the same outcome.

Both keep results in memory, so that a program can finish its tasks itself. Where the two are to differ, `DIFFERENT` and
`ABSENT` say how, and docs/differences.md why.
"""

from __future__ import annotations

import copy
import importlib
import inspect
import io
import itertools
import pickle
from collections.abc import Callable, Iterator
from typing import Any

import celery
import celery.app.task
import celery.backends.cache
import celery.result
import pytest

import amqptasks
import amqptasks.result
from amqptasks.results.record import ResultRecord
from amqptasks.wire.failures import to_plain

CLASSES = ("AsyncResult", "ResultSet", "GroupResult", "EagerResult")


class Side:
    """One of the two packages with an app of its own, whose tasks are finished by hand."""

    def __init__(self, package: Any) -> None:
        self.package = package
        self.is_celery = package is celery
        self.result = importlib.import_module(f"{package.__name__}.result")
        self.app: Any = package.Celery("proj", broker="amqp://127.0.0.1:1//", backend="cache+memory://")
        self.app.conf.result_extended = True
        self._ids = itertools.count()

    def handle(self, name: str, **options: Any) -> Any:
        return self.app.AsyncResult(name, **options)

    def group(self, *members: str, id: str = "group") -> Any:
        return self.app.GroupResult(id, [self.handle(name) for name in members])

    def set(self, *members: str) -> Any:
        return self.result.ResultSet([self.handle(name) for name in members], app=self.app)

    def put(self, name: str, status: str, value: Any, traceback: str | None = None, children: Any = ()) -> None:
        """Report a state of a task."""
        extra = {"name": "tasks.add", "args": [2, 2], "kwargs": {"debug": True}, "worker": "w@h", "retries": 1,
                 "queue": "celery"}  # fmt: skip
        if self.is_celery:
            request = celery.app.task.Context(
                task=extra["name"], args=extra["args"], kwargs=extra["kwargs"], hostname=extra["worker"],
                retries=extra["retries"], delivery_info={"routing_key": "celery"}, _children=list(children),
            )  # fmt: skip
            self.app.backend.store_result(name, value, status, traceback=traceback, request=request)
            return
        plain = to_plain(value) if isinstance(value, BaseException) else value
        fields = {"traceback": traceback, "extra": extra, "children": [child.as_tuple() for child in children]}
        self.app.backend.store(ResultRecord.now(name, status, plain, **fields))

    def done(self, name: str, value: Any = None, *children: Any) -> None:
        self.put(name, "SUCCESS", value, children=children)

    def fail(self, name: str, error: BaseException) -> None:
        self.put(name, "FAILURE", error, traceback="Traceback of the worker")


Program = Callable[[Side], Any]
PROGRAMS: dict[str, Program] = {}


def program(run: Program) -> Program:
    """Add a program that both packages must take to the same outcome."""
    PROGRAMS[run.__name__] = run
    return run


def tried(call: Callable[[], Any]) -> Any:
    """What a call gives, or the kind of its error and what that says."""
    try:
        return call()
    except Exception as error:
        return [type(error).__name__, str(error)]


def shown(value: Any) -> Any:
    """A value in words that are the same for both packages."""
    if isinstance(value, (list, tuple)):
        return [shown(each) for each in value]
    if isinstance(value, dict):
        return {shown(key): shown(each) for key, each in value.items()}
    if isinstance(value, Exception):
        return f"{type(value).__name__}: {value}"
    if isinstance(value, (str, int, float, bytes, type(None))):
        return value
    return repr(value)


# -- one result


@program
def a_pending_result(side: Side) -> Any:
    result = side.handle("t")
    return [
        result.state, result.status, result.result, result.info, result.ready(), result.successful(), result.failed(),
        result.traceback, result.children, result.name, result.args, result.kwargs, result.worker, result.retries,
        result.queue, result.date_done, result.exists(), str(result), repr(result), result.id, result.task_id,
        result.ignored, result.parent, result.as_tuple(), result.as_list(), result.maybe_throw(),
    ]  # fmt: skip


@program
def a_finished_result(side: Side) -> Any:
    side.done("t", 4)
    result = side.handle("t")
    return [
        result.get(), result.wait(), result.get(timeout=0), result.state, result.result, result.info, result.ready(),
        result.successful(), result.failed(), result.traceback, result.children, result.name, result.args,
        result.kwargs, result.worker, result.retries, result.queue, result.date_done.tzinfo is not None,
        result.exists(), result.maybe_throw(), result.maybe_reraise(), result.get_leaf(),
    ]  # fmt: skip


@program
def a_failed_result(side: Side) -> Any:
    side.fail("t", KeyError("k"))
    result = side.handle("t")
    return [
        tried(result.get), result.get(propagate=False), result.state, result.result, result.info, result.ready(),
        result.successful(), result.failed(), result.traceback, tried(result.maybe_throw), tried(result.maybe_reraise),
        result.maybe_throw(propagate=False), tried(lambda: result.throw(ValueError("thrown"))),
    ]  # fmt: skip


@program
def custom_states(side: Side) -> Any:
    side.put("t", "PROGRESS", {"current": 1, "total": 3})
    result, seen = side.handle("t"), []
    seen += [result.state, result.info, result.result, result.ready(), result.successful(), result.failed()]
    seen += [tried(lambda: result.get(timeout=0.05)), result.maybe_throw()]
    side.put("t", "RETRY", ValueError("again"), traceback="tb")
    seen += [result.state, result.info, result.ready(), result.traceback, result.maybe_throw()]
    side.put("t", "REVOKED", side.package.exceptions.TaskRevokedError("revoked"))
    return [*seen, result.state, tried(result.get), result.ready(), result.failed(), result.get(propagate=False)]


@program
def a_wait_that_ends(side: Side) -> Any:
    result = side.handle("t")
    return [tried(lambda: result.get(timeout=0.05)), isinstance(
        pytest.raises(result.TimeoutError, result.get, timeout=0.05).value, side.package.exceptions.TimeoutError
    )]  # fmt: skip


@program
def callbacks_of_get(side: Side) -> Any:
    seen: list[Any] = []
    side.done("t", 4)
    side.fail("f", KeyError("k"))
    side.handle("t").get(callback=lambda *each: seen.append(each))
    tried(lambda: side.handle("f").get(callback=lambda *each: seen.append(each)))
    side.handle("f").get(propagate=False, callback=lambda *each: seen.append(each))
    result = side.handle("t")
    result.get()
    return [seen, result.get(callback=lambda *each: seen.append(each)), seen]


@program
def ignored_results(side: Side) -> Any:
    result = side.handle("t")
    result.ignored = True
    return [result.ignored, result.get(), result.get(timeout=0)]


@program
def parents(side: Side) -> Any:
    first = side.handle("a")
    second = side.handle("b", parent=first)
    third = side.handle("c", parent=second)
    side.fail("a", KeyError("first"))
    return [
        tried(third.get), tried(lambda: third.get(follow_parents=False, timeout=0.05)), third.as_tuple(),
        tried(lambda: third.get(propagate=False, timeout=0.05)), third.as_list(), third.parent.parent,
    ]  # fmt: skip


@program
def forgetting(side: Side) -> Any:
    first = side.handle("a")
    second = side.handle("b", parent=first)
    side.done("a", 1)
    side.done("b", 2)
    seen = [second.get(), first.get(), second.forget()]
    return [*seen, second.state, first.state, side.handle("a").exists(), side.handle("b").exists()]


@program
def equality(side: Side) -> Any:
    a, b = side.handle("a"), side.handle("b")
    return [
        a == side.handle("a"), a == "a", a == b, a == 1, a != "b", hash(a) == hash("a"), len({a, side.handle("a"), b}),
        a in [b, "a"],
    ]  # fmt: skip


@program
def an_id_is_needed(side: Side) -> Any:
    return tried(lambda: side.handle(None))[0]  # type: ignore[arg-type]


@program
def copies(side: Side) -> Any:
    side.done("a", 4)
    result = copy.copy(side.handle("a", parent=side.handle("p")))
    return [result.get(), result.parent, result == side.handle("a"), type(result).__name__]


# -- trees


def family(side: Side) -> Any:
    """A task that has started a group of two, one of which has started another."""
    group = side.group("x", "y")
    side.done("a", "A", group)
    side.done("x", 1)
    side.done("y", 2, side.handle("z"))
    side.done("z", 3)
    return side.handle("a")


@program
def walking(side: Side) -> Any:
    result = family(side)
    return [
        list(result.iterdeps()), list(result.collect()), result.get_leaf(), result.children,
        [value for child, value in result.collect() if not child.children],
    ]  # fmt: skip


@program
def walking_before_the_end(side: Side) -> Any:
    side.done("a", "A", side.handle("x"), side.handle("y"))
    side.done("y", 2)
    result = side.handle("a")
    seen = []
    try:
        for parent, node in result.iterdeps():
            seen.append((parent, node))
    except side.package.exceptions.IncompleteStream as error:
        seen.append(type(error).__name__)
    return [seen, list(result.iterdeps(intermediate=True))]


@program
def graphs(side: Side) -> Any:
    result, text = family(side), io.StringIO()
    graph = result.graph
    graph.to_dot(text)
    return [
        text.getvalue(), repr(graph), len(graph), list(graph), result in graph, graph[result], graph is result.graph,
        graph.topsort(), list(graph.edges()), graph.valency_of(result), dict(graph.items()),
        sorted(map(str, graph.adjacent)),
    ]  # fmt: skip


@program
def graphs_drawn_otherwise(side: Side) -> Any:
    result, texts = family(side), [io.StringIO() for _ in range(3)]
    module = importlib.import_module(f"{side.package.__name__}.utils.graph")
    formatter = module.GraphFormatter(root="r", type="graph", id="mine", indent=1, inw="  ", shape="box")
    result.build_graph(formatter=formatter).to_dot(texts[0])
    result.graph.to_dot(texts[1], formatter=formatter)
    module.DependencyGraph([("a", ["b", "c"]), ("b", ["c"]), ("c", [])]).to_dot(texts[2])
    more = module.DependencyGraph([("a", ["b", "c"]), ("b", ["c"]), ("c", [])])
    more.connect(module.DependencyGraph([("d", [])]))
    return [*(text.getvalue() for text in texts), more.topsort(), repr(more), list(more), "d" in more]


@program
def graphs_before_the_end(side: Side) -> Any:
    return [tried(lambda: side.handle("new").graph)[0], len(side.handle("new").build_graph(intermediate=True))]


# -- several


@program
def a_set_of_results(side: Side) -> Any:
    side.done("a", 1)
    side.done("b", 2)
    results = side.set("a", "b")
    return [
        results, len(results), list(results), results[0], results[-1], results.ready(), results.waiting(),
        results.successful(), results.failed(), results.completed_count(), results.get(), results.join(),
        results.join_native(), results.maybe_throw(), results == side.set("a", "b"), results == side.set("a"),
        results == [1], tried(lambda: hash(results))[0], results.results, bool(results), bool(side.set()),
    ]  # fmt: skip


@program
def a_set_on_the_way(side: Side) -> Any:
    side.done("a", 1)
    side.fail("b", KeyError("k"))
    results = side.set("a", "b", "c")
    return [
        results.ready(), results.waiting(), results.successful(), results.failed(), results.completed_count(),
        tried(results.maybe_throw), tried(results.maybe_reraise), tried(lambda: results.get(timeout=0.3)),
        tried(lambda: results.get(timeout=0.1, propagate=False))[0],
    ]  # fmt: skip


@program
def members(side: Side) -> Any:
    results, a, b = side.set("a"), side.handle("a"), side.handle("b")
    kept, seen = results.results, []
    for change in (
        lambda: results.add(a), lambda: results.add(b), lambda: results.remove("a"), lambda: results.remove("a"),
        lambda: results.discard("a"), lambda: results.update([a, b]), lambda: results.discard(b),
        lambda: results.remove(b), lambda: results.clear(), lambda: results.remove("nobody"),
    ):  # fmt: skip
        said = tried(change)
        seen.append([said and said[0], list(results)])
    return [seen, results.results is kept]


@program
def callbacks_of_sets(side: Side) -> Any:
    side.done("a", 1)
    side.fail("b", KeyError("k"))
    seen: list[Any] = []
    results = side.set("a", "b")
    answer = results.join(callback=lambda *each: seen.append(each), propagate=False)
    return [answer, seen, results.get(propagate=False), results.join(propagate=False)]


@program
def results_as_they_come(side: Side) -> Any:
    side.done("a", 1)
    side.fail("b", KeyError("k"))
    found = sorted(side.set("a", "b").iter_native())
    return [[(task_id, meta["status"], meta["result"]) for task_id, meta in found], tried(
        lambda: list(side.set("a", "new").iter_native(timeout=0.05))
    )[0]]  # fmt: skip


@program
def groups(side: Side) -> Any:
    side.done("x", 1)
    side.done("y", 2)
    group = side.group("x", "y")
    same, other = side.group("x", "y"), side.group("x", "y", id="other")
    child = side.app.GroupResult("child", [side.handle("x")], parent=side.handle("p"))
    return [
        group, str(group), group.id, group.get(), group.children, group.parent, group.as_tuple(), child.as_tuple(),
        group == same, group == other, group == "group", group == child, hash(group) == hash("group"), bool(group),
        bool(side.app.GroupResult(None, [])), bool(side.app.GroupResult("empty", [])), group.results,
        side.app.GroupResult("empty", []).get(), len(group), isinstance(group, side.result.ResultSet),
    ]  # fmt: skip


@program
def groups_that_are_saved(side: Side) -> Any:
    group = side.group("x", "y")
    nested = side.app.GroupResult("outer", [group, side.handle("z")], parent=side.handle("p"))
    group.save()
    nested.save()
    found = [side.app.GroupResult.restore("group"), side.app.GroupResult.restore("outer")]
    seen = [found, found[0] == group, found[1] == nested, found[1].parent]
    group.delete()
    return [*seen, side.app.GroupResult.restore("group"), side.result.GroupResult.restore("outer", app=side.app)]


@program
def forgetting_groups(side: Side) -> Any:
    for name in "pxyz":
        side.done(name, name)
    inner = side.group("x", "y")
    side.app.GroupResult("outer", [inner, side.handle("z", parent=side.handle("p"))]).forget()
    return [side.handle(name).exists() for name in "pxyz"]


@program
def plain_forms(side: Side) -> Any:
    from_tuple = side.result.result_from_tuple
    chain = side.handle("c", parent=side.handle("b", parent=side.handle("a")))
    group = side.app.GroupResult("g", [chain, side.group("x", "y")], parent=side.handle("p"))
    seen = []
    for result in (chain, group):
        again = from_tuple(result.as_tuple(), app=side.app)
        listed = from_tuple([list(each) if isinstance(each, tuple) else each for each in result.as_tuple()], side.app)
        seen += [again, again == result, again.as_tuple() == result.as_tuple(), again.parent, listed == result]
    return [*seen, from_tuple(chain) is chain, from_tuple(["id", None], app=side.app)]


# -- results of tasks that ran at once


def eager(side: Side, value: Any, state: str, **options: Any) -> Any:
    return side.result.EagerResult("e", value, state, **options)


@program
def eager_results(side: Side) -> Any:
    result = eager(side, 4, "SUCCESS", name="tasks.add")
    return [
        result, str(result), result.get(), result.wait(), result.result, result.state, result.status, result.ready(),
        result.successful(), result.failed(), result.traceback, result.forget(), result.get(), result.name,
        copy.copy(result).get(), pickle.loads(pickle.dumps(result)).get(), result == "e", result.id, result.info,
        eager(side, 4, "SUCCESS").name, result.maybe_throw(), result.children,
    ]  # fmt: skip


@program
def eager_failures(side: Side) -> Any:
    failed = eager(side, KeyError("k"), "FAILURE", traceback="tb")
    retried = eager(side, ValueError("again"), "RETRY")
    return [
        tried(failed.get), failed.get(propagate=False), failed.traceback, failed.failed(), failed.ready(),
        retried.get(), retried.state, tried(eager(side, "text", "FAILURE").get), tried(failed.maybe_throw),
    ]  # fmt: skip


@program
def eager_results_that_are_revoked(side: Side) -> Any:
    result = eager(side, 4, "SUCCESS")
    return [result.revoke(), result.state, tried(result.get), result.get(propagate=False), result.traceback]


# -- inside tasks


@program
def waiting_where_it_is_denied(side: Side) -> Any:
    side.done("a", 1)
    one, several, fast = side.handle("a"), side.set("a"), eager(side, 4, "SUCCESS")
    result = side.result
    seen: list[Any] = []

    def look(*, disable_sync_subtasks: bool = True) -> None:
        for call in (one.get, several.get, several.join, several.join_native, fast.get):
            said = tried(lambda call=call: call(disable_sync_subtasks=disable_sync_subtasks))  # type: ignore[misc]
            seen.append(said[1].splitlines()[0][:45] if said and said[0] == "RuntimeError" else said)
        seen.append(str(tried(result.assert_will_not_block))[:60])

    look()
    with result.denied_join_result():
        look()
        look(disable_sync_subtasks=False)
        with result.allow_join_result():
            look()
            with result.denied_join_result():
                look()
            look()
        look()
        try:
            with result.allow_join_result():
                raise LookupError
        except LookupError:
            look()
    look()
    return seen


@pytest.fixture
def sides() -> Iterator[tuple[Side, Side]]:
    """Celery and amqptasks."""
    both = Side(celery), Side(amqptasks)
    yield both
    # All of Celery's backends of this kind share one memory.
    celery.backends.cache._DUMMY_CLIENT_CACHE.clear()
    for side in both:
        side.app.close()


@pytest.mark.parametrize("name", sorted(PROGRAMS))
def test_a_program_comes_to_the_same_outcome(sides: tuple[Side, Side], name: str) -> None:
    # Given a program for handles of results / When it runs with Celery and with us
    theirs, ours = (shown(tried(lambda side=side: PROGRAMS[name](side))) for side in sides)  # type: ignore[misc]
    # Then both have seen the same
    assert ours == theirs


#: What Celery's handles have and ours do not. Written down in docs/differences.md.
ABSENT = {
    # Promises of vine, which fire in whichever thread happens to drain the backend. `then` is there.
    "on_ready",
    # The set's list is an attribute of each set.
    "results",
}
#: What is ours alone: in asyncio, as they come, with a bar; and of a set what single results have.
OURS = {
    "AsyncResult": {"aget", "leaves"},
    "EagerResult": {"aget", "leaves"},
    "ResultSet": {
        "aget", "leaves", "as_completed", "progress", "index", "as_list", "as_tuple", "children", "id", "iterdeps",
        "revoke_by_stamped_headers",
    },
    "GroupResult": {
        "aget", "leaves", "as_completed", "progress", "index", "as_list", "iterdeps", "revoke_by_stamped_headers",
    },
}  # fmt: skip


def public(kind: type) -> set[str]:
    return {name for name in dir(kind) if not name.startswith("_")}


@pytest.mark.parametrize("name", OURS)
def test_handles_have_all_that_celerys_have(name: str) -> None:
    theirs, ours = (getattr(module, name) for module in (celery.result, amqptasks.result))
    assert public(theirs) - public(ours) <= ABSENT
    assert public(ours) - public(theirs) == OURS[name]
    # And methods take the same arguments, with the same defaults and in the same places
    for method in public(theirs) & public(ours) - {"TimeoutError", "app", "throw"}:
        wanted, taken = (parameters(getattr(kind, method)) for kind in (theirs, ours))
        if "kwargs" not in taken and "options" not in taken:
            assert taken.items() >= wanted.items(), method
        for parameter in wanted.keys() & taken.keys():
            assert taken[parameter] == wanted[parameter], (method, parameter)


def parameters(method: Any) -> dict[str, Any]:
    """The parameters of a method with their defaults, and where the first ones stand."""
    if not callable(method) or isinstance(method, type):
        return {}
    found = inspect.signature(method).parameters
    return {name: each.default for name, each in found.items() if name != "self"}


def test_the_module_has_what_celerys_has() -> None:
    assert set(celery.result.__all__) <= set(amqptasks.result.__all__)
    for name in ("allow_join_result", "denied_join_result", "assert_will_not_block"):
        assert callable(getattr(amqptasks.result, name)) and callable(getattr(celery.result, name))


def test_an_app_has_the_classes_of_its_handles(sides: tuple[Side, Side]) -> None:
    for side in sides:
        result = side.app.AsyncResult("id")
        group, several = side.app.GroupResult("g", [result]), side.app.ResultSet([result])
        # The classes are those of the package, bound to the app
        assert issubclass(side.app.AsyncResult, side.result.AsyncResult)
        assert issubclass(side.app.GroupResult, side.result.GroupResult)
        assert issubclass(side.app.ResultSet, side.result.ResultSet)
        assert result.app is group.app is several.app is side.app
        assert [type(each).__name__ for each in (result, group, several)] == ["AsyncResult", "GroupResult", "ResultSet"]
        # And what a call returns is of the app's class
        task = side.app.task(family, name="tasks.family", **({"shared": False} if side.is_celery else {}))
        assert isinstance(task.AsyncResult("id"), side.app.AsyncResult)
