"""One model on the whole corpus: text, one lineage, held-out tables. Sweeps are made of such runs."""

from __future__ import annotations

from coordinator.core.values import Finished, TaskResult
from coordinator.plans.base import CorpusFacts, Results, Wanted, Wishes
from coordinator.plans.held_out import EVAL_RANK, Examiner, last_stage
from coordinator.plans.seeds import derive
from coordinator.plans.text import Text, too_small, want_text
from coordinator.plans.trainings import FIRST_RANK, Training, cosine, make_training
from potluck.config import to_mapping
from potluck.ids import Json, canonical_json
from potluck.recipe import Segment, Stream
from potluck.specs.single import SingleSpec

SLOT = "model"


def advance(spec: SingleSpec, corpus: CorpusFacts, results: Results) -> Wanted:
    """All that the run wants now, from scratch."""
    wishes = Wishes(results)
    text = want_text(spec, corpus, wishes)
    if isinstance(text, str):
        return wishes.wanted(text)
    failure = too_small(spec, text)
    if failure is not None:
        return wishes.wanted("stopped", outcome=failure)
    training = the_training(spec, text)
    data = Stream(tokens=text.tokens, key=derive(spec.seed, "stream"), start=0)
    wishes.lineage(training.wanted((Segment(index=0, start_step=0, end_step=training.total_steps, data=data),)))
    examiner = Examiner(spec=spec, text=text, wishes=wishes)
    probed = examiner.probes(training, SLOT)
    publish = (probed.publication,) if probed.publication is not None else ()
    serving = serving_json(spec, text)
    reports = {split: _want_report(examiner, training, split) for split in ("valid", "test")}
    valid, test = reports["valid"], reports["test"]
    if valid is None or test is None or not probed.is_complete:
        done = examiner.final_weights(training) is not None
        return wishes.wanted("evaluating" if done else "training", publish=publish, serving_json=serving)
    figures: dict[str, Json] = {
        "headline": {"valid": dict(valid.figures), "test": dict(test.figures)},
        "lineages": {training.label: loss_curve(wishes, training)},
    }
    finished = Finished(report=test.blobs["report"], figures=figures)
    return wishes.wanted(last_stage([probed]), publish=publish, outcome=finished, serving_json=serving)


def the_training(spec: SingleSpec, text: Text) -> Training:
    how = spec.training
    return make_training(
        spec,
        role="dense",
        index=0,
        model=spec.full_model(),
        schedule=cosine(
            learning_rate=how.learning_rate,
            warmup_fraction=how.warmup_fraction,
            final_fraction=how.final_fraction,
            total_steps=how.steps,
        ),
        batch_size=how.batch_size,
        inputs=spec.text.sequence_length,
        columns=spec.text.sequence_length + 1,
        init_seed=derive(spec.seed, "dense"),
        rule=canonical_json({"rule": "stream", "tokens": text.tokens, "key": derive(spec.seed, "stream"), "start": 0}),
        label="the model",
        rank=FIRST_RANK,
    )


def serving_json(spec: SingleSpec, text: Text) -> str:
    """A view without routers: its one slot answers everything."""
    return canonical_json(
        {
            "method": spec.method,
            "route_by": "one",
            "default_slot": SLOT,
            "tokenizer": text.tokenizer,
            "sequence_length": spec.text.sequence_length,
            "prefix_length": spec.text.prefix_length,
            "expert_model": to_mapping(spec.full_model()),
        }
    )


def loss_curve(wishes: Wishes, training: Training) -> list[Json]:
    """[step, mean loss of the steps since the commit before], one point a commit."""
    commits = wishes.results.commits(training.recipe.id)
    return [[step, commit.figures["loss"]] for step, commit in commits.items() if "loss" in commit.figures]


def _want_report(examiner: Examiner, training: Training, split: str) -> TaskResult | None:
    scored = examiner.nll(training, split)
    if scored is None:
        return None
    spec, recipe = examiner.spec, training.recipe
    evaluation = spec.evaluation
    rows = recipe.schedule.total_steps * recipe.batch_size
    return examiner.wishes.task(
        "eval",
        {
            "what": "contest",
            "split": split,
            "models": ["model"],
            "pairs": [],
            "bootstrap_samples": evaluation.bootstrap_samples,
            "confidence": evaluation.confidence,
            "seed": derive(spec.seed, "bootstrap"),
            "facts": {
                "method": "single",
                "spec": spec.id,
                "steps": recipe.schedule.total_steps,
                "batch_size": recipe.batch_size,
                "learning_rate": recipe.schedule.learning_rate,
                "optimizer": to_mapping(recipe.optimizer),
                "parameters": recipe.model.num_parameters,
                "tokens": rows * spec.text.sequence_length,
                "flops": recipe.schedule.total_steps * training.flops_per_step,
                "epochs": rows / examiner.text.train_rows,
                "rows": {
                    "train": examiner.text.train_rows,
                    "valid": examiner.text.valid_rows,
                    "test": examiner.text.test_rows,
                },
            },
        },
        {"tokens_manifest": examiner.text.tokens, "model": scored.blobs["nll"]},
        label=f"{split} table",
        rank=EVAL_RANK,
    )
