"""Settings: who wins, what is refused and how, and that no password is ever shown."""

from __future__ import annotations

import sys
import threading
import types
import warnings
from collections.abc import Callable, Mapping
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest

from amqptasks.entities import Exchange, Queue
from amqptasks.exceptions import ImproperlyConfigured, InvalidSetting
from amqptasks.settings import Conf, broker_urls


@pytest.fixture
def conf() -> Conf:
    return Conf()


def module_of(**names: Any) -> types.ModuleType:
    module = types.ModuleType("celeryconfig")
    vars(module).update(names)
    return module


def refusal(action: Callable[[], object]) -> str:
    with pytest.raises(InvalidSetting) as caught:
        action()
    return str(caught.value)


# ---- Reading and writing


def test_a_setting_is_read_as_attribute_and_as_item(conf: Conf) -> None:
    # Given a new configuration / When a setting is read / Then both ways give the default
    assert conf.task_default_queue == conf["task_default_queue"] == "celery"
    assert conf.get("task_routes") is None
    assert "broker_url" in conf
    assert "broker_ulr" not in conf
    assert dict(conf)["broker_heartbeat"] == 10


def test_code_may_set_one_or_many(conf: Conf) -> None:
    # When settings are set in each way there is / Then they are read back
    conf.task_serializer = "msgpack"
    conf["timezone"] = "UTC"
    conf.update(task_ignore_result=True)
    conf.update({"task_acks_late": True}, worker_concurrency=3)
    assert (conf.task_serializer, conf.timezone, conf.task_ignore_result) == ("msgpack", "UTC", True)
    assert (conf.task_acks_late, conf.worker_concurrency) == (True, 3)
    assert list(conf.changed()) == [
        "timezone", "task_serializer", "task_acks_late", "task_ignore_result", "worker_concurrency"
    ]  # fmt: skip
    assert conf.without_defaults() == conf.changed() == conf.table()


def test_an_update_with_one_mistake_changes_nothing(conf: Conf) -> None:
    # Given an update of two settings, one of them wrong / When it is refused / Then neither is set
    before = conf.version
    refusal(lambda: conf.update(task_serializer="msgpack", worker_concurrency=0))
    assert conf.task_serializer == "json"
    assert conf.version == before


def test_the_version_grows_with_each_change(conf: Conf) -> None:
    seen = [conf.version]
    conf.task_serializer = "msgpack"
    seen.append(conf.version)
    conf.load_environment({"AMQPTASKS_TASK_SERIALIZER": "json"})
    seen.append(conf.version)
    conf.load_object({"timezone": "UTC"})
    seen.append(conf.version)
    conf.override({"task_serializer": "yaml"})
    seen.append(conf.version)
    conf.reset("task_serializer")
    seen.append(conf.version)
    assert seen == sorted(set(seen))


def test_what_can_be_changed_in_place_is_not_shared() -> None:
    # Given two configurations / When one's default mapping is changed in place / Then the other's is not
    one, other = Conf(), Conf()
    one.beat_schedule["tick"] = {}
    assert other.beat_schedule == {}


