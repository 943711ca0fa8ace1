"""What a beat must remember, and how that travels: the records that lie in the queue of the token.

The queue holds a short journal. Its head is a *base*, the whole state; behind it lie *changes*, what later ticks have
added. A small state is written as a base each time: then there is one record, the token. Of a large one (10,000 entries
are 700 kB) only what changed is written, and a base now and then, which replaces everything before it.

Whoever leads has all of them in hand, unacknowledged; when it dies, the broker hands them to the next, which puts them
together (`assemble`) and goes on. Besides there are *bids*, by which a beat says that it is there, and *claims*, by
which one that was handed something finds the end of what there is.

Whatever is read here came over the wire, or from a file: it is checked, bounded, and never runs code.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, replace
from datetime import datetime, timedelta, timezone
from typing import Any, Final

from amqptasks.exceptions import DecodeError

__all__ = [
    "BASE", "BID", "CHANGES", "CLAIM", "EntryState", "Record", "State", "assemble", "from_us", "read_record", "to_us",
    "write_record",
]  # fmt: skip

VERSION: Final = 1
BASE, CHANGES, BID, CLAIM = "base", "changes", "bid", "claim"
KINDS: Final = (BASE, CHANGES, BID, CLAIM)
#: The longest name of an entry, in characters.
MAX_NAME: Final = 1000
#: The most entries of one schedule.
MAX_ENTRIES: Final = 200_000
#: The largest definition of an entry that was added at run time, bytes of JSON.
MAX_DEFINITION: Final = 65_536
_EPOCH: Final = datetime(1970, 1, 1, tzinfo=timezone.utc)
_US: Final = timedelta(microseconds=1)
#: The moments that can be: from 1970 to 9999, microseconds.
_MAX_US: Final = 253_370_764_800_000_000


def to_us(moment: datetime) -> int:
    """Return an aware moment as microseconds since 1970."""
    return (moment - _EPOCH) // _US


def from_us(microseconds: int) -> datetime:
    """Return the moment, in UTC, so many microseconds after 1970."""
    return _EPOCH + microseconds * _US


@dataclass(frozen=True, slots=True)
class EntryState:
    """What is remembered of an entry. Moments are microseconds since 1970.

    Attributes:
        anchor: The due time that was dealt with last, or when the entry was first seen.
        sent: When it was sent last; None if never.
        count: How often it was sent.
        mark: What its schedule was, so that another one is noticed.
        paused: Whether it is held back.
    """

    anchor: int
    sent: int | None = None
    count: int = 0
    mark: str = ""
    paused: bool = False

    def to_plain(self) -> list[Any]:
        """Return it for JSON."""
        return [self.anchor, self.sent, self.count, self.mark, int(self.paused)]


@dataclass(slots=True)
class State:
    """What is remembered of a schedule.

    Attributes:
        lineage: Named anew whenever a schedule begins without a memory.
        number: Counts the records; of two states of one lineage the higher is the newer.
        at: When it was written, microseconds since 1970.
        entries: By name.
        added: The definitions of the entries that were added at run time, by name.
    """

    lineage: str
    number: int = 0
    at: int = 0
    entries: dict[str, EntryState] = field(default_factory=dict)
    added: dict[str, dict[str, Any]] = field(default_factory=dict)

    def is_newer(self, other: State) -> bool:
        """Whether this is to be believed rather than the other."""
        if self.lineage == other.lineage:
            return self.number > other.number
        return self.at > other.at

    def apply(self, record: Record) -> None:
        """Add what a record of changes says."""
        for name in record.gone:
            self.entries.pop(name, None)
            self.added.pop(name, None)
        self.entries.update(record.entries)
        self.added.update(record.added)
        self.number, self.at = record.number, record.at


@dataclass(frozen=True, slots=True)
class Record:
    """One message in the queue of the token.

    Attributes:
        kind: One of `KINDS`.
        who: Who wrote it, for people.
        term: Which leadership it was written in; of a claim, which it begins.
        lineage, number, at: As of `State`, after this record.
        entries, added: The whole of them in a base, what is new in changes.
        gone: Names of entries that are no more, in changes.
    """

    kind: str
    who: str = ""
    term: str = ""
    lineage: str = ""
    number: int = 0
    at: int = 0
    entries: Mapping[str, EntryState] = field(default_factory=dict)
    added: Mapping[str, dict[str, Any]] = field(default_factory=dict)
    gone: tuple[str, ...] = ()


def write_record(record: Record) -> bytes:
    """Encode a record."""
    plain: dict[str, Any] = {"v": VERSION, "kind": record.kind, "who": record.who, "term": record.term}
    if record.kind in (BASE, CHANGES):
        plain |= {"lineage": record.lineage, "number": record.number, "at": record.at}
        plain["entries"] = {name: each.to_plain() for name, each in record.entries.items()}
        if record.added:
            plain["added"] = dict(record.added)
        if record.gone:
            plain["gone"] = list(record.gone)
    return json.dumps(plain, separators=(",", ":")).encode()


def read_record(body: bytes, max_bytes: int) -> Record:
    """Read a record, from anybody.

    Raises:
        DecodeError: It is none.
    """
    if len(body) > max_bytes:
        raise DecodeError(f"expected a record of at most {max_bytes} bytes, got {len(body)}")
    try:
        plain = json.loads(body)
    except (ValueError, RecursionError) as error:
        raise DecodeError(f"expected JSON: {error}") from error
    if not isinstance(plain, dict):
        raise DecodeError(f"expected an object, got: {plain!r:.80}")
    if plain.get("v") != VERSION:
        raise DecodeError(f"expected version {VERSION}, got: {plain.get('v')!r:.40}")
    kind = plain.get("kind")
    if kind not in KINDS:
        raise DecodeError(f"expected kind to be one of {', '.join(KINDS)}, got: {kind!r:.40}")
    record = Record(kind, _text(plain, "who"), _text(plain, "term"))
    if kind not in (BASE, CHANGES):
        return record
    return replace(
        record, lineage=_text(plain, "lineage"), number=_whole(plain.get("number"), "number"),
        at=_whole(plain.get("at"), "at"), entries=_entries(plain.get("entries")), added=_added(plain.get("added", {})),
        gone=_names(plain.get("gone", [])),
    )  # fmt: skip


def _text(plain: Mapping[str, Any], key: str) -> str:
    value = plain.get(key, "")
    if not isinstance(value, str) or len(value) > MAX_NAME:
        raise DecodeError(f"expected {key} to be a text of at most {MAX_NAME} characters, got: {value!r:.80}")
    return value


def _whole(value: Any, what: str) -> int:
    if not isinstance(value, int) or isinstance(value, bool) or not 0 <= value < _MAX_US:
        raise DecodeError(f"expected {what} to be a whole number, 0 or more, got: {value!r:.80}")
    return value


def _name(value: Any) -> str:
    if not isinstance(value, str) or not 0 < len(value) <= MAX_NAME:
        raise DecodeError(f"expected a name of 1 to {MAX_NAME} characters, got: {value!r:.80}")
    return value


def _names(value: Any) -> tuple[str, ...]:
    if not isinstance(value, list) or len(value) > MAX_ENTRIES:
        raise DecodeError(f"expected a list of names, got: {value!r:.80}")
    return tuple(map(_name, value))


def _entries(value: Any) -> dict[str, EntryState]:
    if not isinstance(value, dict) or len(value) > MAX_ENTRIES:
        raise DecodeError(f"expected at most {MAX_ENTRIES} entries by name, got: {value!r:.80}")
    return {_name(name): read_entry(each, name) for name, each in value.items()}


def read_entry(value: Any, name: str) -> EntryState:
    """Read what `EntryState.to_plain` returned.

    Raises:
        DecodeError: It is no such thing.
    """
    if not isinstance(value, list) or len(value) < 5:
        raise DecodeError(f"expected entry {name!r:.80} to be a list of five, got: {value!r:.80}")
    anchor, sent, count, mark, paused = value[:5]
    if not isinstance(mark, str) or len(mark) > 100:
        raise DecodeError(f"expected the mark of entry {name!r:.80} to be a short text, got: {mark!r:.80}")
    return EntryState(
        _whole(anchor, f"the anchor of {name!r:.80}"), None if sent is None else _whole(sent, f"sent of {name!r:.80}"),
        _whole(count, f"the count of {name!r:.80}"), mark, bool(paused),
    )  # fmt: skip


def _added(value: Any) -> dict[str, dict[str, Any]]:
    if not isinstance(value, dict) or len(value) > MAX_ENTRIES:
        raise DecodeError(f"expected definitions by name, got: {value!r:.80}")
    for name, each in value.items():
        _name(name)
        if not isinstance(each, dict):
            raise DecodeError(f"expected the definition of {name!r:.80} to be an object, got: {each!r:.80}")
    return dict(value)


def assemble(records: Iterable[Record]) -> tuple[State | None, bool]:
    """Put records together, in whatever order they came; tells also whether some seem to be missing.

    The newest base counts, and the changes of its lineage that are newer.
    """
    every = list(records)
    bases = [each for each in every if each.kind == BASE]
    changes = [each for each in every if each.kind == CHANGES]
    if not bases:
        return None, bool(changes)
    base = max(bases, key=lambda each: (each.at, each.number))
    state = State(base.lineage, base.number, base.at, dict(base.entries), dict(base.added))
    is_torn = False
    newer = [each for each in changes if each.lineage == base.lineage and each.number > base.number]
    for each in sorted(newer, key=lambda each: each.number):
        # Of one number there may be two, where a leader was cut off while it wrote: they say the same.
        is_torn = is_torn or each.number > state.number + 1
        state.apply(each)
    return state, is_torn


class Journal:
    """Decides what is written next: a base or changes. Belongs to one thread.

    Args:
        small_bytes: A base up to this size is written each time.
        most_changes: After so many records of changes comes a base. All of them are held unacknowledged.
        most_age_s: After so many seconds comes a base: what is held for long, the broker takes back.
    """

    def __init__(self, small_bytes: int = 4096, most_changes: int = 400, most_age_s: float = 120.0) -> None:
        self._small_bytes = small_bytes
        self._most_changes = most_changes
        self._most_age_s = most_age_s
        self.begin()

    def begin(self) -> None:
        """A leadership begins: with a base."""
        self._base_bytes = 0
        self._changed_bytes = 0
        self._changes = 0
        self._based_at: float | None = None

    def wants_base(self, now: float) -> bool:
        """Whether the next record is to be a base. ``now`` is monotonic, seconds."""
        return (
            self._based_at is None
            or self._base_bytes <= self._small_bytes
            or self._changes >= self._most_changes
            or self._changed_bytes > self._base_bytes
            or self.is_old(now)
        )

    def is_old(self, now: float) -> bool:
        """Whether a base is to be written even if nothing has changed."""
        return self._based_at is None or now - self._based_at >= self._most_age_s

    def wrote(self, kind: str, size: int, now: float) -> None:
        """Take note of a record that was confirmed."""
        if kind == BASE:
            self._base_bytes, self._changed_bytes, self._changes, self._based_at = size, 0, 0, now
        else:
            self._changed_bytes += size
            self._changes += 1
