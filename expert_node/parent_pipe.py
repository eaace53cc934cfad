"""The child's end of the pipes, and its tie to the parent: no child outlives its node.

PDEATHSIG kills the child even when the interpreter is held in C; the thread that reads stdin kills
the whole group at the end of input, grandchildren too. Neither alone covers both.
"""

from __future__ import annotations

import ctypes
import os
import queue
import signal
import sys
import threading
from typing import IO

from expert_node.frames import Message, encode, read_frame

PR_SET_PDEATHSIG = 1
MAX_WAITING = 1024
"""Commands read ahead; the node sends few, so more means that it runs wild and must wait."""


class ParentPipe:
    """Frames from and to the node. Opens once, first thing in the child."""

    def __init__(self, parent_pid: int) -> None:
        tie_to_parent(parent_pid)
        self.parent_pid = parent_pid
        # Prints of libraries must not break the stream: stdout becomes stderr, the pipe keeps a number of its own.
        self._out: IO[bytes] = os.fdopen(os.dup(1), "wb")
        os.dup2(2, 1)
        self._commands: queue.Queue[Message] = queue.Queue(MAX_WAITING)
        threading.Thread(target=self._read, args=(sys.stdin.buffer,), name="stdin", daemon=True).start()

    def send(self, message: Message) -> None:
        self._out.write(encode(message))
        self._out.flush()

    def receive(self) -> Message:
        """Blocks for the next command."""
        return self._commands.get()

    def poll(self) -> Message | None:
        """The next command if one waits."""
        try:
            return self._commands.get_nowait()
        except queue.Empty:
            return None

    def _read(self, stream: IO[bytes]) -> None:
        try:
            while (message := read_frame(stream)) is not None:
                self._commands.put(message)
        finally:
            os.killpg(0, signal.SIGKILL)


def tie_to_parent(parent_pid: int) -> None:
    """Dies with the parent; dies at once if the parent is gone already."""
    if sys.platform == "linux":
        ctypes.CDLL(None, use_errno=True).prctl(PR_SET_PDEATHSIG, signal.SIGKILL, 0, 0, 0)
    if os.getppid() != parent_pid:
        os.kill(os.getpid(), signal.SIGKILL)
