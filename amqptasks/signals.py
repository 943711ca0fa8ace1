"""Signals: functions of yours that are told what happens. They may look; they cannot stop or change it.

A receiver gets ``sender``, ``signal`` and the signal's own keyword arguments, and must take ``**kwargs``. What it
raises is logged. The names and arguments are Celery's.
"""

from __future__ import annotations

import functools
import inspect
import itertools
import logging
import threading
import time
import weakref
from collections.abc import Callable
from typing import Any, Final

from amqptasks.exceptions import ImproperlyConfigured

logger = logging.getLogger(__name__)

Receiver = Callable[..., Any]

#: Pauses before a receiver with ``retry`` is called again, seconds: the first, by what each grows, the longest.
RETRY_PAUSES_S: Final = (2, 2, 30)


def _sender_key(sender: Any) -> Any:
    """Name a sender for comparison: tasks and task names are the same sender, everything else is itself."""
    if sender is None or isinstance(sender, str):
        return sender
    name = getattr(sender, "name", None)
    if isinstance(name, str) and hasattr(sender, "apply_async"):
        return name
    return id(sender)


class _Unknown:
    """A sender that cannot be named yet: a shared task, before there is an app."""

    def __init__(self, sender: Any) -> None:
        self._sender = sender

    def __eq__(self, other: object) -> bool:
        if isinstance(other, _Unknown):
            return self._sender is other._sender
        key = _named_sender(self._sender)
        return not isinstance(key, _Unknown) and bool(key == other)

    # Keys are compared, never looked up.
    __hash__ = None  # type: ignore[assignment]


def _named_sender(sender: Any) -> Any:
    try:
        return _sender_key(sender)
    except ImproperlyConfigured:
        return _Unknown(sender)


class Signal:
    """One kind of event and who wants to hear of it. Safe from any thread."""

    def __init__(self, name: str, providing_args: frozenset[str] = frozenset()) -> None:
        self.name = name
        self.providing_args = providing_args
        self._lock = threading.Lock()
        #: (receiver key, sender key, reference) in the order of connecting; replaced, never changed, so reading needs
        #: no lock.
        self._receivers: tuple[tuple[Any, Any, Callable[[], Receiver | None]], ...] = ()

    def __repr__(self) -> str:
        return f"<Signal: {self.name} receivers={len(self._receivers)}>"

    def __bool__(self) -> bool:
        return bool(self._receivers)

    def connect(
        self,
        receiver: Receiver | str | None = None,
        sender: Any = None,
        weak: bool = True,
        dispatch_uid: Any = None,
        retry: bool = False,
    ) -> Any:
        """Call ``receiver`` at each event; usable as a decorator, with or without arguments.

        Args:
            sender: Only for events of this sender, a task or its name. It need not be registered yet.
            weak: Hold the receiver weakly; lambdas and closures need False.
            dispatch_uid: Connecting again under the same value replaces nothing and adds nothing.
            retry: Call the receiver again, after growing pauses, until it does not raise. Whoever sends waits for that,
                so it is not for signals of the worker itself. It is held strongly.

        Raises:
            TypeError: It cannot be called.
            ValueError: It does not take ``**kwargs``, and would fail at each event.
        """
        if receiver is None or isinstance(receiver, str):
            # As in Celery, a text in this place is the sender.
            named = sender if receiver is None else receiver
            return lambda function: self.connect(function, named, weak, dispatch_uid, retry)
        if not _takes_keywords(receiver):
            raise ValueError(f"expected the receiver {receiver!r} of {self.name} to take **kwargs")
        key = dispatch_uid if dispatch_uid is not None else _receiver_key(receiver)
        sender_key = _named_sender(sender)
        reference = _reference(_until_it_works(receiver), False) if retry else _reference(receiver, weak)
        with self._lock:
            live = tuple(each for each in self._receivers if each[2]() is not None)
            if not any(each[0] == key and each[1] == sender_key for each in live):
                live += ((key, sender_key, reference),)
            self._receivers = live
        return receiver

    def disconnect(
        self, receiver: Receiver | None = None, sender: Any = None, weak: Any = None, dispatch_uid: Any = None
    ) -> bool:
        """Stop calling a receiver; True if it was connected."""
        del weak
        key = dispatch_uid if dispatch_uid is not None else _receiver_key(receiver)
        sender_key = _named_sender(sender)
        with self._lock:
            kept = tuple(each for each in self._receivers if not (each[0] == key and each[1] == sender_key))
            found = len(kept) != len(self._receivers)
            self._receivers = kept
        return found

    def has_listeners(self, sender: Any = None) -> bool:
        """Whether anyone would hear an event of this sender."""
        return bool(self._live(sender))

    def send(self, sender: Any, **named: Any) -> list[tuple[Receiver, Any]]:
        """Tell every receiver, in the order of connecting; returns ``(receiver, answer or exception)`` pairs."""
        if not self._receivers:
            return []
        answers: list[tuple[Receiver, Any]] = []
        for receiver in self._live(sender):
            try:
                answers.append((receiver, receiver(signal=self, sender=sender, **named)))
            except Exception as error:
                logger.exception("Signal handler %r raised: %r", receiver, error)
                answers.append((receiver, error))
        return answers

    send_robust = send

    def _live(self, sender: Any) -> list[Receiver]:
        key = _named_sender(sender)
        found = []
        for _key, sender_key, reference in self._receivers:
            if sender_key is None or sender_key == key:
                receiver = reference()
                if receiver is not None:
                    found.append(receiver)
        return found


