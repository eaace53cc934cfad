"""`memory_mib`: each lineage gets the micro-batch and the checkpointing that keep it within."""

import json
from typing import Any

import pytest

from coordinator.plans.smalltalk_recipes import Recipes
from coordinator.plans.smalltalk_sizes import Cell, Sizes
from coordinator.plans.trainings import Training
from potluck.config import from_mapping
from potluck.errors import SpecError
from potluck.ids import Digest
from potluck.lm.memory import MIB
from potluck.recipe import Profile
from potluck.sizing import cost_of
from potluck.specs.run import parse_run_file, spec_from_json
from potluck.specs.smalltalk import SmallTalkSpec

BODY: dict[str, Any] = {
    "data": "folder",
    "text": {"vocab_size": 4096, "sequence_length": 256},
    "experts": {"model": {"preset": "2.5M"}, "batch_size": 12, "chunk_sequences": 480},
    "dense": {"batch_size": 24},
}


def spec_of(memory_mib: int, **more: Any) -> SmallTalkSpec:
    spec = parse_run_file({**BODY, "memory_mib": memory_mib, **more}).canonical(Digest("a" * 64))
    assert isinstance(spec, SmallTalkSpec)
    return spec


def trainings(spec: SmallTalkSpec) -> dict[str, Training]:
    recipes = Recipes(Sizes(spec=spec), Digest("b" * 64))
    return {
        "router": recipes.router(0),
        "expert": recipes.expert(0, Cell(batch_size=spec.experts.batch_size, learning_rate=1e-3)),
        "dense": recipes.dense(Cell(batch_size=spec.dense.batch_size, learning_rate=1e-3)),
    }


def profile_of(training: Training) -> Profile:
    return from_mapping(Profile, json.loads(training.profile_json))


def test_without_a_bound_every_lineage_has_the_runs_profile() -> None:
    assert {profile_of(training) for training in trainings(spec_of(0)).values()} == {Profile()}


def test_a_memory_bound_gives_each_lineage_the_profile_that_fits() -> None:
    made = trainings(spec_of(300))
    assert profile_of(made["router"]) == Profile()
    assert profile_of(made["expert"]) == Profile(micro_batch=6)
    assert profile_of(made["dense"]) == Profile(micro_batch=6)
    assert all(training.memory_bytes <= 300 * MIB for training in made.values())


def test_a_tight_memory_bound_has_blocks_computed_twice() -> None:
    profile = profile_of(trainings(spec_of(128))["expert"])
    assert profile == Profile(micro_batch=2, activation_checkpointing=True)


def test_a_memory_bound_is_shared_by_the_processes_of_a_node() -> None:
    training = trainings(spec_of(600, profile={"processes": 2}))["expert"]
    profile = profile_of(training)
    assert profile.processes == 2
    assert 6 % (profile.micro_batch or 6) == 0
    assert training.memory_bytes <= 600 * MIB


def test_a_memory_bound_too_small_is_refused_with_the_least_that_works() -> None:
    with pytest.raises(SpecError) as caught:
        spec_of(64)
    assert caught.value.error_id == "spec.memory-too-small"
    least = int(caught.value.fix.split("memory_mib = ")[1].split()[0])
    assert profile_of(trainings(spec_of(least))["expert"]) == Profile(micro_batch=1, activation_checkpointing=True)


def test_a_canonical_spec_that_does_not_fit_is_refused_wherever_it_is_read() -> None:
    text = spec_of(600).to_json().replace('"memory_mib":600', '"memory_mib":64')
    with pytest.raises(SpecError, match=r"spec\.memory-too-small"):
        spec_from_json(text)


@pytest.mark.parametrize("profile", [{"micro_batch": 4}, {"activation_checkpointing": True}])
def test_a_memory_bound_beside_what_it_would_choose_is_refused(profile: dict[str, Any]) -> None:
    with pytest.raises(SpecError, match="memory_mib = 600") as caught:
        spec_of(600, profile=profile)
    assert "which it would choose" in caught.value.fix


def test_a_bound_that_changes_no_profile_leaves_the_lineages_as_they_are() -> None:
    wide, none = trainings(spec_of(8192)), trainings(spec_of(0))
    assert {name: t.recipe.id for name, t in wide.items()} == {name: t.recipe.id for name, t in none.items()}


def test_a_plan_counts_the_memory_that_the_bound_leaves() -> None:
    assert cost_of(spec_of(300)).expert_memory_bytes <= 300 * MIB < cost_of(spec_of(0)).expert_memory_bytes
