"""The configuration of an app: every setting validated at the door, and fast to read.

`Conf` keeps what each source says and which value wins. What the settings are stands in `settings_table.py`; reading
configuration only when it is first needed is the App's business. Hot code reads attributes: they are plain instance
attributes, rewritten whenever a source changes.
"""

from __future__ import annotations

import re
import threading
import warnings
from collections.abc import Callable, Iterator, Mapping
from types import BuiltinFunctionType, FunctionType, MethodType, ModuleType
from typing import Any, Final

from amqptasks.exceptions import ImproperlyConfigured, InvalidSetting
from amqptasks.settings_kinds import Mismatch, Setting
from amqptasks.settings_names import explain_unknown, is_near_miss, name_of_old
from amqptasks.settings_table import SETTINGS
from amqptasks.urls import MASK, mask_url

__all__ = ["ENVIRONMENT_PREFIX", "Conf", "broker_urls"]

ENVIRONMENT_PREFIX: Final = "AMQPTASKS_"

# The sources, lowest first.
_TABLE, _APP, _OBJECT, _ENVIRONMENT, _CODE, _OVERRIDE = range(6)
#: The words of `source_of` for what nobody set.
_DEFAULT: Final = "the default"

_SECRET_NAME: Final = re.compile(r"pass|pwd|secret|token|credential|(api|access|private)_?key", re.IGNORECASE)
#: Environment variables so begun are surely meant as settings; worker_, beat_, result_, control_ are commands too
_SETTING_ONLY: Final = ("broker_", "task_", "event_", "redis_", "database_", "mongodb_", "security_", "delay_", "rpc_")
#: Variables of command line options whose names resemble, or are, those of settings.
_COMMAND_OPTIONS: Final = frozenset({"beat_schedule", "worker_autoscale", "worker_statedb"})
_SHOWN_CHARACTERS: Final = 200
#: Values of names in a settings module that are no attempt at a setting: what is imported, defined, or a helper object.
_PLAIN_TYPES: Final = (str, bytes, int, float, complex, list, tuple, set, frozenset, Mapping, type(None))

_Entry = tuple[Any, str]  # a value in its final form, and its source in words


