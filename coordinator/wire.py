"""Between protobuf messages and the core's values. Pure: what a message says, checked and named."""

from __future__ import annotations

import math
from typing import assert_never

from coordinator.core.effects import (
    Answer,
    CommitAccepted,
    CommitRefused,
    Denied,
    NothingToDo,
    Push,
    RenewAnswer,
    Revoke,
    SendDrain,
    SendRouters,
    SendServe,
    SendView,
    TaskAccepted,
    TaskGranted,
    TaskRefused,
    TrainGranted,
    Wake,
)
from coordinator.core.events import (
    CheckpointCommitted,
    HeartbeatReceived,
    LeaseRequested,
    LeaseReturned,
    ServingReported,
    SessionOpened,
    TaskCompleted,
)
from coordinator.core.values import Figures, ServingReport
from potluck.errors import DataError, InvariantViolation, PotluckError, UsageError
from potluck.ids import NO_DIGEST, Digest, Fence, LineageId, NodeId, TaskId, is_digest
from potluck.jsontext import read_json
from potluck.net.remote_errors import error_from_id
from potluck.v1 import common_pb2, node_pb2

MAX_FIGURES_BYTES = 64 << 10
MAX_FIGURES_DEPTH = 16
"""So that no walk over them can run out of stack."""
MAX_HELD = 256
MAX_NAME = 128
MAX_TEXT = 4096
"""Characters of a reason or message that is kept."""
MAX_BLOBS = 4096
MAX_SLOTS = 1024

# --- requests ----------------------------------------------------------------------------------


def lease_requested(request: node_pb2.AcquireLeaseRequest, node: NodeId, now_ms: int) -> LeaseRequested:
    return LeaseRequested(
        now_ms=now_ms,
        node=node,
        request_id=request.request_id,
        boot_id=request.boot_id[:MAX_NAME],
        free_memory_bytes=request.free_memory_bytes,
        held=tuple(_digest("held", text) for text in request.held[:MAX_HELD]),
    )


def lease_returned(request: node_pb2.ReturnLeaseRequest, node: NodeId, now_ms: int) -> LeaseReturned:
    return LeaseReturned(
        now_ms=now_ms,
        node=node,
        request_id=request.request_id,
        fence=Fence(request.fence),
        error_id=request.error_id[:MAX_NAME],
        message=request.message[:MAX_TEXT],
    )


def checkpoint_committed(request: node_pb2.CommitRequest, node: NodeId, now_ms: int) -> CheckpointCommitted:
    if not 0 <= request.start_step < request.end_step:
        raise _bad("start_step, end_step", (request.start_step, request.end_step), "0 <= start < end")
    return CheckpointCommitted(
        now_ms=now_ms,
        node=node,
        request_id=request.request_id,
        fence=Fence(request.fence),
        lineage=LineageId(_digest("lineage", request.lineage)),
        parent=_digest("parent", request.parent) if request.parent else NO_DIGEST,
        start_step=request.start_step,
        end_step=request.end_step,
        child=_digest("child", request.child),
        weights=_digest("weights", request.weights),
        optimizer=_digest("optimizer", request.optimizer),
        figures=figures(request.figures_json),
    )


def task_completed(request: node_pb2.CompleteTaskRequest, node: NodeId, now_ms: int) -> TaskCompleted:
    if len(request.blobs) > MAX_BLOBS:
        raise _bad("blobs", len(request.blobs), f"at most {MAX_BLOBS} of them")
    blobs = tuple((blob.name[:MAX_NAME], _digest("blobs", blob.digest)) for blob in request.blobs)
    if len({name for name, _ in blobs}) != len(blobs):
        raise _bad("blobs", [name for name, _ in blobs], "each name once")
    return TaskCompleted(
        now_ms=now_ms,
        node=node,
        request_id=request.request_id,
        fence=Fence(request.fence),
        task=TaskId(_digest("task", request.task)),
        blobs=blobs,
        figures=figures(request.figures_json),
    )


