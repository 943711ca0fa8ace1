"""What to answer to a name that is not a setting: the name it has now, or the nearest one there is.

Only used when something is wrong, so nothing here is in a hurry.
"""

from __future__ import annotations

from typing import Final

from amqptasks.settings_table import SETTINGS

__all__ = ["explain_unknown", "is_near_miss", "name_of_old"]

#: Celery's result stores that are not here.
_OTHER_STORES: Final = (
    "arangodb", "azureblockblob", "cassandra", "cosmosdbsql", "couchbase", "couchdb", "dynamodb", "elasticsearch",
    "gcs", "riak", "s3",
)  # fmt: skip

#: Celery's upper-case names that do not follow from today's.
_IRREGULAR: Final = {
    "CELERYD_TASK_SOFT_TIME_LIMIT": "task_soft_time_limit",
    "CELERYD_TASK_TIME_LIMIT": "task_time_limit",
    "CELERYD_WORKER_LOST_WAIT": "worker_lost_wait",
    "CELERYD_TASK_LOG_FORMAT": "worker_task_log_format",
    "CELERYD_STATE_DB": "worker_state_db",
    "CELERY_CREATE_MISSING_QUEUES": "task_create_missing_queues",
    "CELERY_DISABLE_RATE_LIMITS": "worker_disable_rate_limits",
    "CELERY_EAGER_PROPAGATES_EXCEPTIONS": "task_eager_propagates",
    "CELERY_ENABLE_REMOTE_CONTROL": "worker_enable_remote_control",
    "CELERY_MAX_CACHED_RESULTS": "result_cache_max",
    "CELERY_MESSAGE_COMPRESSION": "task_compression",
    "CELERY_REDIRECT_STDOUTS": "worker_redirect_stdouts",
    "CELERY_REDIRECT_STDOUTS_LEVEL": "worker_redirect_stdouts_level",
    "CELERY_RESULT_DBURI": "database_url",
    "CELERY_RESULT_DB_SHORT_LIVED_SESSIONS": "database_short_lived_sessions",
    "CELERY_RESULT_DB_TABLENAMES": "database_table_names",
    "CELERY_RESULT_ENGINE_OPTIONS": "database_engine_options",
    "CELERY_SEND_EVENTS": "worker_send_task_events",
    "CELERY_SEND_TASK_SENT_EVENT": "task_send_sent_event",
    "CELERY_TASK_RESULT_EXPIRES": "result_expires",
}

#: What stood before a name, and what stands there now.
_PREFIXES: Final = (
    ("celeryd_", ("worker_",)),
    ("celerybeat_", ("beat_",)),
    ("celery_", ("", "task_", "worker_")),
    ("", ("",)),
)


def name_of_old(name: str) -> str | None:
    """Return today's name of a setting for one of Celery's upper-case names, or None if it is not one."""
    if not name.isupper() or "_" not in name:
        return None
    known = _IRREGULAR.get(name)
    if known is not None:
        return known
    lower = name.lower()
    for before, afters in _PREFIXES:
        if lower.startswith(before):
            for after in afters:
                candidate = after + lower[len(before) :]
                if candidate in SETTINGS:
                    return candidate
    return None


def explain_unknown(name: str) -> str:
    """Say that there is no such setting, and which one was meant if that can be told."""
    current = name_of_old(name)
    if current is None:
        # In a namespace only the tail of an old name is left: task_result_expires of CELERY_TASK_RESULT_EXPIRES.
        current = _IRREGULAR.get(f"CELERY_{name.upper()}")
    if current is not None:
        return f"setting {name!r} is an old name, write {current!r}"
    if name.lower().startswith(tuple(f"{store}_" for store in _OTHER_STORES)):
        return f"setting {name!r} belongs to a result store of Celery's that amqptasks does not have"
    near = _nearest(name, 0.6)
    hint = f" (did you mean {near!r}?)" if near else ""
    return f"unknown setting {name!r}{hint}"


def is_near_miss(name: str) -> bool:
    """Tell whether a name is so close to a setting's that it can only be a slip."""
    return _nearest(name, 0.9) is not None


def _nearest(name: str, cutoff: float) -> str | None:
    import difflib

    found = difflib.get_close_matches(name.lower(), SETTINGS, n=1, cutoff=cutoff)
    return found[0] if found else None
