"""The node's small pure parts: planes, batches of tokens, figures, reasons, frames."""

from __future__ import annotations

import asyncio
import io
import json
from collections import deque
from pathlib import Path

import pytest

from expert_node.attach import MAX_TOKENS_PER_MESSAGE, take_batch
from expert_node.checkpoint_writer import CURVE_POINTS, Interval
from expert_node.fetch import fetch_inputs, plane_of_input, read_manifest, train_rows
from expert_node.frames import encode, read_frame
from expert_node.values import TaskLease, TrainLease
from expert_node.wire import lease_of
from expert_node.worker import describe
from expert_node.workshop import exit_reason
from potluck.errors import DataError, NotReachable
from potluck.ids import NO_DIGEST, Digest, Fence, LineageId, TaskId, digest_bytes
from potluck.lm.config import ModelConfig
from potluck.lm.local_checkpoints import Losses
from potluck.net.counters import Plane
from potluck.recipe import AdamWConfig, Clustered, Recipe, Schedule, Segment
from potluck.v1 import expert_pb2 as pb
from potluck.v1 import node_pb2


@pytest.mark.parametrize(
    ("name", "plane"),
    [
        ("documents", "corpus"),
        ("corpus_manifest", "corpus"),
        ("tokens_manifest", "corpus"),
        ("part-00003", "corpus"),
        ("tokenizer", "corpus"),
        ("weights", "weights"),
        ("router-001", "weights"),
        ("column-000", "scores"),
        ("expert-002", "scores"),
        ("dense", "scores"),
        ("random_split-000", "scores"),
    ],
)
def test_each_input_travels_on_the_plane_its_name_says(name: str, plane: str) -> None:
    assert plane_of_input(name) == plane


