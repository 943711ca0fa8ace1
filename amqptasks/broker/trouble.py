"""Why a connection failed, in one line that says what to do.

pika nests causes, names classes that mean nothing to a user, and leaves some texts empty; OpenSSL speaks of alerts.
"""

from __future__ import annotations

import re
from typing import Any, Final

import pika.exceptions

__all__ = ["alert_behind", "describe"]

#: What OpenSSL says of the broker's certificate or to this side's, and what it means here.
_TLS: Final = (
    (
        r"self.signed certificate|unable to get (?:local )?issuer|unable to verify the first",
        "the broker's certificate is signed by none of the authorities that are trusted here: "
        "name the file of its authority in broker_use_ssl={'ca_certs': …}",
    ),
    (
        r"mismatch, certificate is not valid for|doesn't match",
        "the broker's certificate is for another host: connect by a name that it is for, "
        "or give that name in broker_use_ssl={'server_hostname': …}",
    ),
    (r"VERIFY_FAILED.*(?:expired|not yet valid)", "the broker's certificate is out of date: it must be renewed there"),
    (
        r"WRONG_VERSION_NUMBER|RECORD_LAYER_FAILURE|HTTP_REQUEST",
        "what listens on that port does not speak TLS: use the broker's port for TLS, by default 5671, or amqp:// "
        "without broker_use_ssl",
    ),
    (
        r"ALERT_UNKNOWN_CA|ALERT_BAD_CERTIFICATE|ALERT_DECRYPT_ERROR",
        "the broker does not trust the certificate in certfile: it must be signed by an authority that the "
        "broker knows (its ssl_options.cacertfile)",
    ),
    (r"ALERT_CERTIFICATE_EXPIRED", "the certificate in certfile has expired"),
    (
        r"ALERT_CERTIFICATE_REQUIRED|ALERT_HANDSHAKE_FAILURE|HANDSHAKE_FAILURE",
        "the broker lets nobody in without a certificate that it trusts: "
        "give one in broker_use_ssl={'certfile': …, 'keyfile': …}",
    ),
    (r"PROTOCOL_VERSION|UNSUPPORTED_PROTOCOL|NO_PROTOCOLS", "the broker and this side share no version of TLS"),
)  # fmt: skip
_CODE: Final = re.compile(r"\[SSL[^\]]*\] ?|\s*\(_ssl\.c:\d+\)|\.(?= *\(_ssl)")


def describe(error: BaseException | str) -> str:
    """Say in one line why a connection failed, and what to do about it where that is known."""
    seen = _innermost(error)
    text = str(seen).strip()
    if "SSL" in text:
        for pattern, meaning in _TLS:
            if re.search(pattern, text):
                return f"{meaning} ({_openssl(text)})"
    if isinstance(seen, pika.exceptions.ConnectionClosed):
        return f"closed by the broker: {seen.reply_code} {seen.reply_text}"
    if isinstance(seen, pika.exceptions.ProbableAuthenticationError):
        return _refused(text)
    if isinstance(seen, pika.exceptions.IncompatibleProtocolError):
        return (
            "the connection ended before the broker said a word: if that port is for TLS, write amqps:// or set "
            "broker_use_ssl; if TLS is used, the broker may want a certificate of this side's, or another one: its log "
            f"says so ({text})"
        )
    if isinstance(seen, BaseException):
        return f"{type(seen).__name__}: {text}" if text else type(seen).__name__
    return text


def alert_behind(error: BaseException | None, sock: Any) -> BaseException | None:
    """Return what the broker said when it ended a TLS connection, if it can still be read; else the error as it is.

    With TLS 1.3 a client's certificate is refused after the handshake, and the first thing noticed is that nothing can
    be written any more.
    """
    if isinstance(error, OSError) and sock is not None:
        try:
            sock.recv(1)
        except OSError as behind:
            if "ALERT" in str(behind):
                return behind
    return error


def _innermost(error: BaseException | str) -> BaseException | str:
    seen: BaseException | str = error
    while isinstance(seen, BaseException):
        inner = getattr(seen, "exception", None) or getattr(seen, "exceptions", None) or seen.args
        if isinstance(inner, (list, tuple)):
            # One for each address of a name. Where nothing listens is of less interest than what another one answered.
            telling = [each for each in inner if "ConnectionRefused" not in repr(each)] or inner
            inner = telling[-1] if telling else None
        if not isinstance(inner, BaseException):
            break
        seen = inner
    return seen


def _refused(text: str) -> str:
    if "EXTERNAL" in text:
        what = (
            "its user is the name in the certificate (ssl_cert_login_from on the broker), and must exist there with "
            "rights to the virtual host; the broker needs its plugin rabbitmq_auth_mechanism_ssl"
        )
    else:
        what = "check the user's name and password"
    said = re.search(r"\((\d+)\) ['\"](.*)['\"]$", text)
    return f"the broker refused the login: {what} ({f'{said[1]} {said[2]}' if said else text})"


def _openssl(text: str) -> str:
    """What OpenSSL said, without its code and the line of its source."""
    found = re.search(r"\[SSL.*?\(_ssl\.c:\d+\)", text)
    return _CODE.sub("", found[0] if found else text).removeprefix("certificate verify failed: ").strip(" .")
