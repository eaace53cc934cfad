"""The dialling end of the data plane: one thread, one DEALER socket, many transfers.

TCP and ZeroMQ say nothing when a server dies, comes back, or drops a message at a full queue. So each transfer has a
timer: after a silence it goes on from the bytes it has, under a new number.
"""

from __future__ import annotations

import itertools
import queue
import socket
import threading
from collections import deque
from collections.abc import Callable
from concurrent.futures import Future
from pathlib import Path
from typing import Any

import zmq
from zmq.utils.monitor import recv_monitor_message

from potluck import telemetry
from potluck.clock import Clock, SystemClock
from potluck.errors import JoinError, NotReachable, PotluckError, Refused, UsageError
from potluck.ids import Digest, short
from potluck.net.address import is_loopback
from potluck.net.blobs import wire
from potluck.net.blobs.store import BlobStore
from potluck.net.blobs.transfers import GetTransfer, PutTransfer, Transfer
from potluck.net.blobs.window import Window
from potluck.net.counters import ByteCounter, Plane
from potluck.net.identity import Identity

TICK_MS = 100
IDLE_MS = 1_000
SILENCE_MS = 1_000
STARVED_MS = 5_000
"""A transfer that hears nothing while others on the socket do may only be waiting for its turn."""
MAX_PATIENCE_MS = 2_000
GIVE_UP_AFTER_MS = 60_000
MAX_ACTIVE = 4
"""More transfers at once only make each slower; the rest wait in order."""
MESSAGES_A_TURN = 64
WRONG_KEY_HANDSHAKES = 3
"""A connection that dies in mid-handshake looks like a wrong server key; a third in a row is one."""
RECONNECT_MS, RECONNECT_MAX_MS = 100, 2_000

log = telemetry.logger(__name__)


