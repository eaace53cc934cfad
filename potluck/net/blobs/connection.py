"""The dialling socket: CURVE, a monitor that tells refusals, and an outbox that never asks twice."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator
from typing import Any

import zmq
from zmq.utils.monitor import recv_monitor_message

from potluck.errors import PotluckError, Refused
from potluck.net.blobs import wire
from potluck.net.counters import ByteCounter, Plane
from potluck.net.identity import Identity

RECONNECT_MS, RECONNECT_MAX_MS = 100, 2_000
CONNECT_TIMEOUT_MS = 10_000
"""The system would try an address that has gone silent for two minutes; the next attempt looks the name up anew."""


class Connection:
    """Owned by one thread."""

    def __init__(
        self, context: zmq.Context[Any], poller: zmq.Poller, identity: Identity, target: str, counter: ByteCounter
    ) -> None:
        self._target = target
        self._poller = poller
        self._counter = counter
        self.failed_handshakes = 0
        """In a row. A wrong server key looks like a forwarder whose server is away, so it is a hint only."""
        self._outbox: deque[tuple[int, Plane, list[bytes | memoryview]]] = deque()
        self._dealer = context.socket(zmq.DEALER)
        _configure(self._dealer, identity, target)
        self._monitor = self._dealer.get_monitor_socket(
            zmq.EVENT_HANDSHAKE_SUCCEEDED
            | zmq.EVENT_HANDSHAKE_FAILED_AUTH
            | zmq.EVENT_HANDSHAKE_FAILED_NO_DETAIL
            | zmq.EVENT_HANDSHAKE_FAILED_PROTOCOL
        )
        self._dealer.connect(f"tcp://{target}")
        poller.register(self._dealer, zmq.POLLIN)
        poller.register(self._monitor, zmq.POLLIN)

    def close(self) -> None:
        self._poller.unregister(self._dealer)
        self._poller.unregister(self._monitor)
        self._dealer.disable_monitor()
        self._monitor.close(linger=0)
        self._dealer.close(linger=0)

    def watch(self) -> None:
        """Call before each poll: asks for room to send only while something waits."""
        self._poller.modify(self._dealer, zmq.POLLIN | (zmq.POLLOUT if self._outbox else 0))

    def refusal(self) -> PotluckError | None:
        """Reads the monitor; an error means that this socket will never be let in, so take a new one next time."""
        while self._monitor.poll(0):
            event = recv_monitor_message(self._monitor)["event"]
            if event == zmq.EVENT_HANDSHAKE_SUCCEEDED:
                self.failed_handshakes = 0
            elif event == zmq.EVENT_HANDSHAKE_FAILED_AUTH:
                return Refused(
                    "refused.data-key", f"{self._target} does not allow this machine's data key", "join again"
                )
            else:
                self.failed_handshakes += 1
        return None

    def say(self, transfer: int, plane: Plane, message: wire.Message) -> None:
        """Queues a message; `flush` sends it."""
        self._outbox.append((transfer, plane, wire.encode(message)))

    def unsay(self, transfer: int) -> None:
        """Takes back what a transfer has queued."""
        self._outbox = deque(item for item in self._outbox if item[0] != transfer)

    def flush(self) -> None:
        while self._outbox:
            _, plane, frames = self._outbox[0]
            try:
                self._dealer.send_multipart(frames, zmq.NOBLOCK)
            except zmq.Again:
                return
            self._outbox.popleft()
            self._counter.add(plane, "out", sum(len(frame) for frame in frames))

    def receive(self, most: int) -> Iterator[list[memoryview]]:
        """The frames of up to `most` messages that are here."""
        for _ in range(most):
            try:
                frames = self._dealer.recv_multipart(zmq.NOBLOCK, copy=False)
            except zmq.Again:
                return
            yield [frame.buffer for frame in frames]


def _configure(dealer: zmq.Socket[Any], identity: Identity, target: str) -> None:
    dealer.linger = 0
    dealer.maxmsgsize = wire.MAX_MESSAGE_BYTES
    # Nothing queues for a server that is away: what is asked for anew must not be asked twice.
    dealer.immediate = True
    dealer.reconnect_ivl, dealer.reconnect_ivl_max = RECONNECT_MS, RECONNECT_MAX_MS
    dealer.connect_timeout = CONNECT_TIMEOUT_MS
    dealer.heartbeat_ivl, dealer.heartbeat_timeout = 1_000, 3_000
    if target.startswith("["):
        dealer.ipv6 = True
    if not identity.insecure:
        dealer.curve_publickey = identity.curve_public.encode()
        dealer.curve_secretkey = identity.curve_secret.encode()
        dealer.curve_serverkey = identity.curve_server_key.encode()