def figures(text: str) -> Figures:
    """Small results, as a node sent them.

    Raises:
        DataError: ``data.bad-figures``: too large, no JSON object, or not finite.
    """
    if len(text.encode()) > MAX_FIGURES_BYTES:
        raise _bad_figures(f"{len(text)} characters are more than {MAX_FIGURES_BYTES} bytes")
    try:
        value = read_json(text or "{}")
    except ValueError as error:
        raise _bad_figures(str(error)) from None
    if not isinstance(value, dict):
        raise _bad_figures("they are not an object")
    if _depth(value) > MAX_FIGURES_DEPTH:
        raise _bad_figures(f"they are nested deeper than {MAX_FIGURES_DEPTH}")
    return value


# --- the session -------------------------------------------------------------------------------


def session_opened(hello: node_pb2.SessionHello, node: NodeId, role: str, now_ms: int) -> SessionOpened:
    said = hello.hello
    return SessionOpened(
        now_ms=now_ms,
        node=node,
        role=role,
        boot_id=said.boot_id[:MAX_NAME],
        version=said.version[:MAX_NAME],
        hostname=said.hostname[:MAX_NAME],
        cores=said.cores,
        memory_bytes=said.memory_bytes,
        router_address=hello.router_address[:MAX_NAME] if role == "router" else "",
    )


def heartbeat_received(beat: node_pb2.Heartbeat, node: NodeId, now_ms: int) -> HeartbeatReceived:
    return HeartbeatReceived(
        now_ms=now_ms,
        node=node,
        fence=Fence(beat.fence),
        activity=beat.activity[:MAX_NAME],
        step=beat.step,
        tokens_per_second=_finite(beat.tokens_per_second),
        loss=_finite(beat.loss),
        fraction=_finite(beat.fraction),
        rss_bytes=beat.rss_bytes,
        tokens_total=beat.tokens_total,
        grad_norm=_finite(beat.grad_norm),
        learning_rate=_finite(beat.learning_rate),
        flops_per_second=_finite(beat.flops_per_second),
        mfu=_finite(beat.mfu),
    )


def serving_reported(state: node_pb2.ServingState, node: NodeId, now_ms: int) -> ServingReported:
    slots = tuple(
        ServingReport(
            run=slot.run[:MAX_NAME],
            slot=slot.slot[:MAX_NAME],
            weights=_digest("weights", slot.weights),
            state=slot.state[:MAX_NAME],
            reason=slot.reason[:MAX_TEXT],
        )
        for slot in state.slots[:MAX_SLOTS]
    )
    return ServingReported(now_ms=now_ms, node=node, slots=slots)


def down_item(push: Push) -> node_pb2.DownItem:
    match push:
        case Wake():
            return node_pb2.DownItem(wake=node_pb2.Wake())
        case Revoke(fence=fence, reason=reason):
            return node_pb2.DownItem(revoke=node_pb2.Revoke(fence=fence, reason=reason))
        case SendDrain(reason=reason):
            return node_pb2.DownItem(drain=node_pb2.Drain(reason=reason))
        case SendRouters(addresses=addresses):
            return node_pb2.DownItem(routers=node_pb2.RouterList(addresses=addresses))
        case SendServe(slots=slots):
            assignments = [
                node_pb2.ServeAssignment(
                    run=slot.run,
                    slot=slot.slot,
                    weights=slot.weights,
                    tokenizer=slot.tokenizer,
                    model_json=slot.model_json,
                )
                for slot in slots
            ]
            return node_pb2.DownItem(serve=node_pb2.ServeList(assignments=assignments))
        case SendView(run=run, version=version, view_json=view_json):
            return node_pb2.DownItem(view=node_pb2.ViewUpdate(run=run, version=version, view_json=view_json))
        case _:
            assert_never(push)


# --- answers -----------------------------------------------------------------------------------


def lease_response(answer: Answer) -> node_pb2.AcquireLeaseResponse:
    match answer:
        case TrainGranted():
            return node_pb2.AcquireLeaseResponse(lease=_train_lease(answer))
        case TaskGranted():
            return node_pb2.AcquireLeaseResponse(lease=_task_lease(answer))
        case NothingToDo(reason=reason):
            return node_pb2.AcquireLeaseResponse(none=node_pb2.NoLease(reason=reason))
        case _:
            raise refusal(answer)


