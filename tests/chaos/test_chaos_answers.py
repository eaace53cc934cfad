"""A router or a node that dies before an answer, or in the middle of one."""

from __future__ import annotations

import time
from collections.abc import Iterable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import psutil
import pytest

from potluck.client import Generated, RouterClient
from potluck.errors import NotReachable
from tests.chaos.world import (
    DEATH_S,
    LOOK_S,
    Job,
    begin,
    children_of,
    deaths,
    dies_at,
    outcome,
    wait_killed,
    wait_said,
)
from tests.integration.harness import Cluster, Daemon

MID_ANSWER = "router.mid-answer"
PROMPT = tuple(range(20, 36))
TOKENS = 12
MANY = 1024
FROZEN_S = 2.0
"""A whole answer takes milliseconds; the router gives a silent node two minutes."""


def test_an_answer_cut_off_by_the_death_of_its_router_goes_on_from_the_tokens_received(
    job: Job, tmp_path: Path, crash_log: Path
) -> None:
    def client(router: Daemon) -> RouterClient:
        return RouterClient(cluster.admin, f"127.0.0.1:{router.ready['port']}")

    with Cluster(tmp_path / "c") as cluster:
        cluster.start_coordinator()
        cluster.start_node("a")
        outcome(cluster, begin(cluster, job))
        router = cluster.start_router("r", **dies_at(f"{MID_ANSWER}:4", crash_log))
        pieces: list[Generated] = []
        with client(router) as asking, pytest.raises(NotReachable) as lost:
            pieces.extend(
                asking.generate(PROMPT, slot="expert-0", max_tokens=TOKENS)
            )  # keeps what came before it broke
        wait_killed(router)
        received = tokens_of(pieces)
        assert 0 < len(received) < TOKENS
        with client(cluster.start_router("r")) as asking:
            left = TOKENS - len(received)
            rest = tokens_of(asking.generate((*PROMPT, *received), slot="expert-0", max_tokens=left))
            assert (*received, *rest) == tokens_of(asking.generate(PROMPT, slot="expert-0", max_tokens=TOKENS))
    assert lost.value.error_id == "net.router-lost"
    assert "tokens received so far" in lost.value.fix
    assert deaths(crash_log) == [MID_ANSWER]


def test_a_node_killed_before_its_first_token_costs_no_answer_and_after_it_a_resumable_error(
    job: Job, tmp_path: Path
) -> None:
    with Cluster(tmp_path) as cluster:
        cluster.start_coordinator()
        router = cluster.start_router("r")
        nodes = {}
        for name in "ab":  # of two idle replicas the one that attached first is asked
            nodes[name] = cluster.start_node(name)
            wait_said(router, f"node-attached node={nodes[name].ready['node_id']}")
        run = begin(cluster, job)
        outcome(cluster, run)
        wait_replicas(cluster, run, 2)
        with RouterClient(cluster.admin, f"127.0.0.1:{router.ready['port']}") as client:
            expected = tokens_of(client.generate(PROMPT, slot="expert-0", max_tokens=TOKENS))
            processes = [psutil.Process(nodes["a"].popen.pid), *children_of(nodes["a"])]
            for process in processes:
                process.suspend()
            with ThreadPoolExecutor(1) as asking:
                held = asking.submit(whole_answer, client)
                with pytest.raises(TimeoutError):
                    held.result(FROZEN_S)
                nodes["a"].kill()
                assert held.result() == expected
            left = client.generate(PROMPT, slot="expert-0", max_tokens=MANY)
            pieces = [next(left)]
            nodes["b"].kill()
            with pytest.raises(NotReachable) as lost:
                pieces.extend(left)
        assert lost.value.error_id == "net.replica-lost"
        assert f"after {len(tokens_of(pieces))} tokens" in lost.value.message
        assert "as ids to go on from there" in lost.value.fix


def wait_replicas(cluster: Cluster, run: str, count: int) -> None:
    with cluster.client() as client:
        deadline = time.monotonic() + DEATH_S
        while any(len(slot.replicas) < count for slot in client.get_run(run).published):
            assert time.monotonic() < deadline, cluster.tails()
            time.sleep(LOOK_S)


def whole_answer(client: RouterClient) -> tuple[int, ...]:
    return tokens_of(client.generate(PROMPT, slot="expert-0", max_tokens=TOKENS))


def tokens_of(pieces: Iterable[Generated]) -> tuple[int, ...]:
    return tuple(token for piece in pieces for token in piece.ids)
