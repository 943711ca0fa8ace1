"""Every setting there is: its name, kind, default and meaning, one row each.

The names and, where `ours` is empty, the defaults are Celery's. `docs/settings.md` is generated from this table by
`scripts/settings-docs`, so a row is the only place where a fact about a setting is written. Pure data: `settings.py`
holds the values.
"""

from __future__ import annotations

from typing import Final

from amqptasks.settings_kinds import (
    Setting,
    anything,
    boolean,
    delivery_mode,
    failover,
    fraction,
    heartbeat,
    names,
    one_of,
    seconds,
    table,
    text,
    timezone,
    tls,
    url,
    urls,
    whole,
)
from amqptasks.settings_queues import queues, retry_policy, routes
from amqptasks.settings_worker import BEAT, CONTROL, SECURITY, STORES, WORKER

__all__ = ["SECTIONS", "SETTINGS"]

_S = Setting
_NAME: Final = text(255)
_PORT: Final = whole(1, 65535)
_MIB: Final = 1024 * 1024
_ENDLESS: Final = float("inf")
_RETRY_POLICY: Final = {"max_retries": 3, "interval_start": 0, "interval_max": 1, "interval_step": 0.2}
_QUEUE_TYPE: Final = one_of("quorum", "classic")
_TRANSPORT: Final = one_of(
    "amqp", "amqps", "pyamqp", hints={"redis": "RabbitMQ is the only broker of amqptasks"}
).or_none()

_GENERAL: Final = (
    _S(
        "accept_content",
        names,
        ("json", "msgpack"),
        "Serializers (names or MIME types) whose messages are read; all others are refused.",
        ours="json alone in Celery",
    ),
    _S("result_accept_content", names.or_none(), None, "The same for results; None: as `accept_content`."),
    _S("enable_utc", boolean, True, "Moments always travel in UTC, with their offset.", "never"),
    _S("timezone", timezone, None, "The zone of schedules and naive dates; None: UTC."),
    _S("imports", names, (), "Modules a worker imports when it starts."),
    _S("include", names, (), "More modules to import, after `imports`."),
)

_BROKER: Final = (
    _S(
        "broker_url",
        urls,
        "amqp://guest@localhost//",
        "Where RabbitMQ is. Several: tried in turn.",
        ours="None in Celery, same meaning",
    ),
    _S("broker_read_url", urls.or_none(), None, "The broker that workers consume from; None: `broker_url`."),
    _S("broker_write_url", urls.or_none(), None, "The broker for all else, results included; None: `broker_url`."),
    _S("broker_host", text().or_none(), None, "Host, if `broker_url` is not set. Prefer the URL."),
    _S("broker_port", _PORT.or_none(), None, "Port, if `broker_url` is not set."),
    _S("broker_user", text().or_none(), None, "User, if `broker_url` is not set."),
    _S("broker_password", text().or_none(), None, "Password, if `broker_url` is not set.", secret=True),
    _S("broker_vhost", text().or_none(), None, "Virtual host, if `broker_url` is not set."),
    _S("broker_use_ssl", tls.or_none(), False, "TLS: True, or a mapping of keyfile, certfile, ca_certs and others."),
    _S("broker_login_method", text().or_none(), None, "SASL mechanism: PLAIN, or EXTERNAL for certificates."),
    _S(
        "broker_heartbeat",
        heartbeat,
        10,
        "Seconds between heartbeats, in producers too; 0: none.",
        ours="120 in Celery",
    ),
    _S("broker_connection_timeout", seconds(above=True), 4.0, "Seconds one attempt to connect may take."),
    _S("broker_connection_retry", boolean, True, "A worker whose connection is lost connects again."),
    _S(
        "broker_connection_retry_on_startup",
        boolean.or_none(),
        None,
        "A worker that starts without a broker waits for it; None: as above.",
    ),
    _S(
        "broker_connection_max_retries",
        whole().or_none(),
        None,
        "Attempts before a worker gives up; None or 0: never.",
        ours="100 in Celery",
    ),
    _S(
        "broker_connection_retry_interval_max",
        seconds(above=True),
        10.0,
        "Longest wait in seconds between two attempts.",
        ours="new",
    ),
    _S(
        "broker_publish_timeout",
        seconds(above=True),
        10.0,
        "Seconds after which `delay()` raises NotSent or MaybeSent, all retries included.",
        ours="new",
    ),
    _S(
        "broker_publish_confirm",
        boolean,
        True,
        "`delay()` returns when the broker has the message; False: faster, may lose.",
        ours="new",
    ),
    _S(
        "broker_publish_buffer",
        whole(1),
        10_000,
        "Messages one process may have in flight before senders wait.",
        ours="new",
    ),
    _S(
        "broker_failover_strategy",
        failover.or_none(),
        None,
        "Which of several URLs is tried next. None: in turn, 'round-robin'.",
    ),
    _S("broker_transport", _TRANSPORT, None, "The URL says it; RabbitMQ is the only broker.", "never"),
    _S(
        "broker_transport_options",
        table,
        {},
        "kombu's; confirms are on by default, see `broker_publish_confirm`.",
        "never",
    ),
    _S("broker_channel_error_retry", boolean, False, "A channel that fails is always opened again.", "never"),
    _S("broker_heartbeat_checkrate", fraction(), 3.0, "Heartbeats are served by a thread of their own.", "never"),
    _S(
        "broker_pool_limit", whole().or_none(), 10, "One connection per process publishes for all its threads.", "never"
    ),
    _S(
        "broker_pool_acquire_timeout",
        seconds().or_none(),
        None,
        "There is no pool to wait for, see `broker_publish_timeout`.",
        "never",
    ),
    _S(
        "broker_native_delayed_delivery_queue_type",
        _QUEUE_TYPE,
        "quorum",
        "Delays have queues of their own, see `delay_queue_type`.",
        "never",
    ),
)

