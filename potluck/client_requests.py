"""Requests from plain arguments: what a message cannot carry is refused by the argument's name."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from potluck.errors import UsageError
from potluck.lm.stopping import checked_stops
from potluck.net.address import split_host_port
from potluck.v1 import mixture_pb2, router_pb2

Prompt = str | Sequence[int]
MAX_TOKEN_ID = (1 << 32) - 1
MAX_SEED = (1 << 64) - 1
MAX_PORT = 65_535


def checked_target(target: str) -> str:
    """A host:port as it was given.

    Raises:
        UsageError: ``usage.bad-address``.
    """
    try:
        _, port = split_host_port(target)
    except ValueError:
        port = 0
    if not 1 <= port <= MAX_PORT:
        fix = "write a host and a port of 1 to 65535, such as 127.0.0.1:7473"
        raise UsageError("usage.bad-address", f"{target!r} is not host:port", fix)
    return target


def checked_text(argument: str, text: str) -> str:
    """A text that UTF-8 can write.

    Raises:
        UsageError: ``usage.bad-value``: it has a lone surrogate, as bytes that are not UTF-8 become in arguments.
    """
    try:
        text.encode("utf-8")
    except UnicodeEncodeError as error:
        message = f"{argument} is not text: character {error.start} is {text[error.start]!r}"
        raise UsageError("usage.bad-value", message, f"give {argument} in UTF-8") from None
    return text


def checked_integer(argument: str, value: int, *, bits: int, allowed: str = "") -> int:
    """A signed integer of at most so many bits; `allowed` says the narrower range that the receiver takes.

    Raises:
        UsageError: ``usage.bad-value``.
    """
    limit = 1 << (bits - 1)
    return _within(argument, value, -limit, limit - 1, allowed)


def route_request(prompt: Prompt, run: str) -> router_pb2.RouteRequest:
    run = checked_text("run", run)
    if isinstance(prompt, str):
        return router_pb2.RouteRequest(text=checked_text("text", prompt), run=run)
    return router_pb2.RouteRequest(tokens=_token_ids(prompt), run=run)


def score_request(prompt: Prompt, run: str, slot: str, model: str = "") -> router_pb2.ScoreRequest:
    run, slot, model = checked_text("run", run), checked_text("slot", slot), checked_text("model", model)
    if isinstance(prompt, str):
        return router_pb2.ScoreRequest(text=checked_text("text", prompt), run=run, slot=slot, model=model)
    return router_pb2.ScoreRequest(tokens=_token_ids(prompt), run=run, slot=slot, model=model)


def instantiate_request(model: str, run: str) -> router_pb2.InstantiateRequest:
    return router_pb2.InstantiateRequest(model=checked_text("model", model), run=checked_text("run", run))


def generate_request(
    prompt: Prompt,
    run: str,
    slot: str,
    max_tokens: int,
    temperature: float,
    top_k: int,
    top_p: float,
    seed: int,
    stop: Sequence[str] = (),
    model: str = "",
) -> router_pb2.GenerateRequest:
    request = router_pb2.GenerateRequest(
        run=checked_text("run", run),
        slot=checked_text("slot", slot),
        max_tokens=checked_integer("max_tokens", max_tokens, bits=32, allowed="1 to 1024"),
        temperature=temperature,
        top_k=checked_integer("top_k", top_k, bits=32, allowed="0 (no limit) or more"),
        top_p=top_p,
        seed=_within("seed", seed, 0, MAX_SEED),
        stop=[checked_text(f"stop[{i}]", text) for i, text in enumerate(checked_stops(stop))],
        model=checked_text("model", model),
    )
    if isinstance(prompt, str):
        request.text = checked_text("text", prompt)
    else:
        request.tokens.CopyFrom(_token_ids(prompt))
    return request


def steer_request(
    run: str,
    weights: Mapping[str, float],
    request_id: str,
    others_zero: bool,
    origin: str,
    reason: str,
    prior_requests: float | None,
) -> mixture_pb2.SteerRequest:
    return mixture_pb2.SteerRequest(
        run=checked_text("run", run),
        weights={checked_text("weights", name): weight for name, weight in weights.items()},
        request_id=checked_text("request_id", request_id),
        others_zero=others_zero,
        origin=checked_text("origin", origin),
        reason=checked_text("reason", reason),
        prior_requests=prior_requests,
    )


def _token_ids(ids: Sequence[int]) -> router_pb2.TokenIds:
    return router_pb2.TokenIds(ids=[_within(f"ids[{i}]", token, 0, MAX_TOKEN_ID) for i, token in enumerate(ids)])


def _within(argument: str, value: int, least: int, most: int, allowed: str = "") -> int:
    if not least <= value <= most:
        raise UsageError("usage.bad-value", f"{argument} = {value}", f"give {allowed or f'{least} to {most}'}")
    return value
