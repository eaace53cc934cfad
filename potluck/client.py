"""The typed client: what the CLI can do, a program can do with these. Every failure is a `PotluckError`."""

from __future__ import annotations

import contextlib
from collections.abc import AsyncGenerator, Iterator, Mapping, Sequence
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import grpc

from potluck.client_answers import generated, instantiated, routed, scored
from potluck.client_requests import (
    Prompt,
    checked_integer,
    checked_target,
    checked_text,
    generate_request,
    instantiate_request,
    route_request,
    score_request,
    steer_request,
)
from potluck.client_values import Generated, Instantiated, Routed, Scored
from potluck.errors import JoinError, NotReachable, PotluckError
from potluck.net.channels import open_channel, open_sync_channel
from potluck.net.diagnose import diagnose, diagnose_sync
from potluck.net.guard import error_from_rpc
from potluck.net.identity import Identity
from potluck.net.tls import COORDINATOR_NAME, ROUTER_NAME
from potluck.v1 import admin_pb2, admin_pb2_grpc, mixture_pb2, mixture_pb2_grpc, router_pb2, router_pb2_grpc

__all__ = [
    "AdminClient",
    "AsyncRouterClient",
    "Generated",
    "Instantiated",
    "Routed",
    "RouterClient",
    "Scored",
    "identity_in",
]

CALL_TIMEOUT_S = 30.0
BACKUP_TIMEOUT_S = 6 * 3600.0
GENERATE_TIMEOUT_S = 600.0
"""A deadline is always set: what the other side holds for a call it must be able to let go of."""


def identity_in(home: Path) -> Identity:
    """The identity kept under a home: the administrator's if a coordinator lives there, else its own.

    Raises:
        JoinError: ``join.no-identity``: there is none.
    """
    places = (home / "coordinator" / "admin" / "identity", home / "admin" / "identity", home / "identity")
    for place in places:
        try:
            return Identity.load(place)
        except JoinError as error:
            if error.error_id != "join.no-identity":
                raise
    raise JoinError("join.no-identity", f"no identity under {home}", "join first: potluck join <join string>")