class Conf(Mapping[str, Any]):
    """The settings of one app, read and written as attributes or items under Celery's lower-case names.

    From lowest to highest these sources win: the defaults; `defaults` given here; a configuration object or module;
    the environment; what code sets; overrides from the command line. Values are checked, and brought into their final
    form, when they are set: durations are seconds, lists of names are tuples, `task_queues` is a tuple of `Queue`.

    Reading is safe from any thread and costs an attribute look-up. Writing is safe from any thread; a call with several
    settings changes all of them or, if one is wrong, none.

    Attributes:
        version: Grows with each change, for those who keep something computed from settings.

    Raises:
        InvalidSetting: From everything that writes; names the setting, the value, what was expected, and the source.
    """

    __slots__ = ("__dict__", "_announced", "_layers", "_lock", "_namespace", "version")

    version: int

    def __init__(self, defaults: Mapping[str, Any] | None = None, namespace: str | None = None) -> None:
        put = object.__setattr__
        put(self, "version", 0)
        put(self, "_namespace", namespace)
        put(self, "_lock", threading.RLock())
        put(self, "_announced", set())
        # Defaults that can be changed in place, such as {}, are each Conf's own.
        table = {
            name: (dict(setting.default) if isinstance(setting.default, dict) else setting.default, _DEFAULT)
            for name, setting in SETTINGS.items()
        }
        put(self, "_layers", (table, {}, {}, {}, {}, {}))
        self.__dict__.update({name: entry[0] for name, entry in table.items()})
        if defaults:
            self.add_defaults(defaults)

    # ---- Reading

    def __getattr__(self, name: str) -> Any:
        # Only called for what is not there: known settings are instance attributes.
        if name.startswith("_"):
            raise AttributeError(name)
        raise AttributeError(explain_unknown(name))

    def __getitem__(self, name: str) -> Any:
        try:
            return self.__dict__[name]
        except KeyError:
            raise KeyError(explain_unknown(str(name))) from None

    def __contains__(self, name: object) -> bool:
        return name in self.__dict__

    def __iter__(self) -> Iterator[str]:
        return iter(self.__dict__)

    def __len__(self) -> int:
        return len(self.__dict__)

    # One Conf is equal to itself alone, so that it can be a key, and no comparison walks 200 values.
    __hash__ = object.__hash__

    def __eq__(self, other: object) -> bool:
        return self is other

    def source_of(self, name: str) -> str:
        """Say where the value of a setting comes from, such as ``the environment variable AMQPTASKS_BROKER_URL``."""
        self[name]
        for layer in reversed(self._layers):
            if name in layer:
                return str(layer[name][1])
        return _DEFAULT

    def changed(self) -> dict[str, Any]:
        """Return the settings that some source has set, whether or not to another value than the default."""
        set_names = {name for layer in self._layers[1:] for name in list(layer)}
        return {name: self.__dict__[name] for name in SETTINGS if name in set_names}

    def without_defaults(self) -> dict[str, Any]:
        """Return what `changed` does, under Celery's name for it."""
        return self.changed()

    def table(self, with_defaults: bool = False, censored: bool = True) -> dict[str, Any]:
        """Return settings by name, for display: with `censored` as text where a secret had to be hidden."""
        chosen = dict(self.__dict__) if with_defaults else self.changed()
        if not censored:
            return chosen
        return {name: _censor(SETTINGS[name], value) for name, value in chosen.items()}

    def humanize(self, with_defaults: bool = False, censored: bool = True) -> str:
        """Return the settings as text, one a line; passwords are hidden with `censored`."""
        return "\n".join(f"{name}: {value!r}" for name, value in self.table(with_defaults, censored).items())

    def __repr__(self) -> str:
        shown = ", ".join(f"{name}={_clip(value)}" for name, value in self.table().items())
        return f"<Conf {shown or 'with defaults alone'}>"

    # ---- Writing

    def __setattr__(self, name: str, value: Any) -> None:
        self._assign(_CODE, {name: value}, "the code")

    def __setitem__(self, name: str, value: Any) -> None:
        self._assign(_CODE, {name: value}, "the code")

    def __delattr__(self, name: str) -> None:
        self.reset(name)

    def update(self, values: Mapping[str, Any] | None = None, /, **named: Any) -> None:
        """Set several settings from code."""
        self._assign(_CODE, {**(values or {}), **named}, "the code")

    def reset(self, *names: str) -> None:
        """Forget what code has set for these settings; the next lower source counts again."""
        with self._lock:
            for name in names:
                self[name]
                self._layers[_CODE].pop(name, None)
            self._settle(names)

    def add_defaults(self, values: Mapping[str, Any]) -> None:
        """Replace defaults; every other source overrides them. For what an App is made with, or a library suggests."""
        self._assign(_APP, values, "the app's defaults")

    def override(self, values: Mapping[str, Any], source: str = "the command line") -> None:
        """Set settings above all other sources. Text is read as in the environment where a setting is not text."""
        self._assign(_OVERRIDE, values, source, as_text=True)

    def load_environment(self, environ: Mapping[str, str]) -> None:
        """Take settings from variables such as ``AMQPTASKS_BROKER_URL``, in place of those taken before.

        Lists are cut at commas, mappings are JSON, ``none`` is None, an empty variable counts as not set. Variables
        that can only be meant as settings, but are none, are errors; other ``AMQPTASKS_`` variables are left alone.
        """
        entries: dict[str, _Entry] = {}
        for variable in sorted(environ):
            if not variable.startswith(ENVIRONMENT_PREFIX) or not environ[variable].strip():
                continue
            name = variable[len(ENVIRONMENT_PREFIX) :].lower()
            source = f"the environment variable {variable}"
            if name in _COMMAND_OPTIONS:
                continue
            if name in SETTINGS:
                entries[name] = (_final(name, environ[variable], source, as_text=True), source)
            elif name.startswith(_SETTING_ONLY) or is_near_miss(name):
                raise InvalidSetting(f"{explain_unknown(name)}, from {source}")
        self._replace(_ENVIRONMENT, entries)

    def load_object(
        self,
        obj: Any,
        namespace: str | None = None,
        silent: bool = False,
        *,
        on_top: bool = False,
        named_by: str = "",
    ) -> bool:
        """Take settings from a module, a class, any object with attributes, a mapping, or the dotted name of one.

        They replace those of the object loaded before. With a namespace, such as ``CELERY``, only names like
        ``CELERY_TASK_ROUTES`` count. Without one, names that begin with an underscore or are upper case, and what was
        imported or defined there (modules, functions, classes, helper objects), are not settings; other names must be.

        Args:
            silent: If a dotted name leads nowhere, return False instead of raising `ImproperlyConfigured`.
            on_top: Keep what the object loaded before says of other settings.
            named_by: Where a dotted name was found, for the error.
        """
        if isinstance(obj, str):
            found = _find(obj)
            if found is None:
                if silent:
                    return False
                raise ImproperlyConfigured(
                    f"there is no configuration module {obj!r}{named_by and f', named by {named_by}'}: expected a "
                    f"module that can be imported from here, or 'module:name'; check the spelling, the working "
                    f"directory and sys.path"
                )
            obj = found
        source = _describe(obj)
        values = _candidates(obj, namespace or self._namespace, source)
        entries = {name: (_final(name, value, source), source) for name, value in values.items()}
        self._replace(_OBJECT, {**self._layers[_OBJECT], **entries} if on_top else entries)
        return True

    # ---- Within

    def _assign(self, layer: int, values: Mapping[str, Any], source: str, as_text: bool = False) -> None:
        entries = {name: (_final(name, value, source, as_text), source) for name, value in values.items()}
        with self._lock:
            self._layers[layer].update(entries)
            self._settle(entries)
        self._announce(entries)

    def _replace(self, layer: int, entries: dict[str, _Entry]) -> None:
        with self._lock:
            names = {*self._layers[layer], *entries}
            self._layers[layer].clear()
            self._layers[layer].update(entries)
            self._settle(names)
        self._announce(entries)

    def _settle(self, names: Any) -> None:
        """Write the winning values of these settings where reading finds them. The lock is held."""
        for name in names:
            for layer in reversed(self._layers):
                if name in layer:
                    self.__dict__[name] = layer[name][0]
                    break
        object.__setattr__(self, "version", self.version + 1)

    def _announce(self, entries: Mapping[str, _Entry]) -> None:
        """Warn, once for each setting, of those that do nothing."""
        for name, (value, source) in entries.items():
            setting = SETTINGS[name]
            if setting.since == "now" or name in self._announced or _same(value, setting.default):
                continue
            self._announced.add(name)
            if setting.since == "later":
                what = "has no effect yet"
            else:
                what = f"has no effect in amqptasks: {setting.doc[0].lower()}{setting.doc[1:].rstrip('.')}"
            # The caller of the public method that called _assign or _replace.
            warnings.warn(f"setting {name!r} {what} (from {source})", UserWarning, stacklevel=4)


