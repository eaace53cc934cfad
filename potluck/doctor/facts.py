"""The facts of this machine, gathered for the checks that judge them."""

from __future__ import annotations

import importlib.metadata
import os
import shutil
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path

import psutil

import potluck
from potluck.doctor.check import Check, fail, ok, warn
from potluck.doctor.machine import (
    OWN_PACKAGES,
    Need,
    check_disk,
    check_faiss,
    check_memory,
    check_requirements,
    check_shadows,
    check_threads,
)

NEEDED_MODULES = (
    *("torch", "numpy", "grpc", "grpc_health", "grpc_reflection", "google", "zmq", "msgpack", "safetensors"),
    *("tokenizers", "cryptography", "psutil", "rich", "faiss", "sklearn", "sentence_transformers", "transformers"),
)


def machine_checks(home: Path, needs: Sequence[Need], num_nodes: int, worker_bytes: int) -> list[Check]:
    """This machine's room, memory, threads and packages; quick: nothing large is imported.

    Args:
        needs: of the open runs, if they are known.
        num_nodes: that run on this machine.
        worker_bytes: a worker without a model.
    """
    memory, installed = psutil.virtual_memory(), installed_versions()
    # What a node keeps of one training: its outbox and its local checkpoints are each no larger than its memory.
    kept = 3 * max((need.training_bytes for need in needs), default=0) * num_nodes
    return [
        check_disk("disk", str(home), shutil.disk_usage(_nearest(home)).free, kept, "commits that wait"),
        check_disk("temporary files", tempfile.gettempdir(), shutil.disk_usage(tempfile.gettempdir()).free),
        check_memory(memory.total, memory.available, needs, num_nodes, worker_bytes),
        check_threads("", os.cpu_count() or 1, num_nodes, needs),
        check_requirements(importlib.metadata.requires("potluck") or [], installed),
        check_faiss(installed),
        check_shadows(offered_modules(import_folders()), {*NEEDED_MODULES, *sys.stdlib_module_names, *OWN_PACKAGES}),
    ]


def check_imports() -> Check:
    """Whether torch, and the generated stubs with the gRPC and protobuf that are here, really load."""
    try:
        import torch

        from potluck.v1 import node_pb2_grpc
    except Exception as error:
        fix = "install potluck anew in a virtual environment of its own"
        return fail("imports", f"{type(error).__name__}: {error}", fix)
    assert node_pb2_grpc
    device = torch.cuda.get_device_name(0) if torch.cuda.is_available() else "no CUDA device"
    return ok("imports", f"torch {torch.__version__} ({device}) and the gRPC stubs load")


def check_quota(pid: int, blobs: Path, stored_bytes: int) -> Check | None:
    """Room for the rest of a running coordinator's blob quota; None if it has none or is not ours to look at."""
    try:
        words = psutil.Process(pid).cmdline()
        quota_bytes = int(words[words.index("--quota-bytes") + 1])
    except (psutil.Error, ValueError, IndexError):
        return None
    free = shutil.disk_usage(blobs).free
    rest = max(0, quota_bytes - stored_bytes)
    if free < rest:
        what = f"the blob quota leaves room for {rest / 1e9:.1f} GB more, the disk for {free / 1e9:.1f} GB"
        return warn("quota", what, "lower --quota-bytes, or free some space")
    return ok("quota", f"{stored_bytes / 1e9:.1f} of {quota_bytes / 1e9:.1f} GB of blobs stored")


def installed_versions() -> dict[str, str]:
    """Version by distribution, lower case."""
    return {
        name.lower(): found.version
        for found in importlib.metadata.distributions()
        if (name := found.metadata["Name"]) is not None
    }


def import_folders() -> list[Path]:
    """Where a daemon started here looks before the installed packages: `python -m` puts this folder first."""
    extra = [Path(text) for text in os.environ.get("PYTHONPATH", "").split(os.pathsep) if text]
    return [Path.cwd(), *extra]


def offered_modules(folders: Sequence[Path]) -> dict[str, str]:
    """Module by path, of files and packages; our own packages only where they are not those that run now."""
    here = Path(potluck.__file__).parents[1].resolve()
    found: dict[str, str] = {}
    for folder in folders:
        try:
            entries = sorted(folder.iterdir())
        except OSError:
            continue
        for path in entries:
            is_own = path.stem in OWN_PACKAGES and folder.resolve() == here
            if not is_own and (path.suffix == ".py" or (path / "__init__.py").is_file()):
                found[str(path)] = path.stem
    return found


def _nearest(path: Path) -> Path:
    """The path, or the nearest folder above it that exists."""
    return next(place for place in (path, *path.parents) if place.exists())
