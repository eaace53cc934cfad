"""Asks the models of a run multiple-choice questions, as a run of its own: equal questions are answered once."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from potluck.choices import items_text, read_items
from potluck.commands.following import Launch, refusal_of, run_to_end
from potluck.commands.home import Home, identity_of
from potluck.commands.output import Output
from potluck.commands.reports import report_of
from potluck.commands.run import raise_unless_finished
from potluck.commands.runs import published_slot
from potluck.commands.soups import NATURAL, by_weights, find_soup
from potluck.config import from_mapping
from potluck.errors import CorpusError, Refused, UsageError
from potluck.ids import NO_DIGEST, Digest, digest_bytes, short
from potluck.lm.config import ModelConfig
from potluck.soup_names import PREFIX
from potluck.specs.choices import ChoicesSpec, RoutedExperts
from potluck.specs.contest import Contestant
from potluck.specs.crisp import CrispSpec
from potluck.specs.run import MAX_NAME, spec_from_json
from potluck.specs.single import SingleSpec
from potluck.specs.smalltalk import SmallTalkSpec
from potluck.specs.soup import SoupSpec

if TYPE_CHECKING:
    from potluck.client import AdminClient
    from potluck.v1 import admin_pb2

ROUTER = "router"
DENSE, SINGLE = "dense", "model"
TRAINING = SmallTalkSpec | SingleSpec | CrispSpec | SoupSpec


def ask(
    client: AdminClient, home: Home, info: admin_pb2.RunInfo, file: Path, models: Sequence[str], output: Output
) -> dict[str, Any]:
    """The report of the questions in a file.

    Args:
        models: names of models of a soup run, beside its model of the corpus.

    Raises:
        CorpusError: ``corpus.missing``; ``corpus.bad-choices``, with the line, or with the question's id where only
            the tokenizer can tell.
        UsageError: ``usage.no-models``, the run trains none; as `by_weights`.
        Refused: ``refused.not-published``.
    """
    digest = _send(home, file, output)
    spec = _spec(client, home, info, models, digest, output)
    launch = Launch(spec=spec, name=f"{info.name} {file.stem}"[:MAX_NAME])
    ended, is_new = run_to_end(client, home, launch, output)
    error_id, message = refusal_of(ended)
    if error_id == "corpus.bad-choices":  # as if the file had been read with the tokenizer
        raise CorpusError(error_id, f"{file.name}: {message}", "mend or remove these questions")
    raise_unless_finished(ended)
    found = "answered now" if is_new else "answered before, found again"
    output.note(f"{found}; run {short(ended.run)}")
    return report_of(client, home, ended)


def _send(home: Home, file: Path, output: Output) -> Digest:
    from potluck.commands.transfer import put_corpus

    try:
        with file.open("rb") as lines:
            items = read_items(lines, file.name)
    except (FileNotFoundError, IsADirectoryError):
        what = f"no file at {file}"
        raise CorpusError("corpus.missing", what, "name a file of questions, one JSON object a line") from None
    data = items_text(items).encode()
    digest = digest_bytes(data)
    path = home.scratch("choices") / f"{short(digest)}.jsonl"
    path.write_bytes(data)
    put_corpus(identity_of(home), home.scratch("blobs"), {digest: path}, output)
    return digest


def _spec(
    client: AdminClient, home: Home, info: admin_pb2.RunInfo, models: Sequence[str], items: Digest, output: Output
) -> ChoicesSpec:
    spec = spec_from_json(info.spec_json)
    if not isinstance(spec, TRAINING):
        what = f"run {short(info.run)} ({info.name}) is of method {spec.method}, which trains no model"
        raise UsageError("usage.no-models", what, "name a run that trains: `potluck run list` lists runs")
    if models and not isinstance(spec, SoupSpec):
        what = f"--model {models[0]} of run {short(info.run)}, which is no soup"
        raise UsageError("usage.no-soup", what, "leave --model out: all models of the run are asked")
    mixture, contestants = None, [_published(info, slot) for slot in _slots(info, spec, output)]
    if isinstance(spec, SmallTalkSpec) and spec.has_routers:
        mixture = _mixture(home, info, spec)
    if models:
        soup = find_soup(client, home, info.run)
        made = [by_weights(client, home, soup, model.removeprefix(PREFIX), output) for model in models]
        specialists = {
            one.model: Contestant(name=one.model, weights=one.weights, model=soup.source.model) for one in made
        }
        contestants = [*specialists.values(), *contestants]
    return ChoicesSpec(
        method="choices",
        corpus=NO_DIGEST,
        seed=spec.seed,
        text=spec.text,
        profile=spec.profile,
        evaluation=spec.evaluation,
        items=items,
        tokenizer=Digest(info.published[0].tokenizer),
        models=tuple(contestants),
        mixture=mixture,
    )


def _slots(info: admin_pb2.RunInfo, spec: TRAINING, output: Output) -> list[str]:
    """The models of a run that answer alone."""
    published = sorted(slot.slot for slot in info.published)
    if isinstance(spec, SingleSpec):
        return [SINGLE]
    if isinstance(spec, SoupSpec):
        return [NATURAL]
    if isinstance(spec, CrispSpec):
        return ["specialist", "generalist"]
    if spec.has_routers:
        return [slot for slot in published if slot == DENSE]
    output.note(
        f"text is sorted by {spec.partition_by} in this run: its experts are asked each alone, not as a mixture"
    )
    return published or [DENSE]


def _published(info: admin_pb2.RunInfo, name: str) -> Contestant:
    slot = published_slot(info, name)
    model = from_mapping(ModelConfig, json.loads(slot.model_json))
    return Contestant(name=name, weights=Digest(slot.weights), model=model)


def _mixture(home: Home, info: admin_pb2.RunInfo, spec: SmallTalkSpec) -> RoutedExperts:
    """The experts as published, and the routers at the end of their training.

    Raises:
        Refused: ``refused.not-published``, an expert or a router is not there yet.
    """
    from potluck.commands.transfer import get_blob

    experts = [_published(info, f"expert-{number}") for number in range(spec.experts.num)]
    ends = {line.label: line for line in info.lineages if line.role == ROUTER}
    routers: list[Digest] = []
    for number in range(spec.experts.num):
        line = ends.get(f"{ROUTER} {number}")
        if line is None or line.head_step < line.total_steps:
            what = f"{ROUTER} {number} of run {short(info.run)} is not trained to its end"
            raise Refused("refused.not-published", what, f"follow it with `potluck run watch {short(info.run)}`")
        path = get_blob(identity_of(home), home.scratch("blobs"), Digest(line.head), "weights")
        routers.append(Digest(json.loads(path.read_text(encoding="utf-8"))["weights"]))
    return RoutedExperts(
        routers=tuple(routers),
        router_model=spec.router_model(),
        experts=tuple(expert.weights for expert in experts),
        expert_model=spec.expert_model(),
    )
