"""Values to bodies and back: JSON, msgpack, and by the user's leave YAML and pickle.

Called for every task, by whoever sends and by the process that runs it. Whatever bytes arrive, `loads` answers with a
value or a `DecodeError`. What the reader would refuse, the writer refuses too, so that it fails where it is sent:

- numbers: JSON refuses NaN and infinities, and numbers that overflow to one (1e999). msgpack carries them as they are.
- integers: JSON up to 4,300 digits, msgpack up to 64 bits.
- text: must be writable as UTF-8, so no lone surrogates; NUL characters pass. Bodies are UTF-8 whatever
  ``content_encoding`` says.
- keys: JSON makes text of numbers, True, False and None, as Celery does; msgpack refuses them. Of equal keys the last
  one wins.
- tuples arrive as lists; typed values (datetime, Decimal, UUID, bytes, …) as in `amqptasks.wire.typed`.
- msgpack extension types are refused, but for the standard timestamp, which arrives as an aware datetime.

Registering takes effect for the whole process.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from amqptasks.exceptions import ContentDisallowed, DecodeError, EncodeError, ImproperlyConfigured
from amqptasks.wire.binding import SIGNED_NAME
from amqptasks.wire.limits import DEFAULT_LIMITS, Limits, check_counts, check_json, check_msgpack, check_size
from amqptasks.wire.typed import MARK, check_lookalikes, from_typed, to_typed

__all__ = [
    "DEFAULT_LIMITS", "Limits", "Serializer", "accepted", "advise", "by_name", "dumps", "explain_unencodable",
    "find_unencodable", "loads", "register", "unregister",
]  # fmt: skip


@dataclass(frozen=True, slots=True)
class Serializer:
    """One format: its name in settings, its MIME type on the wire, and the two functions.

    ``loads`` must not run code from the wire. Both may raise any Exception; callers of this module see it as an
    `EncodeError` or a `DecodeError`.
    """

    name: str
    content_type: str
    content_encoding: str
    dumps: Callable[[Any], bytes]
    loads: Callable[[bytes], Any]


# ---- JSON


def _refuse_constant(name: str) -> Any:
    raise ValueError(f"{name} is not JSON")


def _finite(digits: str) -> float:
    number = float(digits)
    if number - number != 0.0:  # only an infinity differs from itself so; math.isfinite takes twice the time
        raise ValueError(f"the number {digits[:40]} is too large")
    return number


# As many as the interpreter itself takes since 3.10.7; before, a long integer took quadratic time.
_MAX_DIGITS = 4300
_LONG_NUMBER = b"0" * (_MAX_DIGITS + 1)
_DIGITS_TO_ZERO = bytes(0x30 if 0x30 <= byte <= 0x39 else byte for byte in range(256))


def _bounded_int(digits: str) -> int:
    if len(digits) > _MAX_DIGITS:
        raise ValueError(f"an integer of {len(digits)} characters, at most {_MAX_DIGITS} are allowed")
    return int(digits)


# Plain UTF-8 rather than \u escapes: a lone surrogate then fails to encode here, not in whatever reads it.
# Cycles need no bookkeeping of their own: they end in the RecursionError that deep nesting ends in.
_encode_json = json.JSONEncoder(
    ensure_ascii=False, allow_nan=False, check_circular=False, separators=(",", ":"), default=to_typed
).encode
# raw_decode takes half the time of decode, which searches for white space at both ends with regular expressions.
_plain = json.JSONDecoder(parse_float=_finite, parse_constant=_refuse_constant).raw_decode
_typed = json.JSONDecoder(object_hook=from_typed, parse_float=_finite, parse_constant=_refuse_constant).raw_decode
_long = json.JSONDecoder(parse_float=_finite, parse_constant=_refuse_constant, parse_int=_bounded_int).raw_decode
_JSON_SPACE = " \t\n\r"


def _json_dumps(value: Any) -> bytes:
    text = _encode_json(value)
    if '"__type__"' in text:
        check_lookalikes(value)
    return text.encode("utf-8")


def _json_loads(body: bytes) -> Any:
    text = body.decode("utf-8")
    if text[:1] in _JSON_SPACE:
        text = text.lstrip(_JSON_SPACE)
    if b"\\ud" in body or b"\\uD" in body:
        # Escaped surrogates: pairs are fine (kombu writes so), a lone one cannot be written as UTF-8.
        _encode_json(_plain(text)[0]).encode("utf-8")
    if len(body) > _MAX_DIGITS and _LONG_NUMBER in body.translate(_DIGITS_TO_ZERO):
        _long(text)
    value, end = _typed(text) if MARK in body else _plain(text)
    if end != len(text) and text[end:].strip(_JSON_SPACE):
        raise ValueError(f"more follows the value at character {end}")
    return value


# ---- msgpack. Imported at the first use: importing the package must stay cheap.


def _refuse_ext(code: int, data: bytes) -> Any:
    raise ValueError(f"extension type {code} is not known")


def _msgpack_dumps(value: Any) -> bytes:
    import msgpack

    body: bytes = msgpack.packb(value, default=to_typed)
    # The packer takes keys that readers refuse, Celery's too: reading it back is the cheapest way to know.
    msgpack.unpackb(body, ext_hook=_refuse_ext)
    if MARK in body:
        check_lookalikes(value)
    return body


def _msgpack_loads(body: bytes) -> Any:
    import msgpack

    hook = from_typed if MARK in body else None
    # Timestamps as aware datetimes (3). Keys must be text or bytes: integers can be chosen to collide.
    return msgpack.unpackb(body, object_hook=hook, ext_hook=_refuse_ext, timestamp=3, strict_map_key=True)


# ---- YAML and pickle: only for those who list them in accept_content


def _yaml() -> Any:
    try:
        import yaml  # type: ignore[import-untyped, unused-ignore]
    except ImportError:
        raise ImproperlyConfigured("the serializer 'yaml' needs the package PyYAML: pip install PyYAML") from None
    return yaml


def _yaml_dumps(value: Any) -> bytes:
    yaml = _yaml()
    # Written out in full wherever it stands: the reader refuses aliases.
    dumper = type("Dumper", (yaml.SafeDumper,), {"ignore_aliases": lambda *_: True})
    body: bytes = yaml.dump(value, Dumper=dumper, encoding="utf-8", allow_unicode=True)
    return body


def _yaml_loads(body: bytes) -> Any:
    return _yaml().safe_load(body)


def _check_yaml(body: bytes, limits: Limits) -> None:
    yaml = _yaml()
    opened = depth = 0
    # The scanner's time grows with the square of the depth, so the limit is watched while it runs.
    for event in yaml.parse(body, Loader=yaml.SafeLoader):
        if isinstance(event, yaml.CollectionStartEvent):
            opened += 1
            depth += 1
            check_counts(opened, depth, limits)
        elif isinstance(event, yaml.CollectionEndEvent):
            depth -= 1
        elif isinstance(event, yaml.AliasEvent):
            # It costs three bytes and can stand for any size: nine lines of them outgrow any memory when walked.
            raise DecodeError("YAML aliases are not accepted")


def _pickle_dumps(value: Any) -> bytes:
    import pickle

    return pickle.dumps(value, protocol=4)


def _pickle_loads(body: bytes) -> Any:
    import pickle

    return pickle.loads(body)  # runs code by its nature; reached only if accept_content lists it


# ---- the registry

_JSON = Serializer("json", "application/json", "utf-8", _json_dumps, _json_loads)
_MSGPACK = Serializer("msgpack", "application/x-msgpack", "binary", _msgpack_dumps, _msgpack_loads)
_YAML = Serializer("yaml", "application/x-yaml", "utf-8", _yaml_dumps, _yaml_loads)
_PICKLE = Serializer("pickle", "application/x-python-serialize", "binary", _pickle_dumps, _pickle_loads)

_by_name: dict[str, Serializer] = {known.name: known for known in (_JSON, _MSGPACK, _YAML, _PICKLE)}
_by_type: dict[str, Serializer] = {known.content_type: known for known in _by_name.values()}
#: By MIME type, so that they also hold for another library that someone registers for the same format.
_CHECKS: Mapping[str, Callable[[bytes, Limits], None]] = {
    _JSON.content_type: check_json,
    _MSGPACK.content_type: check_msgpack,
    _YAML.content_type: _check_yaml,
}


def register(
    name: str,
    dumps: Callable[[Any], bytes | str],
    loads: Callable[[bytes], Any],
    content_type: str,
    content_encoding: str = "utf-8",
) -> None:
    """Make a format known by a name and a MIME type, in place of any that has either.

    ``dumps`` may also return a text, which is sent as UTF-8. Bodies of the format are read only where
    ``accept_content`` lists it.
    """
    if name in _by_name:
        unregister(name)

    def to_bytes(value: Any) -> bytes:
        body = dumps(value)
        return body.encode("utf-8") if isinstance(body, str) else body

    serializer = Serializer(name, content_type, content_encoding, to_bytes, loads)
    _by_name[name] = serializer
    _by_type[content_type] = serializer


def unregister(name: str) -> None:
    """Forget a format. Raises ImproperlyConfigured if there is none of that name."""
    serializer = by_name(name)
    del _by_name[serializer.name]
    if _by_type.get(serializer.content_type) is serializer:
        del _by_type[serializer.content_type]


def by_name(name: str) -> Serializer:
    """The format of that name; raises ImproperlyConfigured, with the nearest name, if there is none."""
    serializer = _by_name.get(name) if isinstance(name, str) else None
    if serializer is None:
        if name == SIGNED_NAME:
            raise ImproperlyConfigured("the serializer 'auth' is not set up: call app.setup_security() first")
        raise ImproperlyConfigured(f"no serializer named {name!r}, expected {_known_names(name)}")
    return serializer


def _known_names(name: Any) -> str:
    import difflib

    known = f"one of {', '.join(sorted(_by_name))}"
    near = difflib.get_close_matches(str(name), _by_name, n=1)
    return f"{known} (did you mean {near[0]!r}?)" if near else known


def accepted(names: Iterable[str]) -> frozenset[str]:
    """The MIME types that a list of names and MIME types stands for: what `loads` takes as ``accept``.

    Raises ImproperlyConfigured for a name that is not known. A MIME type is taken as it is.
    """
    if isinstance(names, str):
        raise ImproperlyConfigured(f"expected a list of serializers to accept, got the text {names!r}")
    return frozenset(name if isinstance(name, str) and "/" in name else by_name(name).content_type for name in names)


# ---- writing


def dumps(value: Any, name: str, limits: Limits | None = None) -> tuple[str, str, bytes]:
    """Serialize a value; gives its content type, its content encoding and the body.

    With ``limits``, what a reader with the same limits would refuse is refused here.

    Raises:
        EncodeError: The format cannot carry the value, or the body is beyond a limit. The message says where.
        ImproperlyConfigured: There is no serializer of that name.
    """
    serializer = by_name(name)
    try:
        body = serializer.dumps(value)
        if limits is not None:
            check_size(body, limits)
            check = _CHECKS.get(serializer.content_type)
            if check is not None:
                check(body, limits)
    except ImproperlyConfigured:
        raise
    except DecodeError as error:
        raise EncodeError(f"its reader would refuse the value: {error}") from error
    except Exception as error:
        where = _find(value, "the value", serializer.dumps, _FIND_DEPTH) or f"the value: {_reason(error)}"
        raise EncodeError(advise(serializer.name, where)) from error
    return serializer.content_type, serializer.content_encoding, body


def explain_unencodable(args: Sequence[Any], kwargs: Mapping[str, Any], name: str) -> str:
    """Say which argument of a call the serializer cannot carry, and why.

    Such as ``json cannot carry argument 2 of args: …`` or ``… kwargs['when']['at']: …``, with what to do about it.
    For the way out after `dumps` has raised: it encodes every argument again.
    """
    where = find_unencodable(args, kwargs, name)
    return advise(name, where or "the options of the call (its callbacks, chain or headers)")


def find_unencodable(args: Sequence[Any], kwargs: Mapping[str, Any], name: str) -> str | None:
    """Return which argument of a call the serializer cannot carry, and why; None if it can carry all of them."""
    encode = by_name(name).dumps
    for position, value in enumerate(args, 1):
        where = _find(value, f"argument {position} of args", encode, _FIND_DEPTH)
        if where is not None:
            return where
    return _find(kwargs, "kwargs", encode, _FIND_DEPTH)


_FIND_DEPTH = 100


def advise(name: str, where: str) -> str:
    """Say that a serializer cannot carry something, and what to do about it."""
    return f"{name} cannot carry {where}. Pass plain data, or name another serializer that can carry it."


def _reason(error: Exception) -> str:
    try:
        text = str(error)
    except Exception:  # an error of the user's own making; its kind must do
        text = "its text cannot be shown"
    return f"{type(error).__name__}: {_shown(text)}"


def _shown(text: str) -> str:
    # Bounded, and nothing in it that a terminal or a log would take for more than text.
    return text[:300].encode("unicode_escape").decode("ascii")


def _find(value: Any, path: str, encode: Callable[[Any], bytes], levels: int) -> str | None:
    """Follow a value to the innermost part that fails to encode: its path and the reason; None if all is well."""
    try:
        encode(value)
        return None
    except Exception as error:
        reason = _reason(error)
    if levels == 0:
        return f"{path[:200]}…: it refers to itself, or is nested deeper than {_FIND_DEPTH} levels"
    parts: Iterable[tuple[str, Any]] = ()
    if isinstance(value, dict):
        parts = ((f"{path}[{_key(key)}]", part) for key, part in value.items())
    elif isinstance(value, (list, tuple)):
        parts = ((f"{path}[{index}]", part) for index, part in enumerate(value))
    for part_path, part in parts:
        found = _find(part, part_path, encode, levels - 1)
        if found is not None:
            return found
    kind = type(value)
    return f"{path}, a {kind.__module__}.{kind.__qualname__}: {reason}"


def _key(key: Any) -> str:
    return ascii(key)[:60] if isinstance(key, (str, int, float, bytes)) else f"a key of type {type(key).__name__}"


# ---- reading


def loads(
    body: bytes,
    content_type: str,
    content_encoding: str | None,
    accept: frozenset[str],
    limits: Limits = DEFAULT_LIMITS,
) -> Any:
    """Read a body that may come from anyone.

    ``content_encoding`` is not consulted, as in kombu: each format here fixes its own.

    Raises:
        ContentDisallowed: ``accept`` does not list the content type. The body was not looked at.
        DecodeError: The body is beyond a limit, malformed, or holds what is not carried. Nothing else is raised.
    """
    if not isinstance(content_type, str) or content_type not in accept:
        raise ContentDisallowed(
            f"refused a body of content type {_shown(ascii(content_type)[:100])}, accepted are "
            f"{', '.join(sorted(accept)) or 'none'}. To accept it, list its serializer in accept_content."
        )
    serializer = _by_type.get(content_type)
    if serializer is None:
        raise DecodeError(f"no serializer is registered for content type {content_type!r}, though it is accepted")
    check_size(body, limits)
    try:
        check = _CHECKS.get(content_type)
        if check is not None:
            check(body, limits)
        return serializer.loads(body)
    except DecodeError:
        raise
    except Exception as error:
        problem = _reason(error)
    # Raised out here without a cause on purpose: decoders' errors hold on to the whole body.
    raise DecodeError(f"cannot read the {len(body)} bytes of {serializer.name}: {problem}")
