"""Metrics in files: what is written is read back, and a disk that fails stops nothing but the metrics."""

from __future__ import annotations

import importlib.util
import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from potluck.errors import ResourceError, UsageError
from potluck.metrics import MEASURES, Sample, known
from potluck.metrics_sinks import JsonlSink, Recorder, TensorBoardSink, open_recorder

SAMPLE = Sample(
    kind="progress",
    unix_ms=1_700_000_000_123,
    node="n1-attic",
    lineage="0f3a" * 16,
    label="demo expert 3",
    step=7,
    loss=2.5,
    grad_norm=0.75,
    learning_rate=1e-3,
    tokens_per_second=4096.0,
    flops_per_second=2.5e10,
    mfu=0.25,
    rss_bytes=1 << 28,
)
COMMIT = Sample(
    kind="commit",
    unix_ms=1_700_000_001_000,
    node="n1-attic",
    lineage=SAMPLE.lineage,
    label=SAMPLE.label,
    step=8,
    loss=2.375,
)
STEM = "0f3a0f3a0f3a-demo-expert-3"


def lines(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]


def scalars(folder: Path) -> dict[str, list[tuple[int, float]]]:
    """What TensorBoard would show of a lineage's folder: (step, value) by tag."""
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    found = EventAccumulator(str(folder)).Reload()
    return {tag: [(s.step, s.value) for s in found.Scalars(tag)] for tag in found.Tags()["scalars"]}


def test_a_lineage_has_one_file_named_by_its_id_and_label(tmp_path: Path) -> None:
    JsonlSink(tmp_path).write(SAMPLE)
    (path,) = tmp_path.iterdir()
    assert path.name == f"{STEM}.jsonl"


@pytest.mark.parametrize("text", ["../../etc/passwd", "/", "", "a/../b", "ä\n"])
def test_no_name_leads_out_of_the_folder(tmp_path: Path, text: str) -> None:
    JsonlSink(tmp_path).write(replace(SAMPLE, label=text, lineage=text))
    (path,) = tmp_path.iterdir()
    assert path.parent == tmp_path
    assert path.is_file()


def test_a_line_is_one_json_object_with_every_field(tmp_path: Path) -> None:
    JsonlSink(tmp_path).write(SAMPLE)
    (line,) = lines(tmp_path / f"{STEM}.jsonl")
    assert set(line) == {"kind", "unix_ms", "node", "lineage", "label", "step", *MEASURES}
    assert Sample(**line) == SAMPLE


def test_what_is_not_known_is_null() -> None:
    assert json.loads(COMMIT.to_json())["grad_norm"] is None
    assert [known(number) for number in (0.0, float("nan"), float("inf"), 0.5)] == [None, None, None, 0.5]


def test_a_restart_appends_and_a_cut_line_spoils_no_other(tmp_path: Path) -> None:
    path = tmp_path / f"{STEM}.jsonl"
    JsonlSink(tmp_path).write(SAMPLE)
    whole = path.read_bytes()
    path.write_bytes(whole + whole[:20])
    for step in (8, 9):
        JsonlSink(tmp_path).write(replace(SAMPLE, step=step))
    first, cut, *rest = path.read_bytes().splitlines()
    assert json.loads(first)["step"] == 7
    assert cut == whole[:20]
    assert [json.loads(line)["step"] for line in rest] == [8, 9]


def test_tensorboard_reads_the_same_numbers(tmp_path: Path) -> None:
    sink = TensorBoardSink(tmp_path)
    sink.write(SAMPLE)
    sink.write(replace(SAMPLE, step=8, loss=2.25, mfu=None))
    sink.write(COMMIT)
    found = scalars(tmp_path / STEM)
    assert found["loss"] == [(7, 2.5), (8, 2.25)]
    assert found["commit/loss"] == [(8, 2.375)]
    assert found["mfu"] == [(7, 0.25)]
    assert {tag: points[0] for tag, points in found.items() if "/" not in tag} == {
        name: (7, pytest.approx(getattr(SAMPLE, name), rel=1e-6)) for name in MEASURES
    }


def test_tensorboard_forgets_the_steps_that_are_trained_again(tmp_path: Path) -> None:
    before = TensorBoardSink(tmp_path)
    for step in range(1, 6):
        before.write(replace(SAMPLE, step=step, loss=float(step)))
    after = TensorBoardSink(tmp_path)
    for number, step in enumerate((3, 4)):
        after.write(replace(SAMPLE, unix_ms=SAMPLE.unix_ms + 10 + number, step=step, loss=step + 0.5))
    assert len(list((tmp_path / STEM).iterdir())) == 2
    assert scalars(tmp_path / STEM)["loss"] == [(1, 1.0), (2, 2.0), (3, 3.5), (4, 4.5)]


def test_a_lineage_that_moved_back_to_its_last_commit_is_shown_once_too(tmp_path: Path) -> None:
    sink = TensorBoardSink(tmp_path)
    for step, loss in ((1, 1.0), (2, 2.0), (3, 3.0), (2, 2.5), (3, 3.5)):
        sink.write(replace(SAMPLE, step=step, loss=loss))
    assert scalars(tmp_path / STEM)["loss"] == [(1, 1.0), (2, 2.5), (3, 3.5)]


def test_the_recorder_writes_what_waits_before_it_closes(tmp_path: Path) -> None:
    recorder = Recorder([JsonlSink(tmp_path), TensorBoardSink(tmp_path / "tensorboard")])
    for step in range(1, 21):
        recorder.record(replace(SAMPLE, step=step))
    recorder.close()
    assert [line["step"] for line in lines(tmp_path / f"{STEM}.jsonl")] == list(range(1, 21))
    assert len(scalars(tmp_path / "tensorboard" / STEM)["loss"]) == 20


class FullDisk:
    """A sink on a disk that takes no more."""

    def __init__(self) -> None:
        self.asked = 0

    def write(self, sample: Sample) -> None:
        self.asked += 1
        raise OSError(28, "No space left on device")


def test_a_full_disk_is_told_once_and_the_other_sinks_go_on(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    full = FullDisk()
    recorder = Recorder([full, JsonlSink(tmp_path)])
    for step in (1, 2, 3):
        recorder.record(replace(SAMPLE, step=step))
    recorder.close()
    assert full.asked == 1
    assert capsys.readouterr().err.count("error_id=resource.metrics") == 1
    assert len(lines(tmp_path / f"{STEM}.jsonl")) == 3


def test_nothing_is_recorded_unless_it_is_asked_for() -> None:
    assert open_recorder(None, tensorboard=False) is None


def test_tensorboard_needs_a_folder() -> None:
    with pytest.raises(UsageError) as caught:
        open_recorder(None, tensorboard=True)
    assert caught.value.error_id == "usage.tensorboard-without-metrics"


def test_a_missing_tensorboard_names_the_extra_and_only_when_asked(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    recorder = open_recorder(tmp_path, tensorboard=False)
    assert recorder is not None
    recorder.close()
    with pytest.raises(UsageError) as caught:
        open_recorder(tmp_path, tensorboard=True)
    assert caught.value.error_id == "usage.no-tensorboard"
    assert "potluck[tensorboard]" in caught.value.fix


def test_a_folder_that_cannot_be_made_is_refused_at_once(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(ResourceError) as caught:
        open_recorder(tmp_path / "file" / "below", tensorboard=False)
    assert caught.value.error_id == "resource.metrics"