def broker_urls(conf: Conf, side: str = "broker_url") -> tuple[str, ...]:
    """Return the broker URLs to try, in turn, as they were written. They hold passwords: show them by `mask_url`.

    ``side`` names the setting of the URLs for reading or for writing; where that is not set, `broker_url` is for both.
    If no `broker_url` is set but Celery's old `broker_host` and its kind are, the URL is made of those.
    """
    given = conf[side]
    if given is None:
        given, side = conf.broker_url, "broker_url"
    parts = (conf.broker_host, conf.broker_port, conf.broker_user, conf.broker_password, conf.broker_vhost)
    if conf.source_of(side) == _DEFAULT and any(part is not None for part in parts):
        return (_url_of_parts(*parts),)
    return tuple(url.strip() for part in ([given] if isinstance(given, str) else given) for url in _split_urls(part))


def _split_urls(text: str) -> list[str]:
    return [url for url in text.split(";") if url.strip()]


def _url_of_parts(host: str | None, port: int | None, user: str | None, password: str | None, vhost: str | None) -> str:
    from urllib.parse import quote

    login = quote(user or "guest", safe="")
    if password is not None:
        login += f":{quote(password, safe='')}"
    where = f"{host or 'localhost'}:{port}" if port is not None else host or "localhost"
    # Celery's spelling: the virtual host "/" makes the URL end in two slashes.
    return f"amqp://{login}@{where}/{'/' if vhost in (None, '/') else quote(vhost or '', safe='')}"


# ---- Values


def _final(name: Any, value: Any, source: str, as_text: bool = False) -> Any:
    """Return a value in its final form, or say what is wrong with it."""
    setting = SETTINGS.get(name) if isinstance(name, str) else None
    if setting is None:
        raise InvalidSetting(f"{explain_unknown(str(name))}, from {source}")
    convert: Callable[[Any], Any] = setting.kind.convert
    if as_text and isinstance(value, str):
        convert = setting.kind.convert_text
    try:
        return convert(value)
    except Mismatch as error:
        hint = f"; {error}" if str(error) else ""
        raise InvalidSetting(
            f"expected {name} to be {setting.kind.expects}, got: {_clip(_censor(setting, value))}{hint} (from {source})"
        ) from None


