"""A node that dies with a part of a spread soup's round in hand: another takes the part over, and no bit changes."""

from __future__ import annotations

from pathlib import Path

import pytest

from potluck.lm.soup_spread import Spread
from sampling.ingest import Ingested
from tests.chaos.world import Outcome, deaths, dies_at, outcome, place, wait_killed
from tests.integration.harness import Cluster
from tests.integration.mixture_runs import corpus_of
from tests.integration.soup_runs import soup_spec

STEPS = 8
SPREADS = {"single steps": Spread(parts=2), "local steps": Spread(parts=2, local_steps=2, outer_momentum=0.9)}


@pytest.fixture(scope="module")
def corpus(tmp_path_factory: pytest.TempPathFactory) -> Ingested:
    return corpus_of(tmp_path_factory.mktemp("corpus"), documents=30)


@pytest.mark.parametrize(
    ("spread", "moment"),
    [
        ("local steps", "node.mid-task.train:1"),
        pytest.param("single steps", "node.mid-task.train:3", marks=pytest.mark.long),
        pytest.param("single steps", "node.mid-task.outer_step:2", marks=pytest.mark.long),
        pytest.param("local steps", "node.mid-delivery.FinishedTask:4", marks=pytest.mark.long),
    ],
)
def test_a_node_killed_in_a_round_delays_its_part_and_changes_nothing(
    spread: str, moment: str, corpus: Ingested, tmp_path: Path, crash_log: Path
) -> None:
    found = [
        _run(corpus, SPREADS[spread], tmp_path / "disturbed", dies_at(moment, crash_log)),
        _run(corpus, SPREADS[spread], tmp_path / "undisturbed", None),
    ]
    assert found[0] == found[1]
    assert {slot for slot, _ in found[0].published} == {"soup", "bank"}
    assert deaths(crash_log) == [place(moment)]


def _run(corpus: Ingested, spread: Spread, folder: Path, dies: dict[str, str] | None) -> Outcome:
    """By nodes a and b, or by b alone once a has died."""
    with Cluster(folder) as cluster:
        cluster.start_coordinator()
        cluster.put_corpus(corpus.files)
        first = cluster.start_node("a", **(dies or {}))
        cluster.start_node("b")
        run = cluster.start_run(soup_spec(corpus.digest, steps=STEPS, spread=spread))
        if dies is not None:
            wait_killed(first)
        return outcome(cluster, run)
