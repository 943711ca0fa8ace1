"""Pydantic models as arguments and return values of tasks: ``@app.task(pydantic=True)``.

The caller may pass models, which travel as plain data; the worker validates what it gets and passes models to the
function; a model that is returned travels back as plain data. pydantic is imported with the first such task.
"""

from __future__ import annotations

import functools
import inspect
import types
import typing
from collections.abc import Callable, Mapping
from typing import Any

from amqptasks.exceptions import ImproperlyConfigured

_POSITIONAL = (inspect.Parameter.POSITIONAL_ONLY, inspect.Parameter.POSITIONAL_OR_KEYWORD)
_BY_NAME = (inspect.Parameter.POSITIONAL_OR_KEYWORD, inspect.Parameter.KEYWORD_ONLY)


class Models:
    """What the annotations of one function say about models.

    Args:
        bind: The function gets the task as its first argument.
        strict: Validate without converting, as pydantic's ``strict``.
        context: For validators; ``celery_app`` and ``celery_task_name`` are added, under Celery's names.
        dump_kwargs: For ``model_dump``; ``mode="json"`` unless it says otherwise.

    Raises:
        ImproperlyConfigured: pydantic is not installed.
    """

    def __init__(
        self, app: Any, function: Callable[..., Any], name: str, bind: bool, strict: bool,
        context: Mapping[str, Any] | None, dump_kwargs: Mapping[str, Any] | None,
    ) -> None:  # fmt: skip
        try:
            from pydantic import BaseModel
        except ModuleNotFoundError as error:
            raise ImproperlyConfigured(
                f"task {name!r} was made with pydantic=True, and pydantic is not installed: pip install 'pydantic>=2'"
            ) from error
        self._base: Any = BaseModel
        self._function = function
        self._strict = strict
        self._context = {**(context or {}), "celery_app": app, "celery_task_name": name}
        self._dump_kwargs = {"mode": "json", **(dump_kwargs or {})}
        self._signature = inspect.signature(function)
        parameters = list(self._signature.parameters.values())
        positional = [each.name for each in parameters if each.kind in _POSITIONAL]
        self._bound = bind
        self._positional = positional[1:] if bind else positional
        self._by_name = {each.name for each in parameters if each.kind in _BY_NAME}
        #: The models by argument, with "return"; found at the first use, when all names of the module are there.
        self._models: dict[str, Any] | None = None

    # -- in the worker

    def wrapped(self) -> Callable[..., Any]:
        """Return the function, with `call` around it; an ``async def`` function if it is one."""
        if inspect.iscoroutinefunction(self._function):

            @functools.wraps(self._function)
            async def acall(*args: Any, **kwargs: Any) -> Any:
                bound = self._bind(args, kwargs)
                return self._dump_returned(await self._function(*bound.args, **bound.kwargs))

            return acall

        @functools.wraps(self._function)
        def call(*args: Any, **kwargs: Any) -> Any:
            return self.call(*args, **kwargs)

        return call

    def call(self, *args: Any, **kwargs: Any) -> Any:
        """Call the function with models made of its arguments, and return plain data if it returns its model.

        Raises:
            pydantic.ValidationError: An argument is not what its model says.
        """
        bound = self._bind(args, kwargs)
        return self._dump_returned(self._function(*bound.args, **bound.kwargs))

    def _bind(self, args: Any, kwargs: Any) -> inspect.BoundArguments:
        bound = self._signature.bind(*args, **kwargs)
        models = self._known()
        for name, value in bound.arguments.items():
            model = models.get(name)
            if model is not None and not (value is None and model[1]):
                bound.arguments[name] = self._validated(model[0], value)
        return bound

    def _dump_returned(self, returned: Any) -> Any:
        model = self._known().get("return")
        if model is not None and isinstance(returned, model[0]):
            return returned.model_dump(**self._dump_kwargs)
        return returned

    # -- at the caller

    def dump_arguments(self, args: Any, kwargs: Any) -> tuple[Any, Any]:
        """Return the arguments with plain data in the place of models.

        A model is only replaced where the worker will make an equal one of it; any other is left to the serializer,
        which says what is wrong with it.
        """
        given = (*(args or ()), *(kwargs or {}).values())
        if not any(isinstance(value, self._base) for value in given):
            return args, kwargs
        try:
            self._signature.bind(*([None] if self._bound else []), *(args or ()), **(kwargs or {}))
        except TypeError:
            # typing=False: the worker will say what it thinks of them.
            return args, kwargs
        names: list[str | None] = [*self._positional, *([None] * len(given))]
        dumped = tuple(self._dumped(name, value) for name, value in zip(names, args or (), strict=False))
        named = {
            key: self._dumped(key if key in self._by_name else None, value) for key, value in (kwargs or {}).items()
        }
        return dumped, named

    def _dumped(self, name: str | None, value: Any) -> Any:
        model = self._known().get(name) if name is not None and isinstance(value, self._base) else None
        if model is None:
            return value
        try:
            plain = value.model_dump(**self._dump_kwargs)
            # A subclass of the model, for instance, would not come back as what it is.
            return plain if self._validated(model[0], plain) == value else value
        except Exception:
            # The model's own code runs here, and some of it may only work in a worker.
            return value

    def _validated(self, model: Any, value: Any) -> Any:
        return model.model_validate(value, strict=self._strict, context=self._context)

    # -- annotations

    def _known(self) -> dict[str, Any]:
        """Return (model, whether None is allowed) by argument."""
        models = self._models
        if models is None:
            try:
                hints = typing.get_type_hints(self._function)
            except (NameError, AttributeError, TypeError):
                # A name that exists for type checkers alone: what is no text still counts.
                hints = dict(getattr(self._function, "__annotations__", {}))
            found = {name: self._model(annotation) for name, annotation in hints.items()}
            models = self._models = {name: model for name, model in found.items() if model is not None}
        return models

    def _model(self, annotation: Any) -> tuple[Any, bool] | None:
        optional = False
        if typing.get_origin(annotation) in (typing.Union, types.UnionType):
            members = [each for each in typing.get_args(annotation) if each is not type(None)]
            optional = len(members) == 1 and len(typing.get_args(annotation)) == 2
            if optional:
                annotation = members[0]
        if isinstance(annotation, type) and typing.get_origin(annotation) is None:
            return (annotation, optional) if issubclass(annotation, self._base) else None
        return None
