"""The table of settings: kinds accept what they say, the page is what the code says, and Celery agrees."""

from __future__ import annotations

import re
import subprocess
import sys
from datetime import timedelta, timezone
from pathlib import Path
from typing import Any

import pytest

from amqptasks.entities import Exchange, Queue
from amqptasks.exceptions import InvalidSetting
from amqptasks.settings import Conf
from amqptasks.settings_names import name_of_old
from amqptasks.settings_table import SECTIONS, SETTINGS

pytestmark = pytest.mark.filterwarnings("ignore:setting .* has no effect")

ROOT = Path(__file__).resolve().parents[2]


@pytest.mark.parametrize(
    ("name", "given", "kept"),
    [
        ("task_acks_late", 1, True),
        ("worker_prefetch_multiplier", 0, 0),
        ("worker_concurrency", "auto", "auto"),
        ("worker_concurrency", 1, 1),
        ("task_default_priority", 255, 255),
        ("broker_heartbeat", None, 0),
        ("result_expires", timedelta(hours=1), 3600.0),
        ("result_expires", 0, 0),
        ("broker_connection_timeout", 0.001, 0.001),
        ("task_default_delivery_mode", "transient", 1),
        ("task_default_delivery_mode", 2, 2),
        ("timezone", "UTC", "UTC"),
        ("timezone", timezone.utc, timezone.utc),
        ("accept_content", "json", ("json",)),
        ("accept_content", {"msgpack", "json"}, ("json", "msgpack")),
        ("imports", ["a", "b"], ("a", "b")),
        ("task_routes", {re.compile("a"): "q"}, {re.compile("a"): "q"}),
        ("task_routes", [("a.*", {"queue": "q"}), {"b": "q"}], [("a.*", {"queue": "q"}), {"b": "q"}]),
        ("task_routes", "proj.routers.Router", "proj.routers.Router"),
        ("worker_pool", "proj.pools:Own", "proj.pools:Own"),
        ("result_backend", "rpc://", "rpc://"),
        ("broker_url", ["amqp://a", "amqp://b"], ("amqp://a", "amqp://b")),
        ("broker_use_ssl", {"ca_certs": "x"}, {"ca_certs": "x"}),
        ("worker_redirect_stdouts_level", 30, 30),
        ("result_backend_max_retries", float("inf"), float("inf")),
        (
            "task_publish_retry_policy",
            {"max_retries": None},
            {"max_retries": None, "interval_start": 0, "interval_max": 1, "interval_step": 0.2},
        ),
    ],
)
def test_a_value_is_kept_in_its_final_form(name: str, given: Any, kept: Any) -> None:
    conf = Conf()
    conf[name] = given
    assert conf[name] == kept
    assert type(conf[name]) is type(kept)


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("task_acks_late", "yes"),
        ("task_acks_late", 2),
        ("task_acks_late", None),
        ("worker_concurrency", 0),
        ("worker_concurrency", True),
        ("worker_concurrency", 1.0),
        ("worker_concurrency", "4"),
        ("worker_prefetch_multiplier", -1),
        ("task_default_priority", 256),
        ("result_cache_max", -1),
        ("result_expires", -1),
        ("result_expires", float("nan")),
        ("result_expires", "1d"),
        ("broker_connection_timeout", 0),
        ("broker_publish_timeout", float("inf")),
        ("task_default_queue", ""),
        ("task_default_queue", "q" * 256),
        ("task_default_queue_type", "stream"),
        ("task_default_delivery_mode", 3),
        ("task_default_delivery_mode", True),
        ("task_protocol", 1),
        ("timezone", "Mars/Olympus"),
        ("timezone", "../../etc/passwd"),
        ("timezone", 2),
        ("accept_content", [1]),
        ("accept_content", 1),
        ("imports", [""]),
        ("task_routes", {"a": 1}),
        ("task_routes", {1: "q"}),
        ("task_routes", [("a",)]),
        ("task_routes", 7),
        ("broker_url", []),
        ("broker_url", " ; "),
        ("broker_url", None),
        ("broker_use_ssl", "yes"),
        ("broker_transport", "redis"),
        ("result_backend", 7),
        ("result_backend", ""),
        ("worker_pool", "gevent"),
        ("worker_redirect_stdouts_level", "LOUD"),
        ("beat_schedule", []),
        ("beat_schedule", {1: 2}),
        ("task_publish_retry_policy", {"max_tries": 1}),
        ("task_publish_retry_policy", {"interval_step": None}),
        ("task_publish_retry_policy", {"interval_max": "1"}),
        ("database_engine_callback", 7),
    ],
)
def test_a_value_of_the_wrong_kind_is_refused(name: str, value: Any) -> None:
    # Given a value that the setting cannot have / When it is set / Then the error says what was expected and what came
    conf = Conf()
    with pytest.raises(InvalidSetting) as caught:
        conf[name] = value
    message = str(caught.value)
    assert message.startswith(f"expected {name} to be ")
    assert ", got: " in message
    assert message.endswith("(from the code)")
    assert conf[name] == SETTINGS[name].default


