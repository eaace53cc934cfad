"""`potluck doctor`: checks of this machine, its connections and its state, each with what to do about it."""

from __future__ import annotations

import argparse
import dataclasses
import datetime
import json
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from potluck.commands.home import Home, open_home
from potluck.commands.offline import offline
from potluck.commands.options import add_common
from potluck.commands.output import Output
from potluck.commands.runs import WORKER_BYTES
from potluck.commands.up import DEFAULT_PORT
from potluck.errors import PotluckError, UsageError

if TYPE_CHECKING:
    from potluck.doctor.check import Check
    from potluck.doctor.machine import Need
    from potluck.net.identity import Identity
    from potluck.v1 import admin_pb2

EXIT_FAILED = 1


def configure(parser: argparse.ArgumentParser) -> None:
    add_common(parser)
    parser.add_argument(
        "--coordinator",
        default="",
        metavar="HOST[:PORT]",
        help="check this one, e.g. before joining it (default: the one that --home belongs to)",
    )


def run(args: argparse.Namespace) -> int:
    from potluck.doctor.check import format_checks

    output, home = Output(as_json=args.json), open_home(args.home)
    host, port = _address(args.coordinator)
    with output.timed("looking"):
        checks = _examine(home, host, port)
    failed = sum(check.state == "fail" for check in checks)
    output.result({"ok": not failed, "checks": [dataclasses.asdict(check) for check in checks]})
    output.line(format_checks(checks))
    warned = sum(check.state == "warn" for check in checks)
    output.note(f"\n{len(checks) - failed - warned} ok, {warned} to look at, {failed} failed")
    return EXIT_FAILED if failed else 0


def checks_before_joining(home: Home) -> list[Check]:
    """Of this machine alone; quick: nothing large is imported."""
    from potluck.doctor.facts import machine_checks

    return machine_checks(home.root, (), max(1, len(_nodes_here(home))), WORKER_BYTES)


def checks_after_joining(folder: Path) -> list[Check]:
    """Of the identity in a node's folder and of its coordinator, by one call."""
    from potluck.doctor.coordinator import Heard, check_clock, check_version, hear
    from potluck.doctor.identity import check_certificate
    from potluck.net.identity import Identity
    from potluck.net.version import package_version

    identity = Identity.load(folder / "identity")
    certificate = check_certificate("certificate", identity, datetime.datetime.now(datetime.UTC))
    heard = hear(identity)
    if not isinstance(heard, Heard):
        return [certificate, heard]
    clock = check_clock(heard.answer.unix_ms / 1000, heard.asked_s, heard.took_s)
    return [certificate, check_version(heard.answer.version, package_version()), clock]


def _address(text: str) -> tuple[str, int]:
    """Raises:
    UsageError: ``usage.bad-address``.
    """
    if not text:
        return "", 0
    host, separator, port = text.rpartition(":")
    if not separator or text.endswith("]"):
        return text.strip("[]"), DEFAULT_PORT
    if not port.isdecimal() or not 0 < int(port) < 65_534 or not host:
        raise UsageError("usage.bad-address", f"--coordinator {text!r}", "give HOST or HOST:PORT, its base port")
    return host.strip("[]"), int(port)


def _examine(home: Home, host: str, port: int) -> list[Check]:
    from potluck.doctor.facts import check_imports, machine_checks
    from potluck.doctor.identity import check_certificate

    now = datetime.datetime.now(datetime.UTC)
    kept, doubts = _identities(home)
    members = [
        dataclasses.replace(member, host=host or member.host, control_port=port or member.control_port)
        for member in kept
    ]
    needs, nodes = _asked_of_coordinator(members)
    checks = machine_checks(home.root, needs, len(_nodes_here(home)), WORKER_BYTES)
    checks += [check_imports(), *doubts]
    checks += [check_certificate(f"{member.role} certificate", member, now) for member in members]
    checks += _connection_checks(members, host, port, now)
    if home.coordinator.is_dir():
        checks += _home_checks(home)
    return [*checks, *_cluster_checks(nodes, needs)]


def _identities(home: Home) -> tuple[list[Identity], list[Check]]:
    """All that can be read under this home, the administrator's first; and what is wrong with their files."""
    from potluck.doctor.check import fail
    from potluck.doctor.home import check_private
    from potluck.net.identity import FILE_NAME, Identity

    found: list[Identity] = []
    checks: list[Check] = []
    folders = [home.admin_identity, *sorted(home.root.glob("node*/identity")), home.router / "identity"]
    for folder in folders:
        if not (folder / FILE_NAME).is_file():
            continue
        try:
            found.append(Identity.load(folder))
        except PotluckError as error:
            checks.append(fail("identity", error.message, error.fix))
    keys = [folder / FILE_NAME for folder in folders] + [home.coordinator / "ca" / "ca.key"]
    return found, [*checks, *check_private(keys)]


