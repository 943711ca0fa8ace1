"""One task over many arguments: `xmap` and `xstarmap` in one call, `chunks` in a group of such calls.

They are calls of Celery's built-in tasks ``celery.map``, ``celery.starmap`` and ``celery.chunks``, which workers of
both kinds know.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Iterator, Mapping
from typing import Any, ClassVar

from amqptasks.canvas.group import group
from amqptasks.canvas.signature import Signature, maybe_signature
from amqptasks.exceptions import InvalidTaskError

__all__ = ["chunks", "xmap", "xstarmap"]

_SHOWN_MAX = 100


class _Mapped(Signature):
    """A call of a task over the items of ``it``. New arguments are ignored."""

    NAME: ClassVar[str]
    #: What else is said by position.
    FIELDS: ClassVar[tuple[str, ...]] = ()

    def __init__(self, task: Any, it: Iterable[Any], *more: Any, app: Any = None, **options: Any) -> None:
        called = maybe_signature(task) if isinstance(task, Mapping) else Signature(task)
        if app is None:
            app = called._app
        fields = {"task": called, "it": list(it), **dict(zip(self.FIELDS, more, strict=True))}
        own = options.pop("options", None)
        super().__init__(self.NAME, (), fields, own, immutable=True, app=app, **options)

    @classmethod
    def from_dict(cls, d: Mapping[str, Any], app: Any = None) -> Signature:
        """Make it of its plain form."""
        plain = Signature(d)
        if not isinstance(plain.kwargs.get("it"), (list, tuple)):
            raise InvalidTaskError(
                f"expected 'it' of a {cls.__name__} to be a list, got: {plain.kwargs.get('it')!r:.80}"
            )
        more = (plain.kwargs.get(name) for name in cls.FIELDS)
        return cls(maybe_signature(plain.kwargs.get("task")), plain.kwargs["it"], *more, app=app, options=plain.options)

    @classmethod
    def of_plain(cls, plain: Signature) -> Signature:
        """Make it of a call of its task that was read, if it is written as this class writes it."""
        if plain.args or plain.kwargs.keys() != {"task", "it", *cls.FIELDS}:
            return plain
        return cls.from_dict(plain, app=plain._app)

    @property
    def mapped(self) -> Signature:
        """The task that is called, as a signature."""
        task: Signature = self.kwargs["task"]
        return task

    @property
    def over(self) -> list[Any]:
        """What it is called over."""
        items: list[Any] = self.kwargs["it"]
        return items

    def apply_async(self, args: Any = None, kwargs: Any = None, **options: Any) -> Any:
        """Send it, where calls of the task itself would go."""
        options.setdefault("route_name", self.mapped.task)
        return super().apply_async(**options)

    def _shown(self) -> str:
        text = repr(self.over)
        return text if len(text) <= _SHOWN_MAX else text[: _SHOWN_MAX - 3] + "..."


@Signature.register_type()
class xmap(_Mapped):
    """``add.map([1, 2])``: one call, in which the task is called with each item in turn. Its result is the list."""

    NAME = "celery.map"

    def __repr__(self) -> str:
        return f"[{self.mapped.task}(x) for x in {self._shown()}]"


@Signature.register_type()
class xstarmap(_Mapped):
    """``add.starmap([(2, 2), (4, 4)])``: as `xmap`, with each item as the arguments."""

    NAME = "celery.starmap"

    def __repr__(self) -> str:
        return f"[{self.mapped.task}(*x) for x in {self._shown()}]"


@Signature.register_type()
class chunks(_Mapped):
    """``add.chunks(zip(range(100), range(100)), 10)``: a group of `xstarmap`, each over so many items.

    Within another canvas it is a call of ``celery.chunks``, which a worker of ours replaces by the group: its result is
    a list of lists. (A Celery worker cannot run that one.)
    """

    NAME = "celery.chunks"
    FIELDS = ("n",)

    def __call__(self, **options: Any) -> Any:
        """Send the group."""
        return self.apply_async(**options)

    def apply_async(self, args: Any = None, kwargs: Any = None, **options: Any) -> Any:
        """Send the group. Returns its `GroupResult`."""
        if self.id is not None or options.get("task_id"):
            # One with an id stands in another canvas, where somebody waits for that.
            return super().apply_async(**options)
        return self.group().apply_async(**{**self.options, **options})

    def apply(self, args: Any = None, kwargs: Any = None, **options: Any) -> Any:
        """Run the group here and now."""
        if self.id is not None or options.get("task_id"):
            return super().apply(**options)
        return self.group().apply(**{**self.options, **options})

    def group(self) -> group:
        """Return it as a group."""
        return group([xstarmap(self.mapped, part, app=self._app) for part in self._parts()], app=self._app)

    def _parts(self) -> Iterator[list[Any]]:
        size = self.kwargs["n"]
        if not isinstance(size, int) or isinstance(size, bool) or size < 1:
            raise ValueError(f"expected chunks of 1 item or more, got: {size!r:.80}")
        items = iter(self.over)
        while part := list(itertools.islice(items, size)):
            yield part


for _kind in (xmap, xstarmap, chunks):
    Signature.TASKS[_kind.NAME] = _kind.of_plain
