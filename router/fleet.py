"""The attached nodes: who has which replica ready, what each is working on, and what waits to be sent to it.

One event loop owns all of this; nothing here awaits a node's stream, so no slow client or node can
hold up another. Messages are plain values; `attach` puts them on the wire.
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import AsyncGenerator, AsyncIterator, Awaitable, Callable, Collection, Mapping
from contextlib import aclosing
from dataclasses import dataclass
from typing import TypeVar

from potluck.errors import NotReachable, PotluckError, Refused, ResourceError, UserError
from potluck.ids import Digest, is_digest
from potluck.soup_names import Shares
from router.view import ReplicaKey

CREDIT_TOKENS = 32
"""Tokens a node may send ahead of the client's reading; given back by halves (measured: wire facts, Attach)."""
MAX_REQUESTS_PER_REPLICA = 256
"""Requests one node may have open; beyond it the next replica is asked."""
SILENCE_S = 120
"""Longest wait for a node's next word on a request; keep-alive finds a lost node sooner, this a stuck one."""
MAX_REASONS = 4
"""Told of why no node could answer: an error travels in headers, whose size is bounded."""
T = TypeVar("T")


class ReplicaLost(NotReachable):
    """A node went away with a request in its hands."""

    grpc_status = "ABORTED"


@dataclass(frozen=True, kw_only=True)
class Sampling:
    max_tokens: int
    temperature: float = 0.0
    top_k: int = 0
    top_p: float = 1.0
    seed: int = 0


@dataclass(frozen=True, kw_only=True)
class StartGenerate:
    request: int
    key: ReplicaKey
    ids: tuple[int, ...]
    sampling: Sampling
    credit: int
    mixture: Shares = ()
    """Of a soup: which of its models; empty for any other."""


@dataclass(frozen=True, kw_only=True)
class StartScore:
    request: int
    key: ReplicaKey
    ids: tuple[int, ...]
    mixture: Shares = ()


@dataclass(frozen=True, kw_only=True)
class StartInstantiate:
    request: int
    key: ReplicaKey
    mixture: Shares


@dataclass(frozen=True, kw_only=True)
class GiveCredit:
    request: int
    tokens: int


@dataclass(frozen=True, kw_only=True)
class Cancel:
    request: int


@dataclass(frozen=True, kw_only=True)
class SayBye:
    reason: str


Start = StartGenerate | StartScore | StartInstantiate
Down = Start | GiveCredit | Cancel | SayBye


@dataclass(frozen=True, kw_only=True)
class Tokens:
    ids: tuple[int, ...]
    finish: str


@dataclass(frozen=True, kw_only=True)
class Scores:
    log_probs: tuple[float, ...]


@dataclass(frozen=True, kw_only=True)
class Made:
    """A model of a soup that a node has now."""

    digest: Digest
    """Of the safetensors file of its weights."""
    cached: bool
    build_ms: float
    coefficients: tuple[float, ...]


@dataclass(frozen=True, kw_only=True)
class Failed:
    error: PotluckError


Up = Tokens | Scores | Made | Failed


