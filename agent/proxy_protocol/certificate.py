"""The subject of a certificate, unverified: Python decodes only what it has verified."""

from __future__ import annotations


def common_name(certificate: bytes) -> str:
    """The common name of a certificate's subject (X.509, DER), printable; "" where it has none or is not whole."""
    try:
        _, at, end = _element(certificate, 0)  # Certificate
        _, at, end = _element(certificate, at)  # TBSCertificate
        fields: list[bytes] = []
        while at < end and len(fields) < _SUBJECT + 2:
            tag, start, at = _element(certificate, at)
            fields += [] if tag == _VERSION else [certificate[start:at]]
        _, separator, rest = fields[_SUBJECT].rpartition(_COMMON_NAME)
        tag, start, end = _element(rest, 0) if separator else (0, 0, 0)
    except IndexError:
        return ""
    text = rest[start:end].decode("utf-8", errors="replace")
    return "".join(character if character.isprintable() else "." for character in text)[:100]


_COMMON_NAME = b"\x06\x03\x55\x04\x03"  # OID 2.5.4.3 (X.520)
_VERSION = 0xA0
_SUBJECT = 4  # after serial number, signature algorithm, issuer and validity (RFC 5280, 4.1), the version left out


def _element(data: bytes, at: int) -> tuple[int, int, int]:
    """Tag, beginning and end of the DER element at a place (X.690). Raises IndexError where there is none."""
    tag, size, start = data[at], data[at + 1], at + 2
    if size > 0x7F:
        start += size & 0x7F
        size = int.from_bytes(data[at + 2 : start], "big")
    if start + size > len(data):
        raise IndexError
    return tag, start, start + size
