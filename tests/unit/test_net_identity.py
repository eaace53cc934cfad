"""Identity files, certificates, join strings, versions and addresses, without a network."""

from __future__ import annotations

import dataclasses
import datetime
import json
import stat
from pathlib import Path

import pytest
from cryptography import x509
from cryptography.x509.oid import ExtendedKeyUsageOID

from potluck import errors
from potluck.clock import ManualClock
from potluck.errors import JoinError, PotluckError
from potluck.ids import NodeId
from potluck.net import address, tls, version
from potluck.net.identity import FILE_NAME, Identity
from potluck.net.join import JoinString
from potluck.net.remote_errors import CLASS_BY_PREFIX, error_from_id
from potluck.net.tls import CertificateAuthority, Peer, read_peer

IDENTITY = Identity(
    node_id=NodeId("node-1"),
    role="node",
    key_pem=b"KEY",
    certificate_pem=b"CERT",
    ca_pem=b"CA",
    curve_public="p",
    curve_secret="the-secret",
    curve_server_key="s",
    host="::1",
    control_port=7470,
    data_port=7472,
)


def test_an_identity_comes_back_as_it_was_saved_and_only_its_owner_can_read_it(tmp_path: Path) -> None:
    IDENTITY.save(tmp_path / "home")
    assert Identity.load(tmp_path / "home") == IDENTITY
    assert stat.S_IMODE((tmp_path / "home" / FILE_NAME).stat().st_mode) == 0o600
    assert stat.S_IMODE((tmp_path / "home").stat().st_mode) == 0o700


def test_an_identity_never_prints_its_secrets() -> None:
    assert "the-secret" not in repr(IDENTITY)
    assert "KEY" not in str(IDENTITY)


def test_an_identity_knows_where_to_dial() -> None:
    assert (IDENTITY.control_target, IDENTITY.data_target) == ("[::1]:7470", "[::1]:7472")


def test_no_identity_says_how_to_get_one(tmp_path: Path) -> None:
    with pytest.raises(JoinError) as caught:
        Identity.load(tmp_path)
    assert caught.value.error_id == "join.no-identity"
    assert "potluck join" in caught.value.fix


@pytest.mark.parametrize("text", ["", "{", "[]", "{}", json.dumps({"node_id": 1})])
def test_a_broken_identity_file_is_said_so(tmp_path: Path, text: str) -> None:
    (tmp_path / FILE_NAME).write_text(text)
    with pytest.raises(JoinError) as caught:
        Identity.load(tmp_path)
    assert caught.value.error_id == "join.bad-identity"


def issued(role: str, folder: Path, clock: ManualClock | None = None) -> x509.Certificate:
    authority = CertificateAuthority.create(folder, clock=clock)
    _, csr = tls.new_key_and_csr("wished for")
    return x509.load_pem_x509_certificate(authority.issue(csr, node_id=NodeId("n-7"), role=role))


@pytest.mark.parametrize(("role", "serves"), [("node", False), ("admin", False), ("client", False), ("router", True)])
def test_only_routers_get_a_certificate_that_may_serve(tmp_path: Path, role: str, serves: bool) -> None:
    certificate = issued(role, tmp_path)
    usage = certificate.extensions.get_extension_for_class(x509.ExtendedKeyUsage).value
    assert (ExtendedKeyUsageOID.SERVER_AUTH in usage) == serves
    assert ExtendedKeyUsageOID.CLIENT_AUTH in usage
    names = certificate.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
    dns = names.get_values_for_type(x509.DNSName)
    assert dns == (["router.potluck"] if serves else [f"n-7.{role}.potluck"])


def test_certificates_last_a_year_and_are_back_dated_a_day(tmp_path: Path) -> None:
    clock = ManualClock()
    certificate = issued("node", tmp_path, clock)
    now = datetime.datetime.fromtimestamp(clock.unix_ms() / 1000, tz=datetime.UTC)
    assert certificate.not_valid_before_utc == now - datetime.timedelta(days=1)
    assert certificate.not_valid_after_utc == now + datetime.timedelta(days=365)


def test_the_uri_name_says_who_it_is(tmp_path: Path) -> None:
    certificate = issued("node", tmp_path)
    pem = tls._pem(certificate)
    not_after = int(certificate.not_valid_after_utc.timestamp() * 1000)
    assert read_peer(pem) == Peer(node_id=NodeId("n-7"), role="node", not_after_unix_ms=not_after)
    assert read_peer(tls.self_signed_server().certificate_pem) is None


