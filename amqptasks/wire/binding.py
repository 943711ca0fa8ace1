"""What a signature covers beside the body: the call's headers, its answer's address, its queue and its moment.

Celery signs the body alone, so a signed body can be sent again under another task's name, with other headers, or to
another queue. Here whoever signs a task writes a digest of all that into the body's embedded map, where the signature
covers it and Celery's workers do not look; whoever reads compares. Pure: nothing here signs or knows certificates.
"""

from __future__ import annotations

import json
import time
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import datetime, timezone
from decimal import Decimal
from typing import Any, Final

from amqptasks.clock import parse_moment
from amqptasks.exceptions import UntrustedContent

__all__ = ["ARRIVAL_HEADER", "SIGNED_NAME", "SIGNED_TYPE", "Policy", "arrival", "bound", "check", "policy"]

#: The serializer's name and its MIME type, as Celery has them.
SIGNED_NAME: Final = "auth"
SIGNED_TYPE: Final = "application/data"
#: Where the embedded map of a body keeps what the signature shall cover.
KEY: Final = "signed"
#: Where a worker's parent notes how a signed message came in. What a sender writes there is replaced.
ARRIVAL_HEADER: Final = "x-amqptasks-arrival"
_VERSION: Final = 1
#: Changed on the way by the broker or by workers, and nothing is decided by them but by the signed body.
_UNCOVERED: Final = frozenset({"compression", "CC", "BCC"})


@dataclass(slots=True)
class Policy:
    """What this process asks of signed tasks.

    Attributes:
        max_age_s: Refuse a task this many seconds after it was signed, or after its ``eta``; None for never.
        needs_binding: Refuse signed tasks whose headers are not covered: those of Celery.
    """

    max_age_s: float | None = 86400.0
    needs_binding: bool = False


#: Of the whole process, as the registry of serializers is.
policy = Policy()


def bound(
    embed: Mapping[str, Any], headers: Mapping[str, Any], reply_to: str | None, correlation_id: str | None,
    place: tuple[str, str, str] | None,
) -> dict[str, Any]:  # fmt: skip
    """Return the embedded map with the binding in it.

    Args:
        place: The queue, the exchange and the routing key it is sent to; None where many queues may get it.
    """
    binding = {
        "v": _VERSION,
        "time": time.time(),
        "headers": _digest(headers, reply_to, correlation_id),
        "to": None if place is None else list(place),
    }
    return {**embed, KEY: binding}


def arrival(
    headers: Mapping[str, Any], reply_to: Any, correlation_id: Any, queue: str, exchange: str, routing_key: str
) -> dict[str, Any]:
    """Return what a worker's parent notes under `ARRIVAL_HEADER`: how the message came in, before its body is read."""
    # The digest is made here: not every kind of header survives the way to a child.
    digest = _digest(headers, reply_to, correlation_id)
    return {"headers": digest, "queue": queue, "exchange": exchange, "routing_key": routing_key}


def check(value: Any, headers: Mapping[str, Any]) -> None:
    """Refuse the decoded body of a signed task that was not signed for these headers, this queue, this time.

    Raises:
        UntrustedContent: It was not. Nothing else is raised, whatever is in it.
    """
    if isinstance(value, Mapping):
        # Protocol 1 says in its body what it is; a signed result, which may have arguments too, does not.
        if value.get("task") != headers.get("task") or value.get("id") != headers.get("id"):
            raise UntrustedContent("the signed body is not that of the task that the headers name")
        binding = None
    else:
        embed = value[2] if isinstance(value, (list, tuple)) and len(value) == 3 else None
        binding = embed.get(KEY) if isinstance(embed, Mapping) else None
    if binding is None:
        if policy.needs_binding:
            raise UntrustedContent(
                "the signature covers the body alone, not the headers (security_require_binding); Celery signs so"
            )
        return
    if not isinstance(binding, Mapping) or binding.get("v") != _VERSION:
        raise UntrustedContent("the signed body is bound to its headers in a way that is not known here")
    came = headers.get(ARRIVAL_HEADER)
    came = came if isinstance(came, Mapping) else {}
    if binding.get("headers") != came.get("headers"):
        raise UntrustedContent("the headers, or the address of the answer, are not those that the body was signed with")
    _check_place(binding.get("to"), came)
    _check_age(binding.get("time"), headers.get("eta"))


def _check_place(place: Any, came: Mapping[str, Any]) -> None:
    if place is None:
        return
    if not isinstance(place, (list, tuple)) or len(place) != 3:
        raise UntrustedContent("the signed body does not say which queue it is for")
    queue, exchange, routing_key = place
    if came.get("queue") == queue or (came.get("exchange"), came.get("routing_key")) == (exchange, routing_key):
        return
    raise UntrustedContent(f"it was signed for queue {ascii(queue)[:100]}, and came from another")


def _check_age(signed_at: Any, eta: Any) -> None:
    if policy.max_age_s is None:
        return
    if type(signed_at) not in (int, float):
        raise UntrustedContent("the signed body does not say when it was signed")
    since = float(signed_at)
    try:
        if isinstance(eta, str):
            since = max(since, parse_moment(eta, None).timestamp())
    except (ValueError, OverflowError):
        pass  # then it does not lengthen its life; who reads the header says what is wrong with it
    age_s = time.time() - since
    if not age_s <= policy.max_age_s:
        raise UntrustedContent(
            f"it was signed {age_s:.0f} seconds ago, or became due then; at most {policy.max_age_s:g} are allowed "
            "(security_max_age)"
        )


def _digest(headers: Mapping[str, Any], reply_to: Any, correlation_id: Any) -> str:
    # Here, for it takes 2 ms to load, and most programs sign nothing.
    import hashlib

    covered = {
        key: _plain(value) for key, value in headers.items() if key not in _UNCOVERED and not str(key).startswith("x-")
    }
    text = json.dumps([covered, _plain(reply_to), _plain(correlation_id)], sort_keys=True, separators=(",", ":"))
    return hashlib.sha256(text.encode("ascii")).hexdigest()


def _plain(value: Any) -> Any:
    """Return a header's value in one form, the same before and after its travel through AMQP and msgpack."""
    if value is None or isinstance(value, (str, bool, int, float)):
        return value
    if isinstance(value, Mapping):
        return {str(key): _plain(each) for key, each in value.items()}
    if isinstance(value, (list, tuple, set, frozenset)):
        return [_plain(each) for each in value]
    if isinstance(value, (bytes, bytearray, memoryview)):
        return ["bytes", bytes(value).hex()]
    if isinstance(value, datetime):
        moment = value if value.tzinfo else value.replace(tzinfo=timezone.utc)
        return ["moment", int(moment.timestamp())]
    if isinstance(value, Decimal):
        return str(value)
    return ["other", str(value)]
