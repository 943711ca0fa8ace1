"""The states a task passes through, and which of them are final.

Plain strings, as they travel in result messages. Nothing here knows how a state is stored.
"""

from __future__ import annotations

from typing import Final

PENDING: Final = "PENDING"
RECEIVED: Final = "RECEIVED"
STARTED: Final = "STARTED"
SUCCESS: Final = "SUCCESS"
FAILURE: Final = "FAILURE"
REVOKED: Final = "REVOKED"
REJECTED: Final = "REJECTED"
RETRY: Final = "RETRY"
IGNORED: Final = "IGNORED"

#: States after which nothing more will be heard of the task.
READY_STATES: Final = frozenset({SUCCESS, FAILURE, REVOKED})
UNREADY_STATES: Final = frozenset({PENDING, RECEIVED, STARTED, REJECTED, RETRY})
#: States whose result is an exception.
EXCEPTION_STATES: Final = frozenset({RETRY, FAILURE, REVOKED})
#: States whose exception ``get()`` raises.
PROPAGATE_STATES: Final = frozenset({FAILURE, REVOKED})
ALL_STATES: Final = frozenset({PENDING, RECEIVED, STARTED, SUCCESS, FAILURE, RETRY, REVOKED})

# None stands for every custom state: above RUNNING ones by Celery's order, below the final two.
_ORDER: Final = (SUCCESS, FAILURE, None, REVOKED, STARTED, RECEIVED, REJECTED, RETRY, PENDING)
_RANK: Final = {name: rank for rank, name in enumerate(_ORDER)}


def precedence(name: str) -> int:
    """Rank a state: the lower the number, the more it says about the task. Custom states rank third."""
    return _RANK.get(name, _RANK[None])


class state(str):
    """A state name that compares by precedence, so that ``state(STARTED) < state(SUCCESS)``.

    Equality stays that of the string. The class name is lower case because that is its public name.
    """

    __slots__ = ()

    def __gt__(self, other: str) -> bool:
        return precedence(self) < precedence(other)

    def __ge__(self, other: str) -> bool:
        return precedence(self) <= precedence(other)

    def __lt__(self, other: str) -> bool:
        return precedence(self) > precedence(other)

    def __le__(self, other: str) -> bool:
        return precedence(self) >= precedence(other)
