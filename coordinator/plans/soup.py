"""Soup-of-Experts (arXiv 2502.01804) as a plan: one training, and specialists made of it without a gradient step.

Rows → domains and labels → the soup over random mixtures, its controls for equal tokens → where each source's valid
text lies → theta(h) of each source → all of them on all test text: the matrix of right and wrong mixtures.
"""

from __future__ import annotations

import itertools
from dataclasses import replace

from coordinator.core.values import CommittedStep, Finished, Publication, TaskResult
from coordinator.plans.base import CorpusFacts, Results, Wanted, Wishes
from coordinator.plans.held_out import Examiner, Probed, last_stage, with_refusals
from coordinator.plans.one_model import model_facts, serving_json, want_contest
from coordinator.plans.partition import Divider
from coordinator.plans.soup_models import CONSTANT, GENERIC, NATURAL, Models, SourceMixtures, for_source
from coordinator.plans.text import want_ample_text
from potluck.config import to_mapping
from potluck.ids import NO_DIGEST, Digest, Json, canonical_json
from potluck.specs.soup import SoupSpec

SLOT, BANK_SLOT = "soup", "bank"
"""The soup at the corpus' mixture, a plain model; and the soup itself, of which any other is made."""
MAX_COMPARED = 12
"""Sources whose models are compared with each other pair by pair."""


def advance(spec: SoupSpec, corpus: CorpusFacts, results: Results) -> Wanted:
    """All that the run wants now, from scratch."""
    wishes = Wishes(results)
    text = want_ample_text(spec, corpus, wishes)
    if isinstance(text, Wanted):
        return text
    divider = Divider(spec=spec, how=spec.partition, text=text, wishes=wishes)
    domains = divider.divide()
    if isinstance(domains, str):
        return wishes.wanted(domains)
    labelled = divider.label(domains, with_reach=True)
    if labelled is None:
        return wishes.wanted("collecting the labels")
    examiner = Examiner(spec=spec, text=text, wishes=wishes)
    models = Models(spec=spec, examiner=examiner, divider=divider, domains=domains, labelled=labelled)
    return _train(spec, models)


def _train(spec: SoupSpec, models: Models) -> Wanted:
    examiner, wishes, rounds = models.examiner, models.examiner.wishes, models.rounds
    trainings = [one for one in (models.soup, models.generic, models.constant) if one is not None]

    def natural(commit: CommittedStep) -> Digest | None:
        label = f"make the soup's model of the corpus at step {commit.step}"
        made = models.made(models.soup, commit.weights, models.labelled.natural, label)
        return None if made is None else made.blobs["weights"]

    probed = examiner.probes(models.soup, SLOT, model_of=natural)
    serving = serving_json(
        spec,
        examiner.text,
        slot=SLOT,
        partition=models.domains.partition if models.domains.clusters is not None else NO_DIGEST,
        soup={
            "slot": BANK_SLOT,
            "labels": models.labelled.labels,
            "config": to_mapping(models.bank.config),
        },
    )
    publish = _published(models, probed)
    targets = models.source_mixtures()
    outcome = _outcome(spec, models, targets) if targets is not None else None
    if outcome is None or not probed.is_complete:
        done = all(examiner.final_weights(training) is not None for training in trainings)
        training = "training" if rounds is None or examiner.final_weights(models.soup) is not None else rounds.stage
        stage = with_refusals("evaluating" if done else training, [probed])
        return wishes.wanted(stage, publish=publish, serving_json=serving)
    return wishes.wanted(last_stage([probed]), publish=publish, outcome=outcome, serving_json=serving)


def _published(models: Models, probed: Probed) -> tuple[Publication, ...]:
    """What passed, and beside it the soup that it was made of."""
    plain = probed.publication
    if plain is None:
        return ()
    commit = models.examiner.wishes.results.commits(models.soup.recipe.id)[plain.step]
    shape = {
        "model": to_mapping(models.soup.recipe.model),
        "soup": to_mapping(models.bank.config),
        "labels": models.labelled.labels,
    }
    return plain, replace(plain, slot=BANK_SLOT, weights=commit.weights, model_json=canonical_json(shape))


def _outcome(spec: SoupSpec, models: Models, targets: SourceMixtures) -> Finished | None:
    scored = _scored(models, targets)
    if scored is None:
        return None
    specialists = [for_source(name) for name in targets.by_source]
    against = [name for name in (NATURAL, GENERIC, CONSTANT) if name in scored]
    pairs = [(one, other) for one in specialists for other in against]
    pairs += [(NATURAL, other) for other in against[1:]]
    if len(specialists) <= MAX_COMPARED:
        pairs += list(itertools.combinations(specialists, 2))
    facts = _facts(spec, models, targets)
    contest = want_contest(
        spec,
        models.examiner.wishes,
        models.examiner.text.tokens,
        "test",
        scored,
        pairs=pairs,
        facts=facts,
        label="each source's model on each source's test text",
    )
    if contest is None:
        return None
    curves: dict[str, Json] = {
        training.label: models.loss_curve(training)
        for training in (models.soup, models.generic, models.constant)
        if training is not None
    }
    figures: dict[str, Json] = {
        "headline": {"test": dict(contest.figures)},
        "soup": facts["soup"],
        "lineages": curves,
        "made": models.contestants(targets),
    }
    return Finished(report=contest.blobs["report"], figures=figures)


def _scored(models: Models, targets: SourceMixtures) -> dict[str, TaskResult | None] | None:
    """NLL on test text of every model, once none is missing."""
    natural = models.labelled.natural
    found: dict[str, TaskResult | None] = {
        for_source(name): models.nll(models.soup, mixture, f"soup for {name}")
        for name, mixture in targets.by_source.items()
    }
    found[NATURAL] = models.nll(models.soup, natural, "soup's model of the corpus")
    if models.generic is not None:
        found[GENERIC] = models.examiner.nll(models.generic, "test")
    if models.constant is not None:
        found[CONSTANT] = models.nll(models.constant, natural, "constant control")
    return found if all(result is not None for result in found.values()) else None


def _facts(spec: SoupSpec, models: Models, targets: SourceMixtures) -> dict[str, Json]:
    cost, clusters = models.bank.cost, models.domains.clusters
    made_of: dict[str, Json] = {
        "weights": models.examiner.final_weights(models.soup),
        "labels": models.labelled.labels,
        "partition": models.domains.partition,
        "natural": models.labelled.natural,
        "tokenizer": models.examiner.text.tokenizer,
        "model": to_mapping(models.soup.recipe.model),
        "config": to_mapping(models.bank.config),
        "encoder": clusters.encoder if clusters is not None else NO_DIGEST,
        "encoder_name": clusters.encoder_name if clusters is not None else "",
        "tree": clusters.tree if clusters is not None else NO_DIGEST,
    }
    return {
        **model_facts(spec, models.examiner.text, models.soup),
        "soup": {
            **made_of,
            "mixtures": dict(targets.by_source),
            "bank_parameters": cost.bank_parameters,
            "memory_bytes": cost.memory_bytes,
            "traffic_bytes": cost.traffic_bytes,
            **(models.rounds.exchange if models.rounds is not None else {}),
        },
        "targets": dict(targets.figures),
    }
