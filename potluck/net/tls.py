"""Certificates: one P-256 authority per coordinator, which signs everyone it lets in.

Leaves are P-256, for gRPC refuses Ed25519 leaves. Every certificate carries a DNS name chosen here and,
in a URI name, who it is: ``potluck://<role>/<id>``. Only servers get the server usage, so a node cannot
pose as the coordinator.
"""

from __future__ import annotations

import datetime
import hashlib
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from cryptography import x509
from cryptography.exceptions import UnsupportedAlgorithm
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID

from potluck.clock import Clock, SystemClock
from potluck.errors import JoinError
from potluck.ids import NodeId
from potluck.net.identity import write_private

if TYPE_CHECKING:
    import grpc.aio

COORDINATOR_NAME = "coordinator.potluck"
ROUTER_NAME = "router.potluck"
INSECURE_AGENT = "potluck-insecure/"
"""Without TLS a program names itself in its user agent; read only on servers without TLS, which are loopback only."""

LEAF_DAYS = 365
CA_DAYS = 3650
BACK_DATE = datetime.timedelta(days=1)
"""Machines whose clock is a little behind must not find a fresh certificate not yet valid."""


@dataclass(frozen=True, kw_only=True)
class Peer:
    node_id: NodeId
    role: str
    """admin, node, router, client or coordinator."""
    not_after_unix_ms: int


@dataclass(frozen=True, kw_only=True)
class KeyedCertificate:
    key_pem: bytes
    certificate_pem: bytes


class CertificateAuthority:
    """Signs certificates; its key never leaves the coordinator's home."""

    def __init__(self, key: ec.EllipticCurvePrivateKey, certificate: x509.Certificate, clock: Clock) -> None:
        self._key = key
        self._certificate = certificate
        self._clock = clock
        self.ca_pem: bytes = _pem(certificate)

    @staticmethod
    def create(folder: Path, *, clock: Clock | None = None) -> CertificateAuthority:
        """Makes a new authority in the folder: ``ca.key`` (0600) and ``ca.pem``."""
        clock = clock or SystemClock()
        folder.mkdir(parents=True, exist_ok=True, mode=0o700)
        key = ec.generate_private_key(ec.SECP256R1())
        name = _name("potluck authority")
        builder = _builder(name, name, key.public_key(), clock, CA_DAYS)
        builder = builder.add_extension(x509.BasicConstraints(ca=True, path_length=0), critical=True)
        builder = builder.add_extension(_key_usage(signs_certificates=True), critical=True)
        builder = builder.add_extension(x509.SubjectKeyIdentifier.from_public_key(key.public_key()), critical=False)
        certificate = builder.sign(key, hashes.SHA256())
        write_private(folder / "ca.pem", _pem(certificate))
        write_private(folder / "ca.key", _key_pem(key))
        return CertificateAuthority(key, certificate, clock)

    @staticmethod
    def load(folder: Path, *, clock: Clock | None = None) -> CertificateAuthority:
        """Reads what `create` wrote.

        Raises:
            JoinError: ``join.no-authority`` if the files are missing or broken.
        """
        try:
            key = serialization.load_pem_private_key((folder / "ca.key").read_bytes(), password=None)
            certificate = x509.load_pem_x509_certificate((folder / "ca.pem").read_bytes())
        except (OSError, ValueError) as error:
            raise JoinError(
                "join.no-authority", f"no certificate authority in {folder}: {error}", "restore ca.key and ca.pem"
            ) from None
        assert isinstance(key, ec.EllipticCurvePrivateKey)
        return CertificateAuthority(key, certificate, clock or SystemClock())

    def issue(self, csr_pem: bytes, *, node_id: NodeId, role: str, days: int = LEAF_DAYS) -> bytes:
        """Answers a certificate request. The names come from here; of the request only the key is used.

        A router gets the server usage and ``router.potluck`` too, for it is dialled with the same certificate.

        Raises:
            JoinError: ``join.bad-request`` if the request is no P-256 request signed by its own key.
        """
        names = [ROUTER_NAME] if role == "router" else [f"{node_id}.{role}.potluck"]
        usages = [ExtendedKeyUsageOID.CLIENT_AUTH]
        if role == "router":
            usages.append(ExtendedKeyUsageOID.SERVER_AUTH)
        return _pem(self._sign(_request_key(csr_pem), node_id, role, names, usages, days))

    def issue_server(
        self, *, dns_name: str = COORDINATOR_NAME, node_id: str = "coordinator", role: str = "coordinator"
    ) -> KeyedCertificate:
        """A new key and certificate for a server of this very process."""
        key = ec.generate_private_key(ec.SECP256R1())
        usages = [ExtendedKeyUsageOID.SERVER_AUTH]
        certificate = self._sign(key.public_key(), NodeId(node_id), role, [dns_name], usages, LEAF_DAYS)
        return KeyedCertificate(key_pem=_key_pem(key), certificate_pem=_pem(certificate))

    def _sign(
        self,
        public_key: ec.EllipticCurvePublicKey,
        node_id: NodeId,
        role: str,
        dns_names: list[str],
        usages: list[x509.ObjectIdentifier],
        days: int,
    ) -> x509.Certificate:
        names: list[x509.GeneralName] = [x509.DNSName(name) for name in dns_names]
        names.append(x509.UniformResourceIdentifier(f"potluck://{role}/{node_id}"))
        builder = _builder(_name(f"{role} {node_id}"), self._certificate.subject, public_key, self._clock, days)
        builder = builder.add_extension(x509.BasicConstraints(ca=False, path_length=None), critical=True)
        builder = builder.add_extension(_key_usage(signs_certificates=False), critical=True)
        builder = builder.add_extension(x509.ExtendedKeyUsage(usages), critical=False)
        builder = builder.add_extension(x509.SubjectAlternativeName(names), critical=False)
        issuer = x509.AuthorityKeyIdentifier.from_issuer_public_key(self._key.public_key())
        return builder.add_extension(issuer, critical=False).sign(self._key, hashes.SHA256())


