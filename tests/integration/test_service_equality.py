"""The running service answers as the offline evaluation of the same run does, and goes on when nodes die."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import pytest
import torch
from grpc_health.v1 import health_pb2, health_pb2_grpc

from potluck.client import RouterClient, Scored
from potluck.errors import NotReachable
from potluck.ids import Digest
from potluck.lm.generate import SamplingParams, generate
from potluck.lm.model import Decoder, load_decoder
from potluck.net.blobs.store import BlobStore
from potluck.net.channels import open_sync_channel
from potluck.net.tls import ROUTER_NAME
from potluck.specs.smalltalk import SmallTalkSpec
from sampling.rows import META_TARGETS, TokenRows
from tests.chaos.world import tiny_job
from tests.integration.harness import Cluster, Daemon
from tests.integration.smalltalk_runs import TaskDone, read_json, tasks_done

NUM_ROWS = 200
NUM_PROMPTS = 10
SERVING = health_pb2.HealthCheckResponse.SERVING
NOT_SERVING = health_pb2.HealthCheckResponse.NOT_SERVING


@dataclass(frozen=True, kw_only=True)
class Service:
    """A finished run that is being served, and what its evaluation left on disk."""

    cluster: Cluster
    spec: SmallTalkSpec
    nodes: tuple[Daemon, Daemon]
    address: str
    tasks: tuple[TaskDone, ...]
    published: dict[str, Digest]

    @property
    def client(self) -> RouterClient:
        return RouterClient(self.cluster.admin, self.address)

    @property
    def blobs(self) -> BlobStore:
        return self.cluster.blobs()

    def task(self, label: str) -> TaskDone:
        (found,) = [task for task in self.tasks if task.wanted.label == label]
        return found

    def array(self, label: str, name: str) -> np.ndarray:
        found: np.ndarray = np.load(self.blobs.path(self.task(label).blobs[name]))
        return found

    def columns(self) -> np.ndarray:
        """uint16 [test rows, experts]."""
        experts = range(self.spec.experts.num)
        return np.stack([self.array(f"score the test rows with router {e}", "column") for e in experts], axis=1)

    def rows(self) -> list[list[int]]:
        """The first test rows, each without its padding."""
        manifest = read_json(self.blobs, self.task("collect the rows").blobs["tokens"])
        rows = TokenRows(manifest, self.blobs, "test")
        assert len(rows) >= NUM_ROWS
        indices = np.arange(NUM_ROWS)
        targets = rows.meta(indices)[:, META_TARGETS].tolist()
        taken = rows.take(indices).tolist()
        return [row[: count + 1] for row, count in zip(taken, targets, strict=True)]

    def model(self, expert: int) -> Decoder:
        return load_decoder(self.spec.expert_model(), self.blobs.path(self.published[f"expert-{expert}"]))

    def wait_health(self, wanted: int) -> None:
        """Waits until the router's health is so."""
        with open_sync_channel(self.cluster.admin, target=self.address, server_name=ROUTER_NAME) as channel:
            stub: Any = health_pb2_grpc.HealthStub(channel)
            watch = stub.Watch(health_pb2.HealthCheckRequest(), timeout=60)
            for answer in watch:
                if answer.status == wanted:
                    watch.cancel()
                    return


@pytest.fixture(scope="module")
def service(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Service]:
    folder = tmp_path_factory.mktemp("service")
    job = tiny_job(folder, documents=200)
    spec = replace(
        job.spec,
        routers=replace(job.spec.routers, chunk_sequences=256, learning_rate=1e-2),
        experts=replace(job.spec.experts, chunk_sequences=256, learning_rate=1e-2),
    )
    with Cluster(folder / "cluster") as cluster:
        coordinator = cluster.start_coordinator()
        router = cluster.start_router("r", "--patience", "0")
        nodes = (cluster.start_node("a"), cluster.start_node("b"))
        cluster.put_corpus(job.files)
        before = Service(
            cluster=cluster, spec=spec, nodes=nodes, address=str(router.ready["address"]), tasks=(), published={}
        )
        before.wait_health(NOT_SERVING)
        with before.client as client, pytest.raises(NotReachable) as caught:
            client.route("nobody has trained anything yet")
        assert caught.value.error_id == "net.no-view"
        info = cluster.wait_ended(cluster.start_run(spec))
        assert info.state == "finished", f"{info.reason}{cluster.tails()}"
        before.wait_health(SERVING)
        # The journal is its coordinator's alone; the router does not mind that it is away.
        assert coordinator.stop() == 0
        tasks = tasks_done(cluster.home / "journal.db")
        cluster.start_coordinator()
        yield replace(before, tasks=tasks, published={slot.slot: Digest(slot.weights) for slot in info.published})


