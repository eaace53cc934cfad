"""MixtureService: how much of each domain a run reads, who changed it, and what routers counted.

What a change becomes is the plan's; here it becomes a blob and an event.
"""

from __future__ import annotations

import asyncio
import json
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal, TypeVar

import grpc.aio
from google.protobuf import json_format
from google.protobuf.message import Message

from coordinator import wire
from coordinator.admin import named_run
from coordinator.collector import hold
from coordinator.core.effects import Steered
from coordinator.core.events import MixtureSteered
from coordinator.core.state import State
from coordinator.core.steering import not_steerable
from coordinator.core.values import Steering, SteeringEntry
from coordinator.mixtures import MAX_DOMAINS, completed, from_traffic, read_labels, read_mixture
from coordinator.runtime import Runtime
from coordinator.traffic import Traffic
from coordinator.wire_admin import MAX_BYTES, check_size
from potluck.errors import SpecError, UsageError
from potluck.ids import Digest, Json, RunId
from potluck.net.blobs.store import BlobStore
from potluck.telemetry import logger
from potluck.v1 import mixture_pb2, mixture_pb2_grpc
from sampling.labels import Labels
from sampling.mixture import Mixture, natural

MAX_REASON = 256
MAX_REQUEST_ID = 128
ORIGINS = ("person", "target", "traffic")

log = logger("coordinator.mixture")
Context = grpc.aio.ServicerContext[Any, Any]
M = TypeVar("M", bound=Message)
Kind = Literal["set", "proposal"]


@dataclass(frozen=True, kw_only=True)
class Steerable:
    """A run that reads a mixture, as it is between two events."""

    run: RunId
    name: str
    steering: Steering
    entries: tuple[SteeringEntry, ...]
    steered_by: str

    @property
    def told(self) -> dict[str, Any]:
        """What the plan says of it, for people: `coordinator.core.values.Steering.json`."""
        value: dict[str, Any] = json.loads(self.steering.json)
        return value


class MixtureService(mixture_pb2_grpc.MixtureServiceServicer):
    def __init__(self, *, runtime: Runtime, store: BlobStore, traffic: Traffic) -> None:
        self._runtime = runtime
        self._store = store
        self._traffic = traffic

    async def ShowMixture(self, request: mixture_pb2.ShowMixtureRequest, context: Context) -> mixture_pb2.MixtureInfo:
        found = await self._runtime.read(lambda state: _steerable(state, request.run))
        told = found.told
        labels = read_labels(Digest(told["labels"]), self._store)
        info = mixture_pb2.MixtureInfo(
            run=found.run,
            name=found.name,
            partition=labels.partition,
            current=_weights(read_mixture(Digest(told["current"]), self._store), labels),
            versions=[_message(version, mixture_pb2.MixtureVersion()) for version in told["versions"]],
            proposals=[_message(proposal, mixture_pb2.MixtureProposal()) for proposal in told["proposals"]],
            to_step=found.steering.to_step,
            total_steps=found.steering.total_steps,
            gate_steps=found.steering.gate_steps,
        )
        return shortened(info)

    async def SetMixture(self, request: mixture_pb2.SteerRequest, context: Context) -> mixture_pb2.SteerResponse:
        """Changes the mixture from the end of what was given out to nodes."""
        return await self._steer(request, "set")

    async def ProposeMixture(self, request: mixture_pb2.SteerRequest, context: Context) -> mixture_pb2.SteerResponse:
        """Puts a mixture to the gate; with origin `traffic` and no weights, the one that routers' counts make."""
        return await self._steer(request, "proposal")

    async def GetTraffic(self, request: mixture_pb2.GetTrafficRequest, context: Context) -> mixture_pb2.TrafficInfo:
        run = await self._runtime.read(lambda state: _steerable(state, request.run).run)
        counter = self._traffic.counted(run)
        if counter is None:
            return mixture_pb2.TrafficInfo(run=run)
        info = mixture_pb2.TrafficInfo(
            run=run,
            counting=True,
            counts=[
                mixture_pb2.DomainCount(domain=name, requests=count)
                for name, count in sorted(counter.counts.items(), key=lambda item: (-item[1], item[0]))
            ],
            since_unix_ms=counter.since_unix_ms,
            unknown=counter.unknown,
        )
        check_size(info.ByteSize(), "the traffic")
        if request.reset:
            self._traffic.reset(run)
        return info

    async def _steer(self, request: mixture_pb2.SteerRequest, kind: Kind) -> mixture_pb2.SteerResponse:
        _check(request)
        found = await self._runtime.read(lambda state: _steerable(state, request.run))
        labels = read_labels(Digest(found.told["labels"]), self._store)
        # Sent again: what was answered then, though counts or rest of the state have moved on.
        if found.steered_by == request.request_id:
            return self._response(found.entries[-1], labels)
        mixture = self._wanted(request, found.run, labels, kind)
        digest = await asyncio.to_thread(self._store.put_bytes, mixture.to_json().encode())
        hold(self._store, (digest,))
        event = MixtureSteered(
            now_ms=self._runtime.now_ms(),
            unix_ms=self._runtime.unix_ms(),
            request_id=request.request_id,
            run=found.run,
            kind=kind,
            mixture=digest,
            origin=request.origin,
            reason=request.reason,
        )
        answer = await self._runtime.submit(event)
        if not isinstance(answer, Steered):
            raise wire.refusal(answer)
        log.fact("mixture-steered", run=found.run, kind=kind, number=answer.number, step=answer.step, mixture=digest)
        entries = await self._runtime.read(lambda state: state.durable.runs[found.run].entries)
        return self._response(entries[answer.number - 1], labels)

    def _wanted(self, request: mixture_pb2.SteerRequest, run: RunId, labels: Labels, kind: Kind) -> Mixture:
        if request.weights or request.origin != "traffic":
            return completed(dict(request.weights), labels, others_zero=request.others_zero)
        if kind != "proposal":
            fix = "propose it: ProposeMixture"
            raise UsageError("usage.traffic-is-proposed", "a mixture from traffic is not set without the gate", fix)
        counter = self._traffic.counted(run)
        prior = request.prior_requests if request.HasField("prior_requests") else None
        return from_traffic({} if counter is None else counter.counts, labels, prior_requests=prior)

    def _response(self, entry: SteeringEntry, labels: Labels) -> mixture_pb2.SteerResponse:
        return mixture_pb2.SteerResponse(
            number=entry.number,
            step=entry.step,
            mixture=entry.mixture,
            weights=_weights(read_mixture(entry.mixture, self._store), labels),
        )


