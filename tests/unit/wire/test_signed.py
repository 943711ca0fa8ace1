"""The serializer ``auth``: who signs is believed if he is known here, and nobody else, whatever the bytes are."""

from __future__ import annotations

import base64
import dataclasses
import re
import sys
from collections.abc import Callable, Iterator
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

import pytest

from amqptasks.app.app import App
from amqptasks.exceptions import DecodeError, EncodeError, ImproperlyConfigured, SecurityError, UntrustedContent
from amqptasks.settings_table import SETTINGS
from amqptasks.wire import serializers, signed
from amqptasks.wire.binding import Policy, policy
from amqptasks.wire.serializers import Limits
from tests.signers import Identity, elliptic_key, identity, store

SEPARATOR = b"\x00\x01"
BODY = [[1, "two"], {"three": [4.5]}, {"callbacks": None}]
AUTH = frozenset({"application/data"})

SetUp = Callable[..., App]


@pytest.fixture(autouse=True)
def as_before() -> Iterator[None]:
    """Signing is set up for the whole process: put it back."""
    yield
    if "auth" in serializers._by_name:
        serializers.unregister("auth")
    for field in dataclasses.fields(Policy):
        setattr(policy, field.name, getattr(Policy(), field.name))


@pytest.fixture(scope="module")
def people(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Identity]:
    """Who may sign: the reader itself, a friend in its store, one whose time is over, one whose has not come, and one
    whom nobody knows."""
    directory = tmp_path_factory.mktemp("people")
    return {
        "reader": identity(directory, "reader"), "friend": identity(directory, "friend"),
        "late": identity(directory, "late", days=(-30, -1)), "early": identity(directory, "early", days=(1, 30)),
        "stranger": identity(directory, "stranger"),
    }  # fmt: skip


@pytest.fixture
def set_up(people: dict[str, Identity], tmp_path: Path) -> SetUp:
    """Set signing up, for the reader unless somebody else is named."""
    trusted = store(tmp_path / "store", *(people[name] for name in ("friend", "late", "early")))

    def do(name: str = "reader", conf: dict[str, Any] | None = None, **arguments: Any) -> App:
        app = App("signing", set_as_current=False, task_serializer="auth", accept_content=["auth"])
        app.conf.update(
            security_key=str(people[name].key), security_certificate=str(people[name].certificate),
            security_cert_store=str(trusted),
        )  # fmt: skip
        app.conf.update(conf or {})
        app.setup_security(**arguments)
        return app

    return do


def write(value: Any = BODY) -> bytes:
    content_type, encoding, body = serializers.dumps(value, "auth")
    assert (content_type, encoding) == ("application/data", "utf-8")
    return body


def read(body: bytes, limits: Limits = serializers.DEFAULT_LIMITS) -> Any:
    return serializers.loads(body, "application/data", "utf-8", AUTH, limits)


def by(name: str, people: dict[str, Identity], set_up: SetUp, value: Any = BODY, **arguments: Any) -> bytes:
    """What somebody signs who is set up as himself; then the reader is set up again."""
    certificate = signed._load_certificate
    if name in ("late", "early"):
        # Nobody can be set up so: what they signed was signed at another time.
        first, last = (moment.replace(tzinfo=timezone.utc) for moment in (datetime.min, datetime.max))
        signed._load_certificate = lambda *each: dataclasses.replace(certificate(*each), begins=first, ends=last)
    try:
        set_up(name, **arguments)
        body = write(value)
    finally:
        signed._load_certificate = certificate
    set_up()
    return body


def fields(envelope: bytes) -> list[bytes]:
    return base64.b64decode(envelope).split(SEPARATOR, 4)


def envelope(parts: list[bytes]) -> bytes:
    return base64.b64encode(SEPARATOR.join(parts))


# ---- what is believed


@pytest.mark.parametrize("name", ["friend", "reader"])
def test_what_somebody_trusted_signed_is_read(name: str, people: dict[str, Identity], set_up: SetUp) -> None:
    # Given one who is in the reader's store, or the reader himself, who is not / When he signs / Then he is believed
    assert read(by(name, people, set_up)) == BODY


@pytest.mark.parametrize("digest", signed.DIGESTS)
def test_every_digest_signs_and_reads(digest: str, set_up: SetUp) -> None:
    set_up(conf={"security_digest": digest})
    assert read(write()) == BODY
    by_this = write()
    set_up(digest=next(other for other in signed.DIGESTS if other != digest))
    with pytest.raises(UntrustedContent, match="the signature does not fit"):
        read(by_this)


def test_the_settings_offer_the_digests_there_are() -> None:
    assert all(repr(digest) in SETTINGS["security_digest"].kind.expects for digest in signed.DIGESTS)


def test_the_settings_say_how_much_is_believed(set_up: SetUp) -> None:
    set_up(conf={"security_max_age": 60, "security_require_binding": True})
    assert (policy.max_age_s, policy.needs_binding) == (60, True)


