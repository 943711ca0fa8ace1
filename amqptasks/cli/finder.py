"""Finds the app that ``-A`` names, by the rules Celery's users know, and says what is wrong when there is none."""

from __future__ import annotations

import difflib
import importlib
import os
import sys
import traceback
from pathlib import Path
from types import ModuleType

from amqptasks.app.app import App
from amqptasks.exceptions import AmqptasksError, ImproperlyConfigured

__all__ = ["find_app"]

#: Attributes and submodules looked at, in this order, when only a module or package is named.
ATTRIBUTES = ("app", "celery", "amqptasks")
SUBMODULES = ("celery", "amqptasks", "app")


def find_app(name: str) -> App:
    """Return the app: ``module:attribute``, ``package.module.attribute``, or a module or package that holds it.

    In a module its attributes ``app``, ``celery`` and ``amqptasks`` come first, then (in a package) its submodules
    ``celery``, ``amqptasks`` and ``app``, then the one `App` it holds under any name. The working directory is
    importable.

    Raises:
        ImproperlyConfigured: There is no such module, it cannot be imported, or it holds no app.
    """
    name = name.strip()
    directory = os.getcwd()
    if directory not in sys.path:
        sys.path.insert(0, directory)
    if name.endswith(".py") or os.sep in name:
        dotted = ".".join(Path(name.removesuffix(".py")).parts)
        raise ImproperlyConfigured(f"-A takes the name of a module, not of a file: -A {dotted}")
    module_name, colon, attribute = name.partition(":")
    if colon:
        return _checked(_follow(_import(module_name), attribute, name), name)
    parent, _, last = name.rpartition(".")
    module = _import_if_there(name)
    if module is not None:
        return _search(module, name)
    if parent:
        holder = _import_if_there(parent)
        if holder is not None:
            return _checked(_follow(holder, last, name), name)
    raise _missing(name)


def _search(module: ModuleType, name: str) -> App:
    for attribute in ATTRIBUTES:
        found = getattr(module, attribute, None)
        if isinstance(found, App):
            return found
    if hasattr(module, "__path__"):
        for submodule in SUBMODULES:
            inner = _import_if_there(f"{name}.{submodule}")
            if inner is not None:
                for attribute in ATTRIBUTES:
                    found = getattr(inner, attribute, None)
                    if isinstance(found, App):
                        return found
    apps: dict[int, tuple[str, App]] = {}
    for attribute, found in vars(module).items():
        if isinstance(found, App):
            apps.setdefault(id(found), (attribute, found))
    if len(apps) == 1:
        return next(iter(apps.values()))[1]
    if apps:
        choices = ", ".join(f"-A {name}:{attribute}" for attribute, _app in apps.values())
        raise ImproperlyConfigured(f"module {name!r} holds several apps; say which: {choices}")
    raise ImproperlyConfigured(
        f"module {name!r} ({_place(module)}) holds no app: expected an amqptasks.App "
        f"under the name 'app', or -A module:attribute"
    )


def _follow(module: ModuleType, attribute: str, name: str) -> object:
    found: object = module
    for part in attribute.split("."):
        if not hasattr(found, part):
            near = difflib.get_close_matches(part, [each for each in vars(module) if not each.startswith("_")], n=1)
            hint = f" (did you mean {near[0]!r}?)" if near else ""
            raise ImproperlyConfigured(
                f"module {module.__name__!r} ({_place(module)}) has no attribute {part!r}{hint}, given as -A {name}"
            )
        found = getattr(found, part)
    return found


def _checked(found: object, name: str) -> App:
    if isinstance(found, App):
        return found
    if isinstance(found, ModuleType):
        return _search(found, found.__name__)
    raise ImproperlyConfigured(
        f"expected -A {name} to name an amqptasks.App, got: {type(found).__module__}.{type(found).__qualname__}"
    )


def _import(name: str) -> ModuleType:
    module = _import_if_there(name)
    if module is None:
        raise _missing(name)
    return module


def _import_if_there(name: str) -> ModuleType | None:
    """Import a module; None if there is none of that name (a module that *it* misses is an error)."""
    try:
        return importlib.import_module(name)
    except ModuleNotFoundError as error:
        if error.name is not None and (name == error.name or name.startswith(error.name + ".")):
            return None
        raise _broken(name, error) from error
    except AmqptasksError:
        raise
    except (Exception, SystemExit) as error:
        raise _broken(name, error) from error


def _broken(name: str, error: BaseException) -> ImproperlyConfigured:
    place = ""
    if isinstance(error, SyntaxError) and error.filename:
        return ImproperlyConfigured(f"module {name!r} cannot be imported: {type(error).__name__}: {error}")
    frames = [frame for frame in traceback.extract_tb(error.__traceback__) if not _is_machinery(frame.filename)]
    if frames:
        place = f" at {frames[-1].filename}:{frames[-1].lineno}"
    return ImproperlyConfigured(
        f"module {name!r} cannot be imported: {type(error).__name__}: {error}{place} "
        f"(--traceback shows the whole way there)"
    )


def _is_machinery(filename: str) -> bool:
    return filename == __file__ or "importlib" in filename


def _missing(name: str) -> ImproperlyConfigured:
    first, *rest = name.split(".")
    directory = Path(os.getcwd())
    if rest and (directory / first).is_dir():
        names = {each.stem for each in (directory / first).iterdir() if each.suffix == ".py"}
        near = [f"{first}.{each}" for each in difflib.get_close_matches(rest[0], names, n=1)]
    else:
        names = {
            each.stem
            for each in directory.iterdir()
            if each.suffix == ".py" or (each.is_dir() and (each / "__init__.py").exists())
        }
        near = difflib.get_close_matches(first, names, n=1)
    hint = f" (did you mean {near[0]!r}?)" if near and near[0] != name else ""
    return ImproperlyConfigured(
        f"no module named {name!r}{hint}, given as -A {name}; looked in {directory} and on sys.path"
    )


def _place(module: ModuleType) -> str:
    return str(getattr(module, "__file__", None) or "built in")
