"""What the doctor finds, and what it advises: the checks as functions."""

from __future__ import annotations

import dataclasses
import datetime
from pathlib import Path

import pytest

from potluck.clock import ManualClock
from potluck.doctor.check import Check, fail, format_checks, ok, warn
from potluck.doctor.coordinator import check_clock, check_port, check_session, check_version
from potluck.doctor.facts import offered_modules
from potluck.doctor.home import check_blobs, check_present, whom_we_wait_for
from potluck.doctor.identity import check_certificate
from potluck.doctor.machine import (
    Need,
    check_disk,
    check_faiss,
    check_memory,
    check_requirements,
    check_shadows,
    check_threads,
)
from potluck.ids import NodeId
from potluck.net.blobs.store import BlobStore
from potluck.net.identity import Identity
from potluck.net.tls import CertificateAuthority, new_key_and_csr
from potluck.v1 import admin_pb2, node_pb2

GIB = 1 << 30
NOW = datetime.datetime(2024, 1, 1, tzinfo=datetime.UTC)


def need(**changed: int) -> Need:
    return dataclasses.replace(Need(run="r", training_bytes=GIB, threads=1, processes=1), **changed)


def test_room_is_judged_by_what_is_still_to_come() -> None:
    assert check_disk("disk", "/", 50 * GIB).state == "ok"
    assert check_disk("disk", "/", GIB).state == "warn"
    assert check_disk("disk", "/", 50 * GIB, 60 * GIB, "commits").state == "warn"
    assert check_disk("disk", "/", GIB // 8).state == "fail"


def test_memory_must_hold_the_largest_open_run_once_for_every_node_here() -> None:
    def state(total: int, needs: list[Need], nodes: int) -> str:
        return check_memory(total, total, needs, nodes, GIB).state

    assert state(8 * GIB, [], 1) == "ok"
    assert state(8 * GIB, [], 9) == "warn"
    assert state(8 * GIB, [need(), need(training_bytes=3 * GIB)], 2) == "ok"
    assert state(8 * GIB, [need(), need(training_bytes=3 * GIB)], 3) == "fail"


def test_threads_of_all_nodes_of_a_machine_share_its_cores() -> None:
    assert check_threads("", 4, 2, []).state == "ok"
    assert check_threads("", 4, 2, [need(threads=2)]).state == "ok"
    assert check_threads("", 4, 2, [need(), need(threads=2, processes=2)]).state == "warn"
    assert "2 node(s) x 2 process(es) x 2 thread(s) = 8 on 4 core(s)" in check_threads(
        "", 4, 2, [need(threads=2, processes=2)]
    ).found.replace("\n", " ")


def test_a_file_named_as_a_module_is_named_and_our_own_checkout_is_not(tmp_path: Path) -> None:
    (tmp_path / "torch.py").touch()
    (tmp_path / "notes.py").touch()
    (tmp_path / "grpc").mkdir()
    (tmp_path / "grpc" / "__init__.py").touch()
    (tmp_path / "numpy").mkdir()  # a folder of data: Python prefers the package
    offered = offered_modules([tmp_path, tmp_path / "nowhere"])
    found = check_shadows(offered, {"torch", "grpc", "numpy", "json"})
    assert found.state == "fail"
    assert f"{tmp_path}/torch.py" in found.found
    assert f"{tmp_path}/grpc" in found.found
    assert "numpy" not in found.found
    assert "notes" not in found.found
    root = Path(__file__).resolve().parents[2]
    assert "potluck" not in offered_modules([root]).values()


def test_the_two_faiss_packages_break_each_other() -> None:
    assert check_faiss({"faiss-cpu", "numpy"}).state == "ok"
    assert check_faiss({"numpy"}).state == "ok"
    both = check_faiss({"faiss-cpu", "faiss-gpu"})
    assert both.state == "fail"
    assert "pip uninstall faiss-cpu faiss-gpu" in both.fix


def test_packages_are_held_to_the_least_version_asked_for() -> None:
    asked = ["torch>=2.9", "psutil>=6", "ruff>=0.14; extra == 'dev'"]
    assert check_requirements(asked, {"torch": "2.13.0+cpu", "psutil": "6"}).state == "ok"
    old = check_requirements(asked, {"torch": "2.8.1"})
    assert old.state == "fail"
    assert old.found == "torch 2.8.1 is older than 2.9; psutil is not installed"


def test_a_clock_off_by_a_minute_is_worth_a_word_and_by_half_a_day_a_failure() -> None:
    assert check_clock(1000.0, 999.0, 2.0).state == "ok"
    assert check_clock(1059.0, 1000.0, 0.0).state == "ok"
    assert check_clock(1061.0, 1000.0, 0.0).state == "warn"
    assert check_clock(1000.0, 1061.0, 0.0).state == "warn"
    assert check_clock(1000.0 + 13 * 3600, 1000.0, 0.0).state == "fail"
    assert "behind" in check_clock(1000.0, 1061.0, 0.0).found


def test_releases_of_other_minor_versions_do_not_talk() -> None:
    assert check_version("0.1.7", "0.1.0").state == "ok"
    assert check_version("0.2.0", "0.1.0").state == "fail"


def test_a_session_is_judged_as_the_coordinator_sees_it() -> None:
    def state(seen: str) -> str:
        return check_session("s", node_pb2.GreetResponse(node_id="n1", state=seen, silent_ms=7000)).state

    assert [state(seen) for seen in ("live", "suspect", "gone", "")] == ["ok", "warn", "warn", "warn"]


def test_a_closed_port_is_named() -> None:
    closed = check_port("control port", "127.0.0.1:1")
    assert (closed.state, "127.0.0.1:1" in closed.found) == ("fail", True)


@pytest.fixture(scope="module")
def authority(tmp_path_factory: pytest.TempPathFactory) -> CertificateAuthority:
    clock = ManualClock()  # November 2023
    return CertificateAuthority.create(tmp_path_factory.mktemp("ca"), clock=clock)


def member(authority: CertificateAuthority, role: str = "node", *, days: int = 365) -> Identity:
    key, csr = new_key_and_csr("n1")
    return Identity(
        node_id=NodeId("n1"),
        role=role,  # type: ignore[arg-type]
        key_pem=key,
        certificate_pem=authority.issue(csr, node_id=NodeId("n1"), role=role, days=days),
        ca_pem=authority.ca_pem,
        curve_public="",
        curve_secret="",
        curve_server_key="",
        host="h",
        control_port=1,
        data_port=1,
    )


def test_a_certificate_is_held_to_its_dates_its_key_its_authority_and_its_names(
    authority: CertificateAuthority, tmp_path: Path
) -> None:
    def found(identity: Identity, now: datetime.datetime = NOW) -> Check:
        return check_certificate("c", identity, now)

    good = member(authority)
    assert found(good).state == "ok"
    assert found(member(authority, "router")).state == "ok"
    assert found(good, NOW - datetime.timedelta(days=100)).fix == "set the clocks of both machines right"
    assert found(good, NOW + datetime.timedelta(days=300)).state == "warn"
    assert "expired" in found(good, NOW + datetime.timedelta(days=400)).found
    other_key = dataclasses.replace(good, key_pem=member(authority).key_pem)
    assert "private key" in found(other_key).found
    stranger = CertificateAuthority.create(tmp_path / "ca", clock=ManualClock())
    assert "authority" in found(dataclasses.replace(good, ca_pem=stranger.ca_pem)).found
    assert "is for node/n1" in found(dataclasses.replace(good, node_id=NodeId("n2"))).found
    assert found(dataclasses.replace(good, certificate_pem=b"cut off")).state == "fail"


def test_a_blob_that_its_disk_altered_is_named(tmp_path: Path) -> None:
    store = BlobStore(tmp_path)
    digests = [store.put_bytes(bytes([number]) * 100) for number in range(5)]
    assert check_blobs(tmp_path).state == "ok"
    store.path(digests[3]).write_bytes(b"other")
    found = check_blobs(tmp_path)
    assert found.state == "fail"
    assert digests[3][:12] in found.found
    assert digests[2][:12] not in found.found


def test_whom_we_wait_for_is_said_by_name_and_since_when() -> None:
    def node(name: str, state: str, silent_ms: int = 0, role: str = "node") -> admin_pb2.NodeInfo:
        return admin_pb2.NodeInfo(node=name, role=role, state=state, silent_ms=silent_ms)

    nodes = [
        node("n1", "live", 500),
        node("n2", "live"),
        node("n3", "suspect", 14_000),
        node("r1", "live", 0, "router"),
    ]
    assert whom_we_wait_for(nodes) == "2 of 3 nodes are here; n3 last heard 14 s ago"
    assert check_present(nodes).state == "warn"
    assert check_present(nodes[:2]).state == "ok"
    assert check_present([nodes[3]]).state == "warn"
    gone = [node("n1", "gone"), node("r1", "gone", 9000, "router")]
    assert whom_we_wait_for(gone) == (
        "0 of 1 nodes are here; n1 not heard since the coordinator started; "
        "0 of 1 routers are here; r1 last heard 9 s ago"
    )


def test_the_table_has_80_columns_and_a_fix_for_all_that_is_not_well() -> None:
    checks = [ok("short", "fine"), warn("a longer name", "word " * 40, "do " * 60), fail("x", "y", "z")]
    lines = format_checks(checks).splitlines()
    assert max(map(len, lines)) <= 80
    assert lines[0] == "ok    short          fine"
    assert sum("fix: " in line for line in lines) == 2
