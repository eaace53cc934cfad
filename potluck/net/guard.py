"""The door of every gRPC server: who may call what, errors as statuses, and bytes counted."""

from __future__ import annotations

import contextlib
import inspect
import re
import urllib.parse
from collections import Counter
from collections.abc import AsyncIterator, Awaitable, Callable, Collection, Iterator, Mapping
from typing import Any, NoReturn

import grpc
import grpc.aio

from potluck import telemetry
from potluck.clock import Clock, SystemClock
from potluck.errors import JoinError, NotReachable, PotluckError, Refused, ResourceError
from potluck.ids import NodeId
from potluck.net.counters import ByteCounter, Plane
from potluck.net.remote_errors import error_from_id
from potluck.net.tls import Peer, peer_of

ERROR_ID_KEY = "potluck-error-id"
FIX_KEY = "potluck-fix"
MAX_TEXT = 2000
"""Characters of a message or fix on the wire; metadata above 8 KiB may be dropped."""
MAX_ENCODED = 3000
"""The same percent-encoded, as gRPC sends it, where a character may take twelve."""
_SAFE = " !#$&'()*+,-./:;<=>?@[]^_`{|}~\""

MAX_CALLS = 256
"""Open at once, of one peer: a program that asks a router opens that many; a node opens seven."""
MAX_STRANGER_CALLS = 16
"""Open at once from one address without a certificate: a rack that joins behind one address comes in turns."""
MAX_STRANGERS = 256
"""Calls without a certificate, over all addresses."""
ERROR_ID = re.compile(r"[a-z]+(\.[a-z0-9]+(-[a-z0-9]+)*)+")

ANYONE = frozenset({"anyone"})
EVERY_ROLE = frozenset({"admin", "node", "router", "client"})
DEFAULT_ACCESS: Mapping[str, frozenset[str]] = {
    "/potluck.v1.EnrolService/": ANYONE,
    "/potluck.v1.NodeService/": frozenset({"node"}),
    "/potluck.v1.NodeService/Session": frozenset({"node", "router"}),
    "/potluck.v1.NodeService/Greet": EVERY_ROLE,
    "/potluck.v1.ArtifactService/": EVERY_ROLE,
    "/potluck.v1.AdminService/": frozenset({"admin"}),
    "/potluck.v1.MixtureService/": frozenset({"admin"}),
    "/potluck.v1.RouterService/": EVERY_ROLE,
    "/potluck.v1.ExpertService/": frozenset({"node"}),
    "/grpc.health.v1.Health/": EVERY_ROLE,
    "/grpc.reflection.v1.ServerReflection/": EVERY_ROLE,
    "/grpc.reflection.v1alpha.ServerReflection/": EVERY_ROLE,
}
"""Roles by method, or by service where the key ends in a slash. What is not listed nobody may call."""
DOOR_ACCESS: Mapping[str, frozenset[str]] = {
    "/potluck.v1.EnrolService/": ANYONE,
    "/grpc.health.v1.Health/": ANYONE,
    "/grpc.reflection.v1.ServerReflection/": ANYONE,
    "/grpc.reflection.v1alpha.ServerReflection/": ANYONE,
}
"""Of the enrolment server: nobody there has a certificate yet. What reflection tells stands in the source."""

log = telemetry.logger(__name__)
Context = Any  # grpc.aio.ServicerContext; its type parameters say nothing here


