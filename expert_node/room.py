"""Room on this node's disk: after work has failed for want of it, none is asked for until there is some."""

from __future__ import annotations

import shutil
from pathlib import Path

from potluck.telemetry import logger

FULL_DISK = "resource.disk-full"
MORE_BYTES = 1 << 20
"""What must have become free before it is worth another try; three failures of one piece of work fail its run."""
LOOK_AGAIN_S = 2.0

log = logger("expert_node.room")


class Room:
    def __init__(self, home: Path) -> None:
        self._home = home
        self._free_then: int | None = None

    def note_failure(self, error_id: str) -> None:
        """Work has ended with an error; remembers how full the disk is if that was why."""
        if error_id == FULL_DISK:
            self._free_then = shutil.disk_usage(self._home).free
            log.fact("no-room", home=self._home, free_bytes=self._free_then)

    @property
    def is_short(self) -> bool:
        """Whether the disk is as full as when work failed for it."""
        if self._free_then is None:
            return False
        if shutil.disk_usage(self._home).free < self._free_then + MORE_BYTES:
            return True
        self._free_then = None
        log.fact("room-again", home=self._home)
        return False
