"""The settings of result stores, workers, remote control, beat and security: rows of `settings_table.py`."""

from __future__ import annotations

from typing import Final

from amqptasks.settings_kinds import (
    Setting,
    anything,
    boolean,
    concurrency,
    log_level,
    one_of,
    reference,
    seconds,
    secret,
    table,
    text,
    url,
    whole,
)

__all__ = ["BEAT", "CONTROL", "SECURITY", "STORES", "WORKER"]

_S = Setting
_NAME: Final = text(255)
_PORT: Final = whole(1, 65535)
_LOG: Final = "[%(asctime)s: %(levelname)s/%(processName)s] %(message)s"
_TASK_LOG: Final = "[%(asctime)s: %(levelname)s/%(processName)s] %(task_name)s[%(task_id)s]: %(message)s"
_POOL: Final = one_of(
    "prefork",
    "solo",
    "threads",
    "asyncio",
    own=True,
    hints={
        "gevent": "use 'asyncio' or 'threads'",
        "eventlet": "use 'asyncio' or 'threads'",
        "processes": "use 'prefork'",
    },
)

STORES: Final = (
    _S("redis_host", text().or_none(), None, "Host, if the URL has none."),
    _S("redis_port", _PORT.or_none(), None, "Port."),
    _S("redis_db", whole().or_none(), None, "Number of the database."),
    _S("redis_username", text().or_none(), None, "User."),
    _S("redis_password", text().or_none(), None, "Password.", secret=True),
    _S(
        "redis_max_connections",
        whole(1).or_none(),
        None,
        "Connections one process may open, but for the one that news come over; None: as many as it has threads.",
    ),
    _S(
        "redis_backend_use_ssl",
        anything,
        None,
        "TLS: a mapping with `ssl_cert_reqs`, `ssl_ca_certs`, `ssl_certfile`, `ssl_keyfile`.",
    ),
    _S(
        "redis_socket_timeout",
        seconds().or_none(),
        10.0,
        "Seconds one command may take; None or 0: for ever.",
        ours="120 in Celery",
    ),
    _S(
        "redis_socket_connect_timeout",
        seconds().or_none(),
        None,
        "Seconds connecting may take; None: as `redis_socket_timeout`.",
    ),
    _S("redis_retry_on_timeout", boolean, False, "Repeat a command that timed out, at once and once."),
    _S("redis_socket_keepalive", boolean, False, "TCP keepalive."),
    _S(
        "redis_backend_health_check_interval",
        seconds().or_none(),
        None,
        "Seconds between checks of idle connections.",
    ),
    _S(
        "redis_backend_credential_provider",
        anything,
        None,
        "Supplies user and password: a `redis.CredentialProvider`, its class or its path.",
    ),
    _S("database_url", url.or_none(), None, "SQLAlchemy's URL, if `result_backend` is 'database'."),
    _S(
        "database_engine_options",
        table,
        {"pool_pre_ping": True, "pool_recycle": 3600},
        "SQLAlchemy's engine options.",
    ),
    _S("database_engine_callback", reference.or_none(), None, "Called with each new engine."),
    _S(
        "database_short_lived_sessions",
        boolean,
        False,
        "A connection for each operation, closed after it, instead of a pool.",
    ),
    _S("database_table_schemas", table.or_none(), None, "Schemas of the tables `task` and `group`."),
    _S("database_table_names", table.or_none(), None, "Names of the tables `task` and `group`."),
    _S(
        "database_create_tables_at_setup",
        boolean,
        True,
        "Create the tables when a worker starts; False: with the first result.",
    ),
    _S("mongodb_backend_settings", table.or_none(), None, "Database, collections and client options."),
    _S(
        "cache_backend",
        text().or_none(),
        None,
        "Django's name of a cache, if `result_backend` is 'django-cache'; 'memcached://…' or 'memory://', if it is "
        "'cache'.",
    ),
    _S("cache_backend_options", table, {}, "Options of pymemcache's clients."),
)

