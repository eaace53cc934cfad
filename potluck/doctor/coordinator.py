"""Whether the coordinator can be reached, and what it says: its version, its clock, and how it sees us.

Nodes only dial out, so "both ways" means that a connection made from here is answered, and that the coordinator
hears the session of a node that runs here.
"""

from __future__ import annotations

import datetime
import socket
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path

from cryptography import x509

from potluck.doctor.check import Check, fail, ok, warn
from potluck.doctor.identity import check_dates
from potluck.errors import PotluckError
from potluck.ids import digest_bytes
from potluck.net.address import join_host_port
from potluck.net.blobs.client import BlobClient
from potluck.net.blobs.store import BlobStore
from potluck.net.diagnose import dial_error
from potluck.net.identity import Identity
from potluck.net.join import fetch_certificate
from potluck.net.moving import greet
from potluck.net.version import package_version
from potluck.v1 import node_pb2

DIAL_S = 5.0
DATA_PATIENCE_MS = 5_000
SKEW_WARN_S = 60.0
SKEW_FAIL_S = 12 * 3600.0
"""Certificates are dated back by a day; half of it is left for the other machine's clock."""
ABSENT = digest_bytes(b"a blob that nobody has ever put")


@dataclass(frozen=True, kw_only=True)
class Heard:
    """A coordinator's greeting, and this machine's clock around it."""

    answer: node_pb2.GreetResponse
    asked_s: float
    took_s: float


def hear(identity: Identity) -> Heard | Check:
    """The greeting, or why there is none."""
    asked_s, started = time.time(), time.monotonic()
    try:
        answer = greet(identity)
    except PotluckError as error:
        return fail("control port", error.message, error.fix)
    return Heard(answer=answer, asked_s=asked_s, took_s=time.monotonic() - started)


def check_coordinator(identity: Identity, now: datetime.datetime) -> list[Check]:
    """All three ports, from here to there."""
    heard = hear(identity)
    if isinstance(heard, Check):
        return [heard]
    answer = heard.answer
    checks = [
        ok("control port", f"{identity.control_target} answered {identity.node_id} in {heard.took_s * 1000:.0f} ms"),
        check_known(identity, answer),
        check_version(answer.version, package_version()),
        check_clock(answer.unix_ms / 1000, heard.asked_s, heard.took_s),
        check_enrolment(join_host_port(identity.host, answer.enrol_port), insecure=identity.insecure),
        check_data(identity, answer.data_port),
    ]
    return checks if identity.insecure else [*checks, check_server_certificate(identity, now)]


def check_known(identity: Identity, answer: node_pb2.GreetResponse) -> Check:
    if answer.known:
        return ok("enrolment", f"the coordinator knows {answer.node_id} as {answer.role}")
    what = f"the coordinator has never let {identity.node_id} in: its journal is older than that"
    return fail("enrolment", what, "join again from a new --home, with a fresh join string (potluck invite)")


def check_session(name: str, answer: node_pb2.GreetResponse) -> Check:
    """Whether the coordinator hears a member whose daemon should run."""
    silent = f"{answer.silent_ms / 1000:.0f} s"
    match answer.state:
        case "live":
            return ok(name, f"{answer.node_id}: heard {silent} ago")
        case "suspect":
            return warn(name, f"{answer.node_id}: silent for {silent}", "look at its log, and at the network between")
        case _:
            return warn(name, f"{answer.node_id} has no session", "start it: potluck join, or potluck router")


def check_version(theirs: str, ours: str) -> Check:
    found = f"potluck {ours} here, {theirs} at the coordinator"
    if theirs.split(".")[:2] != ours.split(".")[:2]:
        return fail("version", found, "install the same major.minor version on both machines")
    return ok("version", found)


def check_clock(theirs_s: float, asked_s: float, took_s: float) -> Check:
    """Their clock against ours in the middle of the call; half the call's length is not known better.

    Args:
        asked_s, took_s: seconds; when we asked by our clock, and how long the answer took.
    """
    ahead_s = theirs_s - (asked_s + took_s / 2)
    way = "ahead of" if ahead_s > 0 else "behind"
    found = f"the coordinator's clock is {abs(ahead_s):.1f} s {way} ours (known to {took_s / 2:.1f} s)"
    if abs(ahead_s) > SKEW_FAIL_S:
        return fail("clock", found, "set both clocks right (NTP): beyond a day certificates are not valid yet")
    if abs(ahead_s) > SKEW_WARN_S:
        return warn("clock", found, "set both clocks right (NTP), before certificates and join strings expire early")
    return ok("clock", found)


def check_port(name: str, target: str) -> Check:
    """A TCP connection and nothing more."""
    host, _, port = target.rpartition(":")
    try:
        with socket.create_connection((host.strip("[]"), int(port)), timeout=DIAL_S):
            return ok(name, f"{target} accepts connections")
    except OSError as error:
        told = dial_error(target, error)
        return fail(name, told.message, told.fix)


def check_enrolment(target: str, *, insecure: bool) -> Check:
    """Only new members need it, so a closed one is no failure."""
    try:
        if insecure:
            return check_port("enrolment port", target)
        fetch_certificate(target)
    except PotluckError as error:
        return warn("enrolment port", error.message, f"{error.fix}; only new members need this port")
    return ok("enrolment port", f"{target} answers")


def check_data(identity: Identity, port: int) -> Check:
    """Asks for a blob that nobody has: the answer says that keys and connection are good."""
    target = join_host_port(identity.host, port)
    try:
        with (
            tempfile.TemporaryDirectory(prefix="potluck-doctor-") as folder,
            BlobClient(identity, BlobStore(Path(folder)), target=target, give_up_after_ms=DATA_PATIENCE_MS) as blobs,
        ):
            blobs.get(ABSENT, "weights").result(timeout=3 * DATA_PATIENCE_MS / 1000)
    except PotluckError as error:
        if error.error_id == "data.missing-blob":
            return ok("data port", f"{target} answers")
        return fail("data port", f"{target}: {error.message}", error.fix or "check the firewall for this port")
    except TimeoutError:
        return fail("data port", f"{target} does not answer", "check the firewall for this port")
    raise AssertionError(ABSENT)


def check_server_certificate(identity: Identity, now: datetime.datetime) -> Check:
    """A coordinator makes its own certificate at each start, good for a year."""
    try:
        pem = fetch_certificate(identity.control_target)
    except PotluckError as error:
        return warn("its certificate", error.message, error.fix)
    fix = "restart the coordinator: it makes a new one at each start"
    return check_dates("its certificate", "coordinator", x509.load_pem_x509_certificate(pem), now, fix)
