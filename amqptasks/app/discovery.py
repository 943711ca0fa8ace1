"""Finding things by name: objects that settings name, and the modules with tasks of a list of packages."""

from __future__ import annotations

import importlib
from collections.abc import Callable, Iterable
from types import ModuleType
from typing import Any

from amqptasks.exceptions import ImproperlyConfigured

#: Package names, or a function that returns them, to be called when they are needed.
Packages = Iterable[str] | Callable[[], Iterable[str]]


def named_object(path: str, what: str) -> Any:
    """Import what a dotted name means: ``package.module.Name`` or ``package.module:Name``.

    Raises:
        ImproperlyConfigured: There is no such thing; ``what`` says who asked for it.
    """
    module_name, colon, attribute = path.partition(":") if ":" in path else path.rpartition(".")
    try:
        found: Any = importlib.import_module(module_name) if module_name else None
        for part in attribute.split("."):
            found = getattr(found, part)
    except (ImportError, AttributeError) as error:
        raise ImproperlyConfigured(f"cannot find {path!r}, named by {what}: {error}") from error
    if found is None or not (module_name and colon):
        raise ImproperlyConfigured(f"expected {what} to name an object as package.module.Name, got: {path!r}")
    return found


def task_modules(packages: Packages, related_name: str | None) -> list[ModuleType]:
    """Import the module of this name of each package that has one; the packages themselves without a name.

    A package may also be written as the path of a class in it, as in Django's INSTALLED_APPS.

    Raises:
        ImportError: A package is not there, or something that one of the modules imports.
    """
    names = packages() if callable(packages) else packages
    if isinstance(names, str):
        raise ImproperlyConfigured(f"expected autodiscover_tasks() to get a list of packages, got: {names!r}")
    found = (_task_module(name, related_name) for name in names)
    return [module for module in found if module is not None]


def _task_module(package: str, related_name: str | None) -> ModuleType | None:
    try:
        module = importlib.import_module(package)
        if not related_name:
            return module
    except ModuleNotFoundError as error:
        parent, _, last = package.rpartition(".")
        if not parent or error.name != package or not hasattr(importlib.import_module(parent), last):
            raise
        package = parent
    name = f"{package}.{related_name}"
    try:
        return importlib.import_module(name)
    except ModuleNotFoundError as error:
        # What such a module itself imports must be there.
        if error.name == name:
            return None
        raise
