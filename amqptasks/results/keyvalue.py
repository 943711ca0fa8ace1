"""How stores of keys and values keep results: keys and values as Celery writes them, so that both can share a store."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Final

from amqptasks.exceptions import DecodeError, ImproperlyConfigured
from amqptasks.results.payload import Payloads
from amqptasks.results.record import ResultRecord

__all__ = ["Keys", "dump_group", "dump_record", "load_group", "load_record"]

TASK_PREFIX: Final = "celery-task-meta-"
GROUP_PREFIX: Final = "celery-taskset-meta-"
CHORD_PREFIX: Final = "chord-unlock-"
#: What may stand between the prefix of a fleet and that of Celery's; else an underscore is put there.
_SEPARATORS: Final = ":_-."


@dataclass(frozen=True, slots=True)
class Keys:
    """Names keys.

    Attributes:
        prefix: Stands before all of them, so that fleets can share a store.
    """

    prefix: str = ""

    @classmethod
    def of(cls, conf: Any) -> Keys:
        """Take it from the settings: ``global_keyprefix`` of ``result_backend_transport_options``."""
        prefix = (conf.result_backend_transport_options or {}).get("global_keyprefix") or ""
        if not isinstance(prefix, str):
            raise ImproperlyConfigured(
                "expected global_keyprefix of result_backend_transport_options to be a text, got: "
                f"{prefix!r:.80}"
            )  # fmt: skip
        return cls(prefix if not prefix or prefix[-1] in _SEPARATORS else f"{prefix}_")

    def task(self, task_id: str) -> str:
        """Return the key of a task's result."""
        return f"{self.prefix}{TASK_PREFIX}{task_id}"

    def group(self, group_id: str) -> str:
        """Return the key of a saved group."""
        return f"{self.prefix}{GROUP_PREFIX}{group_id}"

    def chord(self, group_id: str) -> str:
        """Return the key that the parts of a chord are counted in, where the store only counts."""
        return f"{self.prefix}{CHORD_PREFIX}{group_id}"


def dump_record(record: ResultRecord, payloads: Payloads) -> bytes:
    """Write a record as the value of its key.

    Raises:
        EncodeError: The result cannot be serialized.
    """
    return payloads.dumps(record.to_plain())


def load_record(data: bytes | str, payloads: Payloads) -> ResultRecord:
    """Read a value, whoever wrote it.

    Raises:
        DecodeError: It cannot be read.
    """
    return ResultRecord.from_plain(payloads.loads(data))


def dump_group(plain: Any, payloads: Payloads) -> bytes:
    """Write a group's plain tuple."""
    return payloads.dumps({"result": plain})


def load_group(data: bytes | str, payloads: Payloads) -> Any:
    """Read a group's plain tuple.

    Raises:
        DecodeError: It cannot be read.
    """
    plain = payloads.loads(data)
    if not isinstance(plain, Mapping):
        raise DecodeError(f"expected a saved group to be a map, got: {type(plain).__name__}")
    return plain.get("result")