@pytest.mark.parametrize("serializer", ["msgpack", "yaml", "pickle"])
def test_the_signed_body_is_in_the_form_that_was_asked_for(serializer: str, set_up: SetUp) -> None:
    set_up(serializer=serializer)
    value = [b"\xff", {1: 2}] if serializer == "pickle" else [1, {"a": None}]
    assert read(write(value)) == value


# ---- what is refused


@pytest.mark.parametrize(
    ("name", "reason"),
    [
        ("stranger", "whose certificate is not in security_cert_store"),
        ("late", "has expired on"),
        ("early", "is valid from .* only"),
    ],
)
def test_who_is_unknown_or_out_of_his_time_is_not_believed(
    name: str, reason: str, people: dict[str, Identity], set_up: SetUp
) -> None:
    with pytest.raises(UntrustedContent, match=reason):
        read(by(name, people, set_up))


def test_a_stranger_who_claims_to_be_a_friend_is_not_believed(people: dict[str, Identity], set_up: SetUp) -> None:
    # Given what a stranger signed, under a friend's name
    theirs, ours = fields(by("stranger", people, set_up)), fields(by("friend", people, set_up))
    # When it is read / Then the signature gives him away
    with pytest.raises(UntrustedContent, match="the signature does not fit the body; it claims to be by 'friend "):
        read(envelope([ours[0], *theirs[1:]]))


@pytest.mark.parametrize("part", [0, 1, 4], ids=["signer", "signature", "body"])
def test_what_was_changed_is_refused_byte_by_byte(part: int, people: dict[str, Identity], set_up: SetUp) -> None:
    # Given a signed message / When any byte of what is checked is another / Then it is refused
    parts = fields(by("friend", people, set_up))
    right = parts[part] if part == 4 else base64.b64decode(parts[part])
    for at in range(0, len(right), 3):
        for flip in (0x01, 0x80):
            wrong = bytearray(right)
            wrong[at] ^= flip
            parts[part] = bytes(wrong) if part == 4 else base64.b64encode(wrong)
            with pytest.raises(UntrustedContent):
                read(envelope(parts))


@pytest.mark.parametrize(
    "inner", [b"application/x-python-serialize", b"application/x-yaml", b"application/x-msgpack", b"application/data",
              b"", b"\xff\xfe", b"\x1b[31m"],
)  # fmt: skip
def test_a_signed_body_that_is_said_to_be_of_another_kind_is_refused(inner: bytes, set_up: SetUp) -> None:
    # Given a message whose content type was changed on the way, which no signature covers / Then it is not decoded
    set_up()
    parts = fields(write())
    with pytest.raises(UntrustedContent, match="expected application/json") as refused:
        read(envelope([*parts[:2], inner, *parts[3:]]))
    assert str(refused.value).isprintable()


def test_other_kinds_are_read_where_they_are_allowed(people: dict[str, Identity], set_up: SetUp) -> None:
    # Given what a friend wrote in msgpack / When msgpack is allowed / Then it is read, and not before
    theirs = by("friend", people, set_up, serializer="msgpack")
    with pytest.raises(UntrustedContent, match="allowed_serializers"):
        read(theirs)
    set_up(allowed_serializers=["msgpack", "auth"])
    assert read(theirs) == BODY


def test_whatever_is_cut_off_is_refused(set_up: SetUp) -> None:
    set_up()
    whole = write()
    for length in range(0, len(whole), 7):
        with pytest.raises(UntrustedContent):
            read(whole[:length])
    parts = fields(whole)
    for count in range(5):
        with pytest.raises(UntrustedContent):
            read(envelope(parts[:count]))


@pytest.mark.parametrize("junk", [b"", b"\x00", b"\xff" * 100, b"{}", b"====", b"QQ", b"AAEAAQABAAEAAQ==", b"\n" * 50])
def test_what_is_no_envelope_is_refused(junk: bytes, set_up: SetUp) -> None:
    set_up()
    with pytest.raises(UntrustedContent) as refused:
        read(junk)
    # Whoever asks for errors by the names that Celery has for them gets them.
    assert isinstance(refused.value, SecurityError) and isinstance(refused.value, DecodeError)


def test_limits_hold_for_what_is_signed_too(set_up: SetUp) -> None:
    # Given limits on items and depth / When a trusted signer goes beyond / Then it is refused before it is decoded
    set_up(conf={"task_message_max_depth": 20, "task_message_max_items": 50})
    deep: list[Any] = []
    for _ in range(30):
        deep = [deep]
    with pytest.raises(DecodeError, match="deeper than the 20 levels"):
        read(write(deep))
    with pytest.raises(DecodeError, match="more lists and maps than the 50"):
        read(write([[] for _ in range(60)]))
    with pytest.raises(DecodeError, match="at most 100 are allowed"):
        read(write(), Limits(max_bytes=100))