class BlobClient:
    """Fetches blobs into a store and sends files. From any thread; in asyncio use ``asyncio.wrap_future``.

    Futures fail with: ``data.missing-blob``, ``data.digest-mismatch`` (twice damaged), ``resource.quota`` and
    ``resource.disk-full`` (here or there), ``refused.data-key``, ``refused.may-not-put``, ``refused.partial-busy``,
    ``join.wrong-data-key``, ``net.no-progress``. Cancelling a future stops its transfer unless another waits for it.
    """

    def __init__(
        self,
        identity: Identity,
        store: BlobStore,
        *,
        target: str | None = None,
        counter: ByteCounter | None = None,
        give_up_after_ms: int = GIVE_UP_AFTER_MS,
        clock: Clock | None = None,
    ) -> None:
        """
        Args:
            target: host:port of the server; the identity's data port by default.
            give_up_after_ms: how long a transfer bears that nothing at all comes from the server.
        """
        self._target = target or identity.data_target
        if identity.insecure and not is_loopback(self._target.rpartition(":")[0]):
            raise UsageError(
                "usage.insecure-not-loopback", f"{self._target} is not loopback", "join without --insecure"
            )
        self._identity = identity
        self._store = store
        self.counter = counter or ByteCounter()
        self._give_up_after_ms = give_up_after_ms
        self._clock = clock or SystemClock()
        self._commands: queue.SimpleQueue[Callable[[], None]] = queue.SimpleQueue()
        self._wake_reading, self._wake_writing = socket.socketpair()
        self._wake_writing.setblocking(False)
        self._numbers = itertools.count(1)
        self._waiting: deque[Transfer] = deque()
        self._active: dict[int, Transfer] = {}
        self._outbox: deque[tuple[int, Plane, list[bytes | memoryview]]] = deque()
        self._window = Window()
        self._heard_ms = 0
        self._failed_handshakes = 0
        self._closing = False
        self._context: zmq.Context[Any] = zmq.Context()
        self._dealer: zmq.Socket[Any] | None = None
        self._monitor: zmq.Socket[Any] | None = None
        self._thread = threading.Thread(target=self._run, name="blob-client", daemon=True)
        self._thread.start()

    def get(self, digest: Digest, plane: Plane) -> Future[Path]:
        """Brings a blob into the store; a blob that is there moves nothing. The result is its path."""
        future: Future[Path] = Future()
        if self._store.has(digest):
            future.set_result(self._store.path(digest))
            return future
        self._submit(GetTransfer(digest=digest, plane=plane, store=self._store), future)
        return future

    def put(self, digest: Digest, path: Path, plane: Plane) -> Future[Digest]:
        """Sends a file whose digest the caller knows; a blob the server has moves nothing.

        The result comes when the server has verified, synced and named the blob.
        """
        future: Future[Digest] = Future()
        self._submit(PutTransfer(digest=digest, plane=plane, path=path), future)
        return future

    def close(self) -> None:
        """Ends the thread; what is under way fails with ``net.cancelled`` and can be continued later."""
        if self._thread.is_alive():
            self._order(self._shut)
            self._thread.join()

    def __enter__(self) -> BlobClient:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _submit(self, transfer: Transfer, future: Future[Any]) -> None:
        future.add_done_callback(lambda _: self._order(lambda: None))
        self._order(lambda: self._enlist(transfer, future))

    def _order(self, command: Callable[[], None]) -> None:
        self._commands.put(command)
        try:
            self._wake_writing.send(b"x")
        except (BlockingIOError, OSError):
            pass  # already awake, or closed

    # From here on everything runs on the client's thread.

    def _shut(self) -> None:
        self._closing = True

    def _enlist(self, transfer: Transfer, future: Future[Any]) -> None:
        if self._closing:
            _fail([future], NotReachable("net.cancelled", "the blob client is closed", "open a new one"))
            return
        for known in [*self._active.values(), *self._waiting]:
            if type(known) is type(transfer) and known.digest == transfer.digest:
                known.futures.append(future)
                return
        transfer.futures.append(future)
        self._waiting.append(transfer)

    def _run(self) -> None:
        poller = zmq.Poller()
        poller.register(self._wake_reading, zmq.POLLIN)
        try:
            while not self._closing:
                try:
                    self._turn(poller)
                except Exception as error:
                    log.failure("blob-client-failed", error)
                    self._fail_all(PotluckError("bug.internal", f"the blob client failed inside: {error}"))
                    self._disconnect(poller)
        finally:
            self._fail_all(NotReachable("net.cancelled", "the blob client was closed", "start the transfer again"))
            self._disconnect(poller)
            self._context.destroy(linger=0)
            self._wake_reading.close()
            self._wake_writing.close()

    def _turn(self, poller: zmq.Poller) -> None:
        busy = bool(self._active or self._waiting)
        if busy and self._dealer is None:
            self._connect(poller)
        if self._dealer is not None:
            poller.modify(self._dealer, zmq.POLLIN | (zmq.POLLOUT if self._outbox else 0))
        ready = dict(poller.poll(TICK_MS if busy else IDLE_MS))
        if self._wake_reading.fileno() in ready:
            self._wake_reading.recv(4096)
        while not self._commands.empty():
            self._commands.get_nowait()()
        if self._monitor in ready:
            self._read_monitor(poller)
        if self._dealer is not None and self._dealer in ready:
            self._receive_some()
        self._drop_cancelled()
        self._start_waiting()
        self._check_timers()
        self._pump()
        self._flush()

    def _connect(self, poller: zmq.Poller) -> None:
        dealer = self._context.socket(zmq.DEALER)
        dealer.linger = 0
        dealer.maxmsgsize = wire.MAX_MESSAGE_BYTES
        # Nothing queues for a server that is away: what is asked for anew must not be asked twice.
        dealer.immediate = True
        dealer.reconnect_ivl, dealer.reconnect_ivl_max = RECONNECT_MS, RECONNECT_MAX_MS
        dealer.heartbeat_ivl, dealer.heartbeat_timeout = 1_000, 3_000
        if self._target.startswith("["):
            dealer.ipv6 = True
        if not self._identity.insecure:
            dealer.curve_publickey = self._identity.curve_public.encode()
            dealer.curve_secretkey = self._identity.curve_secret.encode()
            dealer.curve_serverkey = self._identity.curve_server_key.encode()
        self._monitor = dealer.get_monitor_socket(
            zmq.EVENT_HANDSHAKE_SUCCEEDED
            | zmq.EVENT_HANDSHAKE_FAILED_AUTH
            | zmq.EVENT_HANDSHAKE_FAILED_NO_DETAIL
            | zmq.EVENT_HANDSHAKE_FAILED_PROTOCOL
        )
        dealer.connect(f"tcp://{self._target}")
        self._dealer = dealer
        self._failed_handshakes = 0
        poller.register(dealer, zmq.POLLIN)
        poller.register(self._monitor, zmq.POLLIN)

    def _disconnect(self, poller: zmq.Poller) -> None:
        if self._dealer is None or self._monitor is None:
            return
        poller.unregister(self._dealer)
        poller.unregister(self._monitor)
        self._dealer.disable_monitor()
        self._monitor.close(linger=0)
        self._dealer.close(linger=0)
        self._dealer = self._monitor = None
        self._outbox.clear()

    def _read_monitor(self, poller: zmq.Poller) -> None:
        assert self._monitor is not None
        event = recv_monitor_message(self._monitor)["event"]
        if event == zmq.EVENT_HANDSHAKE_SUCCEEDED:
            self._failed_handshakes = 0
            return
        if event == zmq.EVENT_HANDSHAKE_FAILED_AUTH:
            # A refused socket never dials again, so the next transfer gets a new one.
            self._fail_all(
                Refused("refused.data-key", f"{self._target} does not allow this machine's data key", "join again")
            )
            self._disconnect(poller)
            return
        self._failed_handshakes += 1
        if self._failed_handshakes >= WRONG_KEY_HANDSHAKES:
            self._fail_all(
                JoinError(
                    "join.wrong-data-key",
                    f"{self._target} has another key than at the join, or none",
                    "join again; start both sides with --insecure or neither",
                )
            )
            self._disconnect(poller)

    def _receive_some(self) -> None:
        assert self._dealer is not None
        for _ in range(MESSAGES_A_TURN):
            try:
                frames = self._dealer.recv_multipart(zmq.NOBLOCK, copy=False)
            except zmq.Again:
                return
            buffers = [frame.buffer for frame in frames]
            try:
                message = wire.decode(buffers)
            except ValueError as error:
                log.fact("blob-message-refused", reason=str(error))
                continue
            self._heard_ms = self._clock.monotonic_ms()
            transfer = self._active.get(message.transfer)
            if transfer is None:
                continue  # of an earlier number
            self.counter.add(transfer.plane, "in", sum(len(buffer) for buffer in buffers))
            try:
                self._handle(transfer, message)
            except PotluckError as error:
                self._fail(transfer, error)
            except OSError as error:
                self._fail(transfer, PotluckError("resource.file", f"{transfer.where}: {error}", "check the disk"))

    def _handle(self, transfer: Transfer, message: wire.Message) -> None:
        transfer.heard(self._heard_ms)
        if isinstance(message, wire.No):
            self._handle_no(transfer, message)
        elif isinstance(message, wire.Chunk) and isinstance(transfer, GetTransfer):
            self._handle_chunk(transfer, message)
        elif isinstance(message, wire.Want) and isinstance(transfer, PutTransfer):
            transfer.progress()
            self._say(transfer, transfer.read(message))
        elif isinstance(message, wire.Done) and isinstance(transfer, PutTransfer):
            self._succeed(transfer, transfer.digest)

    def _handle_no(self, transfer: Transfer, message: wire.No) -> None:
        error = transfer.refusal(message)
        if error is not None:
            raise error
        self._renew(transfer)

    def _handle_chunk(self, transfer: GetTransfer, chunk: wire.Chunk) -> None:
        sound = transfer.accept(chunk)
        if sound:
            self._window.received(len(chunk.payload), self._heard_ms)
            transfer.progress()
        if transfer.complete:
            path = transfer.finish()
            if path is not None:
                self._succeed(transfer, path)
                return
            sound = False
        if not sound and transfer.damages > 1:
            self._say(transfer, wire.Doubt(transfer=transfer.number, digest=transfer.digest))
            self._flush()
            raise transfer.damage_error()
        if not sound:
            log.fact("blob-came-damaged", blob=short(transfer.digest), offset=transfer.offset)
            self._renew(transfer)

    def _start_waiting(self) -> None:
        while self._waiting and len(self._active) < MAX_ACTIVE:
            transfer = self._waiting.popleft()
            try:
                transfer.open()
            except PotluckError as error:
                _fail(transfer.futures, error)
                continue
            except OSError as error:
                problem = PotluckError("resource.file", f"{transfer.where}: {error}", "check the path and the disk")
                _fail(transfer.futures, problem)
                continue
            transfer.begin(self._clock.monotonic_ms(), SILENCE_MS)
            self._renew(transfer)

    def _renew(self, transfer: Transfer) -> None:
        """Goes on under a new number: whatever still comes under the old one is stale."""
        self._retire(transfer)
        transfer.number = next(self._numbers)
        self._active[transfer.number] = transfer
        first = transfer.ask_again()
        if first is not None:
            self._say(transfer, first)

    def _retire(self, transfer: Transfer) -> None:
        self._active.pop(transfer.number, None)
        self._outbox = deque(item for item in self._outbox if item[0] != transfer.number)

    def _check_timers(self) -> None:
        now_ms = self._clock.monotonic_ms()
        socket_silent = now_ms - self._heard_ms >= SILENCE_MS
        for transfer in list(self._active.values()):
            silence_ms = now_ms - transfer.heard_ms
            if now_ms - transfer.alive_ms >= self._give_up_after_ms:
                minutes = self._give_up_after_ms / 60_000
                self._fail(
                    transfer,
                    NotReachable(
                        "net.no-progress",
                        f"{transfer.where}: nothing came from {self._target} for {minutes:g} minutes",
                        "is the coordinator running, and its data port open?",
                    ),
                )
            elif silence_ms >= (transfer.patience_ms if socket_silent else STARVED_MS):
                if socket_silent:
                    self._window = Window()
                transfer.grow_patience(now_ms, MAX_PATIENCE_MS)
                self._renew(transfer)

    def _pump(self) -> None:
        """Asks for more, in turn for each get, as far as the window goes."""
        gets = [transfer for transfer in self._active.values() if isinstance(transfer, GetTransfer)]
        in_flight = sum(get.in_flight for get in gets)
        now_ms = self._clock.monotonic_ms()
        while in_flight + self._window.chunk_bytes <= self._window.limit_bytes:
            hungry = [get for get in gets if get.wants_more]
            if not hungry:
                return
            chosen = min(hungry, key=lambda get: get.in_flight)
            message = chosen.ask(self._window.chunk_bytes, now_ms)
            self._say(chosen, message)
            in_flight += message.length

    def _say(self, transfer: Transfer, message: wire.Message) -> None:
        self._outbox.append((transfer.number, transfer.plane, wire.encode(message)))

    def _flush(self) -> None:
        while self._outbox and self._dealer is not None:
            _, plane, frames = self._outbox[0]
            try:
                self._dealer.send_multipart(frames, zmq.NOBLOCK)
            except zmq.Again:
                return
            self._outbox.popleft()
            self.counter.add(plane, "out", sum(len(frame) for frame in frames))

    def _drop_cancelled(self) -> None:
        for transfer in list(self._active.values()):
            if all(future.cancelled() for future in transfer.futures):
                self._retire(transfer)
                transfer.close()
                if isinstance(transfer, PutTransfer):
                    self._say(transfer, wire.Forget(transfer=transfer.number))
        self._waiting = deque(t for t in self._waiting if not all(future.cancelled() for future in t.futures))

    def _succeed(self, transfer: Transfer, result: object) -> None:
        self._retire(transfer)
        transfer.close()
        for future in transfer.futures:
            if future.set_running_or_notify_cancel():
                future.set_result(result)

    def _fail(self, transfer: Transfer, error: PotluckError) -> None:
        self._retire(transfer)
        transfer.close()
        _fail(transfer.futures, error)

    def _fail_all(self, error: PotluckError) -> None:
        while not self._commands.empty():
            self._commands.get_nowait()()
        for transfer in list(self._active.values()):
            self._fail(transfer, error)
        while self._waiting:
            _fail(self._waiting.popleft().futures, error)


def _fail(futures: list[Future[Any]], error: PotluckError) -> None:
    for future in futures:
        if future.set_running_or_notify_cancel():
            future.set_exception(error)
