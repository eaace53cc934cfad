"""Newer checkpoints take the place of older ones while clients keep asking."""

from __future__ import annotations

import threading
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from grpc_health.v1 import health_pb2, health_pb2_grpc

from potluck.client import Generated, RouterClient
from potluck.errors import PotluckError
from potluck.net.channels import open_sync_channel
from potluck.net.tls import ROUTER_NAME
from potluck.specs.single import SingleSpec, TrainingSpec
from tests.chaos.world import SHAPE, Job
from tests.integration.harness import Cluster

PROMPTS = (tuple(range(20, 36)), tuple(range(100, 116)), tuple(range(40, 72, 2)))
TOKENS = 24
STEPS = 1500
READY_S = 60.0


@dataclass(frozen=True, kw_only=True)
class Answer:
    prompt: tuple[int, ...]
    pieces: tuple[Generated, ...]

    @property
    def views(self) -> set[tuple[int, int, str]]:
        return {(piece.view_version, piece.expert, piece.weights) for piece in self.pieces}

    @property
    def tokens(self) -> tuple[int, ...]:
        return tuple(token for piece in self.pieces for token in piece.ids)

    @property
    def is_whole(self) -> bool:
        finish = self.pieces[-1].finish
        return len(self.views) == 1 and (len(self.tokens) == TOKENS if finish == "length" else finish != "")


class Stream:
    """Clients that ask one question after the other until they are stopped."""

    def __init__(self, cluster: Cluster, port: int) -> None:
        self._cluster, self._port = cluster, port
        self.answers: list[Answer] = []
        self.errors: list[PotluckError] = []
        self._over = threading.Event()
        self._threads = [threading.Thread(target=self._ask, args=(prompt,), daemon=True) for prompt in PROMPTS]

    def __enter__(self) -> Stream:
        for thread in self._threads:
            thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._over.set()
        for thread in self._threads:
            thread.join(READY_S)

    def _ask(self, prompt: tuple[int, ...]) -> None:
        with RouterClient(self._cluster.admin, f"127.0.0.1:{self._port}") as client:
            while not self._over.is_set():
                try:
                    pieces = tuple(client.generate(prompt, max_tokens=TOKENS))
                except PotluckError as error:
                    self.errors.append(error)
                    return
                self.answers.append(Answer(prompt=prompt, pieces=pieces))


def test_checkpoints_that_are_published_while_clients_ask_cost_no_answer_and_mix_into_none(
    job: Job, tmp_path: Path
) -> None:
    with Cluster(tmp_path) as cluster:
        cluster.start_coordinator()
        for name in "ab":
            cluster.start_node(name)
        router = cluster.start_router("r", "--patience", "0")
        cluster.put_corpus(job.files)
        run = cluster.start_run(long_spec(job))
        wait_serving(cluster, int(router.ready["port"]))
        with Stream(cluster, int(router.ready["port"])) as stream:
            info = cluster.wait_ended(run)
    assert info.state == "finished"
    assert not stream.errors, stream.errors[0]
    assert all(answer.is_whole for answer in stream.answers)
    assert len({version for answer in stream.answers for version, _, _ in answer.views}) > 1
    told: dict[tuple[object, ...], set[tuple[int, ...]]] = {}
    for answer in stream.answers:
        ((_, _, weights),) = answer.views
        told.setdefault((weights, answer.prompt), set()).add(answer.tokens)
    assert all(len(tokens) == 1 for tokens in told.values()), "one model answers one question in one way"


def long_spec(job: Job) -> SingleSpec:
    """One model, published four times, seconds apart."""
    return SingleSpec(
        method="single",
        corpus=job.spec.corpus,
        text=job.spec.text,
        model=SHAPE,
        training=TrainingSpec(steps=STEPS, batch_size=8, learning_rate=1e-2),
        evaluation=job.spec.evaluation,
    )


def wait_serving(cluster: Cluster, port: int) -> None:
    with open_sync_channel(cluster.admin, target=f"127.0.0.1:{port}", server_name=ROUTER_NAME) as channel:
        stub: Any = health_pb2_grpc.HealthStub(channel)
        watch = stub.Watch(health_pb2.HealthCheckRequest(), timeout=READY_S)
        for said in watch:
            if said.status == health_pb2.HealthCheckResponse.SERVING:
                watch.cancel()
                return