class FolderSource:
    """Blobs by digest, with the plane each was asked for on."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self.asked: dict[Digest, Plane] = {}

    def add(self, data: bytes) -> Digest:
        digest = digest_bytes(data)
        (self._folder / digest).write_bytes(data)
        return digest

    async def get(self, digest: Digest, plane: Plane) -> Path:
        self.asked[digest] = plane
        path = self._folder / digest
        if not path.exists():
            raise NotReachable("net.no-progress", f"no {digest}", "")
        return path


def task_lease(*inputs: tuple[str, Digest]) -> TaskLease:
    return TaskLease(
        fence=Fence(1), term_ms=1, task=TaskId("t"), kind="eval", params_json="{}", inputs=inputs, label=""
    )


def test_what_a_manifest_input_lists_is_fetched_too(tmp_path: Path) -> None:
    source = FolderSource(tmp_path)
    rows, weights = source.add(b"rows"), source.add(b"weights")
    manifest = source.add(json.dumps({"blobs": {"rows": rows}}).encode())
    found = asyncio.run(fetch_inputs(task_lease(("tokens_manifest", manifest), ("weights", weights)), source))
    assert set(found) == {rows, weights, manifest}
    assert source.asked == {rows: "corpus", manifest: "corpus", weights: "weights"}


def test_a_mixtures_segment_brings_labels_and_mixture_and_the_array_that_the_labels_list(tmp_path: Path) -> None:
    source = FolderSource(tmp_path)
    tokens = source.add(json.dumps({"blobs": {}, "splits": {"train": {"parts": []}}}).encode())
    array, mixture = source.add(b"array"), source.add(b"mixture")
    labels = source.add(json.dumps({"blobs": {"labels": array}}).encode())
    data = Clustered(tokens=tokens, labels=labels, mixture=mixture, key=1, start=0)
    recipe = Recipe(
        role="expert",
        index=0,
        model=ModelConfig(vocab=64, hidden=16, layers=1, heads=2, ffn=24, context=9),
        optimizer=AdamWConfig(),
        schedule=Schedule(kind="constant", learning_rate=1e-3, warmup_steps=0, total_steps=2),
        batch_size=2,
        columns=9,
        init_seed=0,
        data_rule="{}",
        commit_every=2,
    )
    lease = TrainLease(
        fence=Fence(1),
        term_ms=1,
        lineage=LineageId("l"),
        recipe_json=recipe.to_json(),
        segments_json=f"[{Segment(index=0, start_step=0, end_step=2, data=data).to_json()}]",
        profile_json="{}",
        head_step=0,
        head=NO_DIGEST,
        weights=NO_DIGEST,
        optimizer=NO_DIGEST,
        target_step=2,
        label="",
    )
    assert set(asyncio.run(fetch_inputs(lease, source))) == {tokens, array, mixture, labels}


def test_a_blob_that_cannot_be_had_fails_the_whole_fetch(tmp_path: Path) -> None:
    source = FolderSource(tmp_path)
    with pytest.raises(NotReachable):
        asyncio.run(fetch_inputs(task_lease(("column-000", Digest("a" * 64))), source))


@pytest.mark.parametrize("text", ["not json", "[]", '{"blobs": 3}', "{}"])
def test_a_manifest_that_lists_no_blobs_is_refused(tmp_path: Path, text: str) -> None:
    path = tmp_path / "manifest"
    path.write_text(text)
    with pytest.raises(DataError, match=r"data\.bad-manifest"):
        read_manifest(path)


def test_training_moves_only_train_arrays_that_have_rows() -> None:
    a, b, c = Digest("a" * 64), Digest("b" * 64), Digest("c" * 64)
    train = [{"rows": a, "meta": b, "count": 2}, {"rows": c, "meta": c, "count": 0}]
    manifest = {"splits": {"train": {"parts": train}, "valid": {"parts": [{"rows": c, "meta": c, "count": 1}]}}}
    assert train_rows(manifest) == {a, b}


def chunk(request: int, ids: list[int], finish: str = "") -> pb.AttachUpItem:
    return pb.AttachUpItem(tokens=pb.TokenChunk(request=request, ids=ids, finish=finish))


def test_waiting_tokens_of_one_request_go_as_one_chunk() -> None:
    waiting = deque([chunk(1, [5]), chunk(1, [6], "eod"), chunk(2, [7])])
    batch = take_batch(waiting)
    assert [(list(i.tokens.ids), i.tokens.finish) for i in batch] == [([5, 6], "eod"), ([7], "")]
    assert not waiting


def test_a_message_holds_at_most_64_tokens_and_nothing_is_lost() -> None:
    waiting = deque(chunk(i % 3, [i]) for i in range(200))
    sizes, seen = [], []
    while waiting:
        batch = take_batch(waiting)
        sizes.append(sum(len(i.tokens.ids) for i in batch))
        seen += [t for i in batch for t in i.tokens.ids]
    assert max(sizes) <= MAX_TOKENS_PER_MESSAGE
    assert seen == list(range(200))


def test_scores_go_in_a_message_of_their_own() -> None:
    scores = pb.AttachUpItem(scores=pb.ScoreChunk(request=3, log_probs=[-1.0]))
    waiting = deque([chunk(1, [5]), scores, chunk(1, [6])])
    assert [len(take_batch(waiting)) for _ in range(3)] == [1, 1, 1]


@pytest.mark.parametrize("steps", [1, 31, 32, 33, 1000])
def test_a_loss_curve_has_at_most_32_points_and_ends_at_the_last_step(steps: int) -> None:
    interval = Interval(Losses(start_step=10))
    for i in range(steps):
        interval.add(10 + i, 2.0, 8)
    figures = interval.figures()
    curve = figures["loss_curve"]
    assert isinstance(curve, list)
    assert 1 <= len(curve) <= CURVE_POINTS
    assert curve[-1] == [10 + steps - 1, 2.0]
    assert (figures["loss"], figures["tokens"]) == (2.0, 8 * steps)


def test_a_killed_worker_is_reported_as_out_of_memory_with_what_to_lower() -> None:
    error_id, message = exit_reason(-9, "expert 0")
    assert error_id == "resource.out-of-memory"
    assert "batch_size" in message
    assert exit_reason(-11, "expert 0")[0] == "bug.worker-crashed"


@pytest.mark.parametrize(
    ("error", "error_id"),
    [
        (MemoryError(), "resource.out-of-memory"),
        (RuntimeError("DefaultCPUAllocator: can't allocate memory: 9 bytes"), "resource.out-of-memory"),
        (OSError(28, "No space left on device"), "resource.disk-full"),
        (OSError("1000000 requested and 131056 written"), "resource.disk-full"),
        (RuntimeError("I/O error: No space left on device (os error 28)"), "resource.disk-full"),
        (DataError("data.missing", "gone"), "data.missing"),
    ],
)  # fmt: skip
def test_whatever_ends_the_work_has_a_stable_id(error: Exception, error_id: str) -> None:
    assert describe(error)[0] == error_id


def test_frames_read_back_in_order_and_end_cleanly_at_a_cut() -> None:
    messages = [{"type": "ack", "fence": 1}, {"type": "stop", "data": b"\x00" * 1000}]
    stream = b"".join(encode(m) for m in messages)
    whole = io.BytesIO(stream)
    assert [read_frame(whole), read_frame(whole), read_frame(whole)] == [*messages, None]
    cut = io.BytesIO(stream[:-1])
    assert [read_frame(cut), read_frame(cut)] == [messages[0], None]
    with pytest.raises(ValueError, match="broken"):
        read_frame(io.BytesIO(b"\xff\xff\xff\xff"))


def test_a_lease_without_known_work_or_with_a_bad_digest_is_refused() -> None:
    with pytest.raises(DataError, match=r"data\.bad-lease"):
        lease_of(node_pb2.Lease(fence=1))
    with pytest.raises(DataError, match="head"):
        lease_of(node_pb2.Lease(fence=1, train=node_pb2.TrainWork(head_step=3, head="x")))