@pytest.fixture(scope="module")
def scored(service: Service) -> list[Scored]:
    """The first test rows, each sent where the service thinks best."""
    with service.client as client:
        return [client.score(row) for row in service.rows()]


def test_the_service_chooses_the_experts_that_the_evaluation_chose(service: Service, scored: list[Scored]) -> None:
    chosen = service.columns()[:NUM_ROWS].argmin(axis=1)
    assert [s.expert for s in scored] == chosen.tolist()
    assert len(set(chosen.tolist())) == service.spec.experts.num


def test_every_row_is_scored_by_the_published_weights_of_its_expert(service: Service, scored: list[Scored]) -> None:
    assert {(s.expert, s.weights) for s in scored} == {
        (e, service.published[f"expert-{e}"]) for e in range(service.spec.experts.num)
    }
    assert {s.run for s in scored} == {service.spec.id}


def test_the_service_s_perplexity_is_the_evaluation_s(service: Service, scored: list[Scored]) -> None:
    nll = [service.array(f"test NLL of expert {e}", "nll").sum(axis=1) for e in range(service.spec.experts.num)]
    chosen = service.columns()[:NUM_ROWS].argmin(axis=1)
    offline = [nll[e][row] for row, e in enumerate(chosen.tolist())]
    online = [-sum(s.log_probs) for s in scored]
    assert online == pytest.approx(offline, abs=1e-3)
    targets = sum(len(s.log_probs) for s in scored)
    assert np.exp(sum(online) / targets) == pytest.approx(np.exp(sum(offline) / targets), abs=1e-3)


def test_routing_alone_decides_as_the_columns_do(service: Service) -> None:
    columns, prefix = service.columns()[:NUM_ROWS], service.spec.text.prefix_length
    with service.client as client:
        for row, column in zip(service.rows(), columns, strict=True):
            routed = client.route(row)
            assert routed.expert == column.argmin()
            assert routed.prefix_tokens == min(len(row), prefix)
            # Fixed point rounds to the nearest 1/4096 of a nat; sums in another order may fall on the other side.
            assert np.abs(np.rint(np.array(routed.prefix_nll) * 4096) - column).max() <= 1


def test_greedy_text_is_the_published_weights_token_by_token(service: Service) -> None:
    torch.set_num_threads(service.spec.profile.threads)
    models = [service.model(e) for e in range(service.spec.experts.num)]
    with service.client as client:
        for row in service.rows()[: 7 * NUM_PROMPTS : 7]:
            prompt = row[: service.spec.text.prefix_length]
            pieces = list(client.generate(prompt, max_tokens=48))
            ids = [i for piece in pieces for i in piece.ids]
            (expert,) = {piece.expert for piece in pieces}
            assert expert == client.route(prompt).expert
            assert ids == list(generate(models[expert], prompt, SamplingParams(max_tokens=48)))


def test_the_service_goes_on_with_the_nodes_that_are_left_and_comes_back_with_a_new_one(
    service: Service, scored: list[Scored]
) -> None:
    first, second = service.nodes
    sample = list(zip(service.rows(), scored, strict=True))[:20]
    with service.client as client:
        first.kill()
        for row, before in sample:
            again = client.score(row)
            assert (again.expert, again.weights, again.log_probs) == (before.expert, before.weights, before.log_probs)
        second.kill()
        service.wait_health(NOT_SERVING)
        with pytest.raises(NotReachable) as caught:
            client.score(sample[0][0])
        assert caught.value.fix
        # A node that has never served: the coordinator gives it every slot.
        service.cluster.start_node("c")
        service.wait_health(SERVING)
        for row, before in sample:
            again = client.score(row)
            assert (again.expert, again.weights, again.log_probs) == (before.expert, before.weights, before.log_probs)


def test_a_router_that_was_killed_serves_again_from_another_address(service: Service, scored: list[Scored]) -> None:
    (router,) = [daemon for daemon in service.cluster.daemons if daemon.name == "r"]
    router.kill()
    again = service.cluster.start_router("r")
    assert again.ready["node_id"] == router.ready["node_id"]
    moved = replace(service, address=str(again.ready["address"]))
    # Its views are on its disk; the nodes hear of the new address from the coordinator.
    moved.wait_health(SERVING)
    with moved.client as client:
        for row, before in list(zip(service.rows(), scored, strict=True))[:20]:
            now = client.score(row)
            assert (now.expert, now.weights, now.log_probs) == (before.expert, before.weights, before.log_probs)
