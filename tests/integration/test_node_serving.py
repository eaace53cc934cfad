"""A node serving through a stream it dialled: a twin of the router, a real serving child."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest
import torch

from expert_node.attach import Attachments
from expert_node.child import GroupNote
from expert_node.serve import Serving, Slot, SlotState
from potluck.config import to_mapping
from potluck.ids import Digest, NodeId, canonical_json, digest_file
from potluck.lm.config import ModelConfig
from potluck.lm.generate import SamplingParams, generate
from potluck.lm.loss import token_nll
from potluck.lm.model import Decoder, load_decoder
from potluck.lm.train import Trainer
from potluck.net.channels import bind, new_server
from potluck.net.guard import Guard
from potluck.net.identity import Identity
from potluck.recipe import AdamWConfig, Profile, Recipe, Schedule
from potluck.v1 import expert_pb2 as pb
from potluck.v1 import expert_pb2_grpc

LOOPBACK = "127.0.0.1"
PATIENCE_S = 60.0
MODEL = ModelConfig(vocab=64, hidden=16, layers=1, heads=2, ffn=24, context=9)
PROMPT = [5, 9, 11]


class RouterTwin(expert_pb2_grpc.ExpertServiceServicer):
    """One attached node; remembers what it says, sends what the test queues."""

    def __init__(self) -> None:
        self.down: asyncio.Queue[pb.AttachDownItem] = asyncio.Queue()
        self.items: list[pb.AttachUpItem] = []
        self.messages = 0
        self.changed = asyncio.Condition()

    async def until(self, is_true: Callable[[], bool]) -> None:
        async with asyncio.timeout(PATIENCE_S), self.changed:
            await self.changed.wait_for(is_true)

    def tokens(self, request: int) -> list[int]:
        return [t for i in self.items if i.tokens.request == request for t in i.tokens.ids]

    def finish(self, request: int) -> str:
        return "".join(i.tokens.finish for i in self.items if i.tokens.request == request)

    def ready(self) -> set[str]:
        states = [i.serving for i in self.items if i.HasField("serving")]
        return {s.slot for s in states[-1].slots if s.state == "ready"} if states else set()

    def failures(self) -> dict[int, str]:
        return {i.failed.request: i.failed.error_id for i in self.items if i.HasField("failed")}

    async def Attach(self, request_iterator: AsyncIterator[Any], context: Any) -> None:
        reader = asyncio.create_task(self._read(request_iterator))
        try:
            while not reader.done():
                sending = asyncio.ensure_future(self.down.get())
                await asyncio.wait((sending, reader), return_when=asyncio.FIRST_COMPLETED)
                if not sending.done():
                    sending.cancel()
                    return
                await context.write(pb.AttachDown(items=[sending.result()]))
        finally:
            reader.cancel()

    async def _read(self, messages: AsyncIterator[Any]) -> None:
        async for message in messages:
            self.messages += 1
            self.items += message.items
            async with self.changed:
                self.changed.notify_all()
            if any(item.HasField("bye") for item in message.items):
                return


def weights_file(folder: Path, *, seed: int = 3) -> Path:
    recipe = Recipe(
        role="expert",
        index=0,
        model=MODEL,
        optimizer=AdamWConfig(),
        schedule=Schedule(kind="constant", learning_rate=1e-3, warmup_steps=1, total_steps=4),
        batch_size=2,
        columns=MODEL.context,
        init_seed=seed,
        data_rule="{}",
        commit_every=2,
    )
    folder.mkdir()
    return Trainer(recipe, Profile()).save(folder).weights


def slot_of(weights: Path, name: str = "expert-0") -> Slot:
    return Slot(run="r", slot=name, weights=digest_file(weights), model_json=canonical_json(to_mapping(MODEL)))


@asynccontextmanager
async def serving_node(folder: Path, weights: Path, *others: Path) -> AsyncIterator[tuple[Serving, RouterTwin]]:
    files = {digest_file(path): path for path in (weights, *others)}
    twin = RouterTwin()
    server = new_server([Guard()])
    expert_pb2_grpc.add_ExpertServiceServicer_to_server(twin, server)
    port = bind(server, LOOPBACK, 0, None)
    await server.start()
    identity = Identity(
        node_id=NodeId("n-1"), role="node", key_pem=b"", certificate_pem=b"", ca_pem=b"", curve_public="",
        curve_secret="", curve_server_key="", host=LOOPBACK, control_port=1, data_port=1, insecure=True,
    )  # fmt: skip
    attached: list[Attachments] = []

    async def fetch(digest: Digest) -> Path:
        return files[digest]

    def publish(states: tuple[SlotState, ...]) -> None:
        for each in attached:
            each.publish(states)

    serving = Serving(notes=GroupNote(folder / "note.json"), fetch=fetch, publish=publish)
    attached.append(Attachments(identity, serving))
    try:
        await attached[0].dial([f"{LOOPBACK}:{port}"])
        await serving.assign([slot_of(weights)])
        await twin.until(lambda: twin.ready() == {"expert-0"})
        yield serving, twin
    finally:
        await attached[0].close()
        await serving.close()
        await server.stop(None)


def generate_work(
    weights: Path, request: int, *, max_tokens: int, credit: int, ids: list[int] = PROMPT, seed: int = 4,
    temperature: float = 1.0,
) -> Any:  # fmt: skip
    work = pb.GenerateWork(
        request=request, run="r", slot="expert-0", weights=digest_file(weights), ids=ids, max_tokens=max_tokens,
        temperature=temperature, top_p=1.0, seed=seed, credit=credit,
    )  # fmt: skip
    return pb.AttachDownItem(generate=work)


def local_model(weights: Path) -> Decoder:
    torch.set_num_threads(1)
    return load_decoder(MODEL, weights)


def test_a_served_model_generates_what_the_library_generates_as_far_as_credit_goes(tmp_path: Path) -> None:
    weights = weights_file(tmp_path / "w")
    params = SamplingParams(max_tokens=20, temperature=1.0, seed=4)
    expected = list(generate(local_model(weights), PROMPT, params))
    assert len(expected) > 6, "the seed should give a text that outlasts its first credit"

    async def scenario() -> None:
        async with serving_node(tmp_path, weights) as (_, twin):
            await twin.down.put(generate_work(weights, 1, max_tokens=20, credit=4))
            await twin.until(lambda: len(twin.tokens(1)) == 4)
            # Another request is not held up by one that waits for credit.
            await twin.down.put(generate_work(weights, 2, max_tokens=20, credit=20))
            await twin.until(lambda: twin.finish(2) != "")
            assert twin.tokens(1) == expected[:4]
            assert twin.tokens(2) == expected
            await twin.down.put(pb.AttachDownItem(credit=pb.Credit(request=1, tokens=16)))
            await twin.until(lambda: twin.finish(1) != "")
            assert twin.tokens(1) == expected
            assert twin.finish(1) == ("eod" if expected[-1] == 0 else "length")

    asyncio.run(scenario())


def test_texts_generated_together_are_those_of_the_library_whatever_becomes_of_their_neighbours(tmp_path: Path) -> None:
    weights = weights_file(tmp_path / "w")
    model = local_model(weights)
    prompts = {request: [1 + (request * 11 + i) % 60 for i in range(request)] for request in range(1, 9)}
    expected = {
        request: list(generate(model, ids, SamplingParams(max_tokens=24, temperature=1.0, seed=request)))
        for request, ids in prompts.items()
    }

    async def scenario() -> None:
        async with serving_node(tmp_path, weights) as (_, twin):
            for request, ids in prompts.items():
                credit = 2 if request == 3 else 24
                work = generate_work(weights, request, max_tokens=24, credit=credit, ids=ids, seed=request)
                await twin.down.put(work)
                # Between them: one that cannot start, one that is cancelled, one that scores.
                await twin.down.put(generate_work(weights, 100 + request, max_tokens=9, credit=9, temperature=-1.0))
                await twin.down.put(generate_work(weights, 200 + request, max_tokens=1000, credit=1000, seed=request))
                score = pb.ScoreWork(request=300 + request, run="r", slot="expert-0", weights=digest_file(weights))
                score.ids.extend([1, 2, 3])
                await twin.down.put(pb.AttachDownItem(score=score))
                await twin.down.put(pb.AttachDownItem(cancel=pb.CancelWork(request=200 + request)))
            await twin.until(lambda: all(twin.finish(request) for request in prompts if request != 3))
            await twin.until(lambda: len(twin.failures()) == len(prompts))
            await twin.until(lambda: sum(i.HasField("scores") for i in twin.items) == len(prompts))
            await twin.until(lambda: twin.finish(3) != "" or len(twin.tokens(3)) == 2)
            await twin.down.put(pb.AttachDownItem(credit=pb.Credit(request=3, tokens=22)))
            await twin.until(lambda: twin.finish(3) != "")
            assert {request: twin.tokens(request) for request in prompts} == expected
            assert twin.failures() == {100 + request: "usage.bad-sampling" for request in prompts}

    asyncio.run(scenario())


def test_scores_of_a_long_text_are_those_of_overlapping_rows(tmp_path: Path) -> None:
    weights = weights_file(tmp_path / "w")
    model = local_model(weights)
    ids = [1 + (i * 7) % 60 for i in range(21)]
    stride = MODEL.context - 1
    expected: list[float] = []
    for start in (0, stride, 2 * stride):
        expected += (-token_nll(model, torch.tensor([ids[start : start + stride + 1]]))[0]).tolist()

    async def scenario() -> None:
        async with serving_node(tmp_path, weights) as (_, twin):
            work = pb.ScoreWork(request=7, run="r", slot="expert-0", weights=digest_file(weights), ids=ids)
            await twin.down.put(pb.AttachDownItem(score=work))
            await twin.until(lambda: any(i.HasField("scores") for i in twin.items))
            (scores,) = [i.scores for i in twin.items if i.HasField("scores")]
            assert scores.request == 7
            assert len(scores.log_probs) == len(ids) - 1
            assert list(scores.log_probs) == pytest.approx(expected, abs=1e-5)

    asyncio.run(scenario())


def test_work_that_cannot_be_done_fails_with_an_id_and_the_rest_goes_on(tmp_path: Path) -> None:
    weights = weights_file(tmp_path / "w")

    async def scenario() -> None:
        async with serving_node(tmp_path, weights) as (_, twin):
            strange = pb.ScoreWork(request=1, run="r", slot="expert-0", weights="f" * 64, ids=[1, 2])
            await twin.down.put(pb.AttachDownItem(score=strange))
            await twin.down.put(generate_work(weights, 2, max_tokens=3, credit=3, ids=[99]))
            await twin.down.put(generate_work(weights, 3, max_tokens=3, credit=3))
            await twin.until(lambda: twin.finish(3) != "" and len(twin.failures()) == 2)
            assert twin.failures() == {1: "refused.not-served", 2: "refused.bad-token"}

    asyncio.run(scenario())


def test_a_killed_serving_child_fails_its_requests_and_serves_again(tmp_path: Path) -> None:
    weights = weights_file(tmp_path / "w")

    async def scenario() -> None:
        async with serving_node(tmp_path, weights) as (serving, twin):
            await twin.down.put(generate_work(weights, 1, max_tokens=20, credit=2))
            await twin.until(lambda: len(twin.tokens(1)) == 2)
            serving.kill_child()
            await twin.until(lambda: twin.failures() == {1: "net.replica-lost"})
            twin.items.clear()
            await twin.until(lambda: twin.ready() == {"expert-0"})
            await twin.down.put(generate_work(weights, 2, max_tokens=3, credit=3))
            await twin.until(lambda: twin.finish(2) != "")

    asyncio.run(scenario())


def test_a_slot_with_new_weights_is_served_with_the_old_ones_until_the_new_are_ready_or_for_good_if_they_never_are(
    tmp_path: Path,
) -> None:
    old, new = weights_file(tmp_path / "old"), weights_file(tmp_path / "new", seed=5)
    torn = tmp_path / "torn"
    torn.write_bytes(b"no weights")

    async def scenario() -> None:
        async with serving_node(tmp_path, old, new, torn) as (serving, twin):

            def told() -> list[tuple[Digest, str]]:
                return [(state.slot.weights, state.state) for state in serving.states]

            await serving.assign([slot_of(torn)])
            await twin.until(lambda: told() == [(digest_file(old), "ready"), (digest_file(torn), "failed")])
            await twin.down.put(generate_work(old, 1, max_tokens=3, credit=3))
            await twin.until(lambda: twin.finish(1) != "")
            await serving.assign([slot_of(new)])
            assert told() == [(digest_file(old), "ready"), (digest_file(new), "loading")]
            await twin.until(lambda: told() == [(digest_file(new), "ready")])
            await twin.down.put(generate_work(old, 2, max_tokens=3, credit=3))
            await twin.down.put(generate_work(new, 3, max_tokens=3, credit=3))
            await twin.until(lambda: twin.finish(3) != "")
            assert twin.failures() == {2: "refused.not-served"}

    asyncio.run(scenario())


def test_a_cancelled_request_is_heard_of_no_more(tmp_path: Path) -> None:
    weights = weights_file(tmp_path / "w")

    async def scenario() -> None:
        async with serving_node(tmp_path, weights) as (_, twin):
            await twin.down.put(generate_work(weights, 1, max_tokens=1000, credit=2))
            await twin.until(lambda: len(twin.tokens(1)) == 2)
            await twin.down.put(pb.AttachDownItem(cancel=pb.CancelWork(request=1)))
            await twin.down.put(pb.AttachDownItem(credit=pb.Credit(request=1, tokens=50)))
            await twin.down.put(generate_work(weights, 2, max_tokens=3, credit=3))
            await twin.until(lambda: twin.finish(2) != "")
            assert len(twin.tokens(1)) == 2

    asyncio.run(scenario())
