"""What single results and sets of them have in common: their plain form, their family tree, and orders about them.

Nothing here knows how a result is asked; `results/handles.py` does, for single ones, and `results/sets.py` for several.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections import deque
from collections.abc import Callable, Iterator, Mapping
from functools import cached_property
from typing import TYPE_CHECKING, Any

from amqptasks.exceptions import IncompleteStream, ResultUnreachable
from amqptasks.results.awaiting import Awaited
from amqptasks.results.backend import ResultBackend
from amqptasks.results.context import default_app

if TYPE_CHECKING:
    from amqptasks.results.callbacks import Promise
    from amqptasks.results.graph import DependencyGraph, GraphFormatter

__all__ = ["Callback", "Look", "OnMessage", "ResultBase", "Tree"]

Look = Callable[[], Any]
Callback = Callable[[str, Any], Any]
OnMessage = Callable[[dict[str, Any]], Any]


class ResultBase(Awaited, ABC):
    """What single results and sets of them have in common."""

    id: str | None = None
    #: The result of the step before, for a step of a chain.
    parent: ResultBase | None = None

    @abstractmethod
    def get(self, *args: Any, **kwargs: Any) -> Any:
        """Wait until it is finished, and return its value or raise its error."""

    @abstractmethod
    def ready(self) -> bool:
        """Whether it is finished, well or not."""

    @abstractmethod
    def successful(self) -> bool:
        """Whether it finished well."""

    @abstractmethod
    def failed(self) -> bool:
        """Whether it failed."""

    @abstractmethod
    def maybe_throw(self, propagate: bool = True, callback: Callback | None = None) -> Any:
        """Raise its error if it is known to have failed."""

    @property
    @abstractmethod
    def children(self) -> list[Any] | None:
        """The results below it."""

    @property
    @abstractmethod
    def backend(self) -> ResultBackend:
        """The backend that is asked."""

    @abstractmethod
    def leaves(self) -> Iterator[Any]:
        """Yield the single results it consists of."""

    # -- its plain form

    @abstractmethod
    def _tuple_below(self, parent: Any) -> tuple[Any, Any]:
        """Its plain form, below a parent's plain form."""

    def as_tuple(self) -> tuple[Any, Any]:
        """Return the plain form that `result_from_tuple` reads: ``((id, parent), children or None)``."""
        plain = None
        for node in reversed(list(self._ancestors())):
            plain = node._tuple_below(plain)
        return self._tuple_below(plain)

    def as_list(self) -> list[str]:
        """Return this id and those of the steps before it."""
        return [node.id for node in (self, *self._ancestors()) if node.id is not None]

    # -- the tree

    def iterdeps(self, intermediate: bool = False) -> Iterator[tuple[ResultBase | None, ResultBase]]:
        """Walk this and everything it started, as (parent, node), level by level.

        Raises:
            IncompleteStream: A node is not finished, and `intermediate` is false.
        """
        queue: deque[tuple[ResultBase | None, ResultBase]] = deque([(None, self)])
        while queue:
            parent, node = queue.popleft()
            yield parent, node
            if node.ready():
                queue.extend((node, child) for child in node.children or ())
            elif not intermediate:
                raise IncompleteStream(f"the children of {node!r} are not known yet: it is not finished")

    def _ancestors(self) -> Iterator[ResultBase]:
        # A loop, not recursion: a chain may be longer than the stack is deep.
        node = self.parent
        while node is not None:
            yield node
            node = node.parent

    # -- orders

    def then(
        self, callback: Callable[[Any], Any], on_error: Callable[[BaseException], Any] | None = None, weak: bool = False
    ) -> Promise:
        """Call something once this is finished, without waiting for it here.

        At once and here, if that is known already; otherwise on a thread that the process keeps for such calls, one
        after another: one that takes long keeps the others waiting. What a call raises is logged. Calls that have not
        come when the program ends are not made.

        Args:
            callback: Called with this. Also if it failed, unless there is `on_error`.
            on_error: Called with the exception of the first task that failed, or of a result that can never be seen.
            weak: Accepted because Celery has it; without effect.

        Returns:
            A promise: its own ``then`` adds a call that gets what `callback` returned.

        Raises:
            ResultUnreachable: This process can never see the result.
            NoResultBackend: The app keeps no results.
        """
        del weak
        for leaf in self.leaves():
            if leaf.ignored:
                raise ResultUnreachable(f"task {leaf.id} ignores its result, so nobody will learn when it is finished")
        from amqptasks.results.callbacks import call_when_finished

        return call_when_finished(self, callback, on_error)

    def forget(self) -> None:
        """Drop what is known of this, and of the steps before it in a chain, those of a group's members too."""
        seen: set[int] = set()
        nodes: list[ResultBase] = [self]
        while nodes:
            node = nodes.pop()
            if id(node) not in seen:
                seen.add(id(node))
                node._forget()
                nodes += node._members()
                if node.parent is not None:
                    nodes.append(node.parent)

    def _members(self) -> list[Any]:
        """The results that this consists of, itself not among them."""
        return []

    def _forget(self) -> None:
        """Drop what is known of this alone."""

    def revoke(
        self, connection: None = None, terminate: bool = False, signal: str | None = None, wait: bool = False,
        timeout: float | None = None,
    ) -> None:  # fmt: skip
        """Keep the tasks from running; see `Control.revoke`. It returns when RabbitMQ has the order.

        Args:
            terminate: End those that run now.
            signal: With which signal, where the pool has processes; SIGTERM unless given.
            connection, wait, timeout: Accepted because Celery has them; without effect.
        """
        leaves = list(self.leaves())
        if leaves:
            self._app_of(leaves[0]).control.revoke([each.id for each in leaves], terminate=terminate, signal=signal)

    @staticmethod
    def _app_of(result: Any) -> Any:
        return getattr(result, "app", None) or default_app(f"the result of task {result.id}")

    def revoke_by_stamped_headers(
        self, headers: Mapping[str, Any], connection: None = None, terminate: bool = False, signal: str | None = None,
        wait: bool = False, timeout: float | None = None,
    ) -> None:  # fmt: skip
        """Keep all tasks with one of these stamps from running; see `Control.revoke_by_stamped_headers`.

        Args:
            headers: Names of stamps, and a value or a list of values for each.
            terminate, signal, connection, wait, timeout: As for `revoke`.
        """
        self._app_of(self).control.revoke_by_stamped_headers(headers, terminate=terminate, signal=signal)


