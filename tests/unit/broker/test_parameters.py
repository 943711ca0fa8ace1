"""Broker URLs become connection parameters; what cannot be used says why, without the password."""

from __future__ import annotations

import ssl
from pathlib import Path
from typing import Any

import pytest
from pika.credentials import ExternalCredentials, PlainCredentials

from amqptasks.broker.parameters import Endpoint, endpoints
from amqptasks.exceptions import ImproperlyConfigured
from tests.certificates import Authority


def endpoint(url: str, **options: Any) -> Endpoint:
    return endpoints([url], **{"heartbeat_s": 10, "connection_timeout_s": 4.0, "name": "a test", **options})[0]


@pytest.mark.parametrize(
    ("url", "expected", "label"),
    [
        ("amqp://", ("localhost", 5672, "/", "guest", "guest"), "amqp://guest@localhost:5672//"),
        ("amqp://guest@localhost//", ("localhost", 5672, "/", "guest", "guest"), "amqp://guest@localhost:5672//"),
        ("amqp://h/", ("h", 5672, "/", "guest", "guest"), "amqp://guest@h:5672//"),
        ("amqp://h/%2F", ("h", 5672, "/", "guest", "guest"), "amqp://guest@h:5672//"),
        ("amqp://h/shop", ("h", 5672, "shop", "guest", "guest"), "amqp://guest@h:5672/shop"),
        ("amqp://h//shop", ("h", 5672, "/shop", "guest", "guest"), "amqp://guest@h:5672//shop"),
        ("amqp://h/a%2Fb%20c", ("h", 5672, "a/b c", "guest", "guest"), "amqp://guest@h:5672/a/b%20c"),
        ("amqp://u:p%40%2F%3A@h:99/v", ("h", 99, "v", "u", "p@/:"), "amqp://u@h:99/v"),
        ("amqp://a%40b:p@h", ("h", 5672, "/", "a@b", "p"), "amqp://a%40b@h:5672//"),
        ("pyamqp://u:p@[::1]:5673//", ("::1", 5673, "/", "u", "p"), "amqp://u@[::1]:5673//"),
        ("AMQP://u:p@H//", ("h", 5672, "/", "u", "p"), "amqp://u@h:5672//"),
        ("amqps://u:p@h/v", ("h", 5671, "v", "u", "p"), "amqps://u@h:5671/v"),
    ],
)  # fmt: skip
def test_a_url_is_read_by_celerys_rules(url: str, expected: tuple[object, ...], label: str) -> None:
    found = endpoint(url)
    parameters = found.parameters
    credentials = parameters.credentials
    assert isinstance(credentials, PlainCredentials)
    assert (
        parameters.host, parameters.port, parameters.virtual_host, credentials.username, credentials.password
    ) == expected  # fmt: skip
    assert found.label == label


@pytest.mark.parametrize(
    ("url", "reason"),
    [
        ("redis://u:se@cret@h/0", "begins with amqp"),
        ("localhost", "begins with amqp"),
        ("", "begins with amqp"),
        ("amqp://u:secret@h:port//", "port"),
        ("amqp://u:secret@h:99999//", "port"),
        ("amqp://u:sec/ret@h//", "port"),
        ("amqp://u:12/secret@h//", "cut"),
        ("amqp://u:sec#ret@h//", "%23"),
        ("amqp://u:secret@[::1//", "host"),
        ("amqp://u:secret@h//?hartbeat=3", "did you mean 'heartbeat'"),
        ("amqp://u:secret@h//?heartbeat=often", "number"),
        ("amqp://u:secret@h//?login_method=GSSAPI", "PLAIN or EXTERNAL"),
        ("amqp://u:secret@h//?login_method=EXTERNAL", "needs TLS"),
        ("amqp://u:secret@h//?cacertfile=x.pem", "amqps://"),
        ("amqps://u:secret@h//?cacertfile=/nowhere/x.pem", "ca_certs='/nowhere/x.pem'"),
        ("amqps://u:secret@h//?verify=maybe", "cert_reqs"),
    ],
)
def test_a_url_that_cannot_be_used_says_why_and_keeps_its_password(url: str, reason: str) -> None:
    with pytest.raises(ImproperlyConfigured) as caught:
        endpoint(url)
    # The cause is printed with the error: it must keep the secret too.
    text = f"{caught.value} {caught.value.__cause__}"
    assert reason in text
    assert "ret@" not in text
    assert "secret" not in text


