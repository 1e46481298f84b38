"""The identity behind a chain of X.509 certificates, RFC 3820 proxies among them.

TLS has verified the chain. A proxy acts for whoever signed it: the identity is the subject of the
first certificate that is no proxy. Signatures are followed here once more, because a client may
send certificates that are not part of its chain.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from cryptography import x509
from cryptography.exceptions import InvalidSignature
from cryptography.x509.oid import NameOID

from pandaflow.grid.auth.errors import Unauthenticated

#: proxyCertInfo of RFC 3820.
PROXY_INFO = x509.ObjectIdentifier("1.3.6.1.5.5.7.1.14")
#: Certificates of a chain that are looked at.
_MOST = 20
_SHORT = {
    NameOID.DOMAIN_COMPONENT: "DC",
    NameOID.COUNTRY_NAME: "C",
    NameOID.ORGANIZATION_NAME: "O",
    NameOID.ORGANIZATIONAL_UNIT_NAME: "OU",
    NameOID.COMMON_NAME: "CN",
    NameOID.LOCALITY_NAME: "L",
    NameOID.STATE_OR_PROVINCE_NAME: "ST",
    NameOID.EMAIL_ADDRESS: "emailAddress",
    NameOID.USER_ID: "UID",
    NameOID.SERIAL_NUMBER: "serialNumber",
}


@dataclass(frozen=True, slots=True)
class Certified:
    """An identity that certificates prove.

    Attributes
    ----------
    subject : str
        ``/DC=org/DC=example/CN=Name``, the form that grids use.
    name : str
        The last common name, for people.
    expires : float
        Seconds since the epoch: when the first certificate on the way does.
    """

    subject: str
    name: str
    expires: float


def identify(chain: Sequence[bytes], now: float) -> Certified:
    """Return the identity behind a chain.

    Parameters
    ----------
    chain : sequence of bytes
        DER, the client's own certificate first.
    now : float
        Seconds since the epoch.

    Raises
    ------
    Unauthenticated
        It has expired, is unreadable, or its proxies do not lead to anybody.
    """
    certificates = [_parse(one) for one in chain[:_MOST]]
    if not certificates:
        raise _bad("the chain of certificates is empty")
    walk = [certificates[0]]
    while _is_proxy(walk[-1]):
        walk.append(_signer(walk[-1], [one for one in certificates if one not in walk]))
    if _is_authority(walk[-1]):
        raise _bad("the certificate is an authority's, nobody's own")
    _check_times(walk, now)
    expires = min(one.not_valid_after_utc.timestamp() for one in walk)
    subject = walk[-1].subject
    return Certified(subject_words(subject), _name(subject), expires)


def subject_words(name: x509.Name) -> str:
    r"""Return a subject as ``/DC=org/CN=Name``; ``/``, ``+`` and ``\`` in values get a ``\``.

    Raises
    ------
    Unauthenticated
        It is empty, or holds characters that cannot be printed.
    """
    words = "".join("/" + "+".join(map(_part, part)) for part in name.rdns)
    if not words or not words.isprintable():
        raise _bad("the certificate's subject is empty or cannot be printed")
    return words


def _part(attribute: x509.NameAttribute[str | bytes]) -> str:
    value = attribute.value
    text = value if isinstance(value, str) else value.hex()
    for special in "\\/+":
        text = text.replace(special, "\\" + special)
    return f"{_SHORT.get(attribute.oid, attribute.oid.dotted_string)}={text}"


def _name(name: x509.Name) -> str:
    found = name.get_attributes_for_oid(NameOID.COMMON_NAME)
    return str(found[-1].value) if found else ""


def _parse(der: bytes) -> x509.Certificate:
    try:
        return x509.load_der_x509_certificate(der)
    except ValueError:
        raise _bad("a certificate cannot be read") from None


def _is_proxy(certificate: x509.Certificate) -> bool:
    return any(one.oid == PROXY_INFO for one in _extensions(certificate))


def _is_authority(certificate: x509.Certificate) -> bool:
    return any(
        isinstance(one.value, x509.BasicConstraints) and one.value.ca
        for one in _extensions(certificate)
    )


def _extensions(certificate: x509.Certificate) -> x509.Extensions:
    try:
        return certificate.extensions
    except ValueError:
        raise _bad("a certificate's extensions cannot be read") from None


def _signer(proxy: x509.Certificate, others: Sequence[x509.Certificate]) -> x509.Certificate:
    """Return the certificate that signed a proxy, which is named after it."""
    for one in others:
        if one.subject == proxy.issuer and one.subject.rdns == proxy.subject.rdns[:-1]:
            try:
                proxy.verify_directly_issued_by(one)
            except (InvalidSignature, ValueError, TypeError):
                continue
            return one
    raise _bad("nobody of the chain has signed the proxy: make a new one, with its whole chain")


def _check_times(walk: Sequence[x509.Certificate], now: float) -> None:
    # TLS looked when the connection was made: it may be a day old.
    for one in walk:
        if now >= one.not_valid_after_utc.timestamp():
            raise _bad("the certificate or the proxy has expired: renew it and connect again")
        if now < one.not_valid_before_utc.timestamp():
            raise _bad("the certificate is not valid yet: set the clocks of both machines")


def _bad(words: str) -> Unauthenticated:
    return Unauthenticated(words, "invalid_token")
