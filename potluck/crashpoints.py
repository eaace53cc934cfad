"""Named places where a test may kill the process, as a power cut would.

`POTLUCK_CRASH_AT=name` dies at the first pass of that place, `name:3` at the third. Before dying the
name is appended to the file `POTLUCK_CRASH_LOG`, so that a test can tell this death from others.
Without the variable a pass costs one look into the environment.
"""

from __future__ import annotations

import os
import signal
from collections import Counter

CRASH_AT = "POTLUCK_CRASH_AT"
CRASH_LOG = "POTLUCK_CRASH_LOG"

_passes: Counter[str] = Counter()


def crash_here(name: str, *, also: int = 0) -> None:
    """Kills the process with SIGKILL if the environment asks for it at this pass; else does nothing.

    Args:
        also: the pid of a process that dies with it, first: the daemon whose worker this is.
    """
    wanted, _, count = os.environ.get(CRASH_AT, "").partition(":")
    if wanted != name:
        return
    _passes[name] += 1
    if _passes[name] != int(count or "1"):
        return
    log = os.environ.get(CRASH_LOG)
    if log:
        with open(log, "a", encoding="utf-8") as file:
            file.write(f"{name}\n")
            file.flush()
            os.fsync(file.fileno())
    if also:
        os.kill(also, signal.SIGKILL)
    os.kill(os.getpid(), signal.SIGKILL)
