"""One model on the whole corpus: text, one lineage, held-out tables. With a partition, its mixture can be steered."""

from __future__ import annotations

from collections.abc import Mapping

from coordinator.core.values import Finished, Steering, SteeringEntry, TaskResult
from coordinator.plans.base import CorpusFacts, Results, Wanted, Wishes
from coordinator.plans.held_out import EVAL_RANK, Examiner, Probed, bootstrap_params, last_stage, with_refusals
from coordinator.plans.one_model import model_facts, model_training, serving_json, want_contest
from coordinator.plans.partition import Divider, Domains, Labelled
from coordinator.plans.seeds import derive
from coordinator.plans.steering import CURRENT, PROPOSAL, Course, Helm
from coordinator.plans.text import want_ample_text
from coordinator.plans.trainings import Training
from potluck.ids import NO_DIGEST, Digest, Json
from potluck.recipe import Origin, Segment, Stream
from potluck.specs.single import SingleSpec

SLOT = "model"


def advance(spec: SingleSpec, corpus: CorpusFacts, results: Results) -> Wanted:
    """All that the run wants now, from scratch."""
    wishes = Wishes(results)
    text = want_ample_text(spec, corpus, wishes)
    if isinstance(text, Wanted):
        return text
    examiner = Examiner(spec=spec, text=text, wishes=wishes)
    if spec.partition.by == "none":
        return _even(spec, examiner)
    return _steered(spec, examiner, results.steering())


def _even(spec: SingleSpec, examiner: Examiner) -> Wanted:
    text, key = examiner.text, derive(spec.seed, "stream")
    rule: dict[str, Json] = {"rule": "stream", "tokens": text.tokens, "key": key, "start": 0}
    training = model_training(spec, rule, label="the model")
    data = Stream(tokens=text.tokens, key=key, start=0)
    segment = Segment(index=0, start_step=0, end_step=training.total_steps, data=data)
    examiner.wishes.lineage(training.wanted((segment,)))
    curves: dict[str, Json] = {training.label: examiner.wishes.loss_curve(training.recipe.id)}
    return _ending(spec, examiner, training, [examiner.probes(training, SLOT)], curves)


def _steered(spec: SingleSpec, examiner: Examiner, entries: tuple[SteeringEntry, ...]) -> Wanted:
    divider = Divider(spec=spec, how=spec.partition, text=examiner.text, wishes=examiner.wishes)
    domains = divider.divide()
    if isinstance(domains, str):
        return examiner.wishes.wanted(domains)
    labelled = divider.label(domains)
    if labelled is None:
        return examiner.wishes.wanted("collecting the labels")
    course = _follow(spec, examiner, divider, domains, labelled, entries)
    probed = [examiner.probes(track.training, SLOT) for track in course.tracks]
    curves: dict[str, Json] = {"the model": course.curve(examiner.wishes)}
    partition = domains.partition if domains.clusters is not None else NO_DIGEST
    return _ending(spec, examiner, course.last, probed, curves, steering=course.steering, partition=partition)


def _follow(
    spec: SingleSpec,
    examiner: Examiner,
    divider: Divider,
    domains: Domains,
    labelled: Labelled,
    entries: tuple[SteeringEntry, ...],
) -> Course:
    def start(origin: Origin | None, name: str, suffix: str) -> Training:
        rule: dict[str, Json] = {
            "rule": "steered",
            "run": spec.id,  # changes come from outside: two runs never share such a lineage
            "part": name,
            "tokens": examiner.text.tokens,
            "labels": labelled.labels,
        }
        return model_training(spec, rule, label=f"the model{suffix}", origin=origin)

    helm = Helm(
        examiner=examiner,
        labelled=labelled,
        how=spec.mixture,
        start=start,
        judge=lambda entry, fork, proposal, current: _judge(
            examiner, divider, domains, labelled, entry, fork, {"proposal": proposal, "natural": current}
        ),
        batch_size=spec.training.batch_size,
        total_steps=spec.training.steps,
    )
    return helm.follow(entries)


def _judge(
    examiner: Examiner,
    divider: Divider,
    domains: Domains,
    labelled: Labelled,
    entry: SteeringEntry,
    fork: Training,
    weights: Mapping[str, Digest],
) -> TaskResult | None:
    """Measures both forks on valid text: as it lies, or, for what traffic asks, spread over domains as asked."""
    names = {"proposal": PROPOSAL, "natural": CURRENT}
    scored = {
        side: examiner.nll_of(fork, digest, "valid", label=f"valid NLL of the {names[side]} of change {entry.number}")
        for side, digest in weights.items()
    }
    inputs = {side: result.blobs["nll"] for side, result in scored.items() if result is not None}
    if entry.origin == "traffic" and domains.clusters is not None:
        text = examiner.text
        placed = divider.place(domains, text.tokens, "valid", text.valid_rows, "")
        joined = _want_joined(examiner, placed[0]) if placed is not None else None
        if joined is None:
            return None
        inputs |= {"mixture": entry.mixture, "labels": labelled.labels, "held_out": joined}
    if not {"proposal", "natural"} <= set(inputs):
        return None
    return examiner.wishes.task(
        "eval",
        {
            "what": "gate",
            "split": "valid",
            **bootstrap_params(examiner.spec, "gate"),
        },
        {"tokens_manifest": examiner.text.tokens, **inputs},
        label=f"the gate of change {entry.number}",
        rank=EVAL_RANK,
    )


def _want_joined(examiner: Examiner, parts: Mapping[str, Digest]) -> Digest | None:
    """The labels of the valid rows: one part is the whole of them, as long as valid text is small."""
    if len(parts) == 1:
        return next(iter(parts.values()))
    joined = examiner.wishes.task(
        "fit", {"what": "joined"}, dict(parts), label="join the labels of the valid rows", rank=EVAL_RANK
    )
    return None if joined is None else joined.blobs["joined"]


def _ending(
    spec: SingleSpec,
    examiner: Examiner,
    training: Training,
    probed: list[Probed],
    curves: dict[str, Json],
    *,
    steering: Steering | None = None,
    partition: Digest = NO_DIGEST,
) -> Wanted:
    """What is published, and the tables once the training is through."""
    wishes, text = examiner.wishes, examiner.text
    published = [probe.publication for probe in probed if probe.publication is not None]
    publish = tuple(published[-1:])
    serving = serving_json(spec, text, slot=SLOT, partition=partition)
    facts = model_facts(spec, text, training)
    tables = {
        split: want_contest(
            spec,
            wishes,
            text.tokens,
            split,
            {"model": examiner.nll(training, split)},
            facts=facts,
            label=f"{split} table",
        )
        for split in ("valid", "test")
    }
    valid, test = tables["valid"], tables["test"]
    gate_open = steering is not None and steering.gate_open
    if valid is None or test is None or not probed[-1].is_complete or gate_open:
        done = examiner.final_weights(training) is not None
        stage = "at the gate of a proposal" if gate_open else "evaluating" if done else "training"
        stage = with_refusals(stage, probed[-1:])
        return wishes.wanted(stage, publish=publish, serving_json=serving, steering=steering)
    figures: dict[str, Json] = {
        "headline": {"valid": dict(valid.figures), "test": dict(test.figures)},
        "lineages": curves,
        "made": examiner.made({"model": training}),
    }
    finished = Finished(report=test.blobs["report"], figures=figures)
    return wishes.wanted(
        last_stage(probed[-1:]), publish=publish, outcome=finished, serving_json=serving, steering=steering
    )
