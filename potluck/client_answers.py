"""A router's answers as plain values."""

from __future__ import annotations

from potluck.client_values import Generated, Instantiated, Routed, Scored
from potluck.v1 import router_pb2


def routed(answer: router_pb2.RouteResponse) -> Routed:
    return Routed(
        expert=answer.expert,
        prefix_nll=tuple(answer.prefix_nll),
        prefix_tokens=answer.prefix_tokens,
        view_version=answer.view_version,
        run=answer.run,
        weights=answer.weights,
    )


def scored(answer: router_pb2.ScoreResponse) -> Scored:
    return Scored(
        expert=answer.expert,
        log_probs=tuple(answer.log_probs),
        ids=tuple(answer.ids),
        view_version=answer.view_version,
        run=answer.run,
        weights=answer.weights,
        model=answer.model,
    )


def generated(answer: router_pb2.GenerateResponse) -> Generated:
    return Generated(
        ids=tuple(answer.ids),
        text=answer.text,
        expert=answer.expert,
        view_version=answer.view_version,
        run=answer.run,
        weights=answer.weights,
        finish=answer.finish,
        model=answer.model,
    )


def instantiated(answer: router_pb2.InstantiateResponse) -> Instantiated:
    return Instantiated(
        model=answer.model,
        digest=answer.digest,
        cached=answer.cached,
        build_ms=answer.build_ms,
        coefficients=tuple(answer.coefficients),
        view_version=answer.view_version,
        run=answer.run,
        weights=answer.weights,
        node=answer.node,
    )
