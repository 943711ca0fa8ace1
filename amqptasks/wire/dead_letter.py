"""What a dead letter is on the wire: the headers that tell its story, and how the message was before it died.

The worker writes them (`worker/dead_letters.py`), the commands read them. Whoever can publish can put anything into a
queue of dead letters, so every value read here is checked or made printable.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from datetime import datetime
from typing import Any, Final

from amqptasks.clock import parse_moment
from amqptasks.wire.reprs import printable
from amqptasks.wire.task import without_broker_headers

#: Every header of ours begins with this.
PREFIX: Final = "x-amqptasks-"
REASON: Final = PREFIX + "reason"
DETAIL: Final = PREFIX + "detail"
TIME: Final = PREFIX + "time"
WORKER: Final = PREFIX + "worker"
QUEUE: Final = PREFIX + "queue"
EXCHANGE: Final = PREFIX + "exchange"
ROUTING_KEY: Final = PREFIX + "routing-key"
HEADERS_CUT: Final = PREFIX + "headers-cut"
#: Properties that a dead letter cannot have as they were: what they were.
PROPERTIES: Final = PREFIX + "properties"
#: How many processes the message has ended.
CRASHES: Final = PREFIX + "crashes"
#: How often the message has come to the dead letters. It stays when the message is replayed, to be counted on.
DEATHS: Final = PREFIX + "deaths"

#: What a replay takes off again.
ADDED: Final = frozenset(
    {REASON, DETAIL, TIME, WORKER, QUEUE, EXCHANGE, ROUTING_KEY, HEADERS_CUT, PROPERTIES, CRASHES}
)  # fmt: skip

#: The properties of a message that are carried from the original to its dead letter and back, by AMQP's names.
KEPT_PROPERTIES: Final = (
    "content_type", "content_encoding", "delivery_mode", "priority", "correlation_id", "reply_to", "message_id",
    "timestamp", "type", "app_id",
)  # fmt: skip


@dataclass(frozen=True, slots=True)
class DeadLetter:
    """A message among the dead letters, without its body. Texts are printable and bounded; empty if not told.

    Attributes:
        queue: The queue of dead letters that it is in.
        id: The task's id, or what comes nearest to one.
        deaths: How often the message has come here.
        crashes: How many worker processes it has ended.
        deliveries: How often the broker has delivered it from this queue, as far as it counts that.
        is_whole: Its headers are all there, so that it can be replayed as it was.
    """

    queue: str
    time: datetime | None
    task: str
    id: str
    reason: str
    detail: str
    worker: str
    deaths: int
    crashes: int
    deliveries: int
    is_whole: bool
    bytes: int
    properties: Any = field(repr=False, hash=False, compare=False, default=None)

    @property
    def headers(self) -> Mapping[str, Any]:
        """Its headers as they are."""
        headers = self.properties.headers
        return headers if isinstance(headers, Mapping) else {}

    @property
    def ids(self) -> frozenset[str]:
        """Every name it goes by."""
        properties = self.properties
        return frozenset(filter(None, (self.id, properties.correlation_id, properties.message_id)))


def read_dead_letter(queue: str, properties: Any, body_bytes: int) -> DeadLetter:
    """Read the story of a dead letter. Never raises; what is missing or wrong is left empty."""
    headers = properties.headers if isinstance(properties.headers, Mapping) else {}

    def text(name: str, most: int) -> str:
        value = headers.get(name)
        return printable(value, most) if isinstance(value, str) else ""

    try:
        time = parse_moment(headers.get(TIME, ""))
    except ValueError:
        time = None
    crashes = _count(headers.get(CRASHES))
    reason = text(REASON, 64)
    return DeadLetter(
        queue=queue,
        time=time,
        task=text("task", 255),
        id=text("id", 255) or printable(properties.correlation_id or properties.message_id or "", 255),
        reason=reason,
        detail=text(DETAIL, 1000),
        worker=text(WORKER, 255),
        deaths=_count(headers.get(DEATHS)) or 1,
        crashes=crashes,
        deliveries=_count(headers.get("x-delivery-count")),
        is_whole=not headers.get(HEADERS_CUT) and not getattr(properties, "is_malformed", False),
        bytes=body_bytes,
        properties=properties,
    )


def next_death(headers: Any) -> int:
    """Return which death of its message this one is."""
    return _count(headers.get(DEATHS)) + 1 if isinstance(headers, Mapping) else 1


def properties_not_carried(properties: Any) -> dict[str, Any]:
    """Return the properties of an original that its dead letter must have otherwise, as they were.

    A dead letter is persistent and does not expire with the original; and our encoder always names a content type.
    """
    lost: dict[str, Any] = {}
    for name, wanted in (
        ("content_type", _is_given), ("content_encoding", _is_given), ("delivery_mode", (2).__eq__),
        ("expiration", _is_missing),
    ):  # fmt: skip
        value = getattr(properties, name)
        if not wanted(value):
            lost[name] = value
    return lost


def original(properties: Any) -> tuple[dict[str, Any], dict[str, Any]]:
    """Return headers and properties of the message that died: all of the user's, none of what was added since."""
    headers = properties.headers if isinstance(properties.headers, Mapping) else {}
    restored = {name: getattr(properties, name) for name in KEPT_PROPERTIES}
    told = headers.get(PROPERTIES)
    if isinstance(told, Mapping):
        for name, is_fit in _RESTORABLE.items():
            if name in told and is_fit(told[name]):
                restored[name] = told[name]
    own = {key: value for key, value in without_broker_headers(headers).items() if key not in ADDED}
    return own, {name: value for name, value in restored.items() if value is not None}


def _is_given(value: object) -> bool:
    return bool(value)


def _is_missing(value: object) -> bool:
    return value is None


def _is_short(value: object) -> bool:
    return value is None or (isinstance(value, str) and len(value.encode("utf-8", "replace")) < 256)


_RESTORABLE: Final[dict[str, Callable[[Any], bool]]] = {
    "content_type": _is_short,
    "content_encoding": _is_short,
    "delivery_mode": lambda value: value is None or value in (1, 2),
    "expiration": lambda value: isinstance(value, str) and value.isdigit() and len(value) < 16,
}


def _count(value: Any) -> int:
    return value if isinstance(value, int) and not isinstance(value, bool) and 0 <= value < 1 << 31 else 0