def new_key_and_csr(name: str) -> tuple[bytes, bytes]:
    """A new private key and a request for a certificate on it: (key PEM, CSR PEM)."""
    key = ec.generate_private_key(ec.SECP256R1())
    request = x509.CertificateSigningRequestBuilder().subject_name(_name(name)).sign(key, hashes.SHA256())
    return _key_pem(key), request.public_bytes(serialization.Encoding.PEM)


def self_signed_server(dns_name: str = COORDINATOR_NAME, *, clock: Clock | None = None) -> KeyedCertificate:
    """The enrolment server's certificate: trusted by its fingerprint alone, which the join string carries."""
    key = ec.generate_private_key(ec.SECP256R1())
    name = _name(dns_name)
    builder = _builder(name, name, key.public_key(), clock or SystemClock(), CA_DAYS)
    builder = builder.add_extension(x509.SubjectAlternativeName([x509.DNSName(dns_name)]), critical=False)
    certificate = builder.sign(key, hashes.SHA256())
    return KeyedCertificate(key_pem=_key_pem(key), certificate_pem=_pem(certificate))


def fingerprint(certificate_pem: bytes) -> str:
    """SHA-256 of the certificate's DER, hexadecimal."""
    der = x509.load_pem_x509_certificate(certificate_pem).public_bytes(serialization.Encoding.DER)
    return hashlib.sha256(der).hexdigest()


def read_peer(certificate_pem: bytes) -> Peer | None:
    """Who a certificate says it is; None if it carries no ``potluck://`` name."""
    certificate = x509.load_pem_x509_certificate(certificate_pem)
    try:
        names = certificate.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
    except x509.ExtensionNotFound:
        return None
    not_after = int(certificate.not_valid_after_utc.timestamp() * 1000)
    for uri in names.get_values_for_type(x509.UniformResourceIdentifier):
        role, _, node_id = uri.removeprefix("potluck://").partition("/")
        if uri.startswith("potluck://") and role and node_id:
            return Peer(node_id=NodeId(node_id), role=role, not_after_unix_ms=not_after)
    return None


def peer_of(context: grpc.aio.ServicerContext[Any, Any]) -> Peer | None:
    """Who is calling, from the client certificate the TLS handshake has verified.

    On a server without TLS (loopback only) it is who the caller says to be. None for a stranger.
    """
    auth = context.auth_context()
    for certificate_pem in auth.get("x509_pem_cert", ()):
        return read_peer(certificate_pem)
    if b"ssl" in auth.get("transport_security_type", ()):
        return None
    for key, value in context.invocation_metadata() or ():
        if key == "user-agent" and str(value).startswith(INSECURE_AGENT):
            role, _, node_id = str(value).split(" ")[0].removeprefix(INSECURE_AGENT).partition("/")
            return Peer(node_id=NodeId(node_id), role=role, not_after_unix_ms=2**53)
    return None


def _request_key(csr_pem: bytes) -> ec.EllipticCurvePublicKey:
    fix = "let the joining machine make its request with the same potluck version"
    try:
        request = x509.load_pem_x509_csr(csr_pem)
        key = request.public_key()
        signed = request.is_signature_valid
    except (ValueError, TypeError, UnsupportedAlgorithm) as error:
        raise JoinError("join.bad-request", f"the certificate request cannot be read: {error}", fix) from None
    if not isinstance(key, ec.EllipticCurvePublicKey) or not isinstance(key.curve, ec.SECP256R1):
        raise JoinError("join.bad-request", "the certificate request is not for a P-256 key", fix)
    if not signed:
        raise JoinError("join.bad-request", "the certificate request is not signed by its own key", fix)
    return key


def _builder(
    subject: x509.Name, issuer: x509.Name, key: ec.EllipticCurvePublicKey, clock: Clock, days: int
) -> x509.CertificateBuilder:
    now = datetime.datetime.fromtimestamp(clock.unix_ms() / 1000, tz=datetime.UTC)
    return (
        x509.CertificateBuilder()
        .subject_name(subject)
        .issuer_name(issuer)
        .public_key(key)
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - BACK_DATE)
        .not_valid_after(now + datetime.timedelta(days=days))
    )


def _key_usage(*, signs_certificates: bool) -> x509.KeyUsage:
    return x509.KeyUsage(
        digital_signature=True,
        content_commitment=False,
        key_encipherment=False,
        data_encipherment=False,
        key_agreement=False,
        key_cert_sign=signs_certificates,
        crl_sign=signs_certificates,
        encipher_only=False,
        decipher_only=False,
    )


def _name(common_name: str) -> x509.Name:
    # The limit of 64 characters is X.520's.
    return x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, common_name[:64])])


def _pem(certificate: x509.Certificate) -> bytes:
    return certificate.public_bytes(serialization.Encoding.PEM)


def _key_pem(key: ec.EllipticCurvePrivateKey) -> bytes:
    return key.private_bytes(
        serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
    )