def test_what_cannot_be_written_is_named(set_up: SetUp) -> None:
    set_up()
    with pytest.raises(EncodeError, match=re.escape("auth cannot carry the value['when'], a builtins.set")):
        write({"when": {1}})


# ---- what keeps it from being set up


def test_without_setting_it_up_the_serializer_says_so() -> None:
    with pytest.raises(ImproperlyConfigured, match=re.escape("'auth' is not set up: call app.setup_security() first")):
        serializers.by_name("auth")


def test_without_its_package_it_says_what_to_install(set_up: SetUp, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "cryptography", None)
    monkeypatch.setitem(sys.modules, "cryptography.x509", None)
    with pytest.raises(ImproperlyConfigured, match=re.escape("pip install 'amqptasks[auth]'")):
        set_up()


@pytest.mark.parametrize(
    ("conf", "named"),
    [
        ({"task_serializer": "json"}, "task_serializer='auth'"),
        ({"accept_content": ["auth", "json"]}, r"accept_content=\['auth'\]"),
        ({"security_key": None}, "not set: security_key"),
        ({"security_certificate": None, "security_cert_store": None}, "security_certificate, security_cert_store"),
        ({"security_key": "/no/such/file"}, r"'/no/such/file' \(security_key\): No such file"),
        ({"security_certificate": "/no/such/file"}, r"'/no/such/file' \(security_certificate\): No such file"),
        ({"security_cert_store": "/no/such/*"}, r"certificates in '/no/such/\*' \(security_cert_store\), found none"),
    ],
    ids=lambda each: next(iter(each)) if isinstance(each, dict) else "",
)
def test_a_setting_that_is_missing_or_of_no_use_is_named(conf: dict[str, Any], named: str, set_up: SetUp) -> None:
    with pytest.raises(ImproperlyConfigured, match=named):
        set_up(conf=conf)


@pytest.mark.parametrize(
    ("arguments", "named"),
    [
        ({"digest": "md5"}, "security_digest to be one of sha256"),
        ({"serializer": "auth"}, "a serializer for the signed body"),
        ({"serializer": "jsn"}, "did you mean 'json'"),
        ({"allowed_serializers": ["jsn"]}, "did you mean 'json'"),
        ({"allowed_serializers": "json"}, "a list of names"),
    ],
    ids=str,
)
def test_an_argument_that_is_of_no_use_is_named(arguments: dict[str, Any], named: str, set_up: SetUp) -> None:
    with pytest.raises(ImproperlyConfigured, match=named):
        set_up(**arguments)


def test_keys_and_certificates_that_do_not_serve_are_named(
    people: dict[str, Identity], set_up: SetUp, tmp_path: Path
) -> None:
    # Given keys and certificates that are no such, or not for this
    locked = identity(tmp_path, "locked", password=b"secret words")
    curved = identity(tmp_path, "curved", key=elliptic_key())
    junk = tmp_path / "junk.pem"
    junk.write_text("-----BEGIN NOTHING-----\n")
    cases: list[tuple[dict[str, Any], str]] = [
        ({"cert": people["friend"].certificate}, r"does not belong to the key .*reader.key' \(security_key\)"),
        ({"key": locked.key, "cert": locked.certificate}, "is encrypted, and security_key_password is not set"),
        ({"key": locked.key, "key_password": "wrong"}, "its password in security_key_password"),
        ({"key_password": "needless"}, "is not encrypted, and security_key_password is"),
        ({"key": curved.key, "cert": curved.certificate}, r"expected an RSA key in .*\(security_key\)"),
        ({"cert": curved.certificate}, r"the certificate of an RSA key in .*\(security_certificate\)"),
        ({"key": junk}, r"a private key in PEM form in .*junk.pem' \(security_key\)"),
        ({"cert": junk}, r"a certificate in PEM form in .*junk.pem' \(security_certificate\)"),
        ({"store": junk}, r"a certificate in PEM form in .*junk.pem' \(security_cert_store\)"),
        ({"key": people["late"].key, "cert": people["late"].certificate}, "has expired on"),
    ]
    for arguments, reason in cases:
        # When they are to be used / Then the error says which, by its setting, and shows no secret
        with pytest.raises(ImproperlyConfigured, match=reason) as refused:
            set_up(**{name: str(value) for name, value in arguments.items()})
        assert "words" not in str(refused.value) and "wrong" not in str(refused.value)
    # And the right password opens the key, from the settings too
    set_up(key=str(locked.key), cert=str(locked.certificate), key_password=b"secret words")
    set_up(key=str(locked.key), cert=str(locked.certificate), conf={"security_key_password": "secret words"})
    assert read(write()) == BODY


def test_a_certificate_that_has_run_out_in_the_store_keeps_nobody_from_starting(
    set_up: SetUp, caplog: pytest.LogCaptureFixture
) -> None:
    # Given a store with certificates that are out of their time / When signing is set up / Then the log says which
    set_up()
    assert "late.crt: certificate 'late " in caplog.text and "has expired" in caplog.text
    assert read(write()) == BODY
