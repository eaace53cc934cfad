"""CRISP (arXiv 2410.03735) as a plan: a specialist on the part of a corpus that looks like a target.

Corpus and target into rows → encoder, clusters, labels of the corpus' rows → near-duplicates of the target's test
text left out → histogram of the target's train text → specialist by the histogram, generalist evenly, for equal
tokens → perhaps both fine-tuned on the target → both on the target's test text, and on the corpus'.
"""

from __future__ import annotations

from dataclasses import dataclass

from coordinator.core.values import Failed, Figures, Finished
from coordinator.plans.base import CorpusFacts, Results, Wanted, Wishes
from coordinator.plans.crisp_models import GENERALIST, SPECIALIST, Models, tuned
from coordinator.plans.held_out import Examiner, last_stage, with_refusals
from coordinator.plans.one_model import model_facts, serving_json, want_contest
from coordinator.plans.partition import FIRST_RANK, Divider, Domains, Labelled
from coordinator.plans.text import Text, want_ample_text, want_rows
from coordinator.plans.trainings import Training
from potluck.ids import Digest, Json
from potluck.specs.crisp import CrispSpec


@dataclass(frozen=True, kw_only=True)
class Stage:
    """Everything before training, once it is there."""

    text: Text
    target: Text
    domains: Domains
    labelled: Labelled
    mixture: Digest
    histogram: Figures
    duplicates: Figures


def advance(spec: CrispSpec, corpus: CorpusFacts, results: Results) -> Wanted:
    """All that the run wants now, from scratch."""
    wishes = Wishes(results)
    text = want_ample_text(spec, corpus, wishes)
    if isinstance(text, Wanted):
        return text
    prepared = _prepare(spec, corpus, text, wishes)
    if isinstance(prepared, str):
        return wishes.wanted(prepared)
    if isinstance(prepared, Failed):
        return wishes.wanted("stopped", outcome=prepared)
    return _train(spec, prepared, wishes)


def _prepare(spec: CrispSpec, corpus: CorpusFacts, text: Text, wishes: Wishes) -> Stage | Failed | str:
    divider = Divider(spec=spec, how=spec.partition, text=text, wishes=wishes)
    target = want_rows(spec, spec.target, corpus.target_shards, wishes, text.tokenizer, "the target's ")
    domains = divider.divide()
    if target is None:
        return "tokenising the target"
    failure = _bad_target(spec, target)
    if failure is not None:
        return failure
    if isinstance(domains, str):
        return domains
    duplicates = wishes.task(
        "fit",
        {"what": "near_duplicates"},
        {"tokens_manifest": text.tokens, "target_manifest": target.tokens},
        label="find near-duplicates of the target's test text",
        rank=FIRST_RANK,
    )
    placed = divider.place(domains, target.tokens, "train", target.train_rows, "the target's ")
    labelled = divider.label(domains, duplicates.blobs["excluded"]) if duplicates is not None else None
    if duplicates is None or placed is None or labelled is None:
        return "placing the target in the corpus"
    found = divider.histogram(
        placed,
        labelled.labels,
        target.tokens,
        "the target",
        corpus_distances=domains.distances,
        planned_tokens=spec.training.steps * spec.training.batch_size * spec.text.sequence_length,
        smoothing=spec.smoothing,
        weights={each.name: each.weight for each in spec.target_weights},
    )
    if found is None:
        return "counting the target's domains"
    repeats = found.figures.get("repeats")
    if isinstance(repeats, int | float) and repeats > spec.max_repeats:
        return _too_often(repeats, spec)
    return Stage(
        text=text,
        target=target,
        domains=domains,
        labelled=labelled,
        mixture=found.blobs["mixture"],
        histogram=found.figures,
        duplicates=duplicates.figures,
    )