class Guard(grpc.aio.ServerInterceptor):  # type: ignore[type-arg]  # generic in the stubs only
    """Server interceptor. Checks role, expiry and revocation on every call, for TLS looks at the handshake only.

    A handler raises a `PotluckError`; the caller gets its status, message, id and fix. Anything else a handler
    raises is logged with its traceback and reaches the caller as ``bug.internal``.
    """

    def __init__(
        self,
        *,
        access: Mapping[str, frozenset[str]] = DEFAULT_ACCESS,
        is_revoked: Callable[[NodeId], bool] = lambda _: False,
        counter: ByteCounter | None = None,
        plane: Plane = "control",
        clock: Clock | None = None,
    ) -> None:
        self._access = access
        self._is_revoked = is_revoked
        self._counter = counter or ByteCounter()
        self._plane = plane
        self._clock = clock or SystemClock()
        self._streams: dict[NodeId, set[Context]] = {}
        self._strangers: Counter[str] = Counter()

    async def intercept_service(
        self,
        continuation: Callable[[grpc.HandlerCallDetails], Awaitable[grpc.RpcMethodHandler[Any, Any]]],
        handler_call_details: grpc.HandlerCallDetails,
    ) -> grpc.RpcMethodHandler[Any, Any]:
        handler = await continuation(handler_call_details)
        if handler is None:
            return handler
        method = handler_call_details.method
        make = {
            (False, False): grpc.unary_unary_rpc_method_handler,
            (False, True): grpc.unary_stream_rpc_method_handler,
            (True, False): grpc.stream_unary_rpc_method_handler,
            (True, True): grpc.stream_stream_rpc_method_handler,
        }[bool(handler.request_streaming), bool(handler.response_streaming)]
        behaviour: Any = handler.unary_unary or handler.unary_stream or handler.stream_unary or handler.stream_stream
        wrapped = self._wrap_generator(method, behaviour) if _generates(behaviour) else self._wrap(method, behaviour)
        guarded: grpc.RpcMethodHandler[Any, Any] = make(
            wrapped,
            request_deserializer=self._counting(handler.request_deserializer, "in"),
            response_serializer=self._counting(handler.response_serializer, "out"),
        )
        return guarded

    async def abort_streams(self, node_id: NodeId, error: PotluckError) -> int:
        """Ends the open calls of a peer, e.g. one just revoked; returns how many there were."""
        contexts = list(self._streams.get(node_id, ()))
        for context in contexts:
            with contextlib.suppress(grpc.aio.AbortError):
                await _abort(context, error)
        return len(contexts)

    def _wrap(self, method: str, behaviour: Any) -> Any:
        async def guarded(request: Any, context: Context) -> Any:
            async with self._admitted(method, context):
                return await behaviour(request, context)

        return guarded

    def _wrap_generator(self, method: str, behaviour: Any) -> Any:
        async def guarded(request: Any, context: Context) -> AsyncIterator[Any]:
            async with self._admitted(method, context), contextlib.aclosing(behaviour(request, context)) as answers:
                async for answer in answers:
                    yield answer

        return guarded

    @contextlib.asynccontextmanager
    async def _admitted(self, method: str, context: Context) -> AsyncIterator[None]:
        peer = peer_of(context)
        address = "" if peer is not None else _host_of(context)
        refusal = self._refusal(method, peer) or self._crowded(peer, address)
        if refusal is not None:
            log.fact("call-refused", method=method, peer=peer, error_id=refusal.error_id)
            await _abort(context, refusal)
        if peer is not None:
            self._streams.setdefault(peer.node_id, set()).add(context)
        else:
            self._strangers[address] += 1
        try:
            yield
        except grpc.aio.AbortError:
            raise
        except PotluckError as error:
            await _abort(context, error)
        except Exception as error:
            log.failure("call-failed", error, method=method)
            await _abort(context, PotluckError("bug.internal", f"{method} failed inside", "see the other side's log"))
        finally:
            if peer is not None:
                contexts = self._streams[peer.node_id]
                contexts.discard(context)
                if not contexts:
                    del self._streams[peer.node_id]
            else:
                self._strangers[address] -= 1
                if not self._strangers[address]:
                    del self._strangers[address]

    def _refusal(self, method: str, peer: Peer | None) -> PotluckError | None:
        service = method[: method.rfind("/") + 1]
        roles = self._access.get(method, self._access.get(service, frozenset()))
        if roles == ANYONE:
            return None
        if peer is None:
            return JoinError("join.no-certificate", f"{method} needs a certificate of this coordinator", "join first")
        if self._clock.unix_ms() > peer.not_after_unix_ms:
            return JoinError("join.certificate-expired", f"the certificate of {peer.node_id} has expired", "join again")
        if self._is_revoked(peer.node_id):
            return JoinError(
                "join.revoked", f"{peer.role} {peer.node_id} was put out", "ask for a new join string and join again"
            )
        if peer.role not in roles:
            allowed = ", ".join(sorted(roles)) or "nobody"
            return JoinError(
                "join.wrong-role",
                f"{peer.role} {peer.node_id} may not call {method}; allowed: {allowed}",
                "use an identity of that role",
            )
        return None

    def _crowded(self, peer: Peer | None, address: str) -> PotluckError | None:
        if peer is not None:
            num_open, most, who = len(self._streams.get(peer.node_id, ())), MAX_CALLS, f"{peer.role} {peer.node_id}"
        else:
            num_open, most, who = self._strangers[address], MAX_STRANGER_CALLS, "this address"
            if self._strangers.total() >= MAX_STRANGERS:
                num_open, most, who = MAX_STRANGERS, MAX_STRANGERS, "machines without a certificate"
        if num_open < most:
            return None
        return ResourceError("resource.too-many-calls", f"{num_open} calls of {who} are open", "wait for one to end")

    def _counting(self, translate: Any, direction: Any) -> Any:
        """Counts at the codec: it is the one place that sees each message, unary or streamed, as bytes."""
        if direction == "in":

            def deserialise(data: bytes) -> Any:
                self._counter.add(self._plane, "in", len(data))
                return translate(data) if translate else data

            return deserialise

        def serialise(message: Any) -> bytes:
            data: bytes = translate(message) if translate else message
            self._counter.add(self._plane, "out", len(data))
            return data

        return serialise


