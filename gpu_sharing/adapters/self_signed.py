"""Self-signed certificates: an authority of our own, and the certificates that it signs for our listeners.

Source: RFC 5280 for the extensions; elliptic keys, because they are generated in a millisecond.
"""

import datetime
from collections.abc import Iterable
from dataclasses import dataclass

from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID

_EARLY = datetime.timedelta(hours=1)
"""Certificates begin this much in the past, for clocks that are behind."""


@dataclass(frozen=True, slots=True)
class Pair:
    """A certificate and its private key, as PEM."""

    certificate: str
    key: str


def authority(now: datetime.datetime, days: int) -> Pair:
    """Return an authority that can sign only certificates of servers."""
    key = ec.generate_private_key(ec.SECP256R1())
    name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "hami-py")])
    certificate = (
        _builder(name, name, key.public_key(), now, days)
        .add_extension(x509.BasicConstraints(ca=True, path_length=0), critical=True)
        .add_extension(_usage(signs_certificates=True), critical=True)
        .sign(key, hashes.SHA256())
    )
    return _pair(certificate, key)


def server(signed_by: Pair, names: Iterable[str], now: datetime.datetime, days: int) -> Pair:
    """Return a server's certificate for some DNS names.

    Raises:
        ValueError: The authority cannot be read.
    """
    issuer = x509.load_pem_x509_certificate(signed_by.certificate.encode())
    issuer_key = serialization.load_pem_private_key(signed_by.key.encode(), None)
    if not isinstance(issuer_key, ec.EllipticCurvePrivateKey):
        raise ValueError("the authority's key is of another kind than ours")
    key = ec.generate_private_key(ec.SECP256R1())
    alternatives = x509.SubjectAlternativeName([x509.DNSName(name) for name in names])
    signed = (
        _builder(issuer.subject, x509.Name([]), key.public_key(), now, days)
        .add_extension(alternatives, critical=True)
        .add_extension(x509.ExtendedKeyUsage([ExtendedKeyUsageOID.SERVER_AUTH]), critical=False)
        .add_extension(_usage(signs_certificates=False), critical=True)
        .sign(issuer_key, hashes.SHA256())
    )
    return _pair(signed, key)


def names(certificate: str) -> frozenset[str]:
    """Return the DNS names of a certificate; empty if it is unreadable."""
    try:
        parsed = x509.load_pem_x509_certificate(certificate.encode())
        extension = parsed.extensions.get_extension_for_class(x509.SubjectAlternativeName)
        return frozenset(extension.value.get_values_for_type(x509.DNSName))
    except (ValueError, x509.ExtensionNotFound):
        return frozenset()


def signs(authority_certificate: str, certificate: str) -> bool:
    """Return whether one certificate was signed by the other's key."""
    try:
        issuer = x509.load_pem_x509_certificate(authority_certificate.encode())
        x509.load_pem_x509_certificate(certificate.encode()).verify_directly_issued_by(issuer)
    except Exception:  # The library passes on any error of its backend; each means that the signature is not valid.
        return False
    return True


def _builder(
    issuer: x509.Name, subject: x509.Name, key: ec.EllipticCurvePublicKey, now: datetime.datetime, days: int
) -> x509.CertificateBuilder:
    return (
        x509.CertificateBuilder()
        .issuer_name(issuer)
        .subject_name(subject)
        .public_key(key)
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - _EARLY)
        .not_valid_after(now + datetime.timedelta(days=days))
    )


def _usage(*, signs_certificates: bool) -> x509.KeyUsage:
    return x509.KeyUsage(
        digital_signature=not signs_certificates,
        key_cert_sign=signs_certificates,
        crl_sign=signs_certificates,
        content_commitment=False,
        key_encipherment=False,
        data_encipherment=False,
        key_agreement=False,
        encipher_only=False,
        decipher_only=False,
    )


def _pair(certificate: x509.Certificate, key: ec.EllipticCurvePrivateKey) -> Pair:
    text = key.private_bytes(
        serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
    )
    return Pair(certificate.public_bytes(serialization.Encoding.PEM).decode(), text.decode())
