"""How an app's settings come together: which module or object, what libraries suggest, the environment, the code."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from typing import Any, Final, NamedTuple

from amqptasks.exceptions import ImproperlyConfigured
from amqptasks.settings import Conf

__all__ = ["CONFIG_MODULE_VARIABLE", "Source", "Suggestion", "assignments", "from_variable", "make_conf"]

#: Names the settings module of an app that was given none.
CONFIG_MODULE_VARIABLE: Final = "AMQPTASKS_CONFIG_MODULE"

#: Defaults that a library suggests: settings by name, or a function that returns them.
Suggestion = Mapping[str, Any] | Callable[[], Mapping[str, Any]]


class Source(NamedTuple):
    """A settings module or object that is still to be read.

    Attributes:
        obj: The object, or the dotted name of one.
        silent: A name that leads nowhere is no error.
        named_by: Who gave the name, for the error.
    """

    obj: Any
    silent: bool = False
    named_by: str = ""

    def load_into(self, conf: Conf, namespace: str | None) -> bool:
        """Read it. Tells whether it was there.

        Raises:
            ImproperlyConfigured: It is not there, or holds what is no setting.
        """
        return conf.load_object(self.obj, namespace=namespace, silent=self.silent, named_by=self.named_by)


def from_variable(variable: str, environ: Mapping[str, str], silent: bool = False) -> Source | None:
    """Return the module that an environment variable names; None if it names none and that is fine.

    Raises:
        ImproperlyConfigured: The variable is not set, or empty, and this is not ``silent``.
    """
    name = environ.get(variable, "").strip()
    if name:
        return Source(name, silent, f"the environment variable {variable}")
    if silent:
        return None
    raise ImproperlyConfigured(
        f"the environment variable {variable} is not set: expected the name of a settings module in it, such as "
        f'{variable}="proj.celeryconfig"'
    )


def make_conf(
    source: Source | None,
    namespace: str | None,
    suggested: Iterable[Suggestion],
    given: Mapping[str, Any],
    environ: Mapping[str, str],
) -> Conf:
    """Read every source of settings there is.

    Args:
        source: The app's module or object; None: the one that ``AMQPTASKS_CONFIG_MODULE`` names, if any.
        suggested: Defaults to replace ours, the last one winning.
        given: What the app was made with. An operator's environment beats it, as with Celery.
    """
    conf = Conf(namespace=namespace)
    for each in suggested:
        conf.add_defaults(each() if callable(each) else each)
    if source is None and environ.get(CONFIG_MODULE_VARIABLE, "").strip():
        source = from_variable(CONFIG_MODULE_VARIABLE, environ)
    if source is not None:
        source.load_into(conf, namespace)
    conf.load_environment(environ)
    conf.update({key: value for key, value in given.items() if f"AMQPTASKS_{key.upper()}" not in environ})
    return conf


def assignments(arguments: Iterable[str], namespace: str = "worker") -> dict[str, str]:
    """Read ``SETTING=VALUE`` in Celery's spellings: ``worker.pool=solo`` and ``.pool=solo`` are ``worker_pool``.

    Args:
        namespace: What stands before a name that begins with a dot.

    Raises:
        ImproperlyConfigured: An argument is no such thing.
    """
    found: dict[str, str] = {}
    for argument in arguments:
        name, equals, value = argument.partition("=")
        name = name.strip().lower().replace(".", "_")
        if not equals or not name.isidentifier():
            raise ImproperlyConfigured(f"expected SETTING=VALUE, got: {argument!r:.200}")
        found[namespace + name if name.startswith("_") else name] = value
    return found