def _nodes_here(home: Home) -> list[Path]:
    return [path.parent for path in home.root.glob("node*/identity")]


def _connection_checks(members: Sequence[Identity], host: str, port: int, now: datetime.datetime) -> Iterator[Check]:
    from potluck.doctor.check import ok
    from potluck.doctor.coordinator import Heard, check_coordinator, check_port, check_session, hear

    reached: dict[str, bool] = {}
    for member in members:
        if member.control_target not in reached:
            checks = check_coordinator(member, now)
            reached[member.control_target] = checks[0].state == "ok"
            yield from checks
        if reached[member.control_target] and member.role in ("node", "router"):
            heard = hear(member)
            yield check_session(f"{member.role} session", heard.answer) if isinstance(heard, Heard) else heard
    if members:
        return
    if host:
        for name, number in (("control port", port), ("enrolment port", port + 1), ("data port", port + 2)):
            yield check_port(name, f"[{host}]:{number}" if ":" in host else f"{host}:{number}")
    else:
        yield ok("coordinator", "this home belongs to none; --coordinator HOST checks one before it is joined")


def _asked_of_coordinator(members: Sequence[Identity]) -> tuple[list[Need], list[admin_pb2.NodeInfo]]:
    """What open runs need, and who is there: known to administrators only."""
    from potluck.client import AdminClient
    from potluck.doctor.machine import Need
    from potluck.ids import short
    from potluck.sizing import training_bytes
    from potluck.specs.run import spec_from_json

    admin = next((member for member in members if member.role == "admin"), None)
    if admin is None:
        return [], []
    needs: list[Need] = []
    try:
        with AdminClient(admin) as client:
            nodes = list(client.list_nodes().nodes)
            for listed in client.list_runs().runs:
                if listed.state == "running":
                    spec = spec_from_json(client.get_run(listed.run).spec_json)
                    needs.append(
                        Need(
                            run=listed.name or short(listed.run),
                            training_bytes=training_bytes(spec),
                            threads=spec.profile.threads,
                            processes=spec.profile.processes,
                        )
                    )
    except PotluckError:
        return [], []  # the check of its control port says why
    return needs, nodes


def _cluster_checks(nodes: Sequence[admin_pb2.NodeInfo], needs: Sequence[Need]) -> Iterator[Check]:
    from potluck.doctor.home import check_present
    from potluck.doctor.machine import check_threads

    if not nodes:
        return
    yield check_present(nodes)
    hosts: dict[str, list[admin_pb2.NodeInfo]] = {}
    for node in nodes:
        if node.role == "node" and node.state == "live":
            hosts.setdefault(node.hostname, []).append(node)
    for hostname, here in hosts.items():
        yield check_threads(hostname, here[0].cores, len(here), needs)


def _home_checks(home: Home) -> Iterator[Check]:
    from potluck.doctor.check import fail, ok
    from potluck.doctor.facts import check_quota
    from potluck.doctor.home import RESTORE, check_blobs, check_ports_free

    folder = home.coordinator
    runs = False
    try:
        told = offline("check", folder)
        if told["problems"]:
            yield fail("journal", told["problems"][0], RESTORE)
        else:
            yield ok("journal", f"whole, {told['events']} events")
    except PotluckError as error:
        runs = error.error_id == "resource.locked"
        if runs:
            yield ok("journal", "in use: a coordinator runs here and has read it whole; `potluck backup` checks it too")
        else:
            yield fail("journal", error.message, RESTORE)
    yield check_blobs(folder / "blobs")
    last = _last_start(folder)
    if last and not runs:
        yield check_ports_free([last[name] for name in ("control", "enrol", "data")])
    if last and runs:
        stored = sum(path.stat().st_size for path in (folder / "blobs").glob("[0-9a-f][0-9a-f]/*"))
        quota = check_quota(last["pid"], folder / "blobs", stored)
        if quota is not None:
            yield quota


def _last_start(folder: Path) -> dict[str, int]:
    """Pid and ports that the coordinator noted when it last started; empty if it never did."""
    try:
        said = json.loads((folder / "coordinator.json").read_text(encoding="utf-8"))
        return {name: int(said[name]) for name in ("pid", "control", "enrol", "data")}
    except (OSError, ValueError, KeyError, TypeError):
        return {}
