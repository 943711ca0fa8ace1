"""How large, how full and how deep a body may be, checked before any of it is decoded.

A decoder builds objects far larger than the bytes they came from (8 MB of empty maps become 600 MB of Python objects),
and a deeply nested body can exhaust the C stack. So the bytes are looked at first: a cheap upper bound lets nearly
every body pass in under a microsecond, and only what exceeds that bound is scanned exactly.
"""

from __future__ import annotations

import re
from dataclasses import dataclass

from amqptasks.exceptions import DecodeError

__all__ = ["DEFAULT_LIMITS", "Limits", "check_counts", "check_json", "check_msgpack", "check_size"]


@dataclass(frozen=True, slots=True)
class Limits:
    """The bounds of a body that will be decoded; one beyond any of them is refused with `DecodeError`."""

    #: Bytes, after decompression.
    max_bytes: int = 16 * 1024 * 1024
    #: Lists and maps in the whole body.
    max_items: int = 1_000_000
    #: Lists and maps inside one another.
    max_depth: int = 100


DEFAULT_LIMITS = Limits()


def check_size(body: bytes, limits: Limits) -> None:
    """Refuse a body of too many bytes."""
    if len(body) > limits.max_bytes:
        raise DecodeError(f"the body has {len(body)} bytes, at most {limits.max_bytes} are allowed")


def check_counts(items: int, depth: int, limits: Limits) -> None:
    """Refuse a body in which so many lists and maps were opened, so many of them inside one another."""
    if items > limits.max_items:
        raise _too_many(limits)
    if depth > limits.max_depth:
        raise _too_deep(limits)


def _too_many(limits: Limits) -> DecodeError:
    return DecodeError(f"the body holds more lists and maps than the {limits.max_items} allowed")


def _too_deep(limits: Limits) -> DecodeError:
    return DecodeError(f"the body nests lists and maps deeper than the {limits.max_depth} levels allowed")


# ---- JSON

_NOT_STRUCTURE = bytes(byte for byte in range(256) if byte not in b'"[]{}')
_NOT_BRACKETS = bytes(byte for byte in range(256) if byte not in b"[]{}")
# Splitting makes an object per quote; in pieces of this size a body made of quotes costs a few MB, not hundreds.
_CHUNK = 65536
_OPENING = frozenset(b"[{")


def check_json(body: bytes, limits: Limits) -> None:
    """Refuse a JSON body with too many or too deeply nested lists and maps. Malformed JSON may pass.

    Brackets inside strings do not count.
    """
    at_most = body.count(b"[") + body.count(b"{")
    if at_most <= limits.max_depth and at_most <= limits.max_items:
        return
    brackets = _brackets_outside_strings(body)
    if brackets.count(b"[") + brackets.count(b"{") > limits.max_items:
        raise _too_many(limits)
    depth = 0
    for bracket in brackets:
        if bracket in _OPENING:
            depth += 1
            if depth > limits.max_depth:
                raise _too_deep(limits)
        else:
            depth -= 1
            if depth < 0:
                raise DecodeError("malformed JSON: a bracket closes what none has opened")


def _brackets_outside_strings(body: bytes) -> bytes:
    # A run of backslashes loses its pairs first, so that a quote is escaped exactly if one backslash is left before it.
    # Up to the first syntax error, where a decoder stops, this sees what the decoder sees.
    bare = body.replace(b"\\\\", b"").replace(b'\\"', b"").translate(None, _NOT_STRUCTURE)
    outside: list[bytes] = []
    in_string = 0
    for start in range(0, len(bare), _CHUNK):
        pieces = bare[start : start + _CHUNK].split(b'"')
        outside.append(b"".join(pieces[in_string::2]))
        in_string = (in_string + len(pieces) - 1) % 2
    return b"".join(outside).translate(None, _NOT_BRACKETS)


# ---- msgpack: https://github.com/msgpack/msgpack/blob/master/spec.md

