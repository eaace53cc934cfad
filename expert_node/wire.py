"""Protobuf messages from and to the node's own values. No I/O."""

from __future__ import annotations

from expert_node import events as on
from expert_node.values import FinishedCommit, FinishedTask, Lease, TaskLease, TrainLease
from potluck.errors import DataError
from potluck.ids import Digest, Fence, LineageId, TaskId, canonical_json, is_digest
from potluck.v1 import common_pb2, node_pb2


def lease_of(message: node_pb2.Lease) -> Lease:
    """Raises:
    DataError: ``data.bad-lease``, naming the field.
    """
    kind = message.WhichOneof("work")
    fence = Fence(message.fence)
    if kind == "train":
        train = message.train
        started = train.head_step > 0
        return TrainLease(
            fence=fence,
            term_ms=message.term_ms,
            lineage=LineageId(train.lineage),
            recipe_json=train.recipe_json,
            segments_json=train.segments_json,
            profile_json=train.profile_json,
            head_step=train.head_step,
            head=_digest("head", train.head, required=started),
            weights=_digest("weights", train.weights, required=started),
            optimizer=_digest("optimizer", train.optimizer, required=started),
            target_step=train.target_step,
            label=train.label,
        )
    if kind == "task":
        task = message.task
        return TaskLease(
            fence=fence,
            term_ms=message.term_ms,
            task=TaskId(task.task),
            kind=task.kind,
            params_json=task.params_json,
            inputs=tuple((i.name, _digest(i.name, i.digest, required=True)) for i in task.inputs),
            label=task.label,
        )
    raise DataError("data.bad-lease", f"lease {fence} names no work this version knows", "use equal versions")


def grant_of(request_id: int, answer: node_pb2.AcquireLeaseResponse) -> on.GrantReceived | on.NothingReceived:
    if answer.WhichOneof("answer") == "lease":
        return on.GrantReceived(request_id=request_id, lease=lease_of(answer.lease))
    return on.NothingReceived(request_id=request_id, reason=answer.none.reason)


def commit_request(request_id: int, commit: FinishedCommit) -> node_pb2.CommitRequest:
    return node_pb2.CommitRequest(
        request_id=request_id,
        fence=commit.fence,
        lineage=commit.lineage,
        parent=commit.parent,
        start_step=commit.start_step,
        end_step=commit.end_step,
        child=commit.child,
        weights=commit.weights,
        optimizer=commit.optimizer,
        figures_json=canonical_json(dict(commit.figures)),
    )


def complete_request(request_id: int, result: FinishedTask) -> node_pb2.CompleteTaskRequest:
    return node_pb2.CompleteTaskRequest(
        request_id=request_id,
        fence=result.fence,
        task=result.task,
        blobs=[common_pb2.NamedDigest(name=name, digest=digest) for name, digest in result.blobs],
        figures_json=canonical_json(dict(result.figures)),
    )


def commit_answer(request_id: int, answer: node_pb2.CommitResponse) -> on.CommitAnswered:
    return on.CommitAnswered(
        request_id=request_id,
        accepted=answer.accepted,
        reason=answer.reason,
        yield_lease=answer.yield_lease,
        missing=tuple(Digest(d) for d in answer.missing),
    )


def task_answer(request_id: int, answer: node_pb2.CompleteTaskResponse) -> on.TaskAnswered:
    return on.TaskAnswered(
        request_id=request_id,
        accepted=answer.accepted,
        reason=answer.reason,
        missing=tuple(Digest(d) for d in answer.missing),
    )


def _digest(name: str, text: str, *, required: bool) -> Digest:
    if is_digest(text) or (not required and not text):
        return Digest(text)
    raise DataError("data.bad-lease", f"{name} = {text!r} is not a digest", "use equal versions on both machines")