class AdminClient:
    """AdminService and MixtureService of a coordinator, synchronous; returns the messages of their protos.

    Every method raises `PotluckError`s: the coordinator's, or ``net.*`` and ``join.*`` with the cause when the
    call does not get there.
    """

    def __init__(self, identity: Identity, *, target: str | None = None) -> None:
        """
        Args:
            identity: an administrator's.
            target: host:port; the identity's coordinator by default.
        """
        self._identity = identity
        self._target = target or identity.control_target
        self._channel = open_sync_channel(identity, target=self._target)
        self._stub = admin_pb2_grpc.AdminServiceStub(self._channel)
        self._mixtures = mixture_pb2_grpc.MixtureServiceStub(self._channel)

    @classmethod
    def connect(cls, home: Path) -> Self:
        """A client with the identity found under `home`."""
        return cls(identity_in(home))

    def close(self) -> None:
        self._channel.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def start_run(self, spec_json: str, *, name: str, request_id: str, priority: int = 0) -> admin_pb2.StartRunResponse:
        """Starts or resumes the run of a canonical spec; the same `request_id` gets the same answer."""
        request = admin_pb2.StartRunRequest(
            request_id=checked_text("request_id", request_id),
            spec_json=checked_text("spec_json", spec_json),
            name=checked_text("name", name),
            priority=checked_integer("priority", priority, bits=32),
        )
        with self._errors():
            return self._stub.StartRun(request, timeout=CALL_TIMEOUT_S)

    def list_runs(self) -> admin_pb2.ListRunsResponse:
        with self._errors():
            return self._stub.ListRuns(admin_pb2.ListRunsRequest(), timeout=CALL_TIMEOUT_S)

    def get_run(self, run: str) -> admin_pb2.RunInfo:
        """A run by id, unique prefix or name."""
        with self._errors():
            return self._stub.GetRun(admin_pb2.GetRunRequest(run=checked_text("run", run)), timeout=CALL_TIMEOUT_S)

    def watch_run(self, run: str) -> Iterator[admin_pb2.RunInfo]:
        """Yields the run whenever it has changed, until it ends; closing the iterator ends the call."""
        with self._errors():
            call: Any = self._stub.WatchRun(admin_pb2.GetRunRequest(run=checked_text("run", run)))
            try:
                yield from call
            finally:
                call.cancel()

    def cancel_run(self, run: str, *, request_id: str) -> admin_pb2.CancelRunResponse:
        """Cancels a run; the same `request_id` gets the same answer."""
        with self._errors():
            request = admin_pb2.CancelRunRequest(run=checked_text("run", run), request_id=request_id)
            return self._stub.CancelRun(request, timeout=CALL_TIMEOUT_S)

    def pause_run(self, run: str, *, resume: bool = False) -> admin_pb2.PauseRunResponse:
        """Has a run's trainings stop at their next commit and gives nothing of it out; or has it go on."""
        with self._errors():
            request = admin_pb2.PauseRunRequest(run=checked_text("run", run), resume=resume)
            return self._stub.PauseRun(request, timeout=CALL_TIMEOUT_S)

    def drain_node(self, node: str, *, undo: bool = False) -> admin_pb2.DrainNodeResponse:
        """Has a node, by id, unique prefix or name, finish what it holds to the next commit and gives it no more."""
        with self._errors():
            request = admin_pb2.DrainNodeRequest(node=checked_text("node", node), undo=undo)
            return self._stub.DrainNode(request, timeout=CALL_TIMEOUT_S)

    def list_nodes(self) -> admin_pb2.ListNodesResponse:
        with self._errors():
            return self._stub.ListNodes(admin_pb2.ListNodesRequest(), timeout=CALL_TIMEOUT_S)

    def get_ledger(self, run: str) -> admin_pb2.GetLedgerResponse:
        with self._errors():
            return self._stub.GetLedger(
                admin_pb2.GetLedgerRequest(run=checked_text("run", run)), timeout=CALL_TIMEOUT_S
            )

    def show_mixture(self, run: str) -> mixture_pb2.MixtureInfo:
        """How much of each domain a run reads, and its history."""
        with self._errors():
            request = mixture_pb2.ShowMixtureRequest(run=checked_text("run", run))
            return self._mixtures.ShowMixture(request, timeout=CALL_TIMEOUT_S)

    def set_mixture(
        self, run: str, weights: Mapping[str, float], *, request_id: str, others_zero: bool = False, reason: str = ""
    ) -> mixture_pb2.SteerResponse:
        """Changes a run's mixture from the end of what was given out.

        Args:
            run: id, unique prefix or name.
            weights: by domain name; shares of all that is read, or proportions with `others_zero`.
            request_id: the same gets the same answer.
            others_zero: nothing else is read. False: the other domains share the rest by their natural shares.
            reason: for people, at most 256 characters.
        """
        request = steer_request(run, weights, request_id, others_zero, "person", reason, None)
        with self._errors():
            return self._mixtures.SetMixture(request, timeout=CALL_TIMEOUT_S)

    def propose_mixture(
        self,
        run: str,
        weights: Mapping[str, float],
        *,
        request_id: str,
        others_zero: bool = False,
        origin: str = "person",
        reason: str = "",
        prior_requests: float | None = None,
    ) -> mixture_pb2.SteerResponse:
        """As `set_mixture`, but two forks are trained first, and the proposal is kept only if it is no worse.

        With the origin ``traffic`` the weights may be empty: what routers counted makes the mixture, and the
        natural mixture counts for `prior_requests` more. The other origins are ``person`` and ``target``.
        """
        request = steer_request(run, weights, request_id, others_zero, origin, reason, prior_requests)
        with self._errors():
            return self._mixtures.ProposeMixture(request, timeout=CALL_TIMEOUT_S)

    def get_traffic(self, run: str, *, reset: bool = False) -> mixture_pb2.TrafficInfo:
        """Requests by domain that routers counted; `reset`: count anew afterwards."""
        with self._errors():
            request = mixture_pb2.GetTrafficRequest(run=checked_text("run", run), reset=reset)
            return self._mixtures.GetTraffic(request, timeout=CALL_TIMEOUT_S)

    def invite(self, *, count: int, expires_ms: int, role: str) -> tuple[str, ...]:
        """New single-use join strings for a role: node, router, client or admin."""
        request = admin_pb2.InviteRequest(
            count=checked_integer("count", count, bits=32),
            expires_ms=checked_integer("expires_ms", expires_ms, bits=64),
            role=checked_text("role", role),
        )
        with self._errors():
            return tuple(self._stub.Invite(request, timeout=CALL_TIMEOUT_S).join_strings)

    def back_up(self, target: Path) -> admin_pb2.BackupResponse:
        """Copies the coordinator's home, while it works, to a new folder or .tar file on its own machine."""
        with self._errors():
            return self._stub.Backup(admin_pb2.BackupRequest(target=str(target)), timeout=BACKUP_TIMEOUT_S)

    def revoke(self, peer: str) -> admin_pb2.RevokePeerResponse:
        """Puts a peer out for good, by its id."""
        with self._errors():
            request = admin_pb2.RevokePeerRequest(peer=checked_text("peer", peer))
            return self._stub.RevokePeer(request, timeout=CALL_TIMEOUT_S)

    def shutdown(self, *, now: bool = False) -> admin_pb2.ShutdownResponse:
        """Drains and stops the coordinator; `now` does not wait."""
        with self._errors():
            return self._stub.Shutdown(admin_pb2.ShutdownRequest(now=now), timeout=CALL_TIMEOUT_S)

    @contextlib.contextmanager
    def _errors(self) -> Iterator[None]:
        with _diagnosed(self._identity, self._target, COORDINATOR_NAME):
            yield


