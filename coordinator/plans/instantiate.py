"""A specialist of a soup (2502.01804) as a plan: a mixture, named or where text lies, and the weights of theta(h).

Text, if that is what was given → rows under the soup's tokenizer → where its train rows lie → h → theta(h) → both it
and the soup's model of the corpus on the text's test rows, if there are enough → one manifest of all.
"""

from __future__ import annotations

from dataclasses import dataclass

from coordinator.core.values import Failed, Figures, Finished, TaskResult
from coordinator.plans.base import CorpusFacts, Results, Wanted, Wishes
from coordinator.plans.held_out import made_models, want_nll
from coordinator.plans.one_model import want_contest
from coordinator.plans.partition import FIRST_RANK, Clusters, Divider, Domains
from coordinator.plans.soup_models import NATURAL, want_model
from coordinator.plans.text import MIN_TEST_ROWS, Text, want_rows
from potluck.ids import NO_DIGEST, Digest, Json
from potluck.specs.instantiate import InstantiateSpec
from potluck.specs.partition import PartitionSpec

SPECIALIST = "specialist"
"""theta(h), in the table beside the soup's model of the corpus."""


@dataclass(frozen=True, kw_only=True)
class Placed:
    """What a specialist is for."""

    mixture: Digest
    text: Text | None = None
    histogram: Figures | None = None
    """Of the text's train rows."""


def advance(spec: InstantiateSpec, corpus: CorpusFacts, results: Results) -> Wanted:
    """All that the run wants now, from scratch."""
    wishes = Wishes(results)
    placed = _named(spec, wishes) if spec.weights else _placed(spec, corpus, wishes)
    if isinstance(placed, str):
        return wishes.wanted(placed)
    if isinstance(placed, Failed):
        return wishes.wanted("stopped", outcome=placed)
    made = want_model(
        wishes,
        spec.soup.model,
        spec.soup.config,
        weights=spec.soup.bank,
        labels=spec.soup.labels,
        mixture=placed.mixture,
        label="make the specialist",
        rank=FIRST_RANK,
    )
    if made is None:
        return wishes.wanted("making the specialist")
    is_told = placed.text is not None and placed.text.test_rows >= MIN_TEST_ROWS
    contest = _want_contest(spec, wishes, placed.text, made) if placed.text is not None and is_told else None
    if is_told and contest is None:
        return wishes.wanted("evaluating")
    return _finish(spec, wishes, placed, made, contest)


def _named(spec: InstantiateSpec, wishes: Wishes) -> Placed | str:
    found = wishes.task(
        "fit",
        {"what": "mixture", "weights": {each.name: each.weight for each in spec.weights}},
        {"labels": spec.soup.labels},
        label="the mixture",
        rank=FIRST_RANK,
    )
    return "writing the mixture" if found is None else Placed(mixture=found.blobs["mixture"])


def _placed(spec: InstantiateSpec, corpus: CorpusFacts, wishes: Wishes) -> Placed | Failed | str:
    soup = spec.soup
    text = want_rows(spec, spec.corpus, corpus.shards, wishes, soup.tokenizer, "the text's ")
    if text is None:
        return "tokenising the text"
    if text.train_rows < 1:
        return _too_short(spec, text)
    assert soup.encoder_name, "the spec refuses text without what places it"
    domains = Domains(
        partition=soup.partition,
        cards=NO_DIGEST,
        clusters=Clusters(encoder=soup.encoder, encoder_name=soup.encoder_name, tree=soup.tree),
        labels_parts={},
        distances={},
        figures={},
    )
    divider = Divider(spec=spec, how=PartitionSpec(), text=text, wishes=wishes)
    found = divider.place(domains, text.tokens, "train", text.train_rows, "the text's ")
    if found is None:
        return "placing the text in the domains"
    told = divider.histogram(
        found,
        soup.labels,
        text.tokens,
        "the text",
        corpus_distances={},  # gone with the soup's own run; its labels say how far they reach
        planned_tokens=0,  # nothing is trained on the mixture: how often its text would be read says nothing here
        weights={},
    )
    if told is None:
        return "counting the text's domains"
    unplaced = told.figures.get("unplaced")
    if isinstance(unplaced, int | float) and unplaced >= 1:
        return _outside(told.figures)
    return Placed(mixture=told.blobs["mixture"], text=text, histogram=told.figures)


def _want_contest(spec: InstantiateSpec, wishes: Wishes, text: Text, made: TaskResult) -> TaskResult | None:
    models = {SPECIALIST: made.blobs["weights"], NATURAL: spec.soup.natural}
    return want_contest(
        spec,
        wishes,
        text.tokens,
        "test",
        {name: _want_nll(spec, wishes, text, name, weights) for name, weights in models.items()},
        pairs=[(SPECIALIST, NATURAL)],
        facts={"method": spec.method},
        label="compare on the text's test rows",
    )


def _want_nll(spec: InstantiateSpec, wishes: Wishes, text: Text, name: str, weights: Digest) -> TaskResult | None:
    label = f"NLL of the {name} on the text"
    return want_nll(spec, wishes, spec.soup.model, weights, text.tokens, "test", label=label, rank=FIRST_RANK)


def _finish(
    spec: InstantiateSpec, wishes: Wishes, placed: Placed, made: TaskResult, contest: TaskResult | None
) -> Wanted:
    blobs = {"weights": made.blobs["weights"], "mixture": placed.mixture, "tokenizer": spec.soup.tokenizer}
    told: dict[str, Json] = {
        "coefficients": made.figures.get("coefficients"),
        "histogram": None if placed.histogram is None else dict(placed.histogram),
        "test_rows": placed.text.test_rows if placed.text is not None else 0,
        "contest": None if contest is None else dict(contest.figures),
    }
    report = wishes.task(
        "fit",
        # The blobs are parameters, not inputs: they are named, so that they stay, and read by nobody.
        {"what": "specialist", "blobs": blobs, "facts": told},
        {"mixture": placed.mixture, "labels": spec.soup.labels},
        label="list what was made",
        rank=FIRST_RANK,
    )
    if report is None:
        return wishes.wanted("listing what was made")
    tokens = placed.text.tokens if placed.text is not None else NO_DIGEST
    figures: dict[str, Json] = {
        "specialist": {**blobs, **told},
        "made": made_models(tokens, {SPECIALIST: (made.blobs["weights"], spec.soup.model)}),
    }
    return wishes.wanted("done", outcome=Finished(report=report.blobs["report"], figures=figures))


def _too_short(spec: InstantiateSpec, text: Text) -> Failed:
    message = (
        f"the text's training part does not fill one row of {spec.text.sequence_length} tokens, of which its place "
        "among the domains is taken; give more text like what the specialist is for"
    )
    return Failed(error_id="corpus.target-too-small", message=message)


def _outside(histogram: Figures) -> Failed:
    message = (
        f"no domain of the soup holds this text: all of its {histogram.get('windows')} windows lie further out than "
        "nearly all of the soup's corpus; train a soup on a corpus with text like it"
    )
    return Failed(error_id="corpus.outside-soup", message=message)