WORKER: Final = (
    _S(
        "worker_concurrency",
        concurrency,
        None,
        "Tasks run at once; None: one for each CPU, or 100 with asyncio; 'auto': those this container may use.",
    ),
    _S("worker_pool", _POOL, "prefork", "What runs tasks."),
    _S(
        "worker_autoscale_keepalive",
        seconds(above=True),
        30.0,
        "With `--autoscale`: seconds a slot is kept that is not needed.",
        ours="new",
    ),
    _S(
        "worker_asyncio_threads",
        whole(1),
        32,
        "Plain tasks that run at once in the asyncio pool, each in a thread.",
        ours="new",
    ),
    _S("worker_pool_start_method", one_of("fork", "spawn"), "fork", "How prefork starts its children.", "later"),
    _S(
        "worker_prefetch_multiplier",
        whole(),
        4,
        "Messages fetched ahead, times the concurrency; 0: without limit. Unset, it is 64 while tasks take under 2 ms.",
    ),
    _S(
        "worker_settlement_limit",
        whole(1),
        1000,
        "Finished tasks waiting for confirms before no more are begun.",
        ours="new",
    ),
    _S(
        "worker_shutdown_timeout",
        seconds().or_none(),
        None,
        "Seconds a warm stop may take; None: until the running tasks end.",
        ours="new",
    ),
    _S("worker_soft_shutdown_timeout", seconds(), 0.0, "Seconds running tasks get before a cold stop."),
    _S("worker_enable_soft_shutdown_on_idle", boolean, False, "A soft stop also waits when nothing runs."),
    _S("worker_max_tasks_per_child", whole(1).or_none(), None, "Tasks after which a child is replaced."),
    _S(
        "worker_max_memory_per_child",
        whole(1).or_none(),
        None,
        "KiB of resident memory after which a child is replaced.",
    ),
    _S("worker_disable_rate_limits", boolean, False, "Ignore rate limits."),
    _S("worker_enable_remote_control", boolean, True, "Answer inspect and control commands."),
    _S("worker_send_task_events", boolean, False, "Emit events that monitors read.", "now"),
    _S("worker_direct", boolean, False, "Each worker also consumes a queue of its own, `<hostname>.dq2`."),
    _S(
        "worker_proc_alive_timeout",
        seconds(above=True).or_none(),
        None,
        "Seconds a new child may take until it takes tasks, or it is replaced; None: as long as it needs.",
        ours="4 in Celery",
    ),
    _S(
        "worker_deduplicate_successful_tasks",
        boolean,
        False,
        "A late-ack task that is delivered again is not run if its success is stored, where any process can read it.",
    ),
    _S(
        "worker_cancel_long_running_tasks_on_connection_loss",
        boolean,
        False,
        "End running late-ack tasks when the connection is lost: the broker gives them to any worker at once.",
    ),
    _S("worker_pool_restarts", boolean, False, "Allow the pool_restart command."),
    _S(
        "worker_disable_prefetch",
        boolean,
        False,
        "Fetch as little ahead as can be: one message for each running task, whatever the multiplier says.",
    ),
    _S("worker_hijack_root_logger", boolean, True, "Set up the root logger."),
    _S("worker_log_color", boolean.or_none(), None, "Colours in logs; None: on a terminal."),
    _S("worker_log_format", text(), _LOG, "Format of log lines."),
    _S("worker_task_log_format", text(), _TASK_LOG, "Format of log lines written by tasks."),
    _S("worker_log_datefmt", text().or_none(), None, "Format of dates in log lines, as for strftime."),
    _S("worker_task_log_datefmt", text().or_none(), None, "The same for lines written by tasks."),
    _S(
        "worker_log_json",
        boolean,
        False,
        "Write each log line as one JSON object; formats do not count then.",
        ours="new",
    ),
    _S("worker_redirect_stdouts", boolean, True, "What tasks print goes to the log."),
    _S("worker_redirect_stdouts_level", log_level, "WARNING", "At this level."),
    _S("worker_lost_wait", seconds(), 10.0, "A dead child is noticed at once.", "never"),
    _S("worker_pool_putlocks", boolean, True, "Tasks only ever go to a child with room.", "never"),
    _S(
        "worker_enable_prefetch_count_reduction",
        boolean,
        True,
        "A task still running when it is redelivered is not run twice.",
        "never",
    ),
    _S(
        "worker_eta_task_limit",
        whole(1).or_none(),
        None,
        "Delayed tasks wait in the broker, never in a worker.",
        "never",
    ),
    _S("worker_state_db", text().or_none(), None, "Revoked ids are kept by the broker.", "never"),
    _S("worker_timer_precision", seconds(), 1.0, "Timers are exact.", "never"),
    _S(
        "worker_detect_quorum_queues",
        boolean,
        True,
        "Prefetch is always counted per consumer, which suits every queue type.",
        "never",
    ),
    _S(
        "worker_autoscaler",
        anything,
        None,
        "Celery's class; autoscaling is built in.",
        "never",
        ours="a class in Celery",
    ),
    _S(
        "worker_consumer",
        anything,
        None,
        "Celery's class; the consumer is built in.",
        "never",
        ours="a class in Celery",
    ),
    _S("worker_timer", anything, None, "Celery's class; the timer is built in.", "never"),
    _S("worker_agent", anything, None, "Celery's class; there are no agents.", "never"),
)