class RouterClient:
    """RouterService of one router, synchronous.

    Every method raises `PotluckError`s: the router's, or ``net.*`` and ``join.*`` with the cause when the call does
    not get there.
    """

    def __init__(self, identity: Identity, target: str) -> None:
        """
        Args:
            identity: of any role.
            target: the router's host:port.

        Raises:
            UsageError: ``usage.bad-address``.
        """
        self._identity = identity
        self._target = checked_target(target)
        self._channel = open_sync_channel(identity, target=target, server_name=ROUTER_NAME)
        self._stub = router_pb2_grpc.RouterServiceStub(self._channel)

    @classmethod
    def connect(cls, home: Path, target: str = "") -> Self:
        """A client with the identity under `home`; without a target, of the first live router the coordinator names.

        Raises:
            NotReachable: ``net.no-router``: the coordinator knows of none.
        """
        identity = identity_in(home)
        return cls(identity, target or first_router(identity))

    def close(self) -> None:
        self._channel.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def route(self, prompt: Prompt, *, run: str = "", timeout_s: float = CALL_TIMEOUT_S) -> Routed:
        """Which expert a text or ids go to. A run is an id, a name or a prefix; empty is the newest published."""
        with self._errors():
            return routed(self._stub.Route(route_request(prompt, run), timeout=timeout_s))

    def score(
        self, prompt: Prompt, *, run: str = "", slot: str = "", model: str = "", timeout_s: float = CALL_TIMEOUT_S
    ) -> Scored:
        """Log-probabilities of tokens 2..n under the routed expert, under `slot`, or under a soup's `model`."""
        with self._errors():
            return scored(self._stub.Score(score_request(prompt, run, slot, model), timeout=timeout_s))

    def instantiate(self, model: str, *, run: str = "", timeout_s: float = GENERATE_TIMEOUT_S) -> Instantiated:
        """Has a node make a model of a run's soup, or find it in its cache.

        Args:
            model: its name, such as ``soup:code=0.6,law=0.4``; `potluck.soup_names` has the grammar.
            run: as in `route`.
        """
        with self._errors():
            return instantiated(self._stub.Instantiate(instantiate_request(model, run), timeout=timeout_s))

    def generate(
        self,
        prompt: Prompt,
        *,
        run: str = "",
        slot: str = "",
        max_tokens: int = 64,
        temperature: float = 0.0,
        top_k: int = 0,
        top_p: float = 1.0,
        seed: int = 0,
        stop: Sequence[str] = (),
        model: str = "",
        timeout_s: float = GENERATE_TIMEOUT_S,
    ) -> Iterator[Generated]:
        """Streams a continuation; closing the iterator cancels it down to the node.

        The text ends before the first of the `stop` strings (at most 8, of 1 to 64 characters); the ids are all
        tokens up to and including the one that completed it. A `model` of a soup takes the place of a slot.

        A replica lost after the first token ends it with ``net.replica-lost``, the router itself with
        ``net.router-lost``; send the prompt and the tokens received so far as ids to go on.
        """
        request = generate_request(prompt, run, slot, max_tokens, temperature, top_k, top_p, seed, stop, model)
        return self._stream(request, timeout_s)

    def _stream(self, request: router_pb2.GenerateRequest, timeout_s: float) -> Iterator[Generated]:
        with self._errors():
            call: Any = self._stub.Generate(request, timeout=timeout_s)
            num_received = 0
            try:
                for message in call:
                    num_received += len(message.ids)
                    yield generated(message)
            except grpc.RpcError as error:
                _raise_if_router_lost(error, self._target, num_received)
                raise
            finally:
                call.cancel()

    @contextlib.contextmanager
    def _errors(self) -> Iterator[None]:
        with _diagnosed(self._identity, self._target, ROUTER_NAME):
            yield


