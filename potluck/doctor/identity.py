"""Whether an identity still proves who we are. Pure but for reading the file's mode."""

from __future__ import annotations

import datetime

from cryptography import x509
from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import ec

from potluck.doctor.check import Check, fail, ok, warn
from potluck.net.identity import Identity
from potluck.net.tls import ROUTER_NAME, read_peer

SOON = datetime.timedelta(days=30)
JOIN_AGAIN = "join again from a new --home, with a fresh join string (potluck invite)"


def check_certificate(name: str, identity: Identity, now: datetime.datetime) -> Check:
    """Names, dates, key and authority of what enrolment left behind."""
    if identity.insecure:
        return ok(name, f"{identity.node_id}: none, for it is --insecure")
    try:
        leaf = x509.load_pem_x509_certificate(identity.certificate_pem)
        authority = x509.load_pem_x509_certificate(identity.ca_pem)
        key = serialization.load_pem_private_key(identity.key_pem, password=None)
    except ValueError as error:
        return fail(name, f"{identity.node_id}: cannot be read: {error}", JOIN_AGAIN)
    wrong = _mismatch(identity, leaf, authority, key)
    if wrong:
        return fail(name, f"{identity.node_id}: {wrong}", JOIN_AGAIN)
    return check_dates(name, identity.node_id, leaf, now, JOIN_AGAIN)


def check_dates(name: str, whose: str, certificate: x509.Certificate, now: datetime.datetime, fix: str) -> Check:
    not_before, not_after = certificate.not_valid_before_utc, certificate.not_valid_after_utc
    if now < not_before:
        what = f"{whose}: not valid before {not_before:%Y-%m-%d %H:%M} UTC; here it is {now:%Y-%m-%d %H:%M}"
        return fail(name, what, "set the clocks of both machines right")
    if now > not_after:
        return fail(name, f"{whose}: expired on {not_after:%Y-%m-%d}", fix)
    found = f"{whose}: valid until {not_after:%Y-%m-%d}"
    if not_after - now < SOON:
        return warn(name, f"{found}, {(not_after - now).days} day(s) from now", f"before then: {fix}")
    return ok(name, found)


def _mismatch(identity: Identity, leaf: x509.Certificate, authority: x509.Certificate, key: object) -> str:
    if not isinstance(key, ec.EllipticCurvePrivateKey) or key.public_key() != leaf.public_key():
        return "the private key does not belong to the certificate"
    try:
        leaf.verify_directly_issued_by(authority)
    except (InvalidSignature, ValueError, TypeError):
        return "the certificate is not signed by the authority kept beside it"
    peer = read_peer(identity.certificate_pem)
    if peer is None or (peer.role, peer.node_id) != (identity.role, identity.node_id):
        said = f"{peer.role}/{peer.node_id}" if peer is not None else "nobody"
        return f"the certificate is for {said}, the identity says {identity.role}/{identity.node_id}"
    names = leaf.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
    dns = names.get_values_for_type(x509.DNSName)
    if identity.role == "router" and ROUTER_NAME not in dns:
        return f"a router's certificate must name {ROUTER_NAME}, this one names {', '.join(dns)}"
    return ""