def commit_response(answer: Answer) -> node_pb2.CommitResponse:
    match answer:
        case CommitAccepted(head_step=step, head=head, yield_lease=over):
            return node_pb2.CommitResponse(accepted=True, head_step=step, head=head, yield_lease=over)
        case CommitRefused(reason=reason, head_step=step, head=head):
            return node_pb2.CommitResponse(reason=reason, head_step=step, head=head, yield_lease=True)
        case _:
            raise refusal(answer)


def task_response(answer: Answer) -> node_pb2.CompleteTaskResponse:
    match answer:
        case TaskAccepted(divergent=divergent):
            reason = "another node's result came first and differs; that one stands" if divergent else ""
            return node_pb2.CompleteTaskResponse(accepted=True, reason=reason)
        case TaskRefused(reason=reason):
            return node_pb2.CompleteTaskResponse(reason=reason)
        case _:
            raise refusal(answer)


def renew_response(answer: Answer) -> node_pb2.RenewLeaseResponse:
    match answer:
        case RenewAnswer(renewed=renewed, reason=reason):
            return node_pb2.RenewLeaseResponse(renewed=renewed, reason=reason)
        case _:
            raise refusal(answer)


def refusal(answer: Answer) -> PotluckError:
    """The error that a `Denied` says; any other answer does not belong to the question."""
    if isinstance(answer, Denied):
        return error_from_id(answer.error_id, answer.reason, _FIXES.get(answer.error_id, ""))
    return InvariantViolation("bug.wrong-answer", f"{type(answer).__name__} answers another question", "report this")


_FIXES = {
    "join.token-spent": "ask for a new join string: potluck invite",
    "join.unknown-token": "ask for a new join string: potluck invite",
    "refused.revoked": "ask for a new join string and join again",
    "refused.no-such-run": "see `potluck run list`",
    "refused.no-such-node": "see `potluck nodes`",
    "refused.run-ended": "see what became of it with `potluck run status`",
    "refused.not-steerable": "start a run of method single with a [partition]",
    "refused.gate-open": "see how far it is with `potluck mix history`, and try again after the verdict",
    "refused.too-late": "start a new run, with more steps or with the mixture you want",
    "refused.too-many": "start a new run with the mixture you want",
}


def _train_lease(granted: TrainGranted) -> node_pb2.Lease:
    wanted = granted.lineage
    segments = f"[{','.join(wanted.segments_json)}]"
    work = node_pb2.TrainWork(
        lineage=wanted.id,
        recipe_json=wanted.recipe_json,
        segments_json=segments,
        profile_json=wanted.profile_json,
        head_step=granted.head_step,
        head=granted.head,
        weights=granted.weights,
        optimizer=granted.optimizer,
        target_step=granted.target_step,
        label=wanted.label,
    )
    return node_pb2.Lease(fence=granted.fence, term_ms=granted.term_ms, train=work)


def _task_lease(granted: TaskGranted) -> node_pb2.Lease:
    wanted = granted.task
    inputs = [common_pb2.NamedDigest(name=name, digest=digest) for name, digest in wanted.inputs]
    work = node_pb2.TaskWork(
        task=wanted.id, kind=wanted.kind, params_json=wanted.params_json, inputs=inputs, label=wanted.label
    )
    return node_pb2.Lease(fence=granted.fence, term_ms=granted.term_ms, task=work)


def _digest(what: str, text: str) -> Digest:
    if not is_digest(text):
        raise _bad(what, text, "64 lowercase hexadecimal digits")
    return Digest(text)


def _bad(what: str, value: object, allowed: str) -> UsageError:
    return UsageError("usage.bad-request", f"{what} = {str(value)[:MAX_NAME]!r}", f"allowed: {allowed}")


def _finite(number: float) -> float:
    """A heartbeat's number; 0, which says that it is not known, for one that no JSON can hold."""
    return number if math.isfinite(number) else 0.0


def _depth(value: object) -> int:
    depth, level = 0, [value]
    while level:
        inner = (item.values() if isinstance(item, dict) else item for item in level if isinstance(item, dict | list))
        level = [item for items in inner for item in items]
        depth += 1
    return depth


def _bad_figures(why: str) -> DataError:
    return DataError("data.bad-figures", f"figures cannot be kept: {why}", "send a JSON object of finite numbers")
