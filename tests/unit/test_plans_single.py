"""The plan of one model, run to its end by an executor that invents results out of hashes."""

from __future__ import annotations

import json
from dataclasses import replace
from typing import Any

import pytest

from coordinator.core.values import Failed, Finished
from coordinator.plans.base import Wanted
from potluck.errors import SpecError
from potluck.ids import Digest
from potluck.lm.flops import train_flops
from potluck.recipe import AdEMAMixConfig, Profile, Recipe, Segment
from potluck.specs.run import parse_run_file, spec_from_json
from potluck.specs.sections import ModelShape, TextSpec
from potluck.specs.single import SingleSpec, TrainingSpec
from tests.unit.plan_fold import Fold

STEPS, BATCH, LENGTH = 64, 4, 16


def single(**changes: Any) -> SingleSpec:
    spec = SingleSpec(
        method="single",
        corpus=Digest("c" * 64),
        seed=3,
        text=TextSpec(vocab_size=300, sequence_length=LENGTH, prefix_length=8),
        model=ModelShape(preset="0.05M").resolved(""),
        training=TrainingSpec(steps=STEPS, batch_size=BATCH),
    )
    return replace(spec, **changes)


def stages(fold: Fold) -> list[str]:
    """In order, each once, as one piece of work after the other is done."""
    said: dict[str, None] = {}
    wanted: Wanted = fold.advance()
    while work := fold.open_work(wanted):
        said[wanted.stage] = None
        fold.do(work[0])
        wanted = fold.advance()
    said[wanted.stage] = None
    return list(said)


def tables(fold: Fold) -> dict[str, dict[str, Any]]:
    """The parameters of the contests, by split."""
    found = [json.loads(task.params_json) for task in fold.seen_tasks.values() if task.label.endswith(" table")]
    return {params["split"]: params for params in found}


@pytest.mark.parametrize("seed", [0, 1, None])
def test_a_run_trains_one_lineage_publishes_it_and_ends_with_the_table_on_test_text(seed: int | None) -> None:
    fold = Fold(single())
    wanted = fold.run(seed)
    assert isinstance(wanted.outcome, Finished)
    (lineage,) = fold.seen_lineages.values()
    assert (lineage.label, lineage.known_steps, max(fold.commits(lineage.id))) == ("the model", STEPS, STEPS)
    (publication,) = wanted.publish
    assert (publication.slot, publication.step) == ("model", STEPS)
    (test,) = [task for task in fold.seen_tasks.values() if task.label == "test table"]
    assert wanted.outcome.report == fold.done[test.id].blobs["report"]
    assert set(wanted.outcome.figures) == {"headline", "lineages", "made"}


def test_its_stages_are_text_training_and_evaluation() -> None:
    assert stages(Fold(single())) == ["fitting the tokenizer", "tokenising", "training", "evaluating", "done"]


def test_the_model_reads_the_training_rows_in_their_order() -> None:
    fold = Fold(single())
    fold.run()
    (lineage,) = fold.seen_lineages.values()
    (segment,) = [Segment.from_json(text) for text in lineage.segments_json]
    assert (segment.data.kind, segment.start_step, segment.end_step) == ("stream", 0, STEPS)


def test_learning_rate_and_optimizer_change_neither_the_init_nor_the_rows() -> None:
    recipes, streams = [], set()
    for spec in (
        single(),
        single(training=TrainingSpec(steps=STEPS, batch_size=BATCH, learning_rate=1e-3)),
        single(optimizer=AdEMAMixConfig()),
    ):
        fold = Fold(spec)
        fold.run()
        (lineage,) = fold.seen_lineages.values()
        recipes.append(Recipe.from_json(lineage.recipe_json))
        streams.add(lineage.segments_json)
    assert len({recipe.id for recipe in recipes}) == 3
    assert len({(recipe.init_seed, recipe.data_rule) for recipe in recipes}) == 1
    assert len(streams) == 1


def test_both_held_out_splits_are_tabled_and_the_valid_one_is_in_the_figures() -> None:
    fold = Fold(single())
    fold.run()
    assert {split: params["models"] for split, params in tables(fold).items()} == {
        "valid": ["model"],
        "test": ["model"],
    }