def test_many_threads_may_write(conf: Conf) -> None:
    # Given eight threads that each set a setting many times / When they are done / Then no change was lost count of
    def write(number: int) -> None:
        for _ in range(200):
            conf.worker_concurrency = number

    before = conf.version
    threads = [threading.Thread(target=write, args=(number,)) for number in range(1, 9)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert conf.version == before + 1600
    assert conf.worker_concurrency in range(1, 9)


# ---- Sources


def test_the_higher_source_wins_whatever_the_order(conf: Conf) -> None:
    # Given every source, set from the highest to the lowest
    conf.override({"task_default_queue": "cli"})
    conf.task_default_queue = "code"
    conf.load_environment({"AMQPTASKS_TASK_DEFAULT_QUEUE": "environment"})
    conf.load_object(module_of(task_default_queue="module"))
    conf.add_defaults({"task_default_queue": "app", "task_serializer": "msgpack"})
    # Then the highest counts, and says where it is from
    assert conf.task_default_queue == "cli"
    assert conf.source_of("task_default_queue") == "the command line"
    assert conf.source_of("task_serializer") == "the app's defaults"
    assert conf.source_of("broker_url") == "the default"


def test_each_source_beats_the_one_below() -> None:
    conf = Conf({"task_default_queue": "app"})
    seen = [conf.task_default_queue]
    conf.load_object({"task_default_queue": "module"})
    seen.append(conf.task_default_queue)
    conf.load_environment({"AMQPTASKS_TASK_DEFAULT_QUEUE": "environment"})
    seen.append(conf.task_default_queue)
    conf.task_default_queue = "code"
    seen.append(conf.task_default_queue)
    conf.override({"task_default_queue": "cli"}, source="option -Q")
    seen.append(conf.task_default_queue)
    assert seen == ["app", "module", "environment", "code", "cli"]


def test_what_code_set_can_be_taken_back(conf: Conf) -> None:
    conf.load_environment({"AMQPTASKS_TASK_SERIALIZER": "msgpack"})
    conf.task_serializer = "yaml"
    conf.reset("task_serializer")
    assert conf.task_serializer == "msgpack"
    conf.timezone = "UTC"
    del conf.timezone
    assert conf.timezone is None


def test_a_second_object_replaces_the_first(conf: Conf) -> None:
    conf.load_object({"task_serializer": "msgpack", "timezone": "UTC"})
    conf.load_object({"task_serializer": "yaml"})
    assert (conf.task_serializer, conf.timezone) == ("yaml", None)


# ---- The environment


def test_the_environment_is_read_as_text(conf: Conf) -> None:
    # Given variables of every kind / When they are loaded / Then each has its own type
    conf.load_environment(
        {
            "AMQPTASKS_BROKER_URL": "amqp://a//;amqp://b//",
            "AMQPTASKS_TASK_ACKS_LATE": "Yes",
            "AMQPTASKS_WORKER_CONCURRENCY": " 4 ",
            "AMQPTASKS_BROKER_PUBLISH_TIMEOUT": "2.5",
            "AMQPTASKS_RESULT_EXPIRES": "none",
            "AMQPTASKS_INCLUDE": "a.tasks, b.tasks",
            "AMQPTASKS_TASK_ROUTES": '{"a.*": {"queue": "a"}}',
            "AMQPTASKS_TASK_QUEUES": "celery,mail",
            "AMQPTASKS_TASK_DEFAULT_DELIVERY_MODE": "1",
            "AMQPTASKS_WORKER_REDIRECT_STDOUTS_LEVEL": "info",
            "AMQPTASKS_TASK_SERIALIZER": "",
            "PATH": "/bin",
        }
    )
    assert broker_urls(conf) == ("amqp://a//", "amqp://b//")
    assert conf.task_acks_late is True
    assert (conf.worker_concurrency, conf.broker_publish_timeout, conf.result_expires) == (4, 2.5, None)
    assert conf.include == ("a.tasks", "b.tasks")
    assert conf.task_routes == {"a.*": {"queue": "a"}}
    assert conf.task_queues == (Queue("celery"), Queue("mail"))
    assert (conf.task_default_delivery_mode, conf.worker_redirect_stdouts_level) == (1, "INFO")
    assert conf.task_serializer == "json"
    assert conf.source_of("include") == "the environment variable AMQPTASKS_INCLUDE"


@pytest.mark.parametrize(
    ("variable", "value", "said"),
    [
        ("AMQPTASKS_WORKER_CONCURRENCY", "4x", "got: '4x'"),
        ("AMQPTASKS_TASK_ACKS_LATE", "perhaps", "True or False, got: 'perhaps'"),
        ("AMQPTASKS_TASK_ROUTES", "{", "JSON"),
        ("AMQPTASKS_BROKER_ULR", "amqp://", "did you mean 'broker_url'?"),
        ("AMQPTASKS_WORKER_CONCURENCY", "4", "did you mean 'worker_concurrency'?"),
    ],
)
def test_a_mistake_in_the_environment_names_the_variable(conf: Conf, variable: str, value: str, said: str) -> None:
    # Given a variable with a mistake / When the environment is loaded / Then the error says which, and what is wrong
    message = refusal(lambda: conf.load_environment({variable: value}))
    assert said in message
    assert variable in message


def test_variables_of_other_things_are_left_alone(conf: Conf) -> None:
    # Given variables of the command line and the test suite / When the environment is loaded / Then they do not matter
    others = ("APP", "BROKER", "TEST_BROKER_URL", "WORKER_LOGLEVEL", "WORKER_AUTOSCALE", "BEAT_SCHEDULE", "RESULT_TASK")
    conf.load_environment({f"AMQPTASKS_{name}": "x" for name in others})
    assert conf.changed() == {}


def test_loading_the_environment_again_forgets_what_is_gone(conf: Conf) -> None:
    conf.load_environment({"AMQPTASKS_TASK_SERIALIZER": "msgpack"})
    conf.load_environment({})
    assert conf.task_serializer == "json"


# ---- Objects and modules


def test_a_module_of_settings_is_loaded_by_name(conf: Conf, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    # Given a module as users write them: imports, helpers, constants, private names, queues
    (tmp_path / "shopconfig.py").write_text(
        "import os\n"
        "from datetime import timedelta\n"
        "from amqptasks.entities import Exchange, Queue\n"
        "HOST = 'localhost'\n"
        "_port = 5672\n"
        "def route(name, args, kwargs, options, task=None, **kw): return None\n"
        "mail_exchange = Exchange('mail', type='topic')\n"
        "broker_url = f'amqp://{HOST}:{_port}//'\n"
        "task_queues = [Queue('mail', mail_exchange, 'mail.#')]\n"
        "task_routes = route\n"
        "result_expires = timedelta(minutes=1)\n"
    )
    monkeypatch.syspath_prepend(str(tmp_path))
    # When it is loaded by its dotted name
    try:
        assert conf.load_object("shopconfig") is True
        # Then the settings are taken, the rest is not
        assert broker_urls(conf) == ("amqp://localhost:5672//",)
        assert conf.task_queues == (Queue("mail", Exchange("mail", "topic"), "mail.#"),)
        assert conf.task_routes is sys.modules["shopconfig"].route
        assert conf.result_expires == 60
        assert conf.source_of("task_queues") == "module shopconfig"
        assert len(conf.changed()) == 4
    finally:
        sys.modules.pop("shopconfig", None)


def test_classes_and_objects_are_configurations_too(conf: Conf) -> None:
    class Base:
        timezone = "UTC"

    class Config(Base):
        task_serializer = "msgpack"

        def helper(self) -> None: ...

    conf.load_object(Config)
    assert (conf.task_serializer, conf.timezone) == ("msgpack", "UTC")
    config = Config()
    config.task_serializer = "yaml"
    conf.load_object(config)
    assert conf.task_serializer == "yaml"


def test_a_class_is_found_inside_its_module(conf: Conf) -> None:
    holder = module_of(Config=type("Config", (), {"task_serializer": "msgpack"}))
    sys.modules["holder_of_config"] = holder
    try:
        for name in ("holder_of_config:Config", "holder_of_config.Config"):
            fresh = Conf()
            assert fresh.load_object(name)
            assert fresh.task_serializer == "msgpack"
    finally:
        del sys.modules["holder_of_config"]


def test_a_namespace_picks_its_own_names(conf: Conf) -> None:
    # Given Django's settings / When they are loaded with a namespace
    settings = module_of(
        SECRET_KEY="x", DEBUG=True, TIME_ZONE="UTC", CELERY_TASK_SERIALIZER="msgpack", CELERY_BROKER_URL="amqp://h//"
    )
    conf.load_object(settings, namespace="CELERY")
    # Then only the names within it count
    assert set(conf.changed()) == {"task_serializer", "broker_url"}
    other = Conf(namespace="CELERY_")
    other.load_object(settings)
    assert other.task_serializer == "msgpack"


def test_a_mistake_in_a_namespace_is_one_whatever_its_value_is(conf: Conf) -> None:
    # Given a slip whose value is of a class that no plain setting has / When it is loaded / Then it is refused too
    message = refusal(lambda: conf.load_object(module_of(SHOP_RESULT_EXPIRE=timedelta(1)), namespace="SHOP"))
    assert "did you mean 'result_expires'?" in message


def test_a_mistake_in_a_namespace_shows_the_whole_name(conf: Conf) -> None:
    message = refusal(lambda: conf.load_object(module_of(CELERY_TASK_SERIALISER="json"), namespace="CELERY"))
    assert "CELERY_TASK_SERIALISER" in message
    assert "did you mean 'task_serializer'?" in message


@pytest.mark.parametrize(
    ("name", "value", "said"),
    [
        ("task_serialzer", "json", "did you mean 'task_serializer'?"),
        ("task_queus", (Queue("a"),), "did you mean 'task_queues'?"),
        ("CELERY_TASK_SERIALIZER", "json", "write 'task_serializer'"),
        ("CELERYD_CONCURRENCY", 2, "write 'worker_concurrency'"),
        ("CELERYBEAT_SCHEDULE", {}, "write 'beat_schedule'"),
        ("CELERY_RESULT_BACKEND", "rpc://", "write 'result_backend'"),
        ("CELERY_TASK_RESULT_EXPIRES", 1, "write 'result_expires'"),
        ("BROKER_URL", "amqp://", "write 'broker_url'"),
        ("cassandra_servers", ["a"], "result store"),
        ("my_own_thing", 1, "begins with an underscore"),
    ],
)
def test_a_name_that_is_no_setting_is_explained(conf: Conf, name: str, value: Any, said: str) -> None:
    # Given a module with such a name / When it is loaded / Then the error names it, the module, and what to write
    message = refusal(lambda: conf.load_object(module_of(**{name: value})))
    assert repr(name) in message
    assert "from module celeryconfig" in message
    assert said in message


def test_a_mapping_holds_settings_alone(conf: Conf) -> None:
    assert "did you mean 'timezone'" in refusal(lambda: conf.load_object({"timezon": len}))


def test_a_missing_module_is_an_error_unless_silent(conf: Conf) -> None:
    for name in ("no_such_module", "no_such.module", "os:nothing", "os.nothing", "", ".x"):
        assert conf.load_object(name, silent=True) is False
        with pytest.raises(ImproperlyConfigured, match="no configuration module"):
            conf.load_object(name)


def test_trouble_inside_a_module_is_not_hidden(conf: Conf, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    # Given a module that is there but imports one that is not / When it is loaded silently / Then it still raises
    (tmp_path / "brokenconfig.py").write_text("import no_such_module_at_all\n")
    monkeypatch.syspath_prepend(str(tmp_path))
    with pytest.raises(ModuleNotFoundError, match="no_such_module_at_all"):
        conf.load_object("brokenconfig", silent=True)


# ---- Names


def test_reading_an_unknown_setting_says_which_was_meant(conf: Conf) -> None:
    with pytest.raises(AttributeError, match="did you mean 'broker_url'"):
        _ = conf.broker_ulr
    with pytest.raises(KeyError, match="did you mean 'broker_url'"):
        _ = conf["broker_ulr"]
    assert not hasattr(conf, "broker_ulr")
    assert conf.get("broker_ulr", 7) == 7


def test_setting_an_unknown_name_is_an_error(conf: Conf) -> None:
    def assign() -> None:
        conf.broker_ulr = "amqp://"

    assert "unknown setting 'broker_ulr' (did you mean 'broker_url'?)" in refusal(assign)
    assert "unknown setting 'zzzz'" in refusal(lambda: conf.override({"zzzz": 1}))
    wrong: Mapping[Any, Any] = {7: 1}
    assert "unknown setting '7'" in refusal(lambda: conf.update(wrong))


# ---- Settings that do nothing


def test_a_setting_without_effect_warns_once(conf: Conf) -> None:
    # Given settings that do nothing yet, or never will / When they are set / Then a warning says so, once, at this line
    with pytest.warns(UserWarning, match="'worker_pool_start_method' has no effect yet") as caught:
        conf.worker_pool_start_method = "spawn"
    assert caught[0].filename == __file__
    with pytest.warns(UserWarning, match="'broker_pool_limit' has no effect in amqptasks: one connection") as caught:
        conf.update(broker_pool_limit=3)
    assert caught[0].filename == __file__
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        conf.worker_pool_start_method = "spawn"


def test_the_default_of_such_a_setting_is_no_news(conf: Conf) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        conf.update(worker_pool_start_method="fork", broker_pool_limit=10)


# ---- Secrets


@pytest.mark.filterwarnings("ignore:setting")
def test_no_password_is_shown_anywhere(conf: Conf) -> None:
    # Given passwords in every place that may hold one
    conf.broker_url = ["amqp://user:hunter2@a//", "amqp://user:hunter2@b//"]
    conf.result_backend = "redis://:hunter2@h/0"
    conf.broker_password = "hunter2"
    conf.broker_use_ssl = {"keyfile": "k.pem", "password": "hunter2"}
    conf.mongodb_backend_settings = {"host": "mongodb://u:hunter2@h", "options": {"password": "hunter2"}}
    # When the configuration is shown / Then none of them is to be seen, and the rest is
    shown = f"{conf!r} {conf.humanize()} {conf.humanize(with_defaults=True)} {conf.table()}"
    assert "hunter2" not in shown
    assert "amqp://user:***@a//" in shown
    assert "k.pem" in shown
    # And who must have them gets them
    assert broker_urls(conf)[0] == "amqp://user:hunter2@a//"
    assert conf.table(censored=False)["broker_password"] == "hunter2"


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("broker_url", ["amqp://u:hunter2@h", 7]),
        ("broker_url", b"amqp://u:hunter2@h"),
        ("result_backend", ["redis://:hunter2@h"]),
        ("redis_password", 7),
        ("mongodb_backend_settings", [{"password": "hunter2"}]),
    ],
)
def test_an_error_shows_no_password(conf: Conf, name: str, value: Any) -> None:
    assert "hunter2" not in refusal(lambda: conf.update({name: value}))


def test_a_text_with_an_at_sign_is_not_taken_for_a_login(conf: Conf) -> None:
    conf.worker_log_format = "%(levelname)s: %(message)s @ %(processName)s"
    assert "%(levelname)s: %(message)s @ %(processName)s" in conf.humanize()


# ---- The broker's URLs


@pytest.mark.parametrize(
    ("given", "urls"),
    [
        ("amqp://a//", ("amqp://a//",)),
        (" amqp://a// ; amqp://b// ;", ("amqp://a//", "amqp://b//")),
        (["amqp://a//", "amqp://b//;amqp://c//"], ("amqp://a//", "amqp://b//", "amqp://c//")),
    ],
)
def test_broker_urls_come_in_turn(conf: Conf, given: Any, urls: tuple[str, ...]) -> None:
    conf.broker_url = given
    assert broker_urls(conf) == urls


def test_a_broker_in_parts_becomes_a_url(conf: Conf) -> None:
    # Given Celery's old settings / When the URLs are asked for / Then they are one URL, quoted
    assert broker_urls(conf) == ("amqp://guest@localhost//",)
    conf.update(broker_host="h", broker_port=5673, broker_user="u@x", broker_password="p/w", broker_vhost="my/v")
    assert broker_urls(conf) == ("amqp://u%40x:p%2Fw@h:5673/my%2Fv",)
    # And the URL counts if there is one
    conf.broker_url = "amqp://other//"
    assert broker_urls(conf) == ("amqp://other//",)