def shortened(info: mixture_pb2.MixtureInfo) -> mixture_pb2.MixtureInfo:
    """The same where it fits into a message, else without the reasons of a long history."""
    if info.ByteSize() > MAX_BYTES:
        for line in (*info.versions, *info.proposals):
            line.ClearField("reason")
    check_size(info.ByteSize(), "the mixture and its history")
    return info


def _steerable(state: State, text: str) -> Steerable:
    run = state.durable.runs[named_run(state, text)]
    if run.steering is None:
        raise wire.refusal(not_steerable(run))
    return Steerable(run=run.run, name=run.name, steering=run.steering, entries=run.entries, steered_by=run.steered_by)


def _check(request: mixture_pb2.SteerRequest) -> None:
    if not 1 <= len(request.request_id) <= MAX_REQUEST_ID:
        fix = f"give each new request its own, of at most {MAX_REQUEST_ID} characters"
        raise SpecError("spec.no-request-id", "the request has no request_id, or one that is too long", fix)
    if request.origin not in ORIGINS:
        raise UsageError("usage.bad-request", f"origin = {request.origin[:32]!r}", f"allowed: {', '.join(ORIGINS)}")
    if len(request.reason) > MAX_REASON:
        what = f"the reason has {len(request.reason)} characters"
        raise UsageError("usage.bad-request", what, f"allowed: at most {MAX_REASON}")
    if len(request.weights) > MAX_DOMAINS:
        raise UsageError("usage.bad-request", f"{len(request.weights)} weights", f"allowed: at most {MAX_DOMAINS}")


def _weights(mixture: Mixture, labels: Labels) -> list[mixture_pb2.DomainWeight]:
    """In the order of the partition's domains."""
    shares = natural(labels.partition, labels.sizes).weights
    return [
        mixture_pb2.DomainWeight(domain=name, weight=weight, natural=shares[name], rows=labels.sizes[name])
        for name, weight in zip(labels.domains, mixture.aligned(labels.domains), strict=True)
    ]


def _message(fields: Mapping[str, Json], message: M) -> M:
    """The message with the fields it has; a null leaves its field unset."""
    return json_format.ParseDict(dict(fields), message, ignore_unknown_fields=True)