def test_queues_may_be_written_in_every_form_of_celery() -> None:
    # Given the same two queues as a list, a mapping of queues and a mapping of options
    mail = Queue("mail", Exchange("mail", "topic"), "mail.#")
    wanted = (Queue("celery"), mail)
    forms: list[Any] = [
        [Queue("celery"), mail],
        {"celery": Queue("celery"), "mail": Queue("", Exchange("mail", "topic"), "mail.#")},
        {"celery": {}, "mail": {"exchange": "mail", "exchange_type": "topic", "binding_key": "mail.#"}},
        {"celery": {}, "mail": {"exchange": Exchange("mail", "topic"), "routing_key": "mail.#"}},
    ]
    # When each is set / Then they are the same
    for form in forms:
        conf = Conf()
        conf.task_queues = form
        assert conf.task_queues == wanted


@pytest.mark.parametrize(
    ("queues", "said"),
    [
        ([Queue("a"), Queue("a")], "'a' is declared twice"),
        ([Queue("")], "no name"),
        ([7], "not a queue: 7"),
        ({"a": {"durabel": True}}, "no option 'durabel'"),
        ({"a": {"exchange": "e", "exchange_type": "topics"}}, "type of exchange 'e'"),
        ({"a": 7}, "not a queue: 7"),
        ({7: {}}, "mapping of names"),
        (Queue("a"), "a list of Queue"),
    ],
)
def test_a_wrong_queue_is_explained(queues: Any, said: str) -> None:
    conf = Conf()
    with pytest.raises(InvalidSetting) as caught:
        conf.task_queues = queues
    assert said in str(caught.value)


def test_every_default_is_a_value_of_its_setting() -> None:
    # Given every setting / When its default is set / Then it is accepted as it is
    conf = Conf()
    for name, setting in SETTINGS.items():
        conf[name] = setting.default
        assert conf[name] == setting.default


def test_no_setting_hides_behind_a_method() -> None:
    # A setting named as an attribute of Conf could not be read.
    assert not [name for name in SETTINGS if name in dir(Conf)]


def test_the_table_is_in_order() -> None:
    names = [setting.name for _, section in SECTIONS for setting in section]
    assert len(names) == len(set(names)) == len(SETTINGS)
    for setting in SETTINGS.values():
        assert setting.doc.endswith("."), setting.name
        assert setting.since in ("now", "later", "never")


def test_the_page_says_what_the_code_says() -> None:
    # Given the page of settings / When the script compares it with the code / Then they agree
    done = subprocess.run(
        [sys.executable, str(ROOT / "scripts" / "settings-docs"), "--check"], capture_output=True, text=True, timeout=60
    )
    assert done.returncode == 0, done.stderr


def test_names_and_defaults_are_those_of_celery() -> None:
    # Given the real Celery / When its settings are compared with ours
    defaults = pytest.importorskip("celery.app.defaults")
    unlike = []
    for name, option in defaults._OPTIONS.items():
        setting = SETTINGS.get(name)
        if setting is None:
            # Then only those of stores we do not have are missing
            assert name.split("_")[0] in (
                "arangodb", "azureblockblob", "cassandra", "cosmosdbsql", "couchbase", "elasticsearch", "gcs", "s3"
            ), name  # fmt: skip
            continue
        theirs = option.default
        if isinstance(theirs, timedelta):
            theirs = theirs.total_seconds()
        if theirs != setting.default and not setting.ours:
            unlike.append((name, theirs, setting.default))
        # And what we say differs does differ
        assert setting.ours in ("", "new") or theirs != setting.default or "means" in setting.ours, name
        assert setting.ours != "new", name
    # And each different default is owned up to
    assert unlike == []
    # And what is not theirs is marked as ours, or known to Celery outside its table
    outside = {"override_backends", "redis_backend_health_check_interval", "redis_backend_credential_provider",
               "result_backend_thread_safe"}  # fmt: skip
    ours = {name for name in SETTINGS if name not in defaults._OPTIONS and name not in outside}
    assert ours == {name for name, setting in SETTINGS.items() if setting.ours == "new"}


def test_every_old_name_of_celery_leads_to_todays() -> None:
    # Given Celery's own list of old names / When we are asked for today's / Then the answers are the same
    defaults = pytest.importorskip("celery.app.defaults")
    wrong = {
        old: (new, name_of_old(old))
        for old, new in defaults._TO_NEW_KEY.items()
        if new in SETTINGS and name_of_old(old) != new
    }
    assert wrong == {}
