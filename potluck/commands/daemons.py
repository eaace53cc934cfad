"""Starting, finding and stopping daemons by pid, and by pid only.

A pid alone may have been given to somebody else since; so the pid file also holds the process's
start time, and a process that does not match is not ours.
"""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import IO, Any, Literal

import psutil

from potluck.errors import NotReachable, PotluckError, Refused
from potluck.net.remote_errors import CLASS_BY_PREFIX, error_from_id

Kind = Literal["coordinator", "expert_node", "router"]
READY_TIMEOUT_S = 60.0
POLL_S = 0.05
DRAIN_S = 30.0
"""A node finishes its step and hands over its outbox in this time; then it is told again, firmly."""
STOP_S = 5.0
LOG_TAIL_LINES = 12


@dataclass(frozen=True, kw_only=True)
class PidRecord:
    kind: str
    pid: int
    started_unix: float
    ready: Mapping[str, Any]


@dataclass(frozen=True, kw_only=True)
class Started:
    """A daemon that has said it is ready."""

    process: subprocess.Popen[bytes]
    record: PidRecord
    folder: Path


def pid_file(folder: Path) -> Path:
    return folder / "daemon.json"


def read_pid_file(folder: Path) -> PidRecord | None:
    try:
        return PidRecord(**json.loads(pid_file(folder).read_text()))
    except (FileNotFoundError, ValueError, TypeError):
        return None


def running(folder: Path) -> PidRecord | None:
    """The daemon of this folder if it is alive and is the one we started."""
    record = read_pid_file(folder)
    return record if record is not None and _process(record) is not None else None


def start(kind: Kind, folder: Path, arguments: Sequence[str], *, own_session: bool) -> Started:
    """Starts `python -m KIND --home FOLDER ...` and waits for its ready line.

    Args:
        own_session: detached, it outlives us and our terminal; else it gets our Ctrl+C too.

    Raises:
        Refused: ``refused.already-running``.
        PotluckError: what the daemon said when it could not start.
    """
    require_stopped(kind, folder)
    folder.mkdir(parents=True, exist_ok=True)
    ready_path, log_path = folder / "daemon.out", folder / "daemon.log"
    command = [sys.executable, "-m", kind, "--home", str(folder), *arguments]
    with ready_path.open("wb") as ready_file, log_path.open("ab") as log_file:
        log_start = log_file.tell()
        process = _spawn(command, ready_file, log_file, own_session=own_session)
    record = _await_ready(kind, process, folder, log_start)
    pid_file(folder).write_text(json.dumps(asdict(record)))
    return Started(process=process, record=record, folder=folder)


def require_stopped(kind: Kind, folder: Path) -> None:
    """Raises:
    Refused: ``refused.already-running``.
    """
    alive = running(folder)
    if alive is not None:
        message = f"{kind} already runs in {folder} (pid {alive.pid})"
        raise Refused("refused.already-running", message, f"stop it with `potluck down --home {folder.parent}`")


def stop(folder: Path, *, at_once: bool = False) -> bool:
    """Drains and ends the daemon of this folder; returns whether there was one."""
    stopped = stop_all([folder], at_once=at_once)
    return bool(stopped)


def stop_all(folders: Sequence[Path], *, at_once: bool = False) -> list[PidRecord]:
    """Ends the daemons of these folders, all told at the same time; returns those that were alive."""
    records = {folder: record for folder in folders if (record := read_pid_file(folder)) is not None}
    found = [(folder, record, process) for folder, record in records.items() if (process := _process(record))]
    processes = [process for _, _, process in found]
    family = [child for process in processes for child in _children(process)]
    steps = [(signal.SIGKILL, STOP_S)] if at_once else [(signal.SIGTERM, DRAIN_S), (signal.SIGTERM, STOP_S)]
    for number, seconds in [*steps, (signal.SIGKILL, STOP_S)]:
        for process in processes:
            _send(process, number)
        _, processes = psutil.wait_procs(processes, timeout=seconds)
        if not processes:
            break
    # A child ends when its pipe closes; one that hangs is ended here, by the pid we saw it under.
    _, left = psutil.wait_procs(family, timeout=STOP_S)
    for child in left:
        _send(child, signal.SIGKILL)
    for folder in records:
        pid_file(folder).unlink(missing_ok=True)
    return [record for _, record, _ in found]


def forget(daemon: Started) -> None:
    """Removes the pid file of a daemon that has ended by itself."""
    if daemon.process.poll() is not None:
        pid_file(daemon.folder).unlink(missing_ok=True)


def _spawn(command: list[str], out: IO[bytes], log: IO[bytes], *, own_session: bool) -> subprocess.Popen[bytes]:
    environment = {**os.environ, "PYTHONUNBUFFERED": "1"}
    return subprocess.Popen(
        command, stdin=subprocess.DEVNULL, stdout=out, stderr=log, start_new_session=own_session, env=environment
    )


def _await_ready(kind: Kind, process: subprocess.Popen[bytes], folder: Path, log_start: int) -> PidRecord:
    waited = 0.0
    while waited < READY_TIMEOUT_S:
        ready = _ready_line(folder / "daemon.out")
        if ready is not None:
            started = psutil.Process(process.pid).create_time()
            return PidRecord(kind=kind, pid=process.pid, started_unix=started, ready=ready)
        try:
            code = process.wait(timeout=POLL_S)
        except subprocess.TimeoutExpired:
            waited += POLL_S
            continue
        raise _failure(kind, folder, log_start, f"ended with exit code {code} before it was ready")
    process.kill()
    process.wait()
    raise _failure(kind, folder, log_start, f"was not ready within {READY_TIMEOUT_S:.0f} s")


def _ready_line(path: Path) -> Mapping[str, Any] | None:
    for line in path.read_text(errors="replace").splitlines(keepends=True):
        if line.endswith("\n") and line.startswith("{"):
            value = json.loads(line)
            if value.get("event") == "ready":
                return dict(value)
    return None


def _failure(kind: Kind, folder: Path, log_start: int, what: str) -> PotluckError:
    with (folder / "daemon.log").open("rb") as log:
        log.seek(log_start)
        tail = log.read().decode(errors="replace").splitlines()[-LOG_TAIL_LINES:]
    own = _own_words(tail)
    if own is not None:
        return own
    said = "\n    ".join(tail)
    message = f"the {kind} {what}; its log {folder / 'daemon.log'} ends:\n    {said}"
    return NotReachable("net.daemon-failed", message, "read the log, then start it again")


def _own_words(log: Sequence[str]) -> PotluckError | None:
    """The error a daemon ended with, as it printed it: `[id] message`, then its fix."""
    for number in range(len(log) - 1, -1, -1):
        match = re.match(r"\[(([a-z]+)\.[a-z-]+)\] (.*)", log[number])
        if match is not None and match[2] in CLASS_BY_PREFIX:
            rest = log[number + 1 :]
            fix = next((line.partition("fix: ")[2] for line in rest if line.startswith("  fix: ")), "")
            return error_from_id(match[1], match[3], fix)
    return None


def _process(record: PidRecord) -> psutil.Process | None:
    try:
        process = psutil.Process(record.pid)
        same = abs(process.create_time() - record.started_unix) < 1.0
        return process if same and process.status() != psutil.STATUS_ZOMBIE else None
    except psutil.NoSuchProcess:
        return None


def _children(process: psutil.Process) -> list[psutil.Process]:
    try:
        return process.children(recursive=True)
    except psutil.NoSuchProcess:
        return []


def _send(process: psutil.Process, number: signal.Signals) -> None:
    try:
        process.send_signal(number)
    except psutil.NoSuchProcess:
        pass