class Tree(ResultBase):
    """What a result has that others hang below: walks that gather values, and drawings."""

    def collect(self, intermediate: bool = False, **kwargs: Any) -> Iterator[tuple[ResultBase, Any]]:
        """Walk like `iterdeps`, as (result, value); `kwargs` go to each `get`."""
        for _, node in self.iterdeps(intermediate=intermediate):
            yield node, node.get(**kwargs)

    def get_leaf(self) -> Any:
        """Return the value of the last task that `iterdeps` comes to."""
        value = None
        for _, node in self.iterdeps():
            value = node.get()
        return value

    @cached_property
    def graph(self) -> DependencyGraph:
        """What this started, as a graph of results; made once it is asked for.

        Raises:
            IncompleteStream: Not all of it is finished; see `build_graph`.
        """
        return self.build_graph()

    def build_graph(self, intermediate: bool = False, formatter: GraphFormatter | None = None) -> DependencyGraph:
        """Draw what this started as a graph of results. Its ``to_dot(file)`` writes it for Graphviz.

        Raises:
            IncompleteStream: A node is not finished, and `intermediate` is false.
        """
        from amqptasks.results.graph import DependencyGraph, GraphFormatter

        graph = DependencyGraph(formatter=formatter or GraphFormatter(root=self.id, shape="oval"))
        for parent, node in self.iterdeps(intermediate=intermediate):
            graph.add_arc(node)
            if parent is not None:
                graph.add_edge(parent, node)
        return graph
