"""Counting the parts of Celery's chords in Redis, in Celery 5.7's keys, so that workers of both kinds can share one.

Each part adds its result once, whoever runs it again; whoever adds the last has the chord, and keeps it: its name stays
under the chord's claim, so that nobody else begins the body, and so that it may do so again itself if it was ended
between counting and sending.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Final

from amqptasks.results.payload import Payloads

__all__ = ["ChordTimes", "add_part", "begin_chord", "count_part", "read_parts"]

#: How long results stay after the last one was counted: whoever was ended then may count again. Seconds.
AFTERWARDS_S: Final = 3600

# KEYS: results, extra parts, size, who was counted, claim, the saved group. ARGV: task id, result, is ordered, index,
# seconds to keep, seconds to keep the group, seconds to claim, our name, seconds afterwards.
# The answer: whether the chord is complete and ours.
COUNT: Final = b"""
if redis.call('GET', KEYS[5]) == 'done' then
    return 0
end
if redis.call('SADD', KEYS[4], ARGV[1] .. ':' .. ARGV[4]) == 1 then
    if ARGV[3] == '1' then
        redis.call('ZADD', KEYS[1], ARGV[4], ARGV[2])
    else
        redis.call('RPUSH', KEYS[1], ARGV[2])
    end
end
local counted
if ARGV[3] == '1' then
    counted = redis.call('ZCARD', KEYS[1])
else
    counted = redis.call('LLEN', KEYS[1])
end
if tonumber(ARGV[5]) > 0 then
    for place = 1, 4 do
        redis.call('EXPIRE', KEYS[place], ARGV[5])
    end
    if tonumber(ARGV[6]) > 0 then
        redis.call('EXPIRE', KEYS[6], ARGV[6])
    end
end
local size = redis.call('GET', KEYS[3])
if not size or counted ~= tonumber(size) + tonumber(redis.call('GET', KEYS[2]) or 0) then
    return 0
end
if redis.call('GET', KEYS[5]) ~= ARGV[8] and not redis.call('SET', KEYS[5], ARGV[8], 'NX', 'EX', ARGV[7]) then
    return 0
end
for place = 1, 4 do
    redis.call('EXPIRE', KEYS[place], ARGV[9])
end
return 1
"""
COUNT_NAME: Final = hashlib.sha1(COUNT, usedforsecurity=False).hexdigest()

# KEYS: extra parts, who was counted. ARGV: what tells this part from others added. Celery looks for other names there.
ADD: Final = b"""
if redis.call('SADD', KEYS[2], 'added:' .. ARGV[1]) == 1 then
    redis.call('INCR', KEYS[1])
end
return 1
"""
ADD_NAME: Final = hashlib.sha1(ADD, usedforsecurity=False).hexdigest()

#: Runs a script: its source, its name, keys and arguments.
Run = Callable[[bytes, str, list[bytes], list[Any]], Any]


@dataclass(frozen=True, slots=True)
class ChordTimes:
    """How long parts of chords are kept, and how.

    Attributes:
        expires_s: Whole seconds; 0 for ever.
        group_expires_s: The same for the saved group of a header.
        is_ordered: Results are kept by the header's order (``result_chord_ordered``).
    """

    expires_s: int = 86_400
    group_expires_s: int = 86_400
    is_ordered: bool = True


def keys_of(group_key: str) -> list[bytes]:
    """Return the keys of a chord's header."""
    return [f"{group_key}{end}".encode() for end in (".j", ".t", ".s", ".d", ".c", "")]


def begin_chord(
    command: Callable[..., Any], group_key: str, size: int, saved: bytes | None, times: ChordTimes, *, is_again: bool
) -> None:
    """Write what a chord is counted by: how many parts there are, and its saved group, if it has one.

    Args:
        is_again: It may be running already. Else what is left of an earlier run, under the same ids, is dropped.
    """
    results, extra, count, counted, claim, group = keys_of(group_key)
    kept = ("EX", times.expires_s) if times.expires_s else ()
    if not is_again:
        command("DEL", results, extra, count, counted, claim)
    if saved is not None:
        command("SET", group, saved, *kept)
    command("SET", count, size, *kept)


def add_part(run: Run, group_key: str, key: str) -> None:
    """Count one more part, once for each key."""
    _results, extra, _count, counted, *_rest = keys_of(group_key)
    run(ADD, ADD_NAME, [extra, counted], [key])


def count_part(
    run: Run, group_key: str, part: tuple[str, int | None, str, Any], payloads: Payloads, times: ChordTimes
) -> bool:
    """Count a part: its id, its index, its state, and its result or the plain form of its error.

    Returns whether it was the last, so that the body is to be called.
    """
    task_id, index, state, value = part
    score = "+inf" if index is None else str(index)
    claim_s = times.expires_s or AFTERWARDS_S * 24
    arguments = [
        task_id, payloads.dumps([1, task_id, state, value]), "1" if times.is_ordered else "0", score, times.expires_s,
        times.group_expires_s, claim_s, f"amqptasks:{task_id}:{score}", AFTERWARDS_S,
    ]  # fmt: skip
    return bool(run(COUNT, COUNT_NAME, keys_of(group_key), arguments))


def read_parts(
    command: Callable[..., Any], group_key: str, payloads: Payloads, times: ChordTimes
) -> list[tuple[str, str, Any]]:
    """Return the id, the state and the result of each part that was counted, in the header's order.

    Raises:
        DecodeError: One of them cannot be read.
    """
    name = "ZRANGE" if times.is_ordered else "LRANGE"
    found: list[tuple[str, str, Any]] = []
    for value in command(name, keys_of(group_key)[0], 0, -1):
        _version, task_id, state, result = payloads.loads(value)
        found.append((task_id, state, result))
    return found
