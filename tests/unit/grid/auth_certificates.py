"""A certificate authority of a test's own: servers, users, RFC 3820 proxies, withdrawn ones."""

from __future__ import annotations

import datetime as dt
from dataclasses import dataclass
from ipaddress import IPv4Address
from pathlib import Path

from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import NameOID

from pandaflow.grid.auth.x509 import PROXY_INFO

# RFC 3820: no path length, policy "inherit all".
_INHERIT_ALL = bytes.fromhex("300c300a06082b06010505071501")
_SHORT = {
    "DC": NameOID.DOMAIN_COMPONENT,
    "O": NameOID.ORGANIZATION_NAME,
    "OU": NameOID.ORGANIZATIONAL_UNIT_NAME,
    "CN": NameOID.COMMON_NAME,
}
HOUR = dt.timedelta(hours=1)


def name(*parts: tuple[str, str]) -> x509.Name:
    return x509.Name([x509.NameAttribute(_SHORT[key], value) for key, value in parts])


@dataclass
class Identity:
    """A certificate, its key, and those that lead to an authority."""

    certificate: x509.Certificate
    key: ec.EllipticCurvePrivateKey
    above: tuple[x509.Certificate, ...] = ()

    @property
    def chain(self) -> list[bytes]:
        der = serialization.Encoding.DER
        return [one.public_bytes(der) for one in (self.certificate, *self.above)]

    def save(self, path: Path) -> Path:
        pem = serialization.Encoding.PEM
        key = self.key.private_bytes(
            pem, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
        )
        certificates = [one.public_bytes(pem) for one in (self.certificate, *self.above)]
        path.write_bytes(b"".join([certificates[0], key, *certificates[1:]]))
        return path

    def proxy(self, *, expired: bool = False, number: str = "1234") -> Identity:
        subject = x509.Name(
            [*self.certificate.subject, x509.NameAttribute(NameOID.COMMON_NAME, number)]
        )
        info = x509.UnrecognizedExtension(PROXY_INFO, _INHERIT_ALL)
        builder, key = _builder(subject, self.certificate.subject, expired)
        usage = x509.KeyUsage(
            digital_signature=True, key_encipherment=False, content_commitment=False,
            data_encipherment=False, key_agreement=False, key_cert_sign=False, crl_sign=False,
            encipher_only=False, decipher_only=False,
        )  # fmt: skip
        builder = builder.add_extension(info, critical=True).add_extension(usage, critical=True)
        signed = builder.sign(self.key, hashes.SHA256())
        return Identity(signed, key, (self.certificate, *self.above))


class Authority:
    """Signs certificates."""

    def __init__(self, common_name: str = "Test CA") -> None:
        self.subject = name(("DC", "org"), ("DC", "example"), ("CN", common_name))
        builder, self.key = _builder(self.subject, self.subject, False)
        basic = x509.BasicConstraints(ca=True, path_length=None)
        self.certificate = builder.add_extension(basic, critical=True).sign(
            self.key, hashes.SHA256()
        )

    def issue(self, *parts: tuple[str, str], expired: bool = False) -> Identity:
        subject = name(*(parts or (("DC", "org"), ("DC", "example"), ("CN", "Alice"))))
        builder, key = _builder(subject, self.subject, expired)
        names = x509.SubjectAlternativeName(
            [x509.DNSName("localhost"), x509.IPAddress(IPv4Address("127.0.0.1"))]
        )
        builder = builder.add_extension(names, critical=False)
        return Identity(builder.sign(self.key, hashes.SHA256()), key)

    def save(self, path: Path) -> Path:
        path.write_bytes(self.certificate.public_bytes(serialization.Encoding.PEM))
        return path

    def withdraw(self, path: Path, *identities: Identity) -> Path:
        now = dt.datetime.now(dt.UTC)
        builder = x509.CertificateRevocationListBuilder(
            issuer_name=self.subject, last_update=now - HOUR, next_update=now + HOUR
        )
        for one in identities:
            entry = x509.RevokedCertificateBuilder(
                serial_number=one.certificate.serial_number, revocation_date=now - HOUR
            )
            builder = builder.add_revoked_certificate(entry.build())
        signed = builder.sign(self.key, hashes.SHA256())
        path.write_bytes(signed.public_bytes(serialization.Encoding.PEM))
        return path


def _builder(
    subject: x509.Name, issuer: x509.Name, expired: bool
) -> tuple[x509.CertificateBuilder, ec.EllipticCurvePrivateKey]:
    key = ec.generate_private_key(ec.SECP256R1())
    now = dt.datetime.now(dt.UTC)
    builder = (
        x509.CertificateBuilder()
        .subject_name(subject)
        .issuer_name(issuer)
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - 24 * HOUR)
        .not_valid_after(now - HOUR if expired else now + 24 * HOUR)
    )
    return builder, key