def test_no_repr_shows_the_password() -> None:
    assert "hush" not in repr(endpoint("amqp://u:hush@h//"))


def test_several_urls_keep_their_order() -> None:
    found = endpoints(["amqp://a", "amqp://b"], heartbeat_s=0, connection_timeout_s=1.0, name="x")
    assert [each.label for each in found] == ["amqp://guest@a:5672//", "amqp://guest@b:5672//"]


def test_no_url_at_all_is_an_error() -> None:
    with pytest.raises(ImproperlyConfigured, match="at least one"):
        endpoints([], heartbeat_s=0, connection_timeout_s=1.0, name="x")


@pytest.mark.parametrize(("given", "sent"), [(None, 0), (0, 0), (0.4, 1), (10, 10), (65535, 65535)])
def test_heartbeats_are_whole_seconds(given: float | None, sent: int) -> None:
    assert endpoint("amqp://", heartbeat_s=given).parameters.heartbeat == sent


@pytest.mark.parametrize("given", [-1, 65536, True])
def test_a_heartbeat_that_amqp_cannot_carry_is_refused(given: float) -> None:
    with pytest.raises(ImproperlyConfigured, match="65535"):
        endpoint("amqp://", heartbeat_s=given)


def test_every_wait_has_an_end_and_every_connection_a_name() -> None:
    parameters = endpoint("amqp://", connection_timeout_s=4.0).parameters
    assert parameters.socket_timeout == 4.0
    assert parameters.stack_timeout is not None and parameters.stack_timeout > 4.0
    assert parameters.blocked_connection_timeout is not None
    assert parameters.connection_attempts == 1
    assert parameters.client_properties is not None
    assert parameters.client_properties["connection_name"] == "a test"
    assert parameters.client_properties["product"] == "amqptasks"


def test_a_urls_parameters_win_over_the_settings() -> None:
    url = "amqp://h//?heartbeat=3&connection_timeout=2500&blocked_connection_timeout=7"
    parameters = endpoint(url, heartbeat_s=10, connection_timeout_s=4.0).parameters
    assert (parameters.heartbeat, parameters.socket_timeout, parameters.blocked_connection_timeout) == (3, 2.5, 7)


def test_tls_verifies_the_brokers_certificate_unless_told_not_to() -> None:
    checked = endpoint("amqps://h").parameters.ssl_options
    assert checked is not None and checked.server_hostname == "h"
    assert checked.context.verify_mode is ssl.CERT_REQUIRED and checked.context.check_hostname
    for loose in (
        endpoint("amqps://h?verify=verify_none"),
        endpoint("amqps://h?ssl_cert_reqs=CERT_NONE"),
        endpoint("amqp://h", ssl={"cert_reqs": ssl.CERT_NONE}),
        endpoint("amqp://h", ssl={"ssl_cert_reqs": "none"}),
    ):
        options = loose.parameters.ssl_options
        assert options is not None and options.context.verify_mode is ssl.CERT_NONE


def test_broker_use_ssl_alone_means_tls_on_its_port() -> None:
    found = endpoint("amqp://h", ssl=True)
    assert found.parameters.ssl_options is not None
    assert (found.parameters.port, found.label) == (5671, "amqps://guest@h:5671//")
    assert endpoint("amqp://h", ssl=False).parameters.ssl_options is None
    # False is the setting's default: it must not take the TLS from a URL that asks for it.
    assert endpoint("amqps://h", ssl=False).parameters.ssl_options is not None


def test_an_unknown_tls_option_is_refused_with_the_nearest() -> None:
    with pytest.raises(ImproperlyConfigured, match="did you mean 'keyfile'"):
        endpoint("amqp://h", ssl={"keyfiel": "x"})


