"""Who signs messages in tests: keys and self-signed certificates, made on the spot."""

from __future__ import annotations

import functools
from dataclasses import dataclass
from datetime import datetime, timedelta, timezone
from pathlib import Path
from typing import Any

from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec, rsa


@functools.cache
def rsa_key(name: str) -> rsa.RSAPrivateKey:
    """Make the key of somebody, once for all tests: it takes a while."""
    del name
    return rsa.generate_private_key(65537, 2048)


@dataclass(frozen=True)
class Identity:
    """Somebody who signs: where the key and the certificate are."""

    name: str
    key: Path
    certificate: Path


def identity(
    directory: Path, name: str, *, days: tuple[float, float] = (-1, 30), password: bytes | None = None, key: Any = None
) -> Identity:
    """Write a key and a self-signed certificate, valid from so many days from now until so many."""
    private = key or rsa_key(name)
    subject = x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, name)])
    now = datetime.now(timezone.utc)
    certificate = (
        x509.CertificateBuilder(subject, subject, private.public_key(), x509.random_serial_number())
        .not_valid_before(now + timedelta(days=days[0]))
        .not_valid_after(now + timedelta(days=days[1]))
        .sign(private, hashes.SHA256())
    )
    made = Identity(name, directory / f"{name}.key", directory / f"{name}.crt")
    encryption = serialization.BestAvailableEncryption(password) if password else serialization.NoEncryption()
    pem = serialization.Encoding.PEM
    made.key.write_bytes(private.private_bytes(pem, serialization.PrivateFormat.PKCS8, encryption))
    made.certificate.write_bytes(certificate.public_bytes(pem))
    return made


def store(directory: Path, *trusted: Identity) -> Path:
    """Make a directory of the certificates of those who are trusted."""
    directory.mkdir()
    for each in trusted:
        (directory / each.certificate.name).write_bytes(each.certificate.read_bytes())
    return directory


def elliptic_key() -> ec.EllipticCurvePrivateKey:
    """Make a key of a kind that Celery's form does not know."""
    return ec.generate_private_key(ec.SECP256R1())