CONTROL: Final = (
    _S("control_exchange", _NAME, "celery", "Exchange of remote commands, before '.pidbox'."),
    _S("control_queue_ttl", seconds().or_none(), 300.0, "Seconds a command may wait for its worker."),
    _S(
        "control_queue_expires",
        seconds().or_none(),
        10.0,
        "Seconds until the queue of a gone worker is deleted.",
    ),
    _S("control_queue_exclusive", boolean, True, "Command queues belong to one connection."),
    _S("control_queue_durable", boolean, False, "Command queues survive a restart of the broker."),
    _S("event_exchange", _NAME, "celeryev", "Exchange of events.", "now"),
    _S("event_serializer", text(), "json", "How events are written.", "now"),
    _S("event_queue_prefix", text(100), "celeryev", "First word of the names of monitors' queues.", "now"),
    _S("event_queue_ttl", seconds().or_none(), 5.0, "Seconds an event may wait for its monitor.", "now"),
    _S(
        "event_queue_expires",
        seconds().or_none(),
        60.0,
        "Seconds until the queue of a gone monitor is deleted.",
        "now",
    ),
    _S("event_queue_exclusive", boolean, True, "Monitors' queues belong to one connection.", "now"),
    _S("event_queue_durable", boolean, False, "Monitors' queues survive a restart of the broker.", "now"),
)

BEAT: Final = (
    _S("beat_schedule", table, {}, "What is sent when: names to task, schedule, args, kwargs, options."),
    _S(
        "beat_scheduler",
        reference.or_none(),
        None,
        "The scheduler's class; None: amqptasks.beat:PersistentScheduler.",
        ours="a class in Celery",
    ),
    _S(
        "beat_schedule_filename",
        text().or_none(),
        None,
        "File that keeps the last runs besides the broker; None: amqptasks-schedule.",
        ours="celerybeat-schedule in Celery",
    ),
    _S("beat_sync_every", whole(), 0, "It is written after so many tasks; 0: every 3 minutes."),
    _S(
        "beat_max_loop_interval",
        seconds(),
        0,
        "Longest sleep in seconds between two looks at the schedule; 0: 5 seconds (300 in Celery).",
    ),
    _S(
        "beat_cron_starting_deadline",
        seconds().or_none(),
        None,
        "A run of a crontab missed by more seconds than this is skipped.",
    ),
    _S(
        "beat_missed_runs",
        one_of("skip", "once", "all"),
        "once",
        "What is made up for of the runs that were missed: none, the last one, or all.",
        ours="new",
    ),
    _S("beat_missed_runs_max", whole(1), 100, "How many of them at most, with all.", ours="new"),
    _S(
        "beat_schedule_name",
        text().or_none(),
        None,
        "Beats of one name share one schedule; None: the app's name.",
        ours="new",
    ),
    _S("beat_enable_remote_control", boolean, False, "Beat answers inspect ping."),
    _S(
        "beat_remote_control_max_tick_age",
        seconds().or_none(),
        None,
        "Seconds that a tick may take before it does not; 0: any; None: 60, or twice its longest sleep.",
    ),
)

SECURITY: Final = (
    _S("security_key", text().or_none(), None, "File of the private key that signs messages."),
    _S("security_key_password", secret.or_none(), None, "Its password.", secret=True),
    _S("security_certificate", text().or_none(), None, "File of its certificate."),
    _S(
        "security_cert_store",
        text().or_none(),
        None,
        "Files of the certificates that are trusted: a directory or a glob.",
    ),
    _S(
        "security_digest",
        one_of("sha256", "sha384", "sha512", "sha3_256", "sha3_384", "sha3_512"),
        "sha256",
        "The digest that is signed, the same for all who send and read.",
    ),
    _S(
        "security_max_age",
        seconds(above=True).or_none(),
        86400.0,
        "Refuse a signed task this long after it was signed, or after its eta.",
        ours="new",
    ),
    _S(
        "security_require_binding",
        boolean,
        False,
        "Refuse signed tasks whose headers are not covered by the signature, as Celery sends them.",
        ours="new",
    ),
)
