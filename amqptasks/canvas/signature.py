"""One call of a task as plain data: what to call, with what, and what follows.

A `Signature` is a dict with Celery's keys, so it travels in messages as it is. How calls are composed is said by
`canvas/chain.py`, `group.py` and `chord.py`, which register their types here; sending is the app's business, of which
the canvas sees only the `Sender` protocol.
"""

from __future__ import annotations

import types
from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Any, ClassVar, TypeAlias, TypeVar

from amqptasks.canvas.parts import as_list, begins_chord, checked, new_id
from amqptasks.canvas.sending import expect_answer
from amqptasks.canvas.stamps import stamped
from amqptasks.exceptions import InvalidTaskError
from amqptasks.results.context import default_app

__all__ = ["Signature", "maybe_signature", "signature", "signatures"]

S = TypeVar("S", bound="Signature")
# Signature has an attribute named type, which hides the builtin from annotations in its body.
Kind: TypeAlias = "type[Signature]"

# A string from a nested call is cut to this in a repr.
_REPR_MAX = 1024


class Signature(dict[str, Any]):
    """A call of one task: ``{task, args, kwargs, options, subtask_type, immutable}``.

    Calling it, or `delay`, puts new arguments before the stored ones; an immutable one ignores them.

    Args:
        task: A task, a task's name, or a dict that is a signature already (the other arguments are then ignored).
        options: What `apply_async` takes; `ex` is merged into it.
        app: What sends it; the task's app, or the current one, unless given.

    Raises:
        InvalidTaskError: A dict is not a signature.
    """

    TYPES: ClassVar[dict[str, Kind]] = {}
    #: Calls of these tasks are more than calls, though their plain form does not say so: what makes them that.
    TASKS: ClassVar[dict[str, Callable[[Any], Any]]] = {}
    # Changing them would keep the tasks that wait for this one from ever being told.
    _KEPT_OPTIONS: ClassVar[frozenset[str]] = frozenset({"group_id", "stamped_headers"})

    _app: Any = None
    _type: Any = None

    #: So that ``Signature[int]`` can be written in annotations.
    __class_getitem__: ClassVar[Any] = classmethod(types.GenericAlias)

    def __init__(
        self, task: Any = None, args: Any = None, kwargs: Any = None, options: Any = None, type: Any = None,
        subtask_type: str | None = None, immutable: bool = False, app: Any = None, **ex: Any,
    ) -> None:  # fmt: skip
        if isinstance(task, Mapping):
            super().__init__(checked(task))
            self._app = app
            return
        name = getattr(task, "name", None)
        if isinstance(name, str):
            self._type = task if type is None else type
            self._app = getattr(task, "app", None) if app is None else app
        else:
            name, self._type, self._app = task, type, app
        super().__init__(
            task=name, args=tuple(args or ()), kwargs=kwargs or {}, options={**(options or {}), **ex},
            subtask_type=subtask_type, immutable=immutable,
        )  # fmt: skip

    @classmethod
    def register_type(cls, name: str | None = None) -> Any:
        """Decorate a class of signatures, so that dicts of that ``subtask_type`` become its instances."""

        def register(kind: Any) -> Any:
            cls.TYPES[name or kind.__name__] = kind
            return kind

        return register

    @classmethod
    def from_dict(cls, d: Mapping[str, Any], app: Any = None) -> Signature:
        """Make a signature of its plain form, as the class its ``subtask_type`` names.

        Raises:
            InvalidTaskError: It is not a signature, or of a type that is not registered here.
        """
        if isinstance(d, Mapping) and not d.get("subtask_type"):
            plain = Signature(d, app=app)
            special = cls.TASKS.get(plain.task)
            return plain if special is None else special(plain)
        name = checked(d)["subtask_type"]
        kind = cls.TYPES.get(name)
        if kind is None:
            raise InvalidTaskError(
                f"the call of {d.get('task')!r:.80} is of the type {name!r:.80}, which is not registered here (known: "
                f"{', '.join(sorted(cls.TYPES))}); decorate its class with Signature.register_type()"
            )
        return Signature(d, app=app) if kind is cls else kind.from_dict(d, app=app)

    # -- the fields

    @property
    def task(self) -> str:
        """The task's name."""
        name: str = self["task"]
        return name

    @property
    def name(self) -> str:
        """Another name of `task`, so that a signature can stand for a task."""
        return self.task

    @property
    def args(self) -> Any:
        """The stored arguments."""
        return self["args"]

    @args.setter
    def args(self, args: Any) -> None:
        self["args"] = args

    @property
    def kwargs(self) -> dict[str, Any]:
        """The stored keyword arguments."""
        kwargs: dict[str, Any] = self["kwargs"]
        return kwargs

    @kwargs.setter
    def kwargs(self, kwargs: dict[str, Any]) -> None:
        self["kwargs"] = kwargs

    @property
    def options(self) -> dict[str, Any]:
        """The stored options of `apply_async`."""
        options: dict[str, Any] = self["options"]
        return options

    @options.setter
    def options(self, options: dict[str, Any]) -> None:
        self["options"] = options

    @property
    def subtask_type(self) -> str | None:
        """``chain``, ``group``, ``chord``; None for a call of one task."""
        return self.get("subtask_type")

    @property
    def immutable(self) -> bool:
        """Whether it ignores new arguments."""
        return bool(self.get("immutable"))

    @immutable.setter
    def immutable(self, immutable: bool) -> None:
        self["immutable"] = immutable

    @property
    def id(self) -> str | None:
        """The task's id, once frozen."""
        return self.options.get("task_id")

    @property
    def parent_id(self) -> str | None:
        """The id of the task that starts it."""
        return self.options.get("parent_id")

    @property
    def root_id(self) -> str | None:
        """The id of the task that everything began with."""
        return self.options.get("root_id")

    @property
    def app(self) -> Any:
        """What sends it: its own app, else that of a call in it, else the current one."""
        app = self._known_app()
        return default_app(f"the call {self!r}") if app is None else app

    def _known_app(self) -> Any:
        if self._app is not None:
            return self._app
        return next((app for each in self._calls() if (app := each._known_app()) is not None), None)

    def _calls(self) -> Iterable[Any]:
        """The calls that it consists of."""
        return ()

    @property
    def type(self) -> Any:
        """The task; KeyError if it is not registered here."""
        return self.app.tasks[self["task"]] if self._type is None else self._type

    # -- calling

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        """Run the task here and now, with the new arguments before the stored ones."""
        args_, kwargs_, _ = self._merge(args, kwargs)
        return self.type(*args_, **kwargs_)

    def delay(self, *args: Any, **kwargs: Any) -> Any:
        """Send it, with the new arguments before the stored ones. Returns the result's handle."""
        return self.apply_async(args, kwargs)

    def apply_async(self, args: Any = None, kwargs: Any = None, **options: Any) -> Any:
        """Send it, with these arguments before the stored ones and these options over the stored ones.

        An option that is None is as if it were not given.

        Raises:
            OperationalError: The broker did not take it; see `amqptasks.exceptions`.
        """
        options = {key: value for key, value in options.items() if value is not None}
        args_, kwargs_, merged = self._merge(args, kwargs, options)
        task = self._type if self._type is not None else self.app.tasks.get(self["task"])
        if task is None:
            return self.app.send_task(self["task"], args=args_, kwargs=kwargs_, **merged)
        return task.apply_async(args_, kwargs_, **merged)

    def apply(self, args: Any = None, kwargs: Any = None, **options: Any) -> Any:
        """Run it here and now as a worker would, with these arguments before the stored ones.

        Returns an `EagerResult`. KeyError if the task is not registered here.
        """
        options = {key: value for key, value in options.items() if value is not None}
        args_, kwargs_, merged = self._merge(args, kwargs, options)
        return self.type.apply(args_, kwargs_, **merged)

    async def adelay(self, *args: Any, **kwargs: Any) -> Any:
        """Do as `delay`, from an asyncio program."""
        return await self.aapply_async(args, kwargs)

    async def aapply_async(self, args: Any = None, kwargs: Any = None, **options: Any) -> Any:
        """Do as `apply_async`, from an asyncio program; the event loop goes on while the broker confirms."""

        def send() -> Any:
            return self.apply_async(args, kwargs, **options)

        if self.subtask_type is not None and begins_chord(self):
            # Its header must wait for the confirm of what counts it: in a thread, so that nobody else does.
            import asyncio

            return await asyncio.to_thread(send)
        return await self.app.asend(send, options)

    def __invert__(self) -> Any:
        """Send it and wait for its result."""
        return self.apply_async().get()

    def _merge(
        self, args: Any = None, kwargs: Any = None, options: Mapping[str, Any] | None = None, force: bool = False
    ) -> tuple[Any, dict[str, Any], dict[str, Any]]:
        mine = self.options
        if options:
            kept = self._KEPT_OPTIONS.union(mine.get("stamped_headers") or ())
            mine = {**mine, **{k: v for k, v in options.items() if k not in kept or k not in mine}}
        if self.immutable and not force:
            return self.args, self.kwargs, mine
        return (
            (*args, *self.args) if args else self.args,
            {**self.kwargs, **kwargs} if kwargs else self.kwargs,
            mine,
        )

    # -- changing

    def clone(self, args: Any = None, kwargs: Any = None, **options: Any) -> Any:
        """Return a copy, with these arguments before the stored ones and these options over the stored ones."""
        args_, kwargs_, merged = self._merge(args, kwargs, options)
        copy = type(self).__new__(type(self))
        dict.__init__(copy, self)
        copy["args"] = tuple(args_)
        copy["kwargs"] = dict(kwargs_)
        copy["options"] = {key: _copied(value) for key, value in merged.items()}
        copy._app = self._app
        copy._type = self._type
        return copy

    partial = clone

    def replace(self, args: Any = None, kwargs: Any = None, options: Any = None) -> Any:
        """Return a copy with the parts that are given in the place of the stored ones."""
        copy = self.clone()
        if args is not None:
            copy["args"] = args
        if kwargs is not None:
            copy["kwargs"] = kwargs
        if options is not None:
            copy["options"] = options
        return copy

    def set(self: S, immutable: bool | None = None, **options: Any) -> S:
        """Store options, such as ``queue`` or ``countdown``, and return self."""
        if immutable is not None:
            self.set_immutable(immutable)
        self.options.update(options)
        return self

    def set_immutable(self, immutable: bool) -> None:
        """Say whether new arguments are to be ignored."""
        self["immutable"] = immutable

    def link(self, callback: Any) -> Any:
        """Have a call made with the result when this one succeeds. Returns it."""
        return self._append_option("link", callback)

    def link_error(self, errback: Any) -> Any:
        """Have a call made with the id of the task when this one fails. Returns it."""
        return self._append_option("link_error", errback)

    def on_error(self: S, errback: Any) -> S:
        """Do as `link_error`, and return self."""
        self.link_error(errback)
        return self

    def _append_option(self, key: str, value: Any) -> Any:
        items = self.options[key] = as_list(self.options.get(key))
        if value not in items:
            items.append(value)
        return value

    def stamp(self, visitor: Any = None, append_stamps: bool = False, **headers: Any) -> Any:
        """Mark it, and what follows it, with headers: ``call.stamp(tenant="acme")``. Returns self.

        Args:
            visitor: A `StampingVisitor` that says what each part is marked with, beside `headers`.
            append_stamps: Of a mark that is there already make a list of both, instead of keeping one.
        """
        self.stamp_links(visitor, append_stamps, **headers)
        seen = None if visitor is None else visitor.on_signature(self, **headers) or {}
        self.options.update(stamped(headers, seen, append_stamps, self.options))
        return self

    def stamp_links(self, visitor: Any, append_stamps: bool = False, **headers: Any) -> None:
        """Mark what is linked to it: its callbacks and its errbacks."""
        for key, hook in (("link", "on_callback"), ("link_error", "on_errback")):
            if key not in self.options:
                continue
            self.options[key] = links = [maybe_signature(each, app=self._app) for each in as_list(self.options[key])]
            marks = dict(headers)
            for each in links:
                seen = None if visitor is None else getattr(visitor, hook)(each, **marks) or {}
                marks = stamped(marks, seen, append_stamps)
                each.stamp(visitor, append_stamps, **marks)

    def flatten_links(self) -> list[Any]:
        """Return this call and all that follow its success, theirs included."""
        found: list[Any] = [self]
        for callback in as_list(self.options.get("link")):
            found.extend(maybe_signature(callback).flatten_links())
        return found

    def freeze(
        self, _id: str | None = None, group_id: str | None = None, chord: Any = None, root_id: str | None = None,
        parent_id: str | None = None, group_index: int | None = None,
    ) -> Any:  # fmt: skip
        """Give the call its id now, and return its result's handle. Sent twice, it is then one task twice."""
        options = self.options
        task_id = options.setdefault("task_id", _id or new_id())
        if root_id:
            options["root_id"] = root_id
        if parent_id:
            options["parent_id"] = parent_id
        if group_id:
            options.setdefault("group_id", group_id)
        if group_index is not None:
            options["group_index"] = group_index
        if chord:
            options["chord"] = chord
        app = self.app
        result = app.AsyncResult(task_id)
        if self._ignores_result():
            result.ignored = True
        elif "reply_to" not in options:
            # Whoever sends it, perhaps a worker after the step before: its answer comes here.
            reply_to = expect_answer(app, task_id)
            if reply_to is not None:
                options["reply_to"] = reply_to
        return result

    def _ignores_result(self) -> bool:
        ignore = self.options.get("ignore_result")
        if ignore is None:
            task = self._type if self._type is not None else self.app.tasks.get(self["task"])
            ignore = getattr(task, "ignore_result", False)
        return bool(ignore)

    # -- composing

    def __or__(self, other: Any) -> Any:
        """Have `other` run after this one, with its result."""
        if not isinstance(other, Signature):
            if isinstance(other, Mapping):
                # Which would merge this call into itself.
                raise TypeError("unsupported operand for |: a dict is made a call by signature(…)")
            return NotImplemented
        return self.TYPES["chain"].joined(self, other)  # type: ignore[attr-defined]

    def __ror__(self, other: Any) -> Any:
        """Refuse to be merged into a dict. (Type checkers would take dict's own for what ``call | group`` is.)"""
        return NotImplemented

    def __ior__(self, other: Any) -> Any:
        """Compose, as ``|`` does: a signature is no dict to be merged into."""
        return self.__or__(other)

    # -- showing and copying

    def reprcall(self, *args: Any, **kwargs: Any) -> str:
        """Return the call as text, such as ``add(2, 2)``, with these arguments before the stored ones."""
        args_, kwargs_, _ = self._merge(args, kwargs, None, force=True)
        shown = [repr(arg)[:_REPR_MAX] for arg in args_]
        shown += [f"{key}={repr(value)[:_REPR_MAX]}" for key, value in kwargs_.items()]
        return f"{self['task']}({', '.join(shown)})"

    def __repr__(self) -> str:
        return self.reprcall()

    def __deepcopy__(self, memo: Any) -> Any:
        return self.clone()

    def __reduce__(self) -> tuple[Any, ...]:
        # The app and the task stay behind: whoever reads it has its own.
        return signature, (dict(self),)


