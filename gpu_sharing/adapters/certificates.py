"""Read when a certificate ends, for metrics and findings.

The standard library reads this date only from a peer's verified certificate, so the few DER fields before it are
skipped here.

Source: RFC 5280 section 4.1, ITU-T X.690.
"""

import datetime
import pathlib
import ssl

_BEGIN = "-----BEGIN CERTIFICATE-----"
_END = "-----END CERTIFICATE-----"
_VERSION = 0xA0
_BEFORE_VALIDITY = 3
"""Serial number, signature algorithm, issuer."""
_UTC_TIME = 0x17


def expires_at(path: pathlib.Path) -> float | None:
    """Return the Unix seconds at which the first certificate of a PEM file ends; None if unreadable."""
    try:
        return ends_at(path.read_text())
    except (OSError, UnicodeDecodeError):
        return None


def ends_at(text: str) -> float | None:
    """Return the same for the text of a PEM file."""
    try:
        first = text[text.index(_BEGIN) : text.index(_END) + len(_END)]
        return _not_after(ssl.PEM_cert_to_DER_cert(first))
    except (ValueError, IndexError):
        return None


def _not_after(der: bytes) -> float:
    _, certificate, _ = _element(der)
    _, fields, _ = _element(certificate)
    tag, _, rest = _element(fields)
    if tag == _VERSION:
        fields = rest
    for _ in range(_BEFORE_VALIDITY):
        _, _, fields = _element(fields)
    _, validity, _ = _element(fields)
    _, _, validity = _element(validity)
    tag, moment, _ = _element(validity)
    form = "%y%m%d%H%M%SZ" if tag == _UTC_TIME else "%Y%m%d%H%M%SZ"
    return datetime.datetime.strptime(moment.decode(), form).replace(tzinfo=datetime.UTC).timestamp()


def _element(data: bytes) -> tuple[int, bytes, bytes]:
    """Return the tag and content of the first element, and the bytes after it."""
    length, start = data[1], 2
    if length & 0x80:
        start += length & 0x7F
        length = int.from_bytes(data[2:start], "big")
    if start + length > len(data):
        raise ValueError("the certificate is cut")
    return data[0], data[start : start + length], data[start + length :]