def _train(spec: CrispSpec, stage: Stage, wishes: Wishes) -> Wanted:
    examiner = Examiner(spec=spec, text=stage.text, wishes=wishes)
    models = Models(
        spec=spec,
        examiner=examiner,
        target=stage.target,
        labelled=stage.labelled,
        mixture=stage.mixture,
    )
    generalist, specialist = models.generalist, models.specialist
    probed = {GENERALIST: examiner.probes(generalist, GENERALIST)}
    if specialist is not None:
        # On the corpus a specialist may well become worse: it is probed on the text that it is for.
        probed = {SPECIALIST: examiner.probes(specialist, SPECIALIST, tokens=stage.target.tokens), **probed}
    publish = tuple(probe.publication for probe in probed.values() if probe.publication is not None)
    serving = serving_json(spec, stage.text, slot=SPECIALIST, partition=stage.domains.partition)
    outcome = _outcome(spec, stage, wishes, models, specialist) if specialist is not None else None
    if outcome is None or not all(probe.is_complete for probe in probed.values()):
        stage_name = _warned("evaluating" if models.all_trained() else "training", stage)
        told = with_refusals(stage_name, list(probed.values()))
        return wishes.wanted(told, publish=publish, serving_json=serving)
    return wishes.wanted(last_stage(list(probed.values())), publish=publish, outcome=outcome, serving_json=serving)


def _outcome(spec: CrispSpec, stage: Stage, wishes: Wishes, models: Models, specialist: Training) -> Finished | None:
    """The tables: on the target's test text, and on the corpus'."""
    facts = model_facts(spec, stage.text, specialist)
    general = want_contest(
        spec,
        wishes,
        stage.text.tokens,
        "test",
        models.scored(stage.text.tokens, "the corpus'"),
        pairs=[(SPECIALIST, GENERALIST)],
        facts=facts,
        label="compare on the corpus' test text",
    )
    if general is None:
        return None
    told: dict[str, Json] = {
        **facts,
        "histogram": dict(stage.histogram),
        "near_duplicates": dict(stage.duplicates),
        "target_rows": {
            "train": stage.target.train_rows,
            "valid": stage.target.valid_rows,
            "test": stage.target.test_rows,
        },
        "on_the_corpus": {"models": general.figures.get("models"), "pairs": general.figures.get("pairs")},
    }
    scored = models.scored(stage.target.tokens, "the target's", with_tuned=True)
    pairs = [(SPECIALIST, GENERALIST)]
    if spec.finetune.steps:
        pairs.append((tuned(SPECIALIST), tuned(GENERALIST)))
    contest = want_contest(
        spec,
        wishes,
        stage.target.tokens,
        "test",
        scored,
        pairs=pairs,
        facts=told,
        label="compare on the target's test text",
    )
    if contest is None:
        return None
    curves: dict[str, Json] = {
        training.label: wishes.loss_curve(training.recipe.id) for training in (specialist, models.generalist)
    }
    figures: dict[str, Json] = {
        "headline": {"target": dict(contest.figures), "corpus": dict(general.figures)},
        "histogram": dict(stage.histogram),
        "near_duplicates": dict(stage.duplicates),
        "lineages": curves,
        "made": models.made(),
    }
    return Finished(report=contest.blobs["report"], figures=figures)


def _bad_target(spec: CrispSpec, target: Text) -> Failed | None:
    """Why this target cannot be compared on, or learned from."""
    length = spec.text.sequence_length
    for split, rows, what in (
        ("training", target.train_rows, "nothing to learn its histogram from"),
        ("test", target.test_rows, "nothing to compare on"),
    ):
        if rows < 1:
            message = (
                f"the target's {split} text does not fill one row of {length} tokens: {what}; give more text, "
                "or a shorter text.sequence_length"
            )
            return Failed(error_id="corpus.target-too-small", message=message)
    return None


def _too_often(repeats: float, spec: CrispSpec) -> Failed:
    message = (
        f"the specialist would read its text {repeats:.1f} times on average, more than max_repeats = "
        f"{spec.max_repeats:g}; train for fewer steps, take fewer clusters, give more text, or raise max_repeats"
    )
    return Failed(error_id="spec.too-many-repeats", message=message)


def _warned(stage: str, prepared: Stage) -> str:
    """The stage, with what should be known before much is spent."""
    warnings = prepared.histogram.get("warnings")
    if not isinstance(warnings, list) or not warnings:
        return stage
    return f"{stage}; mind: {'; '.join(str(warning) for warning in warnings)}"
