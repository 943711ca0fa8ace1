"""The ``auth`` serializer: bodies that are signed, in Celery's form. The home of the cryptography package.

A signed body is base64 of five fields between ``\\x00\\x01``: who signs (base64), the signature (base64), the content
type and encoding of the inner body, the inner body. The signature (RSA, PSS) covers the inner body alone, so of the
rest nothing is believed: the inner content type must be one that was asked for, and what a task's headers say is
compared by `amqptasks.wire.binding`. Nothing is decoded before its signature has held.
"""

from __future__ import annotations

import base64
import binascii
import glob
import logging
import os
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from datetime import datetime
from typing import TYPE_CHECKING, Any, Final

from amqptasks.clock import utcnow
from amqptasks.exceptions import EncodeError, ImproperlyConfigured, UntrustedContent
from amqptasks.wire.binding import SIGNED_NAME, SIGNED_TYPE
from amqptasks.wire.serializers import Limits, accepted, by_name, loads, register

if TYPE_CHECKING:
    # At run time these come in when messages are signed: the package may not be there, and takes its time to load.
    from cryptography.hazmat.primitives.asymmetric.rsa import RSAPrivateKey, RSAPublicKey
    from cryptography.hazmat.primitives.hashes import HashAlgorithm

__all__ = ["DIGESTS", "Credentials", "register_signed"]

logger = logging.getLogger(__name__)

#: Digests that are strong enough to sign with, by the names of the cryptography package, as in Celery.
DIGESTS: Final = ("sha256", "sha384", "sha512", "sha3_256", "sha3_384", "sha3_512")
_SEPARATOR: Final = b"\x00\x01"


@dataclass(frozen=True, slots=True)
class Credentials:
    """Where keys and certificates are.

    Attributes:
        key: File of this process's private key, PEM.
        key_password: Its password, if it has one.
        certificate: File of this process's certificate, PEM.
        store: Directory or glob of the certificates of all whose messages are read. One's own is trusted too.
    """

    key: str
    key_password: str | bytes | None
    certificate: str
    store: str


@dataclass(frozen=True, slots=True)
class _Certificate:
    """A certificate, reduced to what is asked of it."""

    id: str
    public_key: RSAPublicKey
    begins: datetime
    ends: datetime

    def problem(self) -> str | None:
        """Say why it is of no use now; None if it is."""
        now = utcnow()
        if now >= self.ends:
            return f"certificate {self.id[:200]!r} has expired on {self.ends:%Y-%m-%d}"
        if now < self.begins:
            return f"certificate {self.id[:200]!r} is valid from {self.begins:%Y-%m-%d} only"
        return None


class _Signed:
    """Signs what it writes, and reads what somebody trusted has signed. Safe from any thread."""

    def __init__(
        self, key: RSAPrivateKey, own: _Certificate, trusted: Mapping[str, _Certificate], digest: str,
        serializer: str, inner_types: frozenset[str], limits: Callable[[], Limits],
    ) -> None:  # fmt: skip
        from cryptography.exceptions import InvalidSignature
        from cryptography.hazmat.primitives.asymmetric import padding

        self._key = key
        self._own = own
        self._trusted = trusted
        self._digest = _hash(digest)
        self._padding = padding.PSS(padding.MGF1(self._digest), padding.PSS.MAX_LENGTH)
        self._invalid = InvalidSignature
        self._serializer = by_name(serializer)
        self._inner_types = inner_types
        self._limits = limits

    def dumps(self, value: Any) -> bytes:
        """Serialize and sign."""
        body = self._serializer.dumps(value)
        problem = self._own.problem()
        if problem:
            # Everybody who reads it would refuse it.
            raise EncodeError(f"cannot sign: {problem} (security_certificate)")
        signature = self._key.sign(body, self._padding, self._digest)
        fields = (
            base64.b64encode(self._own.id.encode()), base64.b64encode(signature),
            self._serializer.content_type.encode(), self._serializer.content_encoding.encode(), body,
        )  # fmt: skip
        return base64.b64encode(_SEPARATOR.join(fields))

    def loads(self, envelope: bytes) -> Any:
        """Check the signature, then read.

        Raises:
            UntrustedContent: It is no signed body, or its signature says nothing here.
            DecodeError: It is signed by somebody trusted, and cannot be read.
        """
        fields = _decoded(envelope).split(_SEPARATOR, 4)
        if len(fields) != 5:
            raise UntrustedContent(f"a signed body has five fields, this one has {len(fields)}")
        signer, signature, inner_type, encoding, body = fields
        name = _text(_decoded(signer))
        certificate = self._trusted.get(name)
        if certificate is None:
            raise UntrustedContent(f"signed by {ascii(name)[:200]}, whose certificate is not in security_cert_store")
        problem = certificate.problem()
        if problem:
            raise UntrustedContent(problem)
        try:
            certificate.public_key.verify(_decoded(signature), body, self._padding, self._digest)
        except self._invalid:
            raise UntrustedContent(f"the signature does not fit the body; it claims to be by {name[:200]!r}") from None
        kind = _text(inner_type)
        if kind not in self._inner_types:
            # Not covered by the signature: whoever passes the message on may have written anything.
            raise UntrustedContent(
                f"a signed body said to be of content type {ascii(kind)[:100]}, expected "
                f"{' or '.join(sorted(self._inner_types))} (serializer and allowed_serializers of setup_security)"
            )
        return loads(body, kind, _text(encoding), self._inner_types, self._limits())


def _decoded(data: bytes) -> bytes:
    try:
        return base64.b64decode(data, validate=True)
    except (binascii.Error, ValueError):
        raise UntrustedContent(f"expected base64 in a signed body, got {len(data)} bytes of something else") from None


