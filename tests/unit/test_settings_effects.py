"""Settings whose effect needs no broker to be seen: where connections go, how results are kept.

`test_settings_proofs.py` says for every setting which test proves that it does something.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pika
import pytest

from amqptasks.app.app import App
from amqptasks.exceptions import ImproperlyConfigured
from amqptasks.results.payload import Payloads
from amqptasks.results.record import ResultRecord
from amqptasks.results.retries import StoreRetries
from amqptasks.settings import Conf


def parameters(**settings: Any) -> pika.ConnectionParameters:
    """What the app's connections are opened with."""
    (endpoint,) = App("effects", set_as_current=False, **settings).endpoints("test")
    return endpoint.parameters


# ---- Connections


@pytest.mark.parametrize(
    ("setting", "value", "attribute", "expected"),
    [
        ("broker_url", "amqp://ann:pw@other:1234/own", "host", "other"),
        ("broker_host", "other", "host", "other"),
        ("broker_port", 1234, "port", 1234),
        ("broker_vhost", "own", "virtual_host", "own"),
        ("broker_user", "ann", "credentials.username", "ann"),
        ("broker_password", "pw", "credentials.password", "pw"),
        ("broker_heartbeat", 7, "heartbeat", 7),
        ("broker_connection_timeout", 0.5, "socket_timeout", 0.5),
        ("broker_use_ssl", True, "port", 5671),
    ],
)
def test_the_settings_say_what_to_connect_to(setting: str, value: Any, attribute: str, expected: Any) -> None:
    found: Any = parameters(**{setting: value})
    unset: Any = parameters()
    for name in attribute.split("."):
        found, unset = getattr(found, name), getattr(unset, name)
    assert found == expected != unset


def test_reading_and_writing_may_be_on_two_brokers() -> None:
    app = App("effects", set_as_current=False, broker_read_url="amqp://reads//", broker_write_url="amqp://writes//")
    (reads,), (writes,) = app.endpoints("test", reads=True), app.endpoints("test")
    assert (reads.parameters.host, writes.parameters.host) == ("reads", "writes")


def test_tls_is_by_setting() -> None:
    assert parameters().ssl_options is None
    assert parameters(broker_use_ssl=True).ssl_options is not None


def test_the_login_is_by_setting() -> None:
    # Given a login by certificate, and no certificate / When it is to be used / Then that is what is missing
    with pytest.raises(ImproperlyConfigured, match="EXTERNAL"):
        parameters(broker_login_method="EXTERNAL")


# ---- Results


@pytest.fixture
def rpc() -> Iterator[App]:
    """An app that keeps two results at most."""
    app = App("effects", backend="rpc://", set_as_current=False, result_cache_max=2, rpc_queue_max_length=7)
    yield app
    app.close()


def test_a_process_keeps_as_many_results_as_it_is_told(rpc: App) -> None:
    # Given room for two results / When three are waited for and come
    backend = rpc.backend
    for task_id in "abc":
        backend.expect(task_id)
    for task_id in "abc":
        backend.store(ResultRecord.now(task_id, "SUCCESS", 1))
    # Then the oldest is not kept
    assert backend.fetch("a") is None
    kept = backend.wait("c", 0)
    assert kept.result == 1


def test_a_reply_queue_holds_as_many_results_as_it_is_told(rpc: App) -> None:
    backend: Any = rpc.backend
    (declared,) = backend.need.steps(None)
    assert declared.arguments["x-max-length"] == 7


def test_results_are_compressed_by_setting() -> None:
    conf = Conf()
    limits = App("effects", set_as_current=False).limits()
    plain = Payloads.of(conf, limits).dumps("x" * 1000)
    conf.result_compression = "gzip"
    assert len(Payloads.of(conf, limits).dumps("x" * 1000)) < len(plain) / 2


def test_waits_for_a_store_are_by_setting() -> None:
    conf = Conf()
    conf.update(result_backend_base_sleep_between_retries_ms=100, result_backend_max_sleep_between_retries_ms=300)
    retries = StoreRetries.of(conf)
    assert [retries.longest_wait_s(number) for number in (1, 2, 3)] == [0.2, 0.3, 0.3]


def test_results_go_where_the_setting_says(tmp_path: Path) -> None:
    assert App("effects", set_as_current=False, result_backend="rpc://").backend.as_uri() == "rpc://"
    with App("effects", set_as_current=False, result_backend=f"db+sqlite:///{tmp_path}/r.db") as app:
        assert app.backend.persistent