class Outbox:
    """What waits for one node. Bounded by the node's open requests: credits of a request are summed."""

    def __init__(self) -> None:
        self._work: deque[Start] = deque()
        self._credits: dict[int, int] = {}
        self._cancels: deque[Cancel] = deque()
        self._bye: SayBye | None = None
        self._waiting = asyncio.Event()
        self._closed = False

    def start(self, work: Start) -> None:
        self._work.append(work)
        self._waiting.set()

    def give(self, request: int, tokens: int) -> None:
        self._credits[request] = self._credits.get(request, 0) + tokens
        self._waiting.set()

    def cancel(self, request: int) -> None:
        self._credits.pop(request, None)
        unsent = [work for work in self._work if work.request != request]
        if len(unsent) < len(self._work):
            self._work = deque(unsent)
        else:
            self._cancels.append(Cancel(request=request))
            self._waiting.set()

    def close(self, reason: str = "") -> None:
        """Ends `batches` after what waits; says bye first when there is a reason to give."""
        if reason:
            self._bye = SayBye(reason=reason)
        self._closed = True
        self._waiting.set()

    async def batches(self, most: int) -> AsyncIterator[list[Down]]:
        """Yields what waits, at most `most` at a time; ends once closed and empty."""
        while True:
            await self._waiting.wait()
            batch = self._take(most)
            if batch:
                yield batch
            elif self._closed:
                return
            else:
                self._waiting.clear()

    def _take(self, most: int) -> list[Down]:
        batch: list[Down] = []
        while self._cancels and len(batch) < most:
            batch.append(self._cancels.popleft())
        while self._credits and len(batch) < most:
            request, tokens = self._credits.popitem()
            batch.append(GiveCredit(request=request, tokens=tokens))
        while self._work and len(batch) < most:
            batch.append(self._work.popleft())
        if self._bye is not None and len(batch) < most:
            batch.append(self._bye)
            self._bye = None
        return batch


class Job:
    """One request in a node's hands. What the node sends waits here; credit bounds how much that can be."""

    def __init__(self, *, request: int, credit: int) -> None:
        self.request = request
        self._credit = credit
        self._inbox: deque[Up] = deque()
        self._arrived = asyncio.Event()

    def put(self, item: Up) -> None:
        """Takes what the node sent; tokens beyond the credit given turn into a failure."""
        if isinstance(item, Tokens):
            if not item.ids and not item.finish:
                return
            self._credit -= len(item.ids)
            if self._credit < 0:
                broken = Refused("refused.over-credit", f"node sent {-self._credit} tokens more than it may", "")
                item = Failed(error=broken)
        self._inbox.append(item)
        self._arrived.set()

    def give(self, tokens: int) -> None:
        self._credit += tokens

    async def next(self) -> Up:
        """The node's next word. It may always speak: it has credit whenever somebody waits here."""
        try:
            async with asyncio.timeout(SILENCE_S):
                while not self._inbox:
                    self._arrived.clear()
                    await self._arrived.wait()
        except TimeoutError:
            what = f"the node said nothing for {SILENCE_S} s"
            return Failed(error=ReplicaLost("net.replica-lost", what, "look at the node's log"))
        return self._inbox.popleft()


class Attachment:
    """One node's Attach stream."""

    def __init__(self, node: str) -> None:
        self.node = node
        self.outbox = Outbox()
        self.ready: frozenset[ReplicaKey] = frozenset()
        self.failed: Mapping[ReplicaKey, str] = {}
        """What it was told to serve and cannot, and why."""
        self.jobs: dict[int, Job] = {}

    def receive(self, request: int, item: Up) -> None:
        """Hands an answer to its request; answers to requests that ended meanwhile are dropped."""
        if (job := self.jobs.get(request)) is None:
            return
        if isinstance(item, Failed):
            del self.jobs[request]
        job.put(item)

    def lose(self, reason: str) -> None:
        """Fails every open request; whoever waits decides whether to try the next replica."""
        self.ready = frozenset()
        for job in self.jobs.values():
            job.put(Failed(error=ReplicaLost("net.replica-lost", f"node {self.node} went away: {reason}", "")))
        self.jobs.clear()
        self.outbox.close()