def _text(data: bytes) -> str:
    return data.decode("utf-8", "replace")


# ---- setting it up


def register_signed(
    credentials: Credentials, digest: str, serializer: str, allowed: Iterable[str], limits: Callable[[], Limits]
) -> None:
    """Make ``auth`` known to this process, in place of any earlier.

    Args:
        digest: One of `DIGESTS`.
        serializer: How the inner body is written.
        allowed: Further serializers whose bodies are read when they are signed.
        limits: Asked at each body for the limits on it.

    Raises:
        ImproperlyConfigured: The cryptography package, a key or a certificate is missing or of no use. The message
            names the setting.
    """
    try:
        import cryptography.x509  # noqa: F401 - asked for once, here, so that the answer is a sentence
    except ImportError:
        raise ImproperlyConfigured(
            "signed messages need the package cryptography: pip install 'amqptasks[auth]'"
        ) from None
    if digest not in DIGESTS:
        raise ImproperlyConfigured(f"expected security_digest to be one of {', '.join(DIGESTS)}, got: {digest!r}")
    if serializer == SIGNED_NAME:
        raise ImproperlyConfigured("expected a serializer for the signed body, such as 'json', got: 'auth'")
    inner_types = accepted((serializer, *allowed))
    key = _load_key(credentials.key, credentials.key_password)
    own = _load_certificate("security_certificate", credentials.certificate)
    if own.public_key.public_numbers() != key.public_key().public_numbers():
        raise ImproperlyConfigured(
            f"the certificate {credentials.certificate!r} (security_certificate) does not belong to the key "
            f"{credentials.key!r} (security_key)"
        )
    problem = own.problem()
    if problem:
        raise ImproperlyConfigured(f"{problem}: {credentials.certificate!r} (security_certificate)")
    trusted = _load_store(credentials.store)
    trusted.setdefault(own.id, own)
    signed = _Signed(key, own, trusted, digest, serializer, inner_types, limits)
    register(SIGNED_NAME, signed.dumps, signed.loads, SIGNED_TYPE, "utf-8")


def _hash(digest: str) -> HashAlgorithm:
    from cryptography.hazmat.primitives import hashes

    algorithm: HashAlgorithm = getattr(hashes, digest.upper())()
    return algorithm


def _read(setting: str, path: str) -> bytes:
    try:
        with open(path, "rb") as file:
            return file.read()
    except OSError as error:
        raise ImproperlyConfigured(f"cannot read {path!r} ({setting}): {error.strerror or error}") from error


def _load_key(path: str, password: str | bytes | None) -> RSAPrivateKey:
    from cryptography.exceptions import UnsupportedAlgorithm
    from cryptography.hazmat.primitives.asymmetric.rsa import RSAPrivateKey
    from cryptography.hazmat.primitives.serialization import load_pem_private_key

    data = _read("security_key", path)
    secret = password.encode() if isinstance(password, str) else password
    try:
        key = load_pem_private_key(data, secret)
    except TypeError:
        # What the package raises when a password is missing, and when one is given that is not needed.
        need = "is encrypted, and security_key_password is not set" if secret is None else "is not encrypted, and "
        raise ImproperlyConfigured(
            f"the private key {path!r} (security_key) {need}" + ("" if secret is None else "security_key_password is")
        ) from None
    except (ValueError, UnsupportedAlgorithm):
        # Without its words: they may hold parts of what was read.
        raise ImproperlyConfigured(
            f"expected a private key in PEM form in {path!r} (security_key), and its password in security_key_password"
        ) from None
    if not isinstance(key, RSAPrivateKey):
        raise ImproperlyConfigured(f"expected an RSA key in {path!r} (security_key): Celery's form knows no other")
    return key


def _load_certificate(setting: str, path: str) -> _Certificate:
    from cryptography import x509
    from cryptography.hazmat.primitives.asymmetric.rsa import RSAPublicKey

    data = _read(setting, path)
    try:
        loaded = x509.load_pem_x509_certificate(data)
        public_key = loaded.public_key()
        # Celery's name for a certificate; it travels with each message.
        issuer = " ".join(str(each.value) for each in loaded.issuer)
    except Exception as error:
        # The package parses as it goes, and raises errors of several kinds that have no root in common.
        raise ImproperlyConfigured(f"expected a certificate in PEM form in {path!r} ({setting}): {error}") from error
    if not isinstance(public_key, RSAPublicKey):
        raise ImproperlyConfigured(f"expected the certificate of an RSA key in {path!r} ({setting})")
    return _Certificate(
        f"{issuer} {loaded.serial_number}", public_key, loaded.not_valid_before_utc, loaded.not_valid_after_utc
    )


def _load_store(store: str) -> dict[str, _Certificate]:
    pattern = os.path.join(store, "*") if os.path.isdir(store) else store
    trusted: dict[str, _Certificate] = {}
    for path in sorted(glob.glob(pattern)):
        certificate = _load_certificate("security_cert_store", path)
        problem = certificate.problem()
        if problem:
            # Its messages are refused one by one; that of others is no reason not to start.
            logger.warning("%s: %s; what it signs is refused", path, problem)
        known = trusted.setdefault(certificate.id, certificate)
        if known.public_key.public_numbers() != certificate.public_key.public_numbers():
            raise ImproperlyConfigured(
                f"two certificates of different keys in {store!r} (security_cert_store) have the same issuer and "
                f"serial number: {certificate.id!r}"
            )
    if not trusted:
        raise ImproperlyConfigured(f"expected certificates in {store!r} (security_cert_store), found none")
    return trusted
