"""The caller's end of the averaging sidecar: start it, hear its events, end its whole group. Imports no hivemind."""

from __future__ import annotations

import contextlib
import os
import select
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Mapping
from types import TracebackType

from potluck.errors import NotReachable
from potluck.net.hivemind_messages import Averaged, AverageRequest, Event, Failed, Listening, event_from_line

MODULE = "potluck.net.hivemind_sidecar"
START_S = 60.0
"""Beyond its own deadline the sidecar has so long to load torch and hivemind; it needs 5 s on two busy cores."""
READ_BYTES = 4096


class Sidecar:
    """One averaging in a process group of its own; the group is gone when the ``with`` block ends.

    The sidecar ends by itself if this process dies, for its input closes then.
    """

    def __init__(self, request: AverageRequest, *, environment: Mapping[str, str] | None = None) -> None:
        self._scratch = request.scratch
        self._until = time.monotonic() + request.deadline_s + START_S
        self._buffer = b""
        self._process = subprocess.Popen(
            [sys.executable, "-m", MODULE],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            start_new_session=True,
            env={**os.environ, **(environment or {})},
        )
        assert self._process.stdin is not None
        with contextlib.suppress(BrokenPipeError):  # It is dead already; its missing events will say so.
            self._process.stdin.write(request.to_line())
            self._process.stdin.flush()

    @property
    def pid(self) -> int:
        """Also the number of its process group."""
        return self._process.pid

    def addresses(self) -> tuple[str, ...]:
        """Blocks until the peer listens, and returns what others name as `initial_peers`.

        Raises:
            PotluckError: the sidecar's own error, or ``net.averaging-lost`` if it died or said nothing in time.
        """
        event = self._next()
        if not isinstance(event, Listening):
            raise _out_of_order(event)
        return event.addresses

    def averaged(self) -> Averaged:
        """Blocks until the output file is there; call `addresses` first. Whether it is right, `accept` tells.

        Raises:
            PotluckError: as `addresses`.
        """
        event = self._next()
        if not isinstance(event, Averaged):
            raise _out_of_order(event)
        return event

    def close(self) -> None:
        """Kills the group, waits for the sidecar, and removes its scratch folder."""
        with contextlib.suppress(ProcessLookupError, PermissionError):
            os.killpg(self.pid, signal.SIGKILL)
        self._process.wait()
        for pipe in (self._process.stdin, self._process.stdout):
            assert pipe is not None
            with contextlib.suppress(BrokenPipeError):
                pipe.close()
        shutil.rmtree(self._scratch, ignore_errors=True)

    def __enter__(self) -> Sidecar:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def _next(self) -> Event:
        while b"\n" not in self._buffer:
            self._buffer += self._read()
        line, _, self._buffer = self._buffer.partition(b"\n")
        try:
            event = event_from_line(line)
        except ValueError as error:
            raise NotReachable(
                "net.averaging-lost", f"the averaging sidecar said {error}", "use equal versions"
            ) from None
        if isinstance(event, Failed):
            raise event.as_error()
        return event

    def _read(self) -> bytes:
        assert self._process.stdout is not None
        stream = self._process.stdout.fileno()
        ready, _, _ = select.select([stream], [], [], max(0.0, self._until - time.monotonic()))
        piece = os.read(stream, READ_BYTES) if ready else b""
        if not piece:
            why = "died" if ready else "said nothing in time"
            raise NotReachable("net.averaging-lost", f"the averaging sidecar {why}", "see its log; use the hub instead")
        return piece


def scratch_folder() -> str:
    """A new folder with a name short enough for sockets in it, whose paths hold 108 characters."""
    return tempfile.mkdtemp(prefix="potluck-averaging-")


def _out_of_order(event: Event) -> NotReachable:
    return NotReachable("net.averaging-lost", f"the averaging sidecar said {event} out of turn", "use equal versions")
