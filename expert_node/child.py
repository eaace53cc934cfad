"""The node's end of a child process: start, talk, end. Never forks Python code, never leaves a group behind."""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import signal
import sys
from collections.abc import Awaitable, Callable, Mapping
from pathlib import Path

import psutil

from expert_node.frames import HEADER, Message, body_length, decode, encode
from potluck.durable import write_durably
from potluck.telemetry import logger

START_TIME_TOLERANCE_S = 1.0
"""A process with the noted pid that started at another time is somebody else's."""

log = logger("expert_node.child")


class Child:
    """One running child. `exit_code` is set once it has ended and its last frame was handled."""

    def __init__(self, process: asyncio.subprocess.Process) -> None:
        self._process = process
        self._reader: asyncio.Task[None] | None = None
        self.exit_code: int | None = None

    @property
    def pid(self) -> int:
        return self._process.pid

    @staticmethod
    async def start(
        module: str,
        arguments: tuple[str, ...],
        *,
        environment: Mapping[str, str],
        on_message: Callable[[Child, Message], Awaitable[None]],
        on_exit: Callable[[Child, int], Awaitable[None]],
    ) -> Child:
        """Runs ``python -m module PARENT_PID *arguments``. Call it in the event loop's own thread.

        PR_SET_PDEATHSIG follows the thread that forked: from an executor the child would die with it.
        """
        process = await asyncio.create_subprocess_exec(
            sys.executable,
            "-m",
            module,
            str(os.getpid()),
            *arguments,
            stdin=asyncio.subprocess.PIPE,
            stdout=asyncio.subprocess.PIPE,
            start_new_session=True,
            env={**os.environ, **environment},
        )
        child = Child(process)
        child._reader = asyncio.create_task(child._read(on_message, on_exit), name=f"{module} reader")
        return child

    def send(self, message: Message) -> None:
        """Queues a command; one to a child that is gone is lost, and its exit says so."""
        assert self._process.stdin is not None
        if not self._process.stdin.is_closing():
            self._process.stdin.write(encode(message))

    def rss_bytes(self) -> int:
        with contextlib.suppress(psutil.Error):
            return int(psutil.Process(self.pid).memory_info().rss)
        return 0

    def kill(self) -> None:
        """Kills the whole group: `Process.kill` on a child that has just ended can swallow its exit code."""
        with contextlib.suppress(ProcessLookupError, PermissionError):
            os.killpg(self.pid, signal.SIGKILL)

    async def ended(self) -> None:
        """Returns once it is gone and its last frame was handled."""
        if self._reader is not None:
            await asyncio.shield(self._reader)

    async def _read(
        self,
        on_message: Callable[[Child, Message], Awaitable[None]],
        on_exit: Callable[[Child, int], Awaitable[None]],
    ) -> None:
        stream = self._process.stdout
        assert stream is not None
        try:
            while True:
                header = await stream.readexactly(HEADER.size)
                body = await stream.readexactly(body_length(header))
                await on_message(self, decode(body))
        except (asyncio.IncompleteReadError, ConnectionError):
            pass  # The end of the stream: the exit code says why.
        except Exception as error:  # The child's boundary: a broken stream, or our own mistake, ends it.
            log.failure("child-stream-broken", error, pid=self.pid)
        self.kill()
        code = await self._process.wait()
        self.exit_code = code
        if self._process.stdin is not None:
            self._process.stdin.close()
        await on_exit(self, code)


class GroupNote:
    """Which child groups run, on disk, so that a restarted node can end what a crash left behind."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._groups: dict[str, dict[str, float]] = {}

    def kill_stale(self) -> list[int]:
        """Ends the groups an earlier process of this node noted, and returns their pids."""
        try:
            noted = json.loads(self._path.read_text(encoding="utf-8"))
        except (FileNotFoundError, ValueError):
            return []
        killed = []
        for group in noted.values():
            pid = int(group["pid"])
            with contextlib.suppress(psutil.Error, ProcessLookupError, PermissionError):
                if abs(psutil.Process(pid).create_time() - group["start_time"]) < START_TIME_TOLERANCE_S:
                    os.killpg(pid, signal.SIGKILL)
                    killed.append(pid)
        return killed

    def note(self, name: str, pid: int) -> None:
        """Notes a group. A disk that will not take the note is no reason not to work: children watch their parent."""
        with contextlib.suppress(psutil.Error):
            self._groups[name] = {"pid": pid, "start_time": psutil.Process(pid).create_time()}
        try:
            write_durably(self._path, json.dumps(self._groups).encode())
        except OSError as error:
            log.fact("group-not-noted", group=name, why=error)