_TASKS: Final = (
    _S("task_serializer", text(), "json", "How arguments are written: json, msgpack, or one you registered."),
    _S("task_compression", text().or_none(), None, "How bodies are compressed: gzip, bzip2, zstd."),
    _S("task_protocol", one_of(2, hints={}), 2, "Version 2 is what is written; version 1 is read too.", "never"),
    _S("task_default_queue", _NAME, "celery", "The queue of tasks that are not routed."),
    _S(
        "task_default_queue_type",
        _QUEUE_TYPE,
        "quorum",
        "The type of queues that do not name theirs.",
        ours="'classic' in Celery",
    ),
    _S(
        "task_default_exchange",
        _NAME.or_none(),
        None,
        "The exchange of the default queue; None: one of the queue's name.",
    ),
    _S("task_default_exchange_type", text(), "direct", "The type of that exchange."),
    _S("task_default_routing_key", _NAME.or_none(), None, "Its routing key; None: the queue's name."),
    _S("task_default_delivery_mode", delivery_mode, 2, "2: messages survive a restart of the broker; 1: they do not."),
    _S("task_default_priority", whole(0, 255).or_none(), None, "Priority of tasks that name none."),
    _S("task_default_rate_limit", anything, None, "Rate of tasks that name none, as '10/m'."),
    _S("task_queues", queues.or_none(), None, "The queues, as `Queue` objects; None: the default queue alone."),
    _S(
        "task_queue_max_priority",
        whole(1, 255).or_none(),
        None,
        "`x-max-priority` of queues that name none; they become classic.",
    ),
    _S(
        "task_queue_prefix",
        text(100),
        "amqptasks",
        "First word of the names of our own queues and exchanges.",
        ours="new",
    ),
    _S(
        "task_create_missing_queues",
        boolean,
        True,
        "Declare a queue that is only named in a route; False: QueueNotFound.",
    ),
    _S(
        "task_create_missing_queue_type",
        _QUEUE_TYPE.or_none(),
        None,
        "Its type; None: `task_default_queue_type`.",
        ours="'classic' in Celery",
    ),
    _S(
        "task_create_missing_queue_exchange_type",
        text().or_none(),
        None,
        "Its exchange's type; None: reached by queue name.",
    ),
    _S("task_routes", routes.or_none(), None, "Which queue each task goes to, by name, glob or regular expression."),
    _S("task_annotations", anything, None, "Options of tasks, changed by configuration."),
    _S("task_acks_late", boolean, False, "Acknowledge when the result is stored; False: when the task begins."),
    _S(
        "task_acks_on_failure_or_timeout", boolean, True, "A late-ack task that fails is acknowledged; False: rejected."
    ),
    _S("task_acks_on_failure", boolean.or_none(), None, "The same for failures alone; None: as above."),
    _S(
        "task_acks_on_timeout",
        boolean.or_none(),
        None,
        "The same for hard time limits alone; None: as above. False: it runs again, `task_crash_limit` times at most.",
    ),
    _S(
        "task_reject_on_worker_lost",
        boolean.or_none(),
        None,
        "A late-ack task whose child died runs again; None: yes; False: it fails.",
        ours="None means no in Celery",
    ),
    _S(
        "task_retry_on_worker_lost",
        boolean,
        False,
        "A task whose child died is tried again as by `retry()`: after its delay, up to its `max_retries`.",
    ),
    _S(
        "task_revoke_expires",
        seconds(above=True),
        864000.0,
        "Seconds a revocation is kept, in RabbitMQ and in workers; delays are at most as long.",
        ours="new",
    ),
    _S("task_revokes_max", whole(1), 50_000, "Revoked ids that a worker keeps in mind.", ours="new"),
    _S("task_crash_limit", whole(1), 3, "Children one task may kill before it is dead-lettered.", ours="new"),
    _S("task_delivery_limit", whole(1), 20, "Deliveries of one message before it is dead-lettered.", ours="new"),
    _S(
        "task_dead_letter_suffix",
        text(50),
        ".dead",
        "What follows a queue's name in that of its dead letters.",
        ours="new",
    ),
    _S(
        "task_dead_letter_ttl",
        seconds(above=True).or_none(),
        None,
        "Seconds a dead letter is kept; None: until it is replayed or discarded.",
        ours="new",
    ),
    _S(
        "task_dead_letter_max_length",
        whole(1).or_none(),
        None,
        "Most dead letters of one queue; then the oldest makes room. None: no limit.",
        ours="new",
    ),
    _S(
        "task_dead_letter_on_failure",
        boolean,
        False,
        "A task that fails, after its retries, is among the dead letters too.",
        ours="new",
    ),
    _S("task_message_max_bytes", whole(1), 16 * _MIB, "Largest body that is read, inflated.", ours="new"),
    _S("task_message_max_items", whole(1), 1_000_000, "Most containers a body may hold.", ours="new"),
    _S("task_message_max_depth", whole(1), 100, "Deepest nesting a body may have.", ours="new"),
    _S("task_ignore_result", boolean, False, "Store no results, unless the task says otherwise."),
    _S(
        "task_persist_result",
        boolean,
        False,
        "With rpc://, keep the last state of each task in a queue of its own, for any process to read.",
        ours="new",
    ),
    _S("task_store_errors_even_if_ignored", boolean, False, "Store failures of tasks whose results are ignored."),
    _S("task_track_started", boolean, False, "Report STARTED when a task begins."),
    _S("task_time_limit", seconds(above=True).or_none(), None, "Seconds after which a task is killed."),
    _S(
        "task_soft_time_limit",
        seconds(above=True).or_none(),
        None,
        "Seconds after which SoftTimeLimitExceeded is raised in it.",
    ),
    _S("task_always_eager", boolean, False, "`delay()` runs the task at once, in the caller."),
    _S("task_eager_propagates", boolean, False, "Eager tasks raise their errors."),
    _S("task_store_eager_result", boolean, False, "Store the results of eager tasks, in a backend that stores."),
    _S("task_publish_retry", boolean, True, "Try again when sending fails, until `broker_publish_timeout`."),
    _S(
        "task_publish_retry_policy",
        retry_policy(_RETRY_POLICY),
        _RETRY_POLICY,
        "Attempts and waits in seconds; `broker_publish_timeout` ends them all.",
    ),
    _S("task_send_sent_event", boolean, False, "Emit a task-sent event for each task sent."),
    _S("task_remote_tracebacks", boolean, False, "The remote traceback is always shown, as the cause.", "never"),
    _S("task_inherit_parent_priority", boolean, False, "Tasks sent by a task get its priority, if they have none."),
    _S(
        "task_allow_error_cb_on_chord_header",
        boolean,
        False,
        "Error callbacks of a chord go to its header tasks too.",
    ),
    _S("task_repr_maxlevels", whole(1), 3, "Depth to which arguments are shown, to people and monitors."),
    _S(
        "delay_queue_type",
        _QUEUE_TYPE,
        "quorum",
        "Type of the queues that hold delayed tasks; classic: faster, may lose.",
        ours="new",
    ),
    _S("delay_index", boolean, True, "Note what is delayed, for `inspect scheduled`.", ours="new"),
)

