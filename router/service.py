"""RouterService on the wire: protobuf in, the desk's values, protobuf out. Decides nothing."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import aclosing
from typing import Any

import grpc

from potluck.crashpoints import crash_here
from potluck.errors import UsageError
from potluck.v1 import router_pb2 as pb
from potluck.v1 import router_pb2_grpc
from router.desk import Desk, Prompt, checked_sampling

Context = grpc.aio.ServicerContext[Any, Any]


class RouterServicer(router_pb2_grpc.RouterServiceServicer):
    def __init__(self, desk: Desk) -> None:
        self._desk = desk

    async def Route(self, request: pb.RouteRequest, context: Context) -> pb.RouteResponse:
        routed = await self._desk.route(_prompt(request), run=request.run)
        return pb.RouteResponse(
            expert=routed.expert,
            prefix_nll=routed.prefix_nll,
            prefix_tokens=routed.prefix_tokens,
            view_version=routed.view_version,
            run=routed.run,
            weights=routed.weights,
        )

    async def Score(self, request: pb.ScoreRequest, context: Context) -> pb.ScoreResponse:
        scored = await self._desk.score(_prompt(request), run=request.run, slot=request.slot, model=request.model)
        return pb.ScoreResponse(
            expert=scored.expert,
            log_probs=scored.log_probs,
            view_version=scored.view_version,
            run=scored.run,
            weights=scored.weights,
            ids=scored.ids,
            model=scored.model,
        )

    async def Instantiate(self, request: pb.InstantiateRequest, context: Context) -> pb.InstantiateResponse:
        made = await self._desk.instantiate(request.model, run=request.run)
        return pb.InstantiateResponse(
            model=made.model,
            digest=made.digest,
            cached=made.cached,
            build_ms=made.build_ms,
            coefficients=made.coefficients,
            view_version=made.view_version,
            run=made.run,
            weights=made.weights,
            node=made.node,
        )

    async def Generate(self, request: pb.GenerateRequest, context: Context) -> AsyncIterator[pb.GenerateResponse]:
        """Each yield returns when gRPC has taken the message, which is when the desk may give credit back."""
        sampling = checked_sampling(
            max_tokens=request.max_tokens,
            temperature=request.temperature,
            top_k=request.top_k,
            top_p=request.top_p,
            seed=request.seed,
        )
        answer = self._desk.generate(
            _prompt(request),
            run=request.run,
            slot=request.slot,
            model=request.model,
            sampling=sampling,
            stop=request.stop,
        )
        async with aclosing(answer) as pieces:
            async for piece in pieces:
                crash_here("router.mid-answer")
                yield pb.GenerateResponse(
                    ids=piece.ids,
                    text=piece.text,
                    expert=piece.expert,
                    view_version=piece.view_version,
                    run=piece.run,
                    weights=piece.weights,
                    finish=piece.finish,
                    model=piece.model,
                )


def _prompt(request: pb.RouteRequest | pb.ScoreRequest | pb.GenerateRequest) -> Prompt:
    match request.WhichOneof("input"):
        case "text":
            return request.text
        case "tokens":
            return tuple(request.tokens.ids)
        case _:
            raise UsageError("usage.empty-text", "the request has neither text nor tokens", "send one of them")
