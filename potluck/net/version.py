"""The package's version, what a program says of itself, and which versions may talk."""

from __future__ import annotations

import importlib.metadata
import os
import platform

import psutil

from potluck.errors import JoinError
from potluck.v1 import common_pb2

SOURCE_VERSION = "0.1.0"
"""Used when the package runs from a checkout that was never installed."""


def package_version() -> str:
    try:
        return importlib.metadata.version("potluck")
    except importlib.metadata.PackageNotFoundError:
        return SOURCE_VERSION


def check_version(theirs: str) -> None:
    """Programs may talk when major and minor version are equal.

    Raises:
        JoinError: ``join.version``.
    """
    ours = package_version()
    if theirs.split(".")[:2] != ours.split(".")[:2]:
        raise JoinError(
            "join.version",
            f"the other side runs potluck {theirs or '(not said)'}, this side {ours}",
            "install the same major.minor version on both machines",
        )


def make_hello(*, boot_id: str, profile_json: str = "", hostname: str = "") -> common_pb2.Hello:
    """What a process says of itself; `hostname`: instead of what the system calls this machine."""
    return common_pb2.Hello(
        version=package_version(),
        boot_id=boot_id,
        hostname=hostname or platform.node(),
        cores=os.cpu_count() or 1,
        memory_bytes=psutil.virtual_memory().total,
        profile_json=profile_json,
    )