_RESULTS: Final = (
    _S(
        "result_backend",
        url.or_none(),
        None,
        "Where results go: 'rpc://' to the caller, 'redis://', 'db+…://' into a store; None: nowhere.",
    ),
    _S(
        "result_backend_transport_options",
        table,
        {},
        "Options of the result store: `global_keyprefix` stands before every key; for Redis with sentinels "
        "`master_name`, `sentinel_kwargs`, `min_other_sentinels`.",
    ),
    _S("result_serializer", text(), "json", "How results are written."),
    _S(
        "result_compression",
        text().or_none(),
        None,
        "How result stores compress what they keep: 'gzip', 'bz2', 'lzma', 'zstd'; None: not.",
    ),
    _S(
        "result_expires",
        seconds().or_none(),
        86_400.0,
        "Seconds a result is kept; None or 0: for ever, where the store can.",
    ),
    _S(
        "result_failure_expires",
        seconds().or_none(),
        None,
        "The same for failures, in Redis alone; None: as `result_expires`.",
    ),
    _S(
        "result_chord_expires",
        seconds().or_none(),
        None,
        "Seconds that a chord may take before its body fails; None: as `result_expires`.",
    ),
    _S("result_extended", boolean, False, "Results also hold the task's name, arguments, worker, retries and queue."),
    _S("result_persistent", boolean.or_none(), None, "rpc results survive a restart of the broker; None: no."),
    _S(
        "result_cache_max",
        whole(1),
        50_000,
        "Unclaimed results one process keeps; older ones go first.",
        ours="-1, no bound, in Celery",
    ),
    _S("rpc_queue_max_length", whole(1), 100_000, "Results a reply queue holds while its process is away.", ours="new"),
    _S("result_exchange", text(), "celeryresults", "Results go straight to the caller's queue.", "never"),
    _S("result_exchange_type", text(), "direct", "Results go straight to the caller's queue.", "never"),
    _S(
        "chord_join",
        one_of("broker", "store"),
        "broker",
        "Who counts a chord's parts: RabbitMQ, or the result store as in Celery, whose workers may then run them too.",
        ours="new",
    ),
    _S(
        "result_chord_join_timeout",
        seconds(),
        3.0,
        "Nothing waits for a chord's parts: who joins them finds them all there.",
        "never",
    ),
    _S(
        "result_chord_retry_interval",
        seconds(),
        1.0,
        "Seconds between two looks of `celery.chord_unlock`, where the store cannot count a chord's parts.",
    ),
    _S(
        "result_backend_always_retry",
        boolean,
        True,
        "Try again when the result store cannot be reached.",
        ours="False in Celery, but True for databases",
    ),
    _S(
        "result_backend_max_retries",
        fraction(),
        _ENDLESS,
        "How often (Celery: 3 for databases). Reads, and states that are not final, are given up sooner.",
    ),
    _S("result_backend_base_sleep_between_retries_ms", whole(), 10, "First wait, in milliseconds; each is doubled."),
    _S("result_backend_max_sleep_between_retries_ms", whole(), 10_000, "Longest wait, in milliseconds."),
    _S("result_backend_thread_safe", boolean, False, "Every result backend is safe from any thread.", "never"),
    _S("override_backends", table, {}, "Names of result backends, and your classes for them as 'module:Class'."),
)

#: The settings by subject, in the order of the documentation.
SECTIONS: Final[tuple[tuple[str, tuple[Setting, ...]], ...]] = (
    ("General", _GENERAL),
    ("Broker", _BROKER),
    ("Tasks", _TASKS),
    ("Results", _RESULTS),
    ("Result stores", STORES),
    ("Worker", WORKER),
    ("Remote control and events", CONTROL),
    ("Beat", BEAT),
    ("Security", SECURITY),
)

#: The settings by name.
SETTINGS: Final[dict[str, Setting]] = {setting.name: setting for _, section in SECTIONS for setting in section}
