"""What can be said of a machine and what is installed on it. Pure: facts come as arguments."""

from __future__ import annotations

import re
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass

from potluck.doctor.check import Check, fail, ok, warn
from potluck.formatting import human_bytes

LOW_BYTES = 2 << 30
"""Below it a coordinator begins to collect blobs."""
TIGHT_BYTES = 256 << 20
"""Below it a commit may not fit."""
OWN_PACKAGES = ("potluck", "sampling", "coordinator", "expert_node", "router")
FAISS_TWINS = ("faiss-cpu", "faiss-gpu", "faiss-gpu-cu11", "faiss-gpu-cu12", "faiss-gpu-cuvs")
_REQUIREMENT = re.compile(r"([A-Za-z0-9._-]+)\s*(?:>=\s*([0-9][0-9.]*))?")


@dataclass(frozen=True, kw_only=True)
class Need:
    """What one open run asks of each node that works for it."""

    run: str
    training_bytes: int
    threads: int
    processes: int


def check_disk(name: str, where: str, free_bytes: int, needed_bytes: int = 0, why: str = "") -> Check:
    """Free room at a place.

    Args:
        needed_bytes: what is still to come there.
        why: what needs it, for people.
    """
    found = f"{human_bytes(free_bytes)} free at {where}"
    if free_bytes < TIGHT_BYTES:
        return fail(
            name, found, f"free some space: below {human_bytes(TIGHT_BYTES)} work stops with resource.disk-full"
        )
    if free_bytes < needed_bytes:
        return warn(name, f"{found}; {why} may take {human_bytes(needed_bytes)}", "free some space, or move the home")
    if free_bytes < LOW_BYTES:
        fix = f"free some space: below {human_bytes(LOW_BYTES)} blobs that nothing needs are deleted"
        return warn(name, found, fix)
    return ok(name, found)


def check_memory(
    total_bytes: int, available_bytes: int, needs: Sequence[Need], num_nodes: int, base_bytes: int
) -> Check:
    """Whether the largest open run fits, once a node.

    Args:
        num_nodes: of this machine.
        base_bytes: a worker without a model.
    """
    found = f"{human_bytes(available_bytes)} of {human_bytes(total_bytes)} available"
    if not needs:
        small = total_bytes < base_bytes * max(1, num_nodes)
        fix = f"a worker takes {human_bytes(base_bytes)} before its model; run fewer nodes here"
        return warn("memory", found, fix) if small else ok("memory", found)
    largest = max(needs, key=lambda need: need.training_bytes)
    needed = (largest.training_bytes + base_bytes) * max(1, num_nodes)
    found += f"; run {largest.run} needs {human_bytes(needed)} for {max(1, num_nodes)} node(s) here"
    if needed > total_bytes:
        return fail(
            "memory", found, "set memory_mib in the spec, take a smaller model or batch, or run fewer nodes here"
        )
    # Nodes that work already hold what they need, so what is available says little about them.
    return ok("memory", found)


def check_threads(host: str, cores: int, num_nodes: int, needs: Sequence[Need]) -> Check:
    """Threads times processes of all nodes of one machine against its cores."""
    name = "threads" if not host else f"threads of {host}"
    if not needs or not num_nodes:
        return ok(name, f"{cores} core(s), {num_nodes} node(s)")
    most = max(needs, key=lambda need: need.threads * need.processes)
    wanted = most.threads * most.processes * num_nodes
    found = (
        f"{num_nodes} node(s) x {most.processes} process(es) x {most.threads} thread(s) = {wanted} on {cores} core(s)"
    )
    if wanted > cores:
        return warn(name, found, "lower profile.threads or profile.processes of the next run, or run fewer nodes there")
    return ok(name, found)


def check_shadows(module_by_path: Mapping[str, str], known: Collection[str]) -> Check:
    """Files that Python would import in place of the modules that daemons need.

    Args:
        module_by_path: what the folders offer that come before the installed packages: the one daemons are started
            in, and those of PYTHONPATH.
        known: names that must come from elsewhere.
    """
    hits = [path for path, module in module_by_path.items() if module in known]
    if not hits:
        return ok("shadowed modules", "none")
    fix = "rename it, or start from another folder: Python imports it in place of the real module"
    return fail("shadowed modules", ", ".join(hits), fix)


def check_faiss(installed: Collection[str]) -> Check:
    twins = [name for name in FAISS_TWINS if name in installed]
    if len(twins) > 1:
        fix = f"pip uninstall {' '.join(twins)}, then install one: both write the module `faiss` and break each other"
        return fail("faiss", " and ".join(twins) + " are both installed", fix)
    return ok("faiss", twins[0] if twins else "not installed; only runs that cluster text need it")


def check_requirements(requirements: Iterable[str], installed: Mapping[str, str]) -> Check:
    """What the package asks for against what is there.

    Args:
        requirements: as the package's metadata lists them; those of extras are passed over.
        installed: version by distribution, lower case.
    """
    lacking: list[str] = []
    for requirement in requirements:
        match = _REQUIREMENT.match(requirement)
        if match is None or "extra ==" in requirement:
            continue
        name, least = match[1], match[2] or "0"
        found = installed.get(name.lower())
        if found is None:
            lacking.append(f"{name} is not installed")
        elif _numbers(found) < _numbers(least):
            lacking.append(f"{name} {found} is older than {least}")
    if lacking:
        return fail(
            "packages", "; ".join(lacking), "pip install --upgrade potluck, in a virtual environment of its own"
        )
    shown = ("torch", "grpcio", "protobuf", "pyzmq")
    return ok("packages", ", ".join(f"{name} {installed[name]}" for name in shown if name in installed))


def _numbers(version: str) -> tuple[int, ...]:
    """The release part of a version: 2.13.0+cpu is (2, 13, 0)."""
    release = re.match(r"[0-9]+(?:\.[0-9]+)*", version)
    return tuple(int(part) for part in release[0].split(".")) if release is not None else ()