def _receiver_key(receiver: Any) -> Any:
    owner = getattr(receiver, "__self__", None)
    return (id(owner), id(receiver.__func__)) if owner is not None and hasattr(receiver, "__func__") else id(receiver)


def _takes_keywords(receiver: Any) -> bool:
    if not callable(receiver):
        raise TypeError(f"expected a function to call at each event, got: {receiver!r:.80}")
    try:
        parameters = inspect.signature(receiver).parameters.values()
    except (TypeError, ValueError):
        # It does not tell what it takes, as some that are written in C.
        return True
    return any(each.kind is inspect.Parameter.VAR_KEYWORD for each in parameters)


def _until_it_works(receiver: Receiver) -> Receiver:
    first, step, most = RETRY_PAUSES_S

    @functools.wraps(receiver)
    def call(**named: Any) -> Any:
        for pause in itertools.count(first, step):
            try:
                return receiver(**named)
            except Exception as error:
                pause_s = min(pause, most)
                logger.error("Signal handler %r raised %r; calling it again in %d s", receiver, error, pause_s)
                time.sleep(pause_s)
        raise AssertionError("counting has no end")

    return call


def _reference(receiver: Receiver, weak: bool) -> Callable[[], Receiver | None]:
    if not weak:
        return lambda: receiver
    if hasattr(receiver, "__self__") and hasattr(receiver, "__func__"):
        return weakref.WeakMethod(receiver)
    return weakref.ref(receiver)


def _signal(name: str, *arguments: str) -> Signal:
    return Signal(name, frozenset(arguments))


before_task_publish = _signal(
    "before_task_publish", "body", "exchange", "routing_key", "headers", "properties", "declare", "retry_policy"
)
after_task_publish = _signal("after_task_publish", "body", "exchange", "routing_key", "headers")
task_prerun = _signal("task_prerun", "task_id", "task", "args", "kwargs")
task_postrun = _signal("task_postrun", "task_id", "task", "args", "kwargs", "retval", "state")
task_success = _signal("task_success", "result", "runtime")
task_failure = _signal("task_failure", "task_id", "exception", "args", "kwargs", "traceback", "einfo")
task_internal_error = _signal(
    "task_internal_error", "task_id", "args", "kwargs", "request", "exception", "traceback", "einfo"
)
task_retry = _signal("task_retry", "request", "reason", "einfo")
task_received = _signal("task_received", "request")
task_revoked = _signal("task_revoked", "request", "terminated", "signum", "expired")
task_unknown = _signal("task_unknown", "message", "exc", "name", "id")
task_rejected = _signal("task_rejected", "message", "exc")
celeryd_init = _signal("celeryd_init", "instance", "conf", "options")
celeryd_after_setup = _signal("celeryd_after_setup", "instance", "conf")
import_modules = _signal("import_modules")
worker_init = _signal("worker_init")
worker_ready = _signal("worker_ready")
worker_before_create_process = _signal("worker_before_create_process")
worker_process_init = _signal("worker_process_init")
worker_process_shutdown = _signal("worker_process_shutdown", "pid", "exitcode")
worker_shutting_down = _signal("worker_shutting_down", "sig", "how", "exitcode")
worker_shutdown = _signal("worker_shutdown")
heartbeat_sent = _signal("heartbeat_sent")
setup_logging = _signal("setup_logging", "loglevel", "logfile", "format", "colorize")
after_setup_logger = _signal("after_setup_logger", "logger", "loglevel", "logfile", "format", "colorize")
after_setup_task_logger = _signal("after_setup_task_logger", "logger", "loglevel", "logfile", "format", "colorize")
user_preload_options = _signal("user_preload_options", "app", "options")
beat_init = _signal("beat_init")
beat_embedded_init = _signal("beat_embedded_init")
#: Never sent, for what they tell of is not here; so that programs which connect to them can be imported.
eventlet_pool_started = _signal("eventlet_pool_started")
eventlet_pool_preshutdown = _signal("eventlet_pool_preshutdown")
eventlet_pool_postshutdown = _signal("eventlet_pool_postshutdown")
eventlet_pool_apply = _signal("eventlet_pool_apply", "target", "args", "kwargs")
task_sent = _signal("task_sent", "task_id", "task", "args", "kwargs", "eta", "taskset")
