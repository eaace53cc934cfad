"""What messages say is checked where they come in, and what the core answers fits the question."""

from __future__ import annotations

import json
import typing
from typing import Any

import pytest

from coordinator import wire
from coordinator.core.effects import (
    CommitRefused,
    Denied,
    NothingToDo,
    Push,
    Revoke,
    SendDrain,
    SendRouters,
    SendServe,
    SendView,
    ServeSlot,
    TaskAccepted,
    TaskGranted,
    TrainGranted,
    Wake,
)
from coordinator.core.values import LineageWanted, TaskWanted
from potluck.errors import DataError, InvariantViolation, PotluckError, Refused, UsageError
from potluck.ids import Digest, Fence, LineageId, NodeId, RunId, TaskId
from potluck.v1 import common_pb2, node_pb2

NODE = NodeId("n1")
D = Digest("d" * 64)


@pytest.mark.parametrize("text", ['{"x": NaN}', '{"x": Infinity}', "[1]", "3", "{", '"\\ud800"', '{"x": "\\ud800"}'])
def test_figures_that_a_journal_cannot_keep_are_refused(text: str) -> None:
    with pytest.raises(DataError) as caught:
        wire.figures(text)
    assert caught.value.error_id == "data.bad-figures"


def test_figures_too_large_for_the_core_are_refused() -> None:
    with pytest.raises(DataError):
        wire.figures(json.dumps({"x": "y" * wire.MAX_FIGURES_BYTES}))


@pytest.mark.parametrize("depth", [20, 400, 9000])
def test_figures_nested_beyond_reason_are_refused(depth: int) -> None:
    with pytest.raises(DataError):
        wire.figures('{"x":' * depth + "1" + "}" * depth)
    with pytest.raises(DataError):
        wire.figures('{"x":' + "[" * depth + "]" * depth + "}")


def test_no_figures_are_an_empty_object() -> None:
    assert wire.figures("") == {}


@pytest.mark.parametrize("field", ["lineage", "parent", "child", "weights", "optimizer"])
def test_a_commit_with_a_malformed_digest_is_refused_by_name(field: str) -> None:
    digests: dict[str, Any] = dict.fromkeys(("lineage", "parent", "child", "weights", "optimizer"), "a" * 64)
    request = node_pb2.CommitRequest(**{**digests, field: "A" * 64}, end_step=1)
    with pytest.raises(UsageError, match=field):
        wire.checkpoint_committed(request, NODE, 0)


@pytest.mark.parametrize(("start", "end"), [(-1, 4), (4, 4), (5, 4)])
def test_a_commit_of_an_impossible_range_is_refused(start: int, end: int) -> None:
    digests: dict[str, Any] = dict.fromkeys(("lineage", "child", "weights", "optimizer"), "a" * 64)
    with pytest.raises(UsageError):
        wire.checkpoint_committed(node_pb2.CommitRequest(**digests, start_step=start, end_step=end), NODE, 0)


def test_a_first_commit_has_no_parent() -> None:
    digests: dict[str, Any] = dict.fromkeys(("lineage", "child", "weights", "optimizer"), "a" * 64)
    event = wire.checkpoint_committed(node_pb2.CommitRequest(**digests, end_step=4), NODE, 0)
    assert event.parent == ""


def test_a_result_that_names_a_blob_twice_is_refused() -> None:
    named = common_pb2.NamedDigest(name="x", digest=D)
    request = node_pb2.CompleteTaskRequest(task="a" * 64, blobs=[named, named])
    with pytest.raises(UsageError, match="each name once"):
        wire.task_completed(request, NODE, 0)


def test_a_grant_of_training_carries_all_segments_as_one_list() -> None:
    wanted = LineageWanted(
        id=LineageId("e" * 64),
        recipe_json="{}",
        segments_json=('{"index":0}', '{"index":1}'),
        profile_json="{}",
        total_steps=4,
        known_steps=4,
        commit_every=1,
        flops_per_step=1.0,
        memory_bytes=1,
        role="expert",
        label="expert 0",
    )
    granted = TrainGranted(
        fence=Fence(3), term_ms=30_000, lineage=wanted, head_step=2, head=D, weights=D, optimizer=D, target_step=4
    )
    lease = wire.lease_response(granted).lease
    assert json.loads(lease.train.segments_json) == [{"index": 0}, {"index": 1}]
    assert (lease.fence, lease.term_ms, lease.train.target_step, lease.train.label) == (3, 30_000, 4, "expert 0")


def test_a_grant_of_a_task_carries_its_inputs_by_name() -> None:
    task = TaskWanted(id=TaskId("f" * 64), kind="fit", params_json="{}", inputs=(("corpus", D),), label="fit")
    lease = wire.lease_response(TaskGranted(fence=Fence(1), term_ms=1, task=task)).lease
    assert [(item.name, item.digest) for item in lease.task.inputs] == [("corpus", D)]


def test_a_refused_commit_says_where_the_head_is() -> None:
    answer = wire.commit_response(CommitRefused(reason="the head has moved", head_step=7, head=D))
    assert (answer.accepted, answer.head_step, answer.head) == (False, 7, D)


def test_a_denial_is_an_error_of_the_tree() -> None:
    with pytest.raises(Refused) as caught:
        wire.lease_response(Denied(error_id="refused.revoked", reason="put out"))
    assert caught.value.error_id == "refused.revoked"
    assert caught.value.fix


def test_an_answer_to_another_question_is_a_mistake_of_ours() -> None:
    for response in (wire.lease_response, wire.commit_response, wire.renew_response):
        with pytest.raises(InvariantViolation):
            response(TaskAccepted())
    with pytest.raises(PotluckError):
        wire.task_response(NothingToDo(reason=""))


def test_every_push_has_a_message() -> None:
    slot = ServeSlot(run=RunId("r"), slot="expert-0", weights=D, tokenizer=D, model_json="{}")
    pushes: list[Push] = [
        Wake(node=NODE),
        Revoke(node=NODE, fence=Fence(1), reason="x"),
        SendDrain(node=NODE, reason="x"),
        SendRouters(node=NODE, addresses=("h:1",)),
        SendServe(node=NODE, slots=(slot,)),
        SendView(node=NODE, run=RunId("r"), version=1, view_json="{}"),
    ]
    assert {type(push) for push in pushes} == set(typing.get_args(Push))
    kinds = [wire.down_item(push).WhichOneof("item") for push in pushes]
    assert kinds == ["wake", "revoke", "drain", "routers", "serve", "view"]
