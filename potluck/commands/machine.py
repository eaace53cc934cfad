"""What a machine is, for reports: processor, memory, versions, and the nodes that work there or elsewhere."""

from __future__ import annotations

import os
import platform
from collections.abc import Iterable
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING, Any

import psutil

from potluck.formatting import human_bytes

if TYPE_CHECKING:
    from potluck.v1 import admin_pb2

PACKAGES = ("potluck", "torch", "numpy")


def machine_facts(nodes: Iterable[admin_pb2.NodeInfo]) -> dict[str, Any]:
    """This machine, and of nodes their names and memory."""
    there = [node for node in nodes if node.role == "node" and node.state != "gone"]
    return {
        "processor": _processor(),
        "cores": num_cores(),
        "memory": human_bytes(psutil.virtual_memory().total),
        "system": platform.platform(terse=True),
        "python": platform.python_version(),
        **{name: version(name) for name in PACKAGES},
        "nodes": ", ".join(f"{node.name} ({human_bytes(node.memory_bytes)})" for node in there),
    }


def num_cores() -> int:
    """That this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def _processor() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    except OSError:
        return platform.processor() or platform.machine()
    names = (line.partition(":")[2].strip() for line in lines if line.startswith("model name"))
    return next(names, platform.machine())
