"""The dialling end of the data plane: one thread, one DEALER socket, many transfers.

TCP and ZeroMQ say nothing when a server dies, comes back, or drops a message at a full queue. So each transfer has a
timer: after a silence it goes on from the bytes it has, under a new number.
"""

from __future__ import annotations

import contextlib
import itertools
import queue
import socket
import threading
from collections import deque
from collections.abc import Callable
from concurrent.futures import Future, InvalidStateError
from pathlib import Path
from typing import Any

import zmq

from potluck import telemetry
from potluck.clock import Clock, SystemClock
from potluck.errors import NotReachable, PotluckError, UsageError
from potluck.ids import Digest, short
from potluck.net.address import is_loopback
from potluck.net.blobs import wire
from potluck.net.blobs.connection import Connection
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

log = telemetry.logger(__name__)


class BlobClient:
    """Fetches blobs into a store and sends files. From any thread; in asyncio use ``asyncio.wrap_future``.

    Futures fail with: ``data.missing-blob``, ``data.digest-mismatch`` (twice damaged), ``resource.quota`` and
    ``resource.disk-full`` (here or there), ``refused.data-key``, ``refused.may-not-put``, ``refused.partial-busy``,
    ``net.no-progress``, ``net.data-handshake``. Cancelling a future stops its transfer unless another waits for it.
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
        self._window = Window()
        self._heard_ms = 0
        self._closing = False
        self._ended = threading.Event()
        self._context: zmq.Context[Any] = zmq.Context()
        self._connection: Connection | None = None
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
        if self._ended.is_set():  # then nobody may be left to read the order
            _fail([future], _closed_error())

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
            _fail([future], _closed_error())
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
                    self._disconnect()
        finally:
            self._ended.set()
            self._fail_all(_closed_error())
            self._disconnect()
            self._context.destroy(linger=0)
            self._wake_reading.close()
            self._wake_writing.close()

    def _turn(self, poller: zmq.Poller) -> None:
        if self._connection is not None:
            self._connection.watch()
        ready = dict(poller.poll(TICK_MS if self._active else IDLE_MS))
        if self._wake_reading.fileno() in ready:
            self._wake_reading.recv(4096)
        while not self._commands.empty():
            self._commands.get_nowait()()
        if self._connection is not None:
            self._receive_some(self._connection)
        self._drop_cancelled()
        if self._waiting and self._connection is None:
            self._connection = Connection(self._context, poller, self._identity, self._target, self.counter)
        self._start_waiting()
        self._check_timers()
        self._pump()
        if self._connection is not None:
            self._connection.flush()

    def _disconnect(self) -> None:
        if self._connection is not None:
            self._connection.close()
            self._connection = None

    def _receive_some(self, connection: Connection) -> None:
        refusal = connection.refusal()
        if refusal is not None:
            self._fail_all(refusal)
            self._disconnect()
            return
        for buffers in connection.receive(MESSAGES_A_TURN):
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
            self._say(transfer.number, transfer.plane, transfer.read(message))
        elif isinstance(message, wire.Done) and isinstance(transfer, PutTransfer):
            self._succeed(transfer, transfer.digest)

    def _handle_no(self, transfer: Transfer, message: wire.No) -> None:
        error = transfer.refusal(message)
        if error is not None:
            raise error
        self._renew(transfer)

    def _handle_chunk(self, transfer: GetTransfer, chunk: wire.Chunk) -> None:
        if transfer.shows_loss(chunk):
            # Nothing that was asked behind the gap is of use: were it taken for progress, ever more would be asked.
            self._renew(transfer)
            return
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
            self._say(0, transfer.plane, wire.Doubt(transfer=0, digest=transfer.digest))
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
            self._say(transfer.number, transfer.plane, first)

    def _retire(self, transfer: Transfer) -> None:
        self._active.pop(transfer.number, None)
        if self._connection is not None:
            self._connection.unsay(transfer.number)

    def _check_timers(self) -> None:
        now_ms = self._clock.monotonic_ms()
        socket_silent = now_ms - self._heard_ms >= SILENCE_MS
        for transfer in list(self._active.values()):
            silence_ms = now_ms - transfer.heard_ms
            if now_ms - transfer.alive_ms >= self._give_up_after_ms:
                self._fail(transfer, self._no_progress(transfer))
            elif silence_ms >= (transfer.patience_ms if socket_silent else STARVED_MS):
                if socket_silent:
                    self._window = Window()
                transfer.grow_patience(now_ms, MAX_PATIENCE_MS)
                self._renew(transfer)

    def _no_progress(self, transfer: Transfer) -> NotReachable:
        if self._connection is not None and self._connection.failed_handshakes:
            return NotReachable(
                "net.data-handshake",
                f"{transfer.where}: {self._target} breaks off every handshake",
                "is the coordinator running? If it is another than the one joined, join again",
            )
        return NotReachable(
            "net.no-progress",
            f"{transfer.where}: nothing came from {self._target} for {self._give_up_after_ms / 1000:g} s",
            "is the coordinator running, and its data port open?",
        )

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
            self._say(chosen.number, chosen.plane, message)
            in_flight += message.length

    def _say(self, number: int, plane: Plane, message: wire.Message) -> None:
        """Number 0 is for what outlives its transfer."""
        assert self._connection is not None
        self._connection.say(number, plane, message)

    def _drop_cancelled(self) -> None:
        for transfer in list(self._active.values()):
            if all(future.cancelled() for future in transfer.futures):
                self._retire(transfer)
                transfer.close()
                if isinstance(transfer, PutTransfer):
                    self._say(0, transfer.plane, wire.Forget(transfer=transfer.number))
        self._waiting = deque(t for t in self._waiting if not all(future.cancelled() for future in t.futures))

    def _succeed(self, transfer: Transfer, result: object) -> None:
        self._retire(transfer)
        transfer.close()
        for future in transfer.futures:
            with contextlib.suppress(InvalidStateError):  # cancelled meanwhile
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
        with contextlib.suppress(InvalidStateError):  # cancelled meanwhile
            future.set_exception(error)


def _closed_error() -> NotReachable:
    return NotReachable("net.cancelled", "the blob client is closed", "open a new one and start the transfer again")
