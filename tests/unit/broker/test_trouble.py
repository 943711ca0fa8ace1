"""Why a connection failed, in words. What TLS itself says is met for real in tests/integration/test_tls.py."""

from __future__ import annotations

import ssl

import pika.exceptions
import pytest
from pika.adapters.utils.connection_workflow import AMQPConnectionWorkflowFailed, AMQPConnectorSocketConnectError

from amqptasks.broker.trouble import alert_behind, describe

ALERT = ssl.SSLError(1, "[SSL: TLSV13_ALERT_CERTIFICATE_REQUIRED] tlsv13 alert certificate required (_ssl.c:2580)")


class Ended:
    """The socket of a connection that the broker has ended: what it said last can still be read, or nothing can."""

    def __init__(self, last: OSError | bytes) -> None:
        self._last = last

    def recv(self, _count: int) -> bytes:
        if isinstance(self._last, OSError):
            raise self._last
        return self._last


def test_what_pika_wraps_is_unwrapped() -> None:
    refused = AMQPConnectorSocketConnectError(ConnectionRefusedError(111, "Connection refused"))
    wrapped = AMQPConnectionWorkflowFailed([refused, refused])
    assert describe(pika.exceptions.AMQPConnectionError(wrapped)) == (
        "ConnectionRefusedError: [Errno 111] Connection refused"
    )


def test_what_one_address_answers_counts_more_than_that_nothing_listens_on_another() -> None:
    refused = AMQPConnectorSocketConnectError(ConnectionRefusedError(111, "Connection refused"))
    answered = AMQPConnectorSocketConnectError(ssl.SSLError(1, "[SSL: WRONG_VERSION_NUMBER] wrong version (_ssl.c:1)"))
    for both in ([refused, answered], [answered, refused]):
        assert "does not speak TLS" in describe(AMQPConnectionWorkflowFailed(both))


@pytest.mark.parametrize(
    ("error", "text"),
    [
        ("as it is", "as it is"),
        (TimeoutError(), "TimeoutError"),
        (pika.exceptions.ConnectionClosedByBroker(320, "bye"), "closed by the broker: 320 bye"),
        (
            pika.exceptions.ProbableAuthenticationError(
                "ConnectionClosedByBroker: (403) 'ACCESS_REFUSED - using mechanism PLAIN.'"
            ),
            "the broker refused the login: check the user's name and password (403 ACCESS_REFUSED - using mechanism "
            "PLAIN.)",
        ),
        (
            pika.exceptions.IncompatibleProtocolError(f"StreamLostError: {ALERT!r}"),
            "the broker lets nobody in without a certificate that it trusts: give one in "
            "broker_use_ssl={'certfile': …, 'keyfile': …} (tlsv13 alert certificate required)",
        ),
        (
            ssl.SSLError(1, "[SSL: CERTIFICATE_VERIFY_FAILED] certificate verify failed: certificate has expired "
                            "(_ssl.c:1006)"),
            "the broker's certificate is out of date: it must be renewed there (certificate has expired)",
        ),
        (OSError("[SSL: NEVER_HEARD_OF] strange (_ssl.c:1)"), "OSError: [SSL: NEVER_HEARD_OF] strange (_ssl.c:1)"),
    ],
    ids=["text", "empty", "closed", "login", "alert", "expired", "unknown"],
)  # fmt: skip
def test_an_error_becomes_one_line(error: BaseException | str, text: str) -> None:
    assert describe(error) == text


def test_a_connection_that_ends_before_the_brokers_word_may_be_of_the_wrong_kind() -> None:
    said = describe(pika.exceptions.IncompatibleProtocolError("StreamLostError: reset"))
    assert "write amqps:// or set broker_use_ssl" in said
    assert "may want a certificate" in said


def test_the_brokers_alert_is_what_counts_when_nothing_can_be_written_any_more() -> None:
    end = ssl.SSLEOFError(8, "EOF occurred in violation of protocol")
    assert alert_behind(end, Ended(ALERT)) is ALERT
    assert alert_behind(end, Ended(ConnectionResetError(104, "reset"))) is end
    assert alert_behind(end, Ended(b"")) is end
    assert alert_behind(end, None) is end
    assert alert_behind(None, Ended(ALERT)) is None
