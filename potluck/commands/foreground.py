"""Staying in the foreground with daemons: the first Ctrl+C drains them, the second ends them at once.

They share our terminal's process group, so Ctrl+C reaches them without us; SIGTERM is passed on.
"""

from __future__ import annotations

import signal
from collections.abc import Callable, Sequence
from types import FrameType

from potluck.commands.daemons import Started, forget
from potluck.commands.output import Output


def run_in_foreground(daemons: Sequence[Started], output: Output, announce: Callable[[], None]) -> int:
    """Announces the daemons and waits until all have ended; returns the worst of their exit codes.

    Signals are taken before anybody is told that we run: whoever reads the announcement may send one at once.
    """

    def pass_on(number: int, _: FrameType | None) -> None:
        for daemon in daemons:
            if daemon.process.poll() is None:
                daemon.process.send_signal(signal.SIGTERM)

    def say_so(number: int, _: FrameType | None) -> None:
        output.note("draining ...")

    previous = {signal.SIGTERM: signal.signal(signal.SIGTERM, pass_on)}
    previous[signal.SIGINT] = signal.signal(signal.SIGINT, say_so)
    try:
        announce()
        output.note("\nrunning; Ctrl+C drains and stops, a second one stops at once")
        codes = [daemon.process.wait() for daemon in daemons]
    finally:
        for number, handler in previous.items():
            signal.signal(number, handler)
        for daemon in daemons:
            forget(daemon)
    return max((abs(code) for code in codes), default=0)
