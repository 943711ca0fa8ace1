"""Every error this package raises, in one tree.

    AmqptasksError
    ├── ImproperlyConfigured
    │   └── InvalidSetting
    ├── SecurityError
    ├── TaskPredicate                 raised by a task to steer the worker, not failures
    │   ├── Retry
    │   ├── Ignore
    │   └── Reject
    ├── TaskError
    │   ├── QueueNotFound             also KeyError
    │   ├── NotRegistered             also KeyError
    │   ├── AlreadyRegistered
    │   ├── IncompleteStream
    │   ├── TimeoutError              also the built-in TimeoutError
    │   ├── MaxRetriesExceededError
    │   ├── TaskRevokedError
    │   ├── InvalidTaskError
    │   └── ChordError
    ├── BackendError
    │   ├── BackendGetMetaError
    │   ├── BackendStoreError
    │   └── ResultUnreachable         this process can never see that result
    ├── OperationalError              the broker
    │   ├── NotSent                   surely not stored
    │   │   ├── Unroutable
    │   │   └── BrokerUnavailable
    │   ├── MaybeSent                 sent, never confirmed
    │   ├── BulkError                 some tasks of a bulk() block were not confirmed
    │   └── TopologyConflict
    └── ContentError
        ├── EncodeError
        └── DecodeError
            ├── ContentDisallowed
            └── UntrustedContent      also SecurityError
    SoftTimeLimitExceeded, TimeLimitExceeded, WorkerLostError, Terminated    plain Exceptions: user code may catch them
    WorkerShutdown, WorkerTerminate                                          SystemExit: they stop a worker
    AmqptasksWarning (a UserWarning) ── AlwaysEagerIgnored, DuplicateNodenameWarning    warnings, not raised

The names are Celery's where Celery has one. Messages say what happened, to what, what was expected, what to do.
"""

from __future__ import annotations

import builtins
from typing import Any

__all__ = [
    "AlreadyRegistered", "AlwaysEagerIgnored", "AmqptasksError", "AmqptasksWarning", "BackendError",
    "BackendGetMetaError", "BackendStoreError", "BrokerUnavailable", "BulkError", "CeleryError", "CeleryWarning",
    "ChordError", "ContentDisallowed", "ContentError", "DecodeError", "DuplicateNodenameWarning", "EncodeError",
    "Ignore", "ImproperlyConfigured", "IncompleteStream", "InvalidSetting", "InvalidTaskError",
    "MaxRetriesExceededError", "MaybeSent", "NotRegistered",
    "NotSent", "OperationalError", "QueueNotFound", "Reject", "ResultUnreachable", "Retry", "SecurityError",
    "SoftTimeLimitExceeded", "TaskError", "TaskPredicate", "TaskRevokedError", "Terminated", "TimeLimitExceeded",
    "TimeoutError", "TopologyConflict", "Unroutable", "UntrustedContent", "WorkerLostError", "WorkerShutdown",
    "WorkerTerminate",
]  # fmt: skip


class AmqptasksError(Exception):
    """The root of the errors of this package."""


#: The name under which code written for Celery catches it.
CeleryError = AmqptasksError


class AmqptasksWarning(UserWarning):
    """The root of the warnings of this package."""


#: The name under which code written for Celery knows it.
CeleryWarning = AmqptasksWarning


class AlwaysEagerIgnored(AmqptasksWarning):
    """``send_task()`` sends, whatever ``task_always_eager`` says: it does not know the function."""


class DuplicateNodenameWarning(AmqptasksWarning):
    """Several workers have answered under one name."""


class ImproperlyConfigured(AmqptasksError):
    """The program's configuration cannot work as it stands."""


class InvalidSetting(ImproperlyConfigured):
    """A setting is unknown, or its value is not of its kind. The message names it and where it came from."""


class SecurityError(AmqptasksError):
    """Something received was refused because acting on it could run foreign code."""


class TaskPredicate(AmqptasksError):
    """Raised inside a task to steer the worker; none of its kinds is a failure."""


class Retry(TaskPredicate):
    """The task is to be run again later. ``Task.retry`` raises it after the next attempt was arranged.

    Attributes:
        exc: The error because of which; None where there is none, or only a text about it.
        excs: That error as text.
        when: Seconds from then, or the moment.
        sig: The next attempt, as a signature.
    """

    def __init__(
        self, message: str | None = None, exc: BaseException | str | None = None, when: Any = None,
        is_eager: bool = False, sig: Any = None,
    ) -> None:  # fmt: skip
        super().__init__(message, exc, when)
        self.message = message
        self.exc = None if isinstance(exc, str) else exc
        self.excs = exc if isinstance(exc, str) else None if exc is None else _shown(exc)
        self.when = when
        self.is_eager = is_eager
        self.sig = sig

    def humanize(self) -> str:
        """Say when the next attempt runs: ``in 3s`` for a number of seconds, ``at …`` for a moment."""
        if isinstance(self.when, (int, float)):
            return f"in {self.when}s"
        return f"at {self.when}"

    def __str__(self) -> str:
        if self.message:
            return self.message
        if self.excs:
            return f"Retry {self.humanize()}: {self.excs}"
        return f"Retry {self.humanize()}"