def test_an_authority_is_the_same_after_loading_and_its_key_is_private(tmp_path: Path) -> None:
    made = CertificateAuthority.create(tmp_path / "ca")
    assert CertificateAuthority.load(tmp_path / "ca").ca_pem == made.ca_pem
    assert stat.S_IMODE((tmp_path / "ca" / "ca.key").stat().st_mode) == 0o600
    with pytest.raises(JoinError) as caught:
        CertificateAuthority.load(tmp_path / "none")
    assert caught.value.error_id == "join.no-authority"


def test_a_request_that_is_none_is_refused(tmp_path: Path) -> None:
    authority = CertificateAuthority.create(tmp_path)
    with pytest.raises(JoinError) as caught:
        authority.issue(b"-----BEGIN CERTIFICATE REQUEST-----", node_id=NodeId("n"), role="node")
    assert caught.value.error_id == "join.bad-request"


F = "ab" * 32


@pytest.mark.parametrize(
    ("text", "part"),
    [
        ("", "potluck1"),
        ("potluck2:h:1:" + F + ":token-token", "potluck1"),
        ("potluck1:h:7471:" + F, "host:port"),
        ("potluck1:h", "token"),
        ("potluck1:h:port:" + F + ":token-token", "host:port"),
        ("potluck1:h:0:" + F + ":token-token", "host:port"),
        ("potluck1:h:70000:" + F + ":token-token", "host:port"),
        ("potluck1::7471:" + F + ":token-token", "host:port"),
        ("potluck1:a b:7471:" + F + ":token-token", "host:port"),
        ("potluck1:h:7471:abc:token-token", "fingerprint"),
        ("potluck1:h:7471:" + F.upper() + ":token-token", "fingerprint"),
        ("potluck1:h:7471:" + F + ":short", "token"),
        ("potluck1:h:7471:" + F + ":", "token"),
    ],
)
def test_a_wrong_join_string_is_told_which_part_is_wrong(text: str, part: str) -> None:
    with pytest.raises(JoinError) as caught:
        JoinString.parse(text)
    assert caught.value.error_id == "join.malformed"
    assert part in caught.value.message
    assert "token-token" not in caught.value.message


def test_equal_major_and_minor_may_talk() -> None:
    major, minor = version.package_version().split(".")[:2]
    version.check_version(f"{major}.{minor}.999")
    for other in ("", "9", f"{major}.99.0", "9.0.0"):
        with pytest.raises(JoinError) as caught:
            version.check_version(other)
        assert caught.value.error_id == "join.version"


def test_the_fallback_version_is_that_of_the_project_file() -> None:
    project = Path(version.__file__).parents[2] / "pyproject.toml"
    assert f'version = "{version.SOURCE_VERSION}"' in project.read_text()


@pytest.mark.parametrize(
    ("host", "loopback"),
    [
        ("127.0.0.1", True),
        ("127.9.9.9", True),
        ("::1", True),
        ("[::1]", True),
        ("localhost", True),
        ("0.0.0.0", False),
        ("10.0.0.1", False),
        ("example.org", False),
        ("", False),
    ],
)
def test_loopback_is_recognised(host: str, loopback: bool) -> None:
    assert address.is_loopback(host) == loopback


def test_an_address_to_give_away_is_a_plain_ip() -> None:
    assert address.reachable_address() not in ("", "0.0.0.0")


@pytest.mark.parametrize("target", ["", "host", ":1", "host:x"])
def test_a_target_without_a_port_is_refused(target: str) -> None:
    with pytest.raises(ValueError):
        address.split_host_port(target)


def test_every_class_of_error_comes_back_from_its_prefix() -> None:
    for prefix, cls in CLASS_BY_PREFIX.items():
        error = error_from_id(f"{prefix}.x", "message", "fix")
        assert type(error) is cls
        assert (error.message, error.fix) == ("message", "fix")
    drawn = [c for c in vars(errors).values() if isinstance(c, type) and issubclass(c, PotluckError)]
    assert set(CLASS_BY_PREFIX.values()) == set(drawn) - {PotluckError, errors.UserError}
    assert type(error_from_id("strange", "m")) is PotluckError


def test_identities_cannot_be_changed() -> None:
    with pytest.raises(dataclasses.FrozenInstanceError):
        IDENTITY.host = "x"  # type: ignore[misc]
