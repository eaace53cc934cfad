"""A training whose mixture changes on the way: versions, forks, the gate's verdict, and what never changes."""

from __future__ import annotations

import json
from typing import Any

import pytest

from coordinator.core.values import Finished, LineageWanted, SteeringEntry
from coordinator.plans.base import Wanted
from potluck.ids import Digest
from potluck.recipe import Recipe, Segment
from potluck.specs.partition import MixtureSpec, PartitionSpec
from potluck.specs.sections import ModelShape, TextSpec
from potluck.specs.single import SingleSpec, TrainingSpec
from tests.unit.plan_fold import Fold

STEPS, SLICE, BATCH = 48, 4, 2
MORE_LAW = Digest("1" * 64)
ADOPTED = {"difference": -0.1, "low": -0.2, "high": -0.05, "smallest_effect": 0.07, "verdict": "adopted"}


def steered(by: Any = "clusters") -> SingleSpec:
    partition = PartitionSpec(by="clusters", k=4) if by == "clusters" else PartitionSpec(by=by)
    return SingleSpec(
        method="single",
        corpus=Digest("c" * 64),
        seed=3,
        text=TextSpec(vocab_size=300, sequence_length=16, prefix_length=8),
        model=ModelShape(preset="0.05M").resolved(""),
        training=TrainingSpec(steps=STEPS, batch_size=BATCH),
        partition=partition,
        mixture=MixtureSpec(segments=12, gate_segments=2),
    )


def change(fold: Fold, wanted: Wanted, kind: Any, *, origin: str = "person") -> SteeringEntry:
    """What the core records of a change now."""
    steering = wanted.steering
    assert steering is not None
    assert not steering.gate_open
    entry = SteeringEntry(
        number=len(fold.entries) + 1,
        kind=kind,
        mixture=MORE_LAW,
        step=steering.to_step,
        gate_steps=steering.gate_steps if kind == "proposal" else 0,
        origin=origin,
        reason="because",
        unix_ms=1,
    )
    fold.entries = (*fold.entries, entry)
    return entry


def go_on_until(fold: Fold, step: int) -> Wanted:
    """Works until the only lineage has committed `step`."""
    for _ in range(1000):
        wanted = fold.advance()
        if any(max(chain) >= step for chain in fold.chains.values()):
            return wanted
        fold.do(fold.open_work(wanted)[0])
    raise AssertionError("it never comes that far")


def segments(lineage: LineageWanted) -> list[Segment]:
    return [Segment.from_json(text) for text in lineage.segments_json]


def told(wanted: Wanted) -> dict[str, Any]:
    assert wanted.steering is not None
    value: dict[str, Any] = json.loads(wanted.steering.json)
    return value


def test_without_a_change_one_lineage_reads_the_natural_mixture_to_its_end() -> None:
    fold = Fold(steered())
    wanted = fold.run()
    assert isinstance(wanted.outcome, Finished)
    (lineage,) = fold.seen_lineages.values()
    assert [(s.start_step, s.end_step) for s in segments(lineage)] == [(i, i + SLICE) for i in range(0, STEPS, SLICE)]
    assert {s.mixture_version for s in segments(lineage)} == {0}
    assert [s.data.start for s in segments(lineage)] == [i * BATCH for i in range(0, STEPS, SLICE)]  # type: ignore[union-attr]
    assert [version["origin"] for version in told(wanted)["versions"]] == ["natural"]


def test_segments_are_given_out_two_ahead_so_that_a_change_soon_takes_effect() -> None:
    fold = Fold(steered())
    wanted = go_on_until(fold, 3 * SLICE)
    assert wanted.steering is not None
    assert wanted.steering.to_step == 5 * SLICE


def test_a_mixture_that_is_set_holds_from_the_end_of_what_was_given_out() -> None:
    fold = Fold(steered())
    entry = change(fold, go_on_until(fold, SLICE), "set")
    wanted = fold.run()
    assert isinstance(wanted.outcome, Finished)
    (lineage,) = fold.seen_lineages.values()
    before = [s for s in segments(lineage) if s.end_step <= entry.step]
    after = [s for s in segments(lineage) if s.start_step >= entry.step]
    assert len(before) + len(after) == STEPS // SLICE
    assert {s.mixture_version for s in before} == {0}
    assert {(s.mixture_version, s.data.mixture) for s in after} == {(1, MORE_LAW)}  # type: ignore[union-attr]
    assert after[0].data.start == 0  # type: ignore[union-attr]  # its draws count from here
    assert before[0].data.key != after[0].data.key


