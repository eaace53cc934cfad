"""Where metrics go: JSON lines, and TensorBoard's event files. Always appended to, never in training's way.

    FOLDER/0f3a…-expert-0.jsonl
    FOLDER/tensorboard/0f3a…-expert-0/events.out.tfevents.…

The files are for people: a thread of its own writes them, what comes faster than it can write is dropped, and
a disk that takes no more ends the metrics, not the training.
"""

from __future__ import annotations

import importlib.util
import os
import platform
import queue
import threading
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Protocol

from potluck.errors import ResourceError, UsageError
from potluck.metrics import MEASURES, Sample
from potluck.telemetry import logger

if TYPE_CHECKING:
    from tensorboard.compat.proto.event_pb2 import Event

MAX_WAITING = 1024
"""Samples: minutes of a large fleet; a disk that is further behind than that loses some."""
CLOSE_SECONDS = 5.0
STOPPED_ID = "resource.metrics"

log = logger("potluck.metrics")


class Sink(Protocol):
    def write(self, sample: Sample) -> None:
        """Raises:
        OSError: the disk takes no more.
        """


class JsonlSink:
    """A file a lineage, an object a line, with the fields of `Sample`."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder

    def write(self, sample: Sample) -> None:
        line = sample.to_json().encode() + b"\n"
        # Opened anew each time: it is seldom, and no number of lineages can use up the file handles.
        with (self._folder / f"{sample.stem}.jsonl").open("a+b") as file:
            if file.tell() > 0:
                file.seek(-1, os.SEEK_END)
                if file.read(1) != b"\n":  # A crash or a full disk cut the last line: that one alone is lost.
                    line = b"\n" + line
            file.write(line)


class TensorBoardSink:
    """A folder a lineage, and in it an event file for each process that wrote, by tensorboard's own record writer."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._files: dict[str, Path] = {}
        self._steps: dict[str, int] = {}

    def write(self, sample: Sample) -> None:
        # A sixth of a second and 30 MB, paid by the daemon that was asked for it, on the recorder's thread.
        from tensorboard.summary.writer.record_writer import RecordWriter

        events = [_scalars(sample)]
        if sample.kind == "progress":
            if sample.step < self._steps.get(sample.stem, sample.step + 1):
                events.insert(0, _restart(sample))
            self._steps[sample.stem] = sample.step
        path = self._files.get(sample.stem)
        if path is None:
            path = self._files[sample.stem] = self._new_file(sample)
            events.insert(0, _version(sample))
        with path.open("ab") as file:
            writer = RecordWriter(file)
            for event in events:
                writer.write(event.SerializeToString())

    def _new_file(self, sample: Sample) -> Path:
        """Named as TensorBoard wants it: later files sort behind earlier ones."""
        folder = self._folder / sample.stem
        folder.mkdir(parents=True, exist_ok=True)
        seconds, ms = divmod(sample.unix_ms, 1000)
        return folder / f"events.out.tfevents.{seconds:010d}.{platform.node()}.{os.getpid()}.{ms:03d}"


class Recorder:
    """Hands samples to the sinks on a thread of its own. A sink that fails is told of once and left."""

    def __init__(self, sinks: Sequence[Sink]) -> None:
        self._sinks = list(sinks)
        self._waiting: queue.Queue[Sample | None] = queue.Queue(MAX_WAITING)
        self._behind = False
        self._thread = threading.Thread(target=self._run, name="metrics", daemon=True)
        self._thread.start()

    def record(self, sample: Sample) -> None:
        """Queues a sample; never waits."""
        try:
            self._waiting.put_nowait(sample)
        except queue.Full:
            if not self._behind:
                log.fact("metrics-dropped", error_id=STOPPED_ID, waiting=MAX_WAITING, label=sample.label)
            self._behind = True
        else:
            self._behind = False

    def close(self) -> None:
        """Writes what waits, within a few seconds."""
        try:
            self._waiting.put(None, timeout=CLOSE_SECONDS)
        except queue.Full:
            return
        self._thread.join(CLOSE_SECONDS)

    def _run(self) -> None:
        while (sample := self._waiting.get()) is not None:
            for sink in list(self._sinks):
                name = type(sink).__name__
                try:
                    sink.write(sample)
                except OSError as error:
                    self._sinks.remove(sink)
                    log.fact("metrics-stopped", error_id=STOPPED_ID, sink=name, reason=error)
                except Exception as error:  # The thread's boundary: whatever it was, training must not notice.
                    self._sinks.remove(sink)
                    log.failure("metrics-stopped", error, error_id=STOPPED_ID, sink=name)


def open_recorder(folder: Path | None, *, tensorboard: bool) -> Recorder | None:
    """The recorder that a daemon's options ask for; None for none.

    Raises:
        UsageError: ``usage.no-tensorboard``, ``usage.tensorboard-without-metrics``.
        ResourceError: ``resource.metrics``: the folder cannot be made.
    """
    if folder is None:
        if tensorboard:
            fix = "add --metrics DIR, which says where to"
            raise UsageError("usage.tensorboard-without-metrics", "--tensorboard was given without --metrics", fix)
        return None
    if tensorboard and importlib.util.find_spec("tensorboard") is None:
        fix = "pip install 'potluck[tensorboard]', or leave --tensorboard away: --metrics alone writes JSON lines"
        raise UsageError("usage.no-tensorboard", "--tensorboard was given, but tensorboard is not installed", fix)
    events = folder / "tensorboard"
    try:
        (events if tensorboard else folder).mkdir(parents=True, exist_ok=True)
    except OSError as error:
        fix = "give --metrics a folder that can be written"
        raise ResourceError(STOPPED_ID, f"--metrics {folder}: {error.strerror or error}", fix) from None
    return Recorder([JsonlSink(folder), TensorBoardSink(events)] if tensorboard else [JsonlSink(folder)])


def _version(sample: Sample) -> Event:
    from tensorboard.compat.proto.event_pb2 import Event

    return Event(wall_time=sample.unix_ms / 1000, file_version="brain.Event:2")


def _restart(sample: Sample) -> Event:
    """Tells TensorBoard to forget what was written of this step and later ones: they are trained again."""
    from tensorboard.compat.proto.event_pb2 import Event, SessionLog

    start = SessionLog(status=SessionLog.START)
    return Event(wall_time=sample.unix_ms / 1000, step=sample.step, session_log=start)


def _scalars(sample: Sample) -> Event:
    from tensorboard.compat.proto.event_pb2 import Event
    from tensorboard.compat.proto.summary_pb2 import Summary

    prefix = "commit/" if sample.kind == "commit" else ""
    numbers = {name: getattr(sample, name) for name in MEASURES}
    values = [
        Summary.Value(tag=prefix + name, simple_value=number) for name, number in numbers.items() if number is not None
    ]
    return Event(wall_time=sample.unix_ms / 1000, step=sample.step, summary=Summary(value=values))