def test_a_certificate_that_cannot_be_loaded_is_named(tmp_path: Path) -> None:
    broken = tmp_path / "broken.pem"
    broken.write_text("this is no certificate")
    with pytest.raises(ImproperlyConfigured, match="broken.pem"):
        endpoint("amqp://h", ssl={"certfile": str(broken)})
    with pytest.raises(ImproperlyConfigured, match="without certfile"):
        endpoint("amqp://h", ssl={"keyfile": str(broken)})


def test_login_by_certificate_sends_no_password(tmp_path: Path) -> None:
    certificate = Authority(tmp_path).client("shop")
    query = f"certfile={certificate['certfile']}&keyfile={certificate['keyfile']}"
    for found in (
        endpoint("amqps://h", login_method="EXTERNAL", ssl=certificate),
        endpoint(f"amqps://h?auth_mechanism=external&{query}"),
        endpoint("amqps://h", login_method="EXTERNAL", ssl=ssl.create_default_context()),
    ):
        assert isinstance(found.parameters.credentials, ExternalCredentials)
        assert found.label == "amqps://h:5671//"


def test_login_by_certificate_without_one_is_refused_at_once() -> None:
    with pytest.raises(ImproperlyConfigured, match="give certfile and keyfile in broker_use_ssl"):
        endpoint("amqps://h", login_method="EXTERNAL", ssl={"ca_certs": None})


@pytest.mark.parametrize(
    ("options", "least", "most"),
    [
        ({"ssl_version": ssl.PROTOCOL_TLSv1_2}, ssl.TLSVersion.TLSv1_2, ssl.TLSVersion.TLSv1_2),
        ({"ssl_version": "TLSv1.3"}, ssl.TLSVersion.TLSv1_3, ssl.TLSVersion.TLSv1_3),
        ({"tls_minimum_version": ssl.TLSVersion.TLSv1_3}, ssl.TLSVersion.TLSv1_3, ssl.TLSVersion.MAXIMUM_SUPPORTED),
        ({"tls_maximum_version": "TLSv1_2", "tls_minimum_version": "tlsv1.2"},) + (ssl.TLSVersion.TLSv1_2,) * 2,
    ],
)
def test_versions_of_tls_are_celerys_options(options: dict[str, Any], least: object, most: object) -> None:
    made = endpoint("amqps://h", ssl=options).parameters.ssl_options
    assert made is not None
    assert (made.context.minimum_version, made.context.maximum_version) == (least, most)


def test_what_celery_says_of_sockets_changes_nothing() -> None:
    usual = ssl.create_default_context()
    socket_words = {"do_handshake_on_connect": True, "suppress_ragged_eofs": True, "ssl_version": ssl.PROTOCOL_TLS}
    made = endpoint("amqps://h", ssl=socket_words).parameters.ssl_options
    assert made is not None
    assert (made.context.verify_mode, made.context.minimum_version) == (usual.verify_mode, usual.minimum_version)


@pytest.mark.parametrize("version", ["SSLv9", 42, ssl.PROTOCOL_TLS_SERVER])
def test_a_version_that_tls_does_not_have_is_named(version: object) -> None:
    with pytest.raises(ImproperlyConfigured, match="ssl_version to be a version such as 'TLSv1.2'"):
        endpoint("amqps://h", ssl={"ssl_version": version})


def test_a_context_of_ones_own_decides_everything() -> None:
    own = ssl.create_default_context()
    made = endpoint("amqps://h", ssl=own).parameters.ssl_options
    assert made is not None and made.context is own and made.server_hostname == "h"
    with pytest.raises(ImproperlyConfigured, match="broker_use_ssl is an ssl.SSLContext"):
        endpoint("amqps://h?ca_certs=x", ssl=own)
    with pytest.raises(ImproperlyConfigured, match="can be given as broker_use_ssl itself"):
        endpoint("amqps://h", ssl={"context": own})
