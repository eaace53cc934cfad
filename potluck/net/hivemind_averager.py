"""hivemind behind three functions. The only module that imports it; only processes of its own import this one.

hivemind fixes the fork start method at import and fills the process's descriptor pool: no process with
gRPC or workers may load it.
"""

from __future__ import annotations

import os
import time
from collections.abc import Mapping, Sequence
from typing import AsyncIterator  # noqa: UP035  hivemind knows a stream by this very class

import torch
from hivemind import DHT
from hivemind.averaging import DecentralizedAverager
from hivemind.compression import NoCompression
from hivemind.p2p import P2P, P2PContext
from hivemind.proto import averaging_pb2
from hivemind.utils import get_dht_time

from potluck.crashpoints import crash_here
from potluck.errors import NotReachable, Refused
from potluck.net.hivemind_messages import AverageRequest

MATCHMAKING_S = 2.0
"""A peer renews its offer this often while the group is not complete."""
REQUEST_TIMEOUT_S = 1.0
"""Below the former, or two peers that ask each other wait for each other."""
START_TIMEOUT_S = 30.0
"""For the p2p daemon on a busy machine; it needs 0.5 to 1 s on an idle one."""
LINGER_S = 10.0
"""At most so long a finished peer stays for those that still fetch the parts it reduced."""
POLL_S = 0.05


class Averager(DecentralizedAverager):  # type: ignore[misc]  # hivemind has no types
    """A place to die while parts of tensors are under way; hivemind's own class else."""

    async def rpc_aggregate_part(
        self, stream: AsyncIterator[averaging_pb2.AveragingData], context: P2PContext
    ) -> AsyncIterator[averaging_pb2.AveragingData]:
        async for message in super().rpc_aggregate_part(stream, context):
            yield message
            crash_here("hivemind.mid-average", also=-os.getpgrp())


def join(
    *,
    listen_host: str,
    listen_port: int,
    initial_peers: Sequence[str],
    scratch: str,
    identity: str | None = None,
) -> tuple[DHT, tuple[str, ...]]:
    """Starts a peer and returns it with the addresses at which others can meet it.

    Args:
        scratch: a folder for its sockets.
        identity: a file with its key, made if it is not there, so that its addresses stay the same; None for any.

    Raises:
        NotReachable: ``net.averaging-not-joined``, no initial peer answers or the port is taken.
    """
    # Else the sockets lie in /tmp and outlive a peer that was killed; hivemind offers no option.
    P2P._UNIX_SOCKET_PREFIX = f"/unix{scratch}/"
    version = "ip6" if ":" in listen_host else "ip4"
    try:
        dht = DHT(
            host_maddrs=[f"/{version}/{listen_host}/tcp/{listen_port}"],
            initial_peers=list(initial_peers) or None,
            start=True,
            identity_path=identity,
            # Loopback and local networks: no helpers outside, no holes in anybody's router.
            nat_port_map=False,
            auto_nat=False,
            use_relay=False,
            use_auto_relay=False,
            startup_timeout=START_TIMEOUT_S,
        )
        addresses = tuple(str(address) for address in dht.get_visible_maddrs())
    except Exception as error:  # hivemind's errors of many kinds, told as one
        raise NotReachable(
            "net.averaging-not-joined",
            f"no peer at {listen_host}:{listen_port} by {list(initial_peers)}: {type(error).__name__}: {error}",
            "let the port be free here and the initial peer's be reachable",
        ) from error
    return dht, addresses


def average(dht: DHT, request: AverageRequest, tensors: Mapping[str, torch.Tensor], deadline: float) -> None:
    """Averages the tensors in place, in a group of exactly `num_peers`, uncompressed, once: no attempt is repeated.

    That it returns is no proof: when a peer dies midway hivemind mostly reports success, and each element is
    averaged or not.

    Args:
        deadline: on the monotonic clock, in seconds.

    Raises:
        NotReachable: ``net.averaging-incomplete``, no whole group, or it did not finish in time.
        Refused: ``refused.averaging-group``, the group was not the peers 0 to `num_peers` - 1.
    """
    averager = Averager(
        list(tensors.values()),
        dht,
        start=True,
        prefix=request.round_key,
        target_group_size=request.num_peers,
        min_group_size=request.num_peers,
        min_matchmaking_time=MATCHMAKING_S,
        request_timeout=REQUEST_TIMEOUT_S,
        compression=NoCompression(),
        allow_state_sharing=False,
    )
    left_s = deadline - time.monotonic()
    try:
        step = averager.step(
            gather={"index": request.index}, timeout=max(left_s, MATCHMAKING_S + 1), allow_retries=False, wait=False
        )
        gathered = step.result(timeout=max(left_s, 0))
    except Exception as error:  # a timeout, or one of hivemind's own
        raise NotReachable(
            "net.averaging-incomplete",
            f"no averaging among {request.num_peers} peers within {request.deadline_s:g} s: "
            f"{type(error).__name__}: {error}",
            "see that every peer runs and reaches the initial peer's address, or give more time",
        ) from error
    indices = [said.get("index") if isinstance(said, dict) else None for said in gathered.values()]
    if len(indices) != request.num_peers or set(indices) != set(range(request.num_peers)):
        raise Refused(
            "refused.averaging-group",
            f"the group was the peers {indices}, not 0 to {request.num_peers - 1}",
            "give each peer its own index and a round's key to its own peers alone",
        )


def linger(dht: DHT, request: AverageRequest, deadline: float) -> None:
    """Stays until every peer has all its parts: who leaves at once takes parts with it that others still fetch."""
    key = f"{request.round_key}.done"
    until = min(deadline, time.monotonic() + LINGER_S)
    dht.store(key, subkey=str(request.index), value=True, expiration_time=get_dht_time() + 2 * LINGER_S)
    while time.monotonic() < until:
        done = dht.get(key, latest=True)
        if done is not None and len(done.value) == request.num_peers:
            return
        time.sleep(POLL_S)  # the DHT tells nobody of what is stored