_NOT_CONTAINERS = bytes(byte for byte in range(256) if not (0x80 <= byte <= 0x9F or 0xDC <= byte <= 0xDF))
# Values of one byte: small integers, nil, false, true, the empty map and list. Runs of them are taken in one step.
_ONE_BYTE_VALUES = re.compile(rb"[\x00-\x80\x90\xc0\xc2\xc3\xe0-\xff]+")
#: First byte → bytes of the whole value, for values of a fixed size: floats, integers, fixext.
_FIXED = {
    0xCA: 5, 0xCB: 9, 0xCC: 2, 0xCD: 3, 0xCE: 5, 0xCF: 9, 0xD0: 2, 0xD1: 3, 0xD2: 5, 0xD3: 9,
    0xD4: 3, 0xD5: 4, 0xD6: 6, 0xD7: 10, 0xD8: 18,
}  # fmt: skip
#: First byte → (bytes of the length field, bytes beside the data): bin, ext, str.
_COUNTED = {
    0xC4: (1, 0), 0xC5: (2, 0), 0xC6: (4, 0), 0xC7: (1, 1), 0xC8: (2, 1), 0xC9: (4, 1),
    0xD9: (1, 0), 0xDA: (2, 0), 0xDB: (4, 0),
}  # fmt: skip
#: First byte → (bytes of the length field, values per entry): array, map.
_CONTAINERS = {0xDC: (2, 1), 0xDD: (4, 1), 0xDE: (2, 2), 0xDF: (4, 2)}
_POINTER_BYTES = 8


def check_msgpack(body: bytes, limits: Limits) -> None:
    """Refuse a msgpack body with too many or too deeply nested lists and maps, or lists that promise more than follows.

    The decoder reserves 8 bytes for each element that a list promises, so nested empty promises of a few bytes
    each would reserve gigabytes.
    """
    at_most = len(body.translate(None, _NOT_CONTAINERS))
    reserved_at_most = at_most * len(body) * _POINTER_BYTES
    if at_most <= limits.max_depth and at_most <= limits.max_items and reserved_at_most <= limits.max_bytes:
        return
    _scan_msgpack(body, limits)


def _scan_msgpack(body: bytes, limits: Limits) -> None:
    end = len(body)
    position = opened = 0
    missing = 1  # values that the innermost container still lacks; the body itself is one value
    outer: list[int] = []
    while True:
        while not missing:
            if not outer:
                return  # whatever follows is refused by the decoder
            missing = outer.pop()
        if position >= end:
            raise DecodeError("malformed msgpack: the body ends before all that it promises")
        run = _ONE_BYTE_VALUES.match(body, position, min(end, position + missing))
        if run is not None:
            missing -= run.end() - position
            position = run.end()
            containers = run.group().count(b"\x80") + run.group().count(b"\x90")
            values = None
        else:
            missing -= 1
            position, values = _step(body, position)
            containers = 0 if values is None else 1
        opened += containers
        check_counts(opened, len(outer) + 1 if containers else 0, limits)
        if values is None:
            continue
        outer.append(missing)
        missing = values


def _step(body: bytes, position: int) -> tuple[int, int | None]:
    """The position after one value or one container's head, and how many values the container holds."""
    head = body[position]
    if 0xA0 <= head <= 0xBF:
        return position + 1 + (head & 0x1F), None
    if 0x90 <= head <= 0x9F:
        return position + 1, head & 0x0F
    if 0x80 <= head <= 0x8F:
        return position + 1, 2 * (head & 0x0F)
    if head in _FIXED:
        return position + _FIXED[head], None
    if head in _COUNTED:
        width, beside = _COUNTED[head]
        start = position + 1 + width
        return start + beside + int.from_bytes(body[position + 1 : start], "big"), None
    if head in _CONTAINERS:
        width, per_entry = _CONTAINERS[head]
        start = position + 1 + width
        return start, per_entry * int.from_bytes(body[position + 1 : start], "big")
    raise DecodeError(f"malformed msgpack: the byte 0x{head:02x} begins no value")
