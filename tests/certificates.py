"""Certificates for the tests of TLS: an authority of their own, which signs for brokers and for clients.

Everything lies in one directory, under the names that ``scripts/rabbitmq --tls`` wants: ca.pem, server.pem, server.key.
"""

from __future__ import annotations

from datetime import datetime, timedelta, timezone
from ipaddress import ip_address
from pathlib import Path

from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID


class Authority:
    """A certificate authority in a directory. ``ca_certs`` is the file that those who trust it need."""

    def __init__(self, directory: Path) -> None:
        directory.mkdir(parents=True, exist_ok=True)
        self.directory = directory
        self._key = ec.generate_private_key(ec.SECP256R1())
        self._name = _name("amqptasks test authority")
        self._certificate = (
            self._begin(self._name, self._key, days=10)
            .add_extension(x509.BasicConstraints(ca=True, path_length=0), critical=True)
            .add_extension(_usage(signs_certificates=True), critical=True)
            .add_extension(x509.SubjectKeyIdentifier.from_public_key(self._key.public_key()), critical=False)
            .sign(self._key, hashes.SHA256())
        )
        self.ca_certs = str(directory / "ca.pem")
        Path(self.ca_certs).write_bytes(self._certificate.public_bytes(serialization.Encoding.PEM))

    def server(self, *names: str, days: int = 10) -> None:
        """Make server.pem and server.key, for a broker with these names and addresses."""
        alternatives = x509.SubjectAlternativeName([_alternative(name) for name in names])
        self._issue("server", names[0], ExtendedKeyUsageOID.SERVER_AUTH, days, alternatives)

    def client(self, name: str, *, days: int = 10, password: str | None = None) -> dict[str, str]:
        """Make a client's certificate and key; return both paths under the names that ``broker_use_ssl`` takes."""
        self._issue(f"client-{name}", name, ExtendedKeyUsageOID.CLIENT_AUTH, days, None, password)
        return {
            "certfile": str(self.directory / f"client-{name}.pem"),
            "keyfile": str(self.directory / f"client-{name}.key"),
        }

    def _issue(
        self, file: str, name: str, purpose: x509.ObjectIdentifier, days: int,
        alternatives: x509.SubjectAlternativeName | None, password: str | None = None,
    ) -> None:  # fmt: skip
        key = ec.generate_private_key(ec.SECP256R1())
        authority = x509.AuthorityKeyIdentifier.from_issuer_public_key(self._key.public_key())
        builder = (
            self._begin(_name(name), key, days)
            .add_extension(x509.BasicConstraints(ca=False, path_length=None), critical=True)
            .add_extension(_usage(signs_certificates=False), critical=True)
            .add_extension(x509.ExtendedKeyUsage([purpose]), critical=False)
            .add_extension(authority, critical=False)
        )
        if alternatives is not None:
            builder = builder.add_extension(alternatives, critical=False)
        certificate = builder.sign(self._key, hashes.SHA256())
        lock: serialization.KeySerializationEncryption = serialization.NoEncryption()
        if password is not None:
            lock = serialization.BestAvailableEncryption(password.encode())
        (self.directory / f"{file}.pem").write_bytes(certificate.public_bytes(serialization.Encoding.PEM))
        path = self.directory / f"{file}.key"
        path.write_bytes(
            key.private_bytes(serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, encryption_algorithm=lock)
        )
        # A broker that runs as another user reads it too; it opens nothing but the tests' own node.
        path.chmod(0o644)

    def _begin(self, name: x509.Name, key: ec.EllipticCurvePrivateKey, days: int) -> x509.CertificateBuilder:
        now = datetime.now(timezone.utc)
        return (
            x509.CertificateBuilder()
            .subject_name(name)
            .issuer_name(self._name)
            .public_key(key.public_key())
            .serial_number(x509.random_serial_number())
            .not_valid_before(now - timedelta(days=30))
            .not_valid_after(now + timedelta(days=days))
        )


def _name(text: str) -> x509.Name:
    return x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, text)])


def _alternative(name: str) -> x509.GeneralName:
    try:
        return x509.IPAddress(ip_address(name))
    except ValueError:
        return x509.DNSName(name)


def _usage(*, signs_certificates: bool) -> x509.KeyUsage:
    return x509.KeyUsage(
        digital_signature=True, content_commitment=False, key_encipherment=False, data_encipherment=False,
        key_agreement=False, key_cert_sign=signs_certificates, crl_sign=signs_certificates, encipher_only=False,
        decipher_only=False,
    )  # fmt: skip