class AsyncRouterClient:
    """`RouterClient` for programs with an event loop; make it inside the loop."""

    def __init__(self, identity: Identity, target: str) -> None:
        self._identity = identity
        self._target = checked_target(target)
        self._channel = open_channel(identity, target=target, server_name=ROUTER_NAME)
        self._stub: router_pb2_grpc.RouterServiceAsyncStub = router_pb2_grpc.RouterServiceStub(self._channel)

    async def close(self) -> None:
        await self._channel.close(None)

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self.close()

    async def route(self, prompt: Prompt, *, run: str = "", timeout_s: float = CALL_TIMEOUT_S) -> Routed:
        """As `RouterClient.route`."""
        try:
            return routed(await self._stub.Route(route_request(prompt, run), timeout=timeout_s))
        except grpc.RpcError as error:
            raise await self._cause(error) from error

    async def score(
        self, prompt: Prompt, *, run: str = "", slot: str = "", model: str = "", timeout_s: float = CALL_TIMEOUT_S
    ) -> Scored:
        """As `RouterClient.score`."""
        try:
            return scored(await self._stub.Score(score_request(prompt, run, slot, model), timeout=timeout_s))
        except grpc.RpcError as error:
            raise await self._cause(error) from error

    async def instantiate(self, model: str, *, run: str = "", timeout_s: float = GENERATE_TIMEOUT_S) -> Instantiated:
        """As `RouterClient.instantiate`."""
        try:
            return instantiated(await self._stub.Instantiate(instantiate_request(model, run), timeout=timeout_s))
        except grpc.RpcError as error:
            raise await self._cause(error) from error

    async def generate(
        self,
        prompt: Prompt,
        *,
        run: str = "",
        slot: str = "",
        max_tokens: int = 64,
        temperature: float = 0.0,
        top_k: int = 0,
        top_p: float = 1.0,
        seed: int = 0,
        stop: Sequence[str] = (),
        model: str = "",
        timeout_s: float = GENERATE_TIMEOUT_S,
    ) -> AsyncGenerator[Generated, None]:
        """As `RouterClient.generate`."""
        request = generate_request(prompt, run, slot, max_tokens, temperature, top_k, top_p, seed, stop, model)
        call = self._stub.Generate(request, timeout=timeout_s)
        num_received = 0
        try:
            async for message in call:
                num_received += len(message.ids)
                yield generated(message)
        except grpc.RpcError as error:
            _raise_if_router_lost(error, self._target, num_received)
            raise await self._cause(error) from error
        finally:
            call.cancel()

    async def _cause(self, error: grpc.RpcError) -> PotluckError:
        known = error_from_rpc(error)
        if known.error_id != "net.unreachable":
            return known
        return await diagnose(self._identity, target=self._target, server_name=ROUTER_NAME)


def first_router(identity: Identity) -> str:
    """host:port of the first live router the coordinator knows; needs an administrator's identity.

    Raises:
        NotReachable: ``net.no-router``.
    """
    with AdminClient(identity) as client:
        nodes = client.list_nodes().nodes
    for node in nodes:
        if node.role == "router" and node.state == "live" and node.address:
            return node.address
    raise NotReachable("net.no-router", "the coordinator knows of no live router", "start one: potluck router")


@contextlib.contextmanager
def _diagnosed(identity: Identity, target: str, server_name: str) -> Iterator[None]:
    """RPC errors as `PotluckError`s; an UNAVAILABLE that says nothing is probed once for its cause."""
    try:
        yield
    except grpc.RpcError as error:
        known = error_from_rpc(error)
        if known.error_id == "net.unreachable":
            known = diagnose_sync(identity, target=target, server_name=server_name)
        raise known from error


def _raise_if_router_lost(error: grpc.RpcError, target: str, num_received: int) -> None:
    """Says of a stream that broke off after its first token how to go on.

    Raises:
        NotReachable: ``net.router-lost``.
    """
    if num_received and error_from_rpc(error).error_id == "net.unreachable":
        what = f"the router at {target} went away after {num_received} tokens"
        fix = "send the prompt and the tokens received so far as ids, to it once it is back, or to another router"
        raise NotReachable("net.router-lost", what, fix) from error
