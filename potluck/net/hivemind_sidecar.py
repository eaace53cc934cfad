"""``python -m potluck.net.hivemind_sidecar``: one averaging by hivemind, in a process group of its own.

Reads one `AverageRequest` line, writes event lines, and ends with its whole group (hivemind's two forked
processes and its p2p daemon outlive a mere SIGKILL of their parent): when it is done, when it failed, and
as soon as its input closes.
"""

from __future__ import annotations

import os
import platform
import shutil
import signal
import threading
import time
from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import TYPE_CHECKING

from potluck.errors import DataError, PotluckError, ResourceError
from potluck.net.hivemind_messages import MAX_LINE_BYTES, Averaged, AverageRequest, Event, Failed, Listening, event_line
from potluck.telemetry import logger

if TYPE_CHECKING:
    from torch import Tensor

READ_BYTES = 4096

log = logger("potluck.net.hivemind_sidecar")


def main() -> None:
    if os.getpgrp() != os.getpid():
        os.setpgid(0, 0)
    # Prints of libraries must not break the stream: stdout becomes stderr, the events keep a number of their own.
    events = os.dup(1)
    os.dup2(2, 1)
    line = _read_line()
    try:
        request = AverageRequest.from_line(line)
        threading.Thread(target=_end_with_input, args=(request.scratch,), name="stdin", daemon=True).start()
        serve(request, lambda event: _write(events, event))
    except PotluckError as error:
        log.failure("averaging-failed", error)
        _write(events, Failed.of(error))
    except Exception as error:  # the process's outermost handler
        log.failure("averaging-failed", error)
        failed = Failed(error_id="bug.averaging", message=f"{type(error).__name__}: {error}", fix="see the log above")
        _write(events, failed)
    finally:
        os.killpg(0, signal.SIGKILL)


def serve(request: AverageRequest, emit: Callable[[Event], None]) -> None:
    """Joins, averages and writes the output; errors are those of `hivemind_averager` and of its files."""
    began = time.monotonic()
    deadline = began + request.deadline_s
    tensors = _float32_tensors(Path(request.tensors))
    hivemind_averager = load_averager()
    import torch
    from safetensors.torch import save_file

    torch.set_num_threads(1)
    dht, addresses = hivemind_averager.join(
        listen_host=request.listen_host,
        listen_port=request.listen_port,
        initial_peers=request.initial_peers,
        scratch=request.scratch,
    )
    emit(Listening(addresses=addresses))
    hivemind_averager.average(dht, request, tensors, deadline)
    seconds = time.monotonic() - began
    temporary = Path(f"{request.output}.tmp")
    save_file({name: tensor.clone() for name, tensor in tensors.items()}, temporary)
    os.replace(temporary, request.output)
    hivemind_averager.linger(dht, request, deadline)
    emit(Averaged(seconds=seconds))


def load_averager() -> ModuleType:
    """`potluck.net.hivemind_averager`, once hivemind is told how to share memory.

    Raises:
        ResourceError: ``resource.no-hivemind``, it is not installed or has no daemon for this machine.
    """
    # The other strategy leaves segments behind when a process is killed, and starts one more daemon.
    os.environ["HIVEMIND_MEMORY_SHARING_STRATEGY"] = "file_descriptor"
    try:
        from potluck.net import hivemind_averager
    except ImportError as error:
        raise ResourceError(
            "resource.no-hivemind",
            f"hivemind cannot be loaded on {platform.system()} {platform.machine()}: {error}",
            "pip install 'potluck[dht]' on Linux x86-64, or use the hub as transport",
        ) from error
    return hivemind_averager


def _float32_tensors(path: Path) -> dict[str, Tensor]:
    """In the order of their names, which is the same at every peer.

    Raises:
        DataError: ``data.bad-tensors``, it is no safetensors file, holds none, or one that is not float32.
    """
    import torch
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    try:
        tensors = load_file(path)
    except (OSError, SafetensorError) as error:
        raise DataError("data.bad-tensors", f"{path} cannot be read: {error}", "write it with safetensors") from None
    other = {name: str(tensor.dtype) for name, tensor in tensors.items() if tensor.dtype != torch.float32}
    if not tensors or other:
        raise DataError("data.bad-tensors", f"{path} holds {other or 'no tensor'}", "average float32 tensors alone")
    return dict(sorted(tensors.items()))


def _read_line() -> bytes:
    """By number, not by ``sys.stdin``: its lock would be held by the thread that reads on when hivemind forks."""
    line = b""
    while not line.endswith(b"\n") and len(line) < MAX_LINE_BYTES:
        if not (piece := os.read(0, READ_BYTES)):
            break
        line += piece
    return line


def _end_with_input(scratch: str) -> None:
    while os.read(0, READ_BYTES):
        pass
    shutil.rmtree(scratch, ignore_errors=True)  # Whoever should do it may be dead.
    os.killpg(0, signal.SIGKILL)


def _write(events: int, event: Event) -> None:
    os.write(events, event_line(event))


if __name__ == "__main__":
    main()