def test_the_facts_tell_tokens_flops_and_how_often_the_text_was_read() -> None:
    spec = single()
    fold = Fold(spec)
    fold.run()
    facts = tables(fold)["test"]["facts"]
    rows = STEPS * BATCH
    assert (facts["method"], facts["spec"], facts["steps"]) == ("single", spec.id, STEPS)
    assert facts["tokens"] == rows * LENGTH
    assert facts["flops"] == pytest.approx(rows * train_flops(spec.full_model(), LENGTH))
    assert facts["epochs"] == pytest.approx(rows / 500)


def test_the_facts_tell_the_half_life_of_a_slow_average() -> None:
    fold = Fold(single(optimizer=AdEMAMixConfig(beta3=0.95)))
    fold.run()
    optimizer = tables(fold)["test"]["facts"]["optimizer"]
    assert optimizer["name"] == "ademamix"
    assert optimizer["half_life"] == pytest.approx(12.51, abs=0.01)


@pytest.mark.parametrize(("split", "rows"), [("train_rows", 0), ("valid_rows", 0), ("test_rows", 19)])
def test_too_little_text_fails_the_run_with_the_numbers(split: str, rows: int) -> None:
    fold = Fold(single(), **{split: rows})
    wanted = fold.run()
    assert isinstance(wanted.outcome, Failed)
    assert wanted.outcome.error_id == "corpus.too-small"
    assert f"has {rows} rows" in wanted.outcome.message
    assert not fold.seen_lineages


def test_a_model_that_fails_its_probes_is_not_published_and_the_run_says_so() -> None:
    fold = Fold(single())
    fold.run()
    for task in fold.seen_tasks.values():
        if task.label.startswith("probe the model"):
            fold.done[task.id] = replace(
                fold.done[task.id], figures={"mean_nll": 9.0, "finite": True, "log_vocab": 5.7}
            )
    wanted = fold.advance()
    assert isinstance(wanted.outcome, Finished)
    assert wanted.publish == ()
    assert wanted.stage == "done; not published: model (probe 9.00, ln V 5.70)"


def test_a_view_of_one_model_has_no_routers() -> None:
    serving = json.loads(Fold(single()).run().serving_json)
    assert (serving["route_by"], serving["default_slot"]) == ("one", "model")
    assert "routers" not in serving


def test_another_profile_is_another_lineage() -> None:
    """Else a run that asks for bfloat16 would get the weights of its float32 twin, if that came first."""
    plain, half, threads = (
        one_lineage(replace(single(), profile=profile))
        for profile in (Profile(), Profile(dtype="bfloat16"), Profile(micro_batch=2))
    )
    assert len({plain, half, threads}) == 3


def one_lineage(spec: SingleSpec) -> str:
    fold = Fold(spec)
    fold.run()
    (lineage,) = fold.seen_lineages
    return lineage


def test_the_spec_survives_its_canonical_form_and_its_presets_become_numbers() -> None:
    raw = {"data": "text", "method": "single", "model": {"preset": "0.05M"}, "training": {"steps": 7}}
    spec = parse_run_file(raw).canonical(Digest("c" * 64))
    assert isinstance(spec, SingleSpec)
    assert (spec.model.preset, spec.model.hidden, spec.training.steps) == ("", 32, 7)
    assert spec_from_json(spec.to_json()) == spec


@pytest.mark.parametrize(
    ("section", "key", "value"),
    [
        ("training", "steps", 0),
        ("training", "batch_size", 0),
        ("training", "learning_rate", 0.0),
        ("training", "learning_rate", float("inf")),
        ("training", "warmup_fraction", 1.0),
        ("training", "final_fraction", 1.5),
        ("training", "epochs", 2),
        ("model", "preset", "huge"),
    ],
)
def test_nonsense_is_refused_by_its_key(section: str, key: str, value: Any) -> None:
    with pytest.raises(SpecError, match=rf"{section}\.{key}"):
        parse_run_file({"data": "text", "method": "single", section: {key: value}})
