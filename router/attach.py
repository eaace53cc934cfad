"""ExpertService on the wire: a node's Attach stream, protobuf on one side, the fleet's values on the other."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from typing import Any, assert_never

import grpc

from potluck import telemetry
from potluck.errors import JoinError, Refused
from potluck.ids import Digest, RunId
from potluck.net.remote_errors import error_from_id
from potluck.net.tls import peer_of
from potluck.soup_names import Shares
from potluck.v1 import expert_pb2 as pb
from potluck.v1 import expert_pb2_grpc, node_pb2
from router.fleet import (
    Attachment,
    Cancel,
    Down,
    Failed,
    Fleet,
    GiveCredit,
    Made,
    SayBye,
    Scores,
    StartGenerate,
    StartInstantiate,
    StartScore,
    Tokens,
)
from router.view import ReplicaKey

ITEMS_PER_MESSAGE = 64
"""The writer sends what waits, at most so much in one message."""
MAX_SLOTS = 4096
"""Slots one node may say it serves."""
MAX_REASON = 500
"""Characters kept of why a node cannot serve a slot."""

log = telemetry.logger(__name__)


class ExpertServicer(expert_pb2_grpc.ExpertServiceServicer):
    """Nodes dial in; one stream carries all requests of a node."""

    def __init__(self, fleet: Fleet) -> None:
        self._fleet = fleet

    async def Attach(
        self,
        request_iterator: AsyncIterator[pb.AttachUp],
        context: grpc.aio.ServicerContext[Any, Any],
    ) -> AsyncIterator[pb.AttachDown]:
        """Runs until either side says bye or the stream breaks.

        Raises:
            JoinError: ``join.wrong-node``: the hello names another node than the certificate.
            Refused: ``refused.no-hello``: the first item is no hello.
        """
        first = await anext(aiter(request_iterator), None)
        if first is None:
            return
        node = _greeted(first, context)
        attachment = self._fleet.attach(node)
        log.fact("node-attached", node=node)
        reader = asyncio.create_task(self._read(attachment, first, request_iterator))
        try:
            async for batch in attachment.outbox.batches(ITEMS_PER_MESSAGE):
                yield pb.AttachDown(items=[_down_item(item) for item in batch])
            if reader.done():
                reader.result()
        finally:
            reader.cancel()
            self._fleet.detach(attachment, "its stream ended")
            log.fact("node-detached", node=node)

    async def _read(self, attachment: Attachment, first: pb.AttachUp, rest: AsyncIterator[pb.AttachUp]) -> None:
        """Takes what the node says until it ends; a lost node looks like a clean end without a bye."""
        reason = "its stream broke"
        try:
            if self._take(attachment, first):
                reason = "it said bye"
                return
            async for message in rest:
                if self._take(attachment, message):
                    reason = "it said bye"
                    return
        except grpc.RpcError as error:
            reason = f"its stream broke ({error.__class__.__name__})"
        finally:
            self._fleet.detach(attachment, reason)

    def _take(self, attachment: Attachment, message: pb.AttachUp) -> bool:
        """Applies one message; says whether it held a bye."""
        for item in message.items:
            match item.WhichOneof("item"):
                case "serving":
                    self._fleet.set_ready(attachment, *_served(item.serving))
                case "tokens":
                    tokens = Tokens(ids=tuple(item.tokens.ids), finish=item.tokens.finish)
                    attachment.receive(item.tokens.request, tokens)
                case "scores":
                    attachment.receive(item.scores.request, Scores(log_probs=tuple(item.scores.log_probs)))
                case "instantiated":
                    made = item.instantiated
                    model = Made(
                        digest=Digest(made.digest),
                        cached=made.cached,
                        build_ms=made.build_ms,
                        coefficients=tuple(made.coefficients),
                    )
                    attachment.receive(made.request, model)
                case "failed":
                    error = error_from_id(item.failed.error_id, item.failed.message)
                    attachment.receive(item.failed.request, Failed(error=error))
                case "bye":
                    return True
                case _:
                    pass  # the hello, and items of later versions
        return False


def _greeted(first: pb.AttachUp, context: grpc.aio.ServicerContext[Any, Any]) -> str:
    if not first.items or first.items[0].WhichOneof("item") != "hello":
        raise Refused("refused.no-hello", "the first item of an Attach stream is no hello", "use an expert node")
    claimed = first.items[0].hello.node_id
    peer = peer_of(context)
    if peer is not None and peer.node_id != claimed:
        what = f"the hello says {claimed!r}, the certificate {peer.node_id!r}"
        raise JoinError("join.wrong-node", what, "join this node anew")
    if not claimed:
        raise Refused("refused.no-hello", "the hello names no node", "use an expert node")
    return claimed


def _served(serving: node_pb2.ServingState) -> tuple[set[ReplicaKey], dict[ReplicaKey, str]]:
    """What is ready, and what failed with its reason."""
    if len(serving.slots) > MAX_SLOTS:
        raise Refused("refused.too-many-slots", f"{len(serving.slots)} slots", f"serve at most {MAX_SLOTS}")
    ready: set[ReplicaKey] = set()
    failed: dict[ReplicaKey, str] = {}
    for slot in serving.slots:
        key = ReplicaKey(run=RunId(slot.run), slot=slot.slot, weights=Digest(slot.weights))
        if slot.state == "ready":
            ready.add(key)
        elif slot.state == "failed":
            failed[key] = slot.reason[:MAX_REASON]
    return ready, failed


def _domain_shares(mixture: Shares) -> list[pb.DomainShare]:
    return [pb.DomainShare(domain=domain, weight=weight) for domain, weight in mixture]


def _down_item(item: Down) -> pb.AttachDownItem:
    match item:
        case StartGenerate():
            return pb.AttachDownItem(
                generate=pb.GenerateWork(
                    request=item.request,
                    run=item.key.run,
                    slot=item.key.slot,
                    weights=item.key.weights,
                    ids=item.ids,
                    max_tokens=item.sampling.max_tokens,
                    temperature=item.sampling.temperature,
                    top_k=item.sampling.top_k,
                    top_p=item.sampling.top_p,
                    seed=item.sampling.seed,
                    credit=item.credit,
                    mixture=_domain_shares(item.mixture),
                )
            )
        case StartScore(request=request, key=key, ids=ids):
            work = pb.ScoreWork(request=request, run=key.run, slot=key.slot, weights=key.weights, ids=ids)
            work.mixture.extend(_domain_shares(item.mixture))
            return pb.AttachDownItem(score=work)
        case StartInstantiate(request=request, key=key):
            wanted = pb.InstantiateWork(request=request, run=key.run, slot=key.slot, weights=key.weights)
            wanted.mixture.extend(_domain_shares(item.mixture))
            return pb.AttachDownItem(instantiate=wanted)
        case GiveCredit(request=request, tokens=tokens):
            return pb.AttachDownItem(credit=pb.Credit(request=request, tokens=tokens))
        case Cancel(request=request):
            return pb.AttachDownItem(cancel=pb.CancelWork(request=request))
        case SayBye(reason=reason):
            return pb.AttachDownItem(bye=node_pb2.Bye(reason=reason))
        case _:
            assert_never(item)