class Fleet:
    """All attachments. `on_change` is called whenever the set of ready replicas changes."""

    def __init__(self, on_change: Callable[[], None]) -> None:
        self._on_change = on_change
        self._attachments: dict[str, Attachment] = {}
        self._ready: frozenset[ReplicaKey] = frozenset()
        self._last_request = 0

    @property
    def ready(self) -> frozenset[ReplicaKey]:
        """The replicas at least one node has ready."""
        return self._ready

    @property
    def nodes(self) -> tuple[str, ...]:
        return tuple(self._attachments)

    def attach(self, node: str) -> Attachment:
        """A node has dialled. A second stream of the same node means that the first one is dead."""
        if (old := self._attachments.get(node)) is not None:
            self.detach(old, "it attached anew")
        attachment = Attachment(node)
        self._attachments[node] = attachment
        return attachment

    def detach(self, attachment: Attachment, reason: str) -> None:
        if self._attachments.get(attachment.node) is attachment:
            del self._attachments[attachment.node]
        attachment.lose(reason)
        self._recount()

    def set_ready(self, attachment: Attachment, keys: Collection[ReplicaKey], failed: Mapping[ReplicaKey, str]) -> None:
        """The whole of what a node has ready, and of what it failed to load; replaces what it said before."""
        if self._attachments.get(attachment.node) is attachment:
            attachment.ready = frozenset(keys)
            attachment.failed = dict(failed)
            self._recount()

    def close(self, reason: str) -> None:
        """Says bye to every node; their streams end once it is sent."""
        for attachment in self._attachments.values():
            attachment.outbox.close(reason)

    def _recount(self) -> None:
        ready = frozenset[ReplicaKey]().union(*(a.ready for a in self._attachments.values()))
        if ready != self._ready:
            self._ready = ready
            self._on_change()

    async def generate(
        self, key: ReplicaKey, ids: tuple[int, ...], sampling: Sampling, mixture: Shares = ()
    ) -> AsyncGenerator[Tokens, None]:
        """Streams tokens of one replica. When the consumer asks for the next piece, this one counts as written.

        Until the first token the next replica is tried, whatever broke; errors of the user's making
        are the same everywhere and raised at once.

        Raises:
            NotReachable: ``net.no-replica``: no node has the replica ready, or each one failed.
            ReplicaLost: ``net.replica-lost``: lost after the first token; the request can be resumed.
            ResourceError: ``resource.busy``: every node has all the requests it may have.
        """
        failures: list[PotluckError] = []
        for attachment in self._candidates(key):
            if key not in attachment.ready:
                continue
            num_sent = 0
            try:
                async with aclosing(self._generate_on(attachment, key, ids, sampling, mixture)) as pieces:
                    async for piece in pieces:
                        num_sent += len(piece.ids)
                        yield piece
                return
            except PotluckError as error:
                if num_sent:
                    raise _resumable(error, num_sent) from error
                if isinstance(error, UserError):
                    raise
                failures.append(error)
        raise self._no_replica(key, failures)

    async def score(self, key: ReplicaKey, ids: tuple[int, ...], mixture: Shares = ()) -> tuple[float, ...]:
        """Log-probabilities of tokens 2..n on one replica; the next is tried when one breaks.

        Raises:
            NotReachable, ResourceError: as `generate`.
        """
        return await self._first(key, lambda attachment: self._score_on(attachment, key, ids, mixture))

    async def instantiate(self, key: ReplicaKey, mixture: Shares) -> tuple[Made, str]:
        """Has one replica of a soup make a model, and says which node it was; the next is tried when one breaks.

        Raises:
            NotReachable, ResourceError: as `generate`.
        """
        return await self._first(key, lambda attachment: self._instantiate_on(attachment, key, mixture))

    async def _first(self, key: ReplicaKey, ask: Callable[[Attachment], Awaitable[T]]) -> T:
        """What the first replica answers that answers."""
        failures: list[PotluckError] = []
        for attachment in self._candidates(key):
            if key not in attachment.ready:
                continue
            try:
                return await ask(attachment)
            except UserError:
                raise
            except PotluckError as error:
                failures.append(error)
        raise self._no_replica(key, failures)

    def _candidates(self, key: ReplicaKey) -> list[Attachment]:
        """Nodes with the replica and room for a request, least loaded first."""
        holders = [a for a in self._attachments.values() if key in a.ready]
        free = [a for a in holders if len(a.jobs) < MAX_REQUESTS_PER_REPLICA]
        if holders and not free:
            what = f"all {len(holders)} replicas of {key.slot} have {MAX_REQUESTS_PER_REPLICA} requests open"
            raise ResourceError("resource.busy", what, "try again shortly, or add nodes")
        return sorted(free, key=lambda a: len(a.jobs))

    def _no_replica(self, key: ReplicaKey, failures: list[PotluckError]) -> PotluckError:
        if failures and all(isinstance(error, ResourceError) for error in failures):
            return failures[-1]
        reasons = [error.message for error in failures]
        reasons += [f"node {a.node}: {a.failed[key]}" for a in self._attachments.values() if key in a.failed]
        message = f"{key.slot} of run {key.run} (weights {key.weights[:12]}): "
        message += "; ".join(reasons[:MAX_REASONS]) or "no node has it ready"
        return NotReachable("net.no-replica", message, "see `potluck nodes`; try again when a node serves it")

    async def _generate_on(
        self, attachment: Attachment, key: ReplicaKey, ids: tuple[int, ...], sampling: Sampling, mixture: Shares
    ) -> AsyncGenerator[Tokens, None]:
        job = self._open(attachment, credit=CREDIT_TOKENS)
        attachment.outbox.start(
            StartGenerate(
                request=job.request, key=key, ids=ids, sampling=sampling, credit=CREDIT_TOKENS, mixture=mixture
            )
        )
        owed = 0
        num_left = sampling.max_tokens
        try:
            while True:
                match await job.next():
                    case Tokens() as piece if len(piece.ids) <= num_left:
                        num_left -= len(piece.ids)
                        if piece.finish:
                            attachment.jobs.pop(job.request, None)
                        yield piece
                        if piece.finish:
                            return
                        owed += len(piece.ids)
                        if owed >= CREDIT_TOKENS // 2:
                            job.give(owed)
                            attachment.outbox.give(job.request, owed)
                            owed = 0
                    case Failed(error=error):
                        raise error
                    case _:
                        raise Refused("refused.wrong-answer", f"node {attachment.node} sent no such tokens", "")
        finally:
            self._end(attachment, job)

    async def _score_on(
        self, attachment: Attachment, key: ReplicaKey, ids: tuple[int, ...], mixture: Shares
    ) -> tuple[float, ...]:
        job = self._open(attachment, credit=0)
        attachment.outbox.start(StartScore(request=job.request, key=key, ids=ids, mixture=mixture))
        log_probs: list[float] = []
        try:
            while len(log_probs) < len(ids) - 1:
                match await job.next():
                    case Scores(log_probs=more) if more and len(log_probs) + len(more) < len(ids):
                        log_probs += more
                    case Failed(error=error):
                        raise error
                    case _:
                        raise Refused("refused.wrong-answer", f"node {attachment.node} sent no such scores", "")
            attachment.jobs.pop(job.request, None)
            return tuple(log_probs)
        finally:
            self._end(attachment, job)

    async def _instantiate_on(self, attachment: Attachment, key: ReplicaKey, mixture: Shares) -> tuple[Made, str]:
        job = self._open(attachment, credit=0)
        attachment.outbox.start(StartInstantiate(request=job.request, key=key, mixture=mixture))
        try:
            match await job.next():
                case Made() as made if is_digest(made.digest):
                    attachment.jobs.pop(job.request, None)
                    return made, attachment.node
                case Failed(error=error):
                    raise error
                case _:
                    raise Refused("refused.wrong-answer", f"node {attachment.node} sent no model's digest", "")
        finally:
            self._end(attachment, job)

    def _open(self, attachment: Attachment, *, credit: int) -> Job:
        self._last_request += 1
        job = Job(request=self._last_request, credit=credit)
        attachment.jobs[job.request] = job
        return job

    def _end(self, attachment: Attachment, job: Job) -> None:
        """A request that is over on our side and not on the node's is cancelled there."""
        if attachment.jobs.pop(job.request, None) is not None:
            attachment.outbox.cancel(job.request)


def _resumable(error: PotluckError, num_sent: int) -> ReplicaLost:
    return ReplicaLost(
        "net.replica-lost",
        f"after {num_sent} tokens: {error.message}",
        "send the prompt and the tokens received so far as ids to go on from there",
    )