@pytest.mark.parametrize("seed", [0, 1, 2, None])
def test_a_proposal_that_does_no_harm_goes_on_from_its_fork(seed: int | None) -> None:
    fold = Fold(steered())
    fold.gate = ADOPTED
    entry = change(fold, go_on_until(fold, SLICE), "proposal")
    wanted = fold.run(seed)
    assert isinstance(wanted.outcome, Finished)
    trunk, current, proposal = by_part(fold)
    assert trunk.total_steps == entry.step
    assert current.total_steps == entry.gate_steps == 2 * SLICE
    assert proposal.total_steps == STEPS - entry.step
    assert {s.data.mixture for s in segments(proposal)} == {MORE_LAW}  # type: ignore[union-attr]
    origin = Recipe.from_json(proposal.recipe_json).origin
    assert origin is not None
    commit = fold.commits(trunk.id)[entry.step]
    assert (origin.weights, origin.optimizer, origin.step) == (commit.weights, commit.optimizer, entry.step)
    (verdict,) = told(wanted)["proposals"]
    assert (verdict["state"], verdict["high"]) == ("adopted", -0.05)
    assert [version["version"] for version in told(wanted)["versions"]] == [0, 1]
    (published,) = wanted.publish
    assert published.lineage == proposal.id


def test_a_proposal_that_does_harm_leaves_the_training_as_it_would_have_been() -> None:
    """The planted case: the gate finds the proposal worse, and the natural mixture goes on with the very next rows."""
    alone, fold = Fold(steered()), Fold(steered())
    alone.run()
    (undisturbed,) = alone.seen_lineages.values()
    entry = change(fold, go_on_until(fold, SLICE), "proposal")
    wanted = fold.run()
    assert isinstance(wanted.outcome, Finished)
    trunk, current, proposal = by_part(fold)
    assert proposal.total_steps == entry.gate_steps
    assert current.total_steps == STEPS - entry.step
    rows = [s.data for s in (*segments(trunk), *segments(current))]
    assert rows == [s.data for s in segments(undisturbed)]
    assert told(wanted)["current"] == told(wanted)["natural"]
    assert told(wanted)["proposals"][0]["state"] == "refused"
    assert [version["version"] for version in told(wanted)["versions"]] == [0]


def test_while_forks_are_compared_nothing_else_may_change_and_the_run_does_not_end() -> None:
    fold = Fold(steered())
    change(fold, go_on_until(fold, SLICE), "proposal")
    wanted = fold.advance()
    assert wanted.steering is not None
    assert wanted.steering.gate_open
    assert not isinstance(wanted.outcome, Finished)


def test_changes_after_a_gate_hold_in_the_fork_that_was_kept() -> None:
    fold = Fold(steered())
    fold.gate = ADOPTED
    change(fold, go_on_until(fold, SLICE), "proposal")
    wanted = fold.advance()
    while wanted.steering is None or wanted.steering.gate_open:
        fold.do(fold.open_work(wanted)[0])
        wanted = fold.advance()
    later = change(fold, wanted, "set")
    assert isinstance(fold.run().outcome, Finished)
    proposal = by_part(fold)[2]
    versions = {s.mixture_version for s in segments(proposal)}
    assert versions == {1, 2}
    assert min(s.start_step for s in segments(proposal) if s.mixture_version == 2) == later.step - fold.entries[0].step


def test_what_traffic_proposes_is_judged_on_text_spread_as_traffic_asks() -> None:
    fold = Fold(steered())
    change(fold, go_on_until(fold, SLICE), "proposal", origin="traffic")
    fold.run()
    (gate,) = [task for task in fold.seen_tasks.values() if '"gate"' in task.params_json]
    assert {"mixture", "labels", "held_out"} <= {name for name, _ in gate.inputs}


def test_domains_may_be_the_sources_of_the_text() -> None:
    fold = Fold(steered("source"))
    assert isinstance(fold.run().outcome, Finished)
    assert not any(task.kind in ("embed", "fit_clusters") for task in fold.seen_tasks.values())


def by_part(fold: Fold) -> tuple[LineageWanted, LineageWanted, LineageWanted]:
    """Trunk, the running mixture's fork, the proposal's fork."""
    parts = {
        json.loads(Recipe.from_json(one.recipe_json).data_rule)["part"]: one for one in fold.seen_lineages.values()
    }
    assert len(parts) == 3
    forks = {name.split("-")[2]: one for name, one in parts.items() if name.startswith("fork-")}
    return parts["trunk"], forks["current"], forks["proposal"]
