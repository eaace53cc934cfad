"""A router that dies in the middle of an answer."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

import pytest

from potluck.client import Generated, RouterClient
from potluck.errors import NotReachable
from tests.chaos.world import Job, begin, deaths, dies_at, outcome, wait_killed
from tests.integration.harness import Cluster, Daemon

MID_ANSWER = "router.mid-answer"
PROMPT = tuple(range(20, 36))
TOKENS = 12


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


def tokens_of(pieces: Iterable[Generated]) -> tuple[int, ...]:
    return tuple(token for piece in pieces for token in piece.ids)