def _same(value: Any, default: Any) -> bool:
    try:
        return bool(value == default)
    except Exception:
        # A user's object may refuse to be compared, as arrays do. Then it is no default.
        return False


def _clip(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= _SHOWN_CHARACTERS else f"{text[:_SHOWN_CHARACTERS]}…"


def _censor(setting: Setting, value: Any) -> Any:
    """Return a value without its secrets."""
    if setting.secret and value is not None:
        return MASK
    return _censor_within(value, setting.kind.is_url)


def _censor_within(value: Any, is_url: bool) -> Any:
    if isinstance(value, (str, bytes)):
        # Elsewhere than in a URL, "a: b@c" is no login.
        looks_like_url = is_url or ("://" in value if isinstance(value, str) else b"://" in value)
        return mask_url(value) if looks_like_url else value
    if isinstance(value, Mapping):
        return {
            key: MASK if isinstance(key, str) and _SECRET_NAME.search(key) and part else _censor_within(part, is_url)
            for key, part in value.items()
        }
    if type(value) in (list, tuple, set, frozenset):
        return type(value)(_censor_within(part, is_url) for part in value)
    return value


# ---- Configuration objects


def _find(dotted: str) -> Any:
    """Import what a dotted name says: ``module``, ``module:name`` or ``module.name``. None if it is not there."""
    import importlib

    def import_module(path: str) -> ModuleType | None:
        try:
            return importlib.import_module(path)
        except ModuleNotFoundError as error:
            # Missing is the module asked for, or a package above it; anything else is the module's own trouble.
            if error.name is not None and (path == error.name or path.startswith(f"{error.name}.")):
                return None
            raise

    path, colon, attribute = dotted.partition(":")
    if not colon:
        module = import_module(path) if path and not path.startswith(".") else None
        if module is not None or "." not in path:
            return module
        path, _, attribute = path.rpartition(".")
    found: Any = import_module(path) if path and not path.startswith(".") else None
    for part in filter(None, attribute.split(".")):
        found = getattr(found, part, None)
    return found


def _describe(obj: Any) -> str:
    if isinstance(obj, ModuleType):
        return f"module {obj.__name__}"
    if isinstance(obj, type):
        return f"class {obj.__module__}.{obj.__qualname__}"
    if isinstance(obj, Mapping):
        return "a mapping"
    return f"an object of class {type(obj).__module__}.{type(obj).__qualname__}"


def _candidates(obj: Any, namespace: str | None, source: str) -> dict[str, Any]:
    """Return the names and values of an object that are meant as settings; what is surely misspelt is an error."""
    is_mapping = isinstance(obj, Mapping)
    prefix = f"{namespace.rstrip('_')}_" if namespace else ""
    found: dict[str, Any] = {}
    for full_name in obj if is_mapping else dir(obj):
        if prefix and not str(full_name).upper().startswith(prefix.upper()):
            continue
        if not is_mapping and full_name.startswith("_"):
            continue
        # Read only now: with a namespace, the object's other attributes are none of our business.
        value = obj[full_name] if is_mapping else getattr(obj, full_name)
        name = full_name[len(prefix) :].lower() if prefix else full_name
        if name in SETTINGS:
            found[name] = value
        elif is_mapping and not prefix:
            found[name] = value  # A mapping holds settings alone: `_final` says what is wrong with this one.
        elif (prefix and full_name.isupper()) or not _is_own(name, value):
            # What bears the namespace can only be meant as a setting, whatever its value is.
            remedy = "" if prefix else "; a name of your own begins with an underscore"
            shown = f"{explain_unknown(name)}{f' ({full_name})' if prefix else ''}"
            raise InvalidSetting(f"{shown}, from {source}{remedy}")
    if type(obj).__module__ == "django.conf" and getattr(obj, "TIME_ZONE", None):
        # As in Celery, a Django project's time zone is that of its tasks.
        found.setdefault("timezone", obj.TIME_ZONE)
    return found


def _is_own(name: str, value: Any) -> bool:
    """Tell whether a name in a settings module is the user's own business."""
    if name.startswith("_") or isinstance(value, (ModuleType, FunctionType, BuiltinFunctionType, MethodType, type)):
        return True
    if name_of_old(name) is not None:
        return False
    return name.isupper() or not isinstance(value, _PLAIN_TYPES)
