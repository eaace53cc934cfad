"""The plan of a specialist: what it waits for, trains on and compares, and when it stops before spending."""

from __future__ import annotations

import json
from dataclasses import replace
from typing import Any

import pytest

from coordinator.core.values import Failed, Finished, LineageWanted
from potluck.ids import NO_DIGEST, Digest
from potluck.recipe import Recipe, Segment
from potluck.specs.crisp import CrispSpec, FinetuneSpec
from potluck.specs.partition import PartitionSpec
from potluck.specs.sections import ModelShape, TextSpec
from potluck.specs.single import TrainingSpec
from tests.unit.plan_fold import CORPUS, Fold

STEPS = 40


def crisp(**changes: Any) -> CrispSpec:
    spec = CrispSpec(
        method="crisp",
        corpus=Digest("c" * 64),
        target=Digest("d" * 64),
        seed=3,
        text=TextSpec(vocab_size=300, sequence_length=16, prefix_length=8),
        model=ModelShape(preset="0.05M").resolved(""),
        training=TrainingSpec(steps=STEPS, batch_size=2),
        partition=PartitionSpec(by="clusters", k=4),
    )
    return replace(spec, **changes)


def world(spec: CrispSpec, **figures: Any) -> Fold:
    fold = Fold(spec, **figures)
    fold.corpus = replace(CORPUS, target_shards=(Digest("e" * 64),))
    return fold


def named(fold: Fold) -> dict[str, LineageWanted]:
    return {one.label: one for one in fold.seen_lineages.values()}


def mixtures(lineage: LineageWanted) -> set[str]:
    return {Segment.from_json(text).data.mixture for text in lineage.segments_json}  # type: ignore[union-attr]


@pytest.mark.parametrize("seed", [0, 1, None])
def test_both_models_train_equally_long_one_by_the_targets_histogram(seed: int | None) -> None:
    fold = world(crisp())
    wanted = fold.run(seed)
    assert isinstance(wanted.outcome, Finished)
    models = named(fold)
    assert set(models) == {"generalist", "specialist"}
    assert models["generalist"].total_steps == models["specialist"].total_steps == STEPS
    assert len(mixtures(models["generalist"]) | mixtures(models["specialist"])) == 2
    recipes = [Recipe.from_json(model.recipe_json) for model in models.values()]
    assert recipes[0].init_seed == recipes[1].init_seed
    assert {publication.slot for publication in wanted.publish} == {"generalist", "specialist"}
    assert json.loads(wanted.serving_json)["default_slot"] == "specialist"


def test_a_specialist_is_served_by_probes_on_the_targets_text_and_the_generalist_by_the_corpus() -> None:
    fold = world(crisp())
    fold.run()
    (duplicates,) = [dict(task.inputs) for task in fold.seen_tasks.values() if "duplicates" in task.label]
    probes = [task for task in fold.seen_tasks.values() if task.label.startswith("probe ")]
    for name, text in (("specialist", "target_manifest"), ("generalist", "tokens_manifest")):
        found = {dict(task.inputs)["tokens_manifest"] for task in probes if name in task.label}
        assert found == {duplicates[text]}


def test_near_duplicates_of_the_targets_test_text_are_left_out_for_both() -> None:
    fold = world(crisp())
    fold.run()
    (collected,) = [task for task in fold.seen_tasks.values() if task.label == "collect the labels"]
    assert "excluded" in dict(collected.inputs)
    labels = {Segment.from_json(t).data.labels for m in named(fold).values() for t in m.segments_json}  # type: ignore[union-attr]
    assert len(labels) == 1


def test_the_tables_compare_on_the_targets_text_and_on_the_corpus() -> None:
    fold = world(crisp())
    fold.run()
    compared = [json.loads(task.params_json) for task in fold.seen_tasks.values() if '"contest"' in task.params_json]
    assert [each["pairs"] for each in compared] == [[["specialist", "generalist"]]] * 2
    assert "histogram" in compared[-1]["facts"]


def test_text_read_too_often_stops_the_run_before_it_trains() -> None:
    fold = world(crisp(max_repeats=15.0))
    fold.repeats = 20.0
    outcome = fold.run().outcome
    assert isinstance(outcome, Failed)
    assert outcome.error_id == "spec.too-many-repeats"
    assert "20.0 times" in outcome.message
    assert not fold.seen_lineages


def test_a_target_without_test_text_is_refused_before_anything_is_clustered() -> None:
    """The fold answers every `collect` alike, so the corpus is too small as well: it is named first."""
    outcome = world(crisp(), test_rows=0).run().outcome
    assert isinstance(outcome, Failed)
    assert outcome.error_id == "corpus.too-small"


def test_continued_training_starts_at_the_generalists_checkpoint() -> None:
    fold = world(crisp(switch_fraction=0.5))
    assert isinstance(fold.run().outcome, Finished)
    models = named(fold)
    origin = Recipe.from_json(models["specialist"].recipe_json).origin
    assert origin is not None
    commit = fold.commits(models["generalist"].id)[STEPS // 2]
    assert (origin.step, origin.weights, origin.optimizer) == (STEPS // 2, commit.weights, commit.optimizer)
    assert models["specialist"].total_steps == STEPS // 2


def test_fine_tuning_goes_on_from_both_with_a_fresh_optimizer_and_keeps_the_best() -> None:
    fold = world(crisp(finetune=FinetuneSpec(steps=8, checks=4)))
    assert isinstance(fold.run().outcome, Finished)
    models = named(fold)
    for name in ("specialist", "generalist"):
        origin = Recipe.from_json(models[f"{name} fine-tuned"].recipe_json).origin
        assert origin is not None
        assert (origin.step, origin.optimizer) == (0, NO_DIGEST)
        assert origin.weights == fold.commits(models[name].id)[STEPS].weights
    checked = [task for task in fold.seen_tasks.values() if "valid NLL of the specialist fine-tuned" in task.label]
    assert len(checked) == 5  # before the first step, and four checks