def error_from_rpc(error: grpc.RpcError) -> PotluckError:
    """The `PotluckError` a peer raised, or one that says how the call itself failed.

    Calls that failed on their own give ``net.unreachable``, ``net.timeout``, ``net.cancelled``,
    ``refused.unknown-call`` or ``bug.remote``; `potluck.net.diagnose` finds out more about the first.
    """
    status: Any = error  # both kinds of RpcError are also calls
    code = status.code() if hasattr(status, "code") else grpc.StatusCode.UNKNOWN
    details = (status.details() or "") if hasattr(status, "details") else str(error)
    trailing = status.trailing_metadata() if hasattr(status, "trailing_metadata") else None
    metadata = dict(trailing or ())
    if error_id := metadata.get(ERROR_ID_KEY):
        return error_from_id(str(error_id), details, urllib.parse.unquote(str(metadata.get(FIX_KEY, ""))))
    if code == grpc.StatusCode.UNAVAILABLE:
        return NotReachable("net.unreachable", f"the other side does not answer: {details}", "is its daemon running?")
    if code == grpc.StatusCode.DEADLINE_EXCEEDED:
        return NotReachable("net.timeout", f"no answer in time: {details}", "try again; check the network")
    if code == grpc.StatusCode.CANCELLED:
        return NotReachable("net.cancelled", f"the call was cancelled: {details}", "try again")
    if code == grpc.StatusCode.RESOURCE_EXHAUSTED:
        what = f"a message is too large, or the other side too busy: {details}"
        return ResourceError("resource.refused-by-grpc", what, "send less at once; what is large goes as a blob")
    if code == grpc.StatusCode.UNIMPLEMENTED:
        return Refused("refused.unknown-call", f"the other side does not know this call: {details}", "check the port")
    return PotluckError("bug.remote", f"{code.name}: {details}", "see the other side's log")


def raise_from_rpc(error: grpc.RpcError) -> NoReturn:
    """Raises what `error_from_rpc` returns."""
    raise error_from_rpc(error) from error


@contextlib.contextmanager
def rpc_errors() -> Iterator[None]:
    """Turns RPC errors inside its block into `PotluckError`s, for sync and async calls alike."""
    try:
        yield
    except grpc.RpcError as error:
        raise_from_rpc(error)


async def _abort(context: Context, error: PotluckError) -> NoReturn:
    status = grpc.StatusCode[error.grpc_status]
    # Ids and texts may be those of a peer: only a sound id is a key, and both texts must fit into metadata.
    error_id = error.error_id if ERROR_ID.fullmatch(error.error_id) and len(error.error_id) <= 64 else "bug.remote"
    trailing = ((ERROR_ID_KEY, error_id), (FIX_KEY, _quoted(error.fix)))
    await context.abort(status, urllib.parse.unquote(_quoted(error.message)), trailing)
    raise AssertionError("abort does not return")


def _quoted(text: str) -> str:
    """Percent-encoded, of at most `MAX_ENCODED` characters; what is cut off ends with a whole character."""
    text = text[:MAX_TEXT].encode("utf-8", "replace").decode()
    while len(quoted := urllib.parse.quote(text, safe=_SAFE)) > MAX_ENCODED:
        text = text[: max(1, len(text) * MAX_ENCODED // len(quoted)) - 1]
    return quoted


def _host_of(context: Context) -> str:
    """The caller's address without its port."""
    return str(context.peer()).rpartition(":")[0]


def _generates(behaviour: Any) -> bool:
    return inspect.isasyncgenfunction(behaviour)


def revoked_in(node_ids: Collection[NodeId]) -> Callable[[NodeId], bool]:
    """`is_revoked` over a live collection, which the owner may change."""
    return lambda node_id: node_id in node_ids
