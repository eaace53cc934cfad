"""Staying in the foreground with daemons: the first Ctrl+C drains them, the second ends them at once.

They share our terminal's process group, so Ctrl+C reaches them without us; SIGTERM is passed on.
"""

from __future__ import annotations

import signal
import subprocess
from collections.abc import Sequence
from types import FrameType

from potluck.commands.daemons import Started, forget
from potluck.commands.output import Output


def run_in_foreground(daemons: Sequence[Started], output: Output) -> int:
    """Waits until all daemons have ended; returns the worst of their exit codes."""
    output.note("\nrunning; Ctrl+C drains and stops, a second one stops at once")

    def pass_on(number: int, _: FrameType | None) -> None:
        for daemon in daemons:
            if daemon.process.poll() is None:
                daemon.process.send_signal(signal.SIGTERM)

    previous = signal.signal(signal.SIGTERM, pass_on)
    try:
        codes = [_wait(daemon.process, output) for daemon in daemons]
    finally:
        signal.signal(signal.SIGTERM, previous)
        for daemon in daemons:
            forget(daemon)
    return max((abs(code) for code in codes), default=0)


def _wait(process: subprocess.Popen[bytes], output: Output) -> int:
    while True:
        try:
            return process.wait()
        except KeyboardInterrupt:
            output.note("draining ...")