def signature(varies: Any, *args: Any, **kwargs: Any) -> Any:
    """Make a signature of a task, of a task's name, or of a dict; copy one that is a signature already.

    Raises:
        InvalidTaskError: A dict is not a signature.
    """
    if isinstance(varies, Signature):
        return varies.clone()
    if isinstance(varies, Mapping):
        return Signature.from_dict(varies, app=kwargs.get("app"))
    return Signature(varies, *args, **kwargs)


def maybe_signature(d: Any, app: Any = None, clone: bool = False) -> Any:
    """Make sure that `d` is a signature, bound to `app` if one is given. None stays None.

    Raises:
        InvalidTaskError: It is neither, nor a dict that is a signature.
    """
    if d is None:
        return None
    if isinstance(d, Signature):
        d = d.clone() if clone else d
    else:
        d = Signature.from_dict(d, app=app)
    if app is not None:
        d._app = app
    return d


def signatures(calls: Any, app: Any) -> Iterator[Signature]:
    """Make each of several calls, in whatever form, a signature.

    Raises:
        InvalidTaskError: One is no call.
    """
    for call in calls:
        if call is None:
            raise InvalidTaskError("expected a call to be a map, got: None")
        yield maybe_signature(call, app=app if getattr(call, "_app", None) is None else None)


def _copied(value: Any) -> Any:
    """Copy an option as deep as the canvas changes it: lists of calls, and the calls in them."""
    if isinstance(value, Signature):
        return value.clone()
    if isinstance(value, list):
        return [_copied(item) for item in value]
    return value