def _shown(error: BaseException) -> str:
    try:
        return repr(error)
    except Exception as trouble:
        return f"<{type(error).__name__}: its repr() raised {type(trouble).__name__}>"


class Ignore(TaskPredicate):
    """The message is acknowledged; no state is stored and nothing follows."""


class Reject(TaskPredicate):
    """The message is rejected: back to its queue with ``requeue``, else dead-lettered."""

    def __init__(self, reason: Any = None, requeue: bool = False) -> None:
        super().__init__(reason, requeue)
        self.reason = reason
        self.requeue = requeue

    def __repr__(self) -> str:
        return f"reject requeue={self.requeue}: {self.reason}"


class TaskError(AmqptasksError):
    """Something is wrong with one task."""


class QueueNotFound(TaskError, KeyError):
    """A task was routed to a queue that is not declared, and missing queues are not created."""

    def __str__(self) -> str:
        return str(self.args[0]) if self.args else ""


class NotRegistered(TaskError, KeyError):
    """No task of that name is registered."""

    def __str__(self) -> str:
        return str(self.args[0]) if self.args else ""


class AlreadyRegistered(TaskError):
    """Two different tasks claim one name."""


class IncompleteStream(TaskError):
    """A result's children were asked for before the result was ready."""


class TimeoutError(TaskError, builtins.TimeoutError):  # noqa: A001 - Celery's public name
    """The result did not arrive in the time given."""


class MaxRetriesExceededError(TaskError):
    """The task has used up its retries."""

    def __init__(self, *args: Any, task_args: Any = (), task_kwargs: Any = None) -> None:
        super().__init__(*args)
        self.task_args = task_args
        self.task_kwargs = {} if task_kwargs is None else task_kwargs


class TaskRevokedError(TaskError):
    """The task was revoked, or had expired."""


class InvalidTaskError(TaskError):
    """The message is not a valid task message."""


class ChordError(TaskError):
    """A member of the chord's header failed, so its body cannot run."""


class BackendError(AmqptasksError):
    """The result store failed."""


class BackendGetMetaError(BackendError):
    """A result could not be read."""


class BackendStoreError(BackendError):
    """A result could not be written."""


class ResultUnreachable(BackendError):
    """This process can never see that result: waiting for it would wait for ever."""


class OperationalError(AmqptasksError):
    """The broker could not do what was asked."""


class NotSent(OperationalError):
    """The message is surely not stored: it may be sent again without running twice."""


class Unroutable(NotSent):
    """The broker has no queue for the message (AMQP ``basic.return``)."""


class BrokerUnavailable(NotSent):
    """No broker could be reached before the deadline."""


class MaybeSent(OperationalError):
    """The message left, but the broker never confirmed it. Sending the same id again is safe."""


class BulkError(OperationalError):
    """Some tasks of a ``bulk()`` block were not confirmed; the others were.

    Attributes:
        failures: The error of each, by task id: a `NotSent` or a `MaybeSent`.
    """

    def __init__(self, message: str, failures: dict[str, BaseException] | None = None) -> None:
        super().__init__(message)
        self.failures = failures or {}


class TopologyConflict(OperationalError):
    """A queue or exchange exists with other arguments (AMQP 406 PRECONDITION_FAILED)."""


class ContentError(AmqptasksError):
    """A body could not be turned into a message, or back."""


class EncodeError(ContentError):
    """A value cannot be serialized. The message names the argument."""


class DecodeError(ContentError):
    """A body cannot be read: truncated, malformed, too large or too deep."""


class ContentDisallowed(DecodeError):
    """The content type is not among those accepted; the body was not looked at."""


class UntrustedContent(DecodeError, SecurityError):
    """It is not signed by anybody who is trusted here, or was signed for something else. Its sender gets no answer."""


class SoftTimeLimitExceeded(Exception):
    """The task ran past its soft time limit. Catch it in the task to clean up."""

    def __str__(self) -> str:
        return "SoftTimeLimitExceeded" + (repr(self.args) if self.args else "()")


class TimeLimitExceeded(Exception):
    """The task ran past its hard time limit and was stopped. Its argument is the limit, in seconds."""

    def __str__(self) -> str:
        return "TimeLimitExceeded" + repr(self.args)


class WorkerLostError(Exception):
    """The process running the task died before it could answer."""


class Terminated(Exception):
    """The task was terminated by order of an operator."""


class WorkerTerminate(SystemExit):
    """Stop the worker at once."""


class WorkerShutdown(SystemExit):
    """Stop the worker after the running tasks."""
