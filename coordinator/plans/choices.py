"""Multiple-choice questions as a plan: tokens, perhaps routing by each context's prefix, scores of models, a table."""

from __future__ import annotations

from coordinator.core.values import Failed, Figures, Finished, TaskResult
from coordinator.plans.base import Results, Wanted, Wishes
from coordinator.plans.held_out import bootstrap_params, inference_bytes, model_params
from coordinator.plans.text import FIRST_RANK
from potluck.ids import Digest, Json
from potluck.lm.config import ModelConfig
from potluck.specs.choices import MIXTURE, ChoicesSpec, RoutedExperts

WHY = {
    "no-token": "has no token of its own after the context: begin it with a space",
    "too-long": "is, with the spaces before it, longer than the models' context",
}


def advance(spec: ChoicesSpec, results: Results) -> Wanted:
    """All that the run wants now, from scratch."""
    wishes = Wishes(results)
    text = wishes.task(
        "tokenise",
        {
            "what": "choices",
            "sequence_length": spec.text.sequence_length,
            "prefix_length": spec.text.prefix_length,
        },
        {"items": spec.items, "tokenizer": spec.tokenizer},
        label="tokenise the questions",
        rank=FIRST_RANK,
    )
    if text is None:
        return wishes.wanted("tokenising")
    if text.figures.get("refused"):
        return wishes.wanted("stopped", outcome=_refused(text.figures))
    spans = {name: text.blobs[name] for name in ("tokens", "spans")}
    scored: dict[str, Digest] = {}
    wanted = 0
    if spec.mixture is not None:
        wanted += 1 + len(spec.mixture.experts)
        scored |= _want_mixture(spec, wishes, spec.mixture, text, spans)
    for number, each in enumerate(spec.models):
        wanted += 1
        label = f"answer as {each.name}"
        result = _want_scores(spec, wishes, each.model, {"weights": each.weights, **spans}, label)
        if result is not None:
            scored[f"model-{number:03d}"] = result.blobs["scores"]
    if len(scored) < wanted:
        return wishes.wanted("answering")
    return _finish(spec, wishes, text, scored)


def _want_mixture(
    spec: ChoicesSpec, wishes: Wishes, mixture: RoutedExperts, text: TaskResult, spans: dict[str, Digest]
) -> dict[str, Digest]:
    """The routing and every expert's answers, as far as they are there."""
    prefixes = {name: text.blobs[name] for name in ("prefixes", "prefix_lengths")}
    columns: dict[str, Digest] = {}
    for number, weights in enumerate(mixture.routers):
        result = wishes.task(
            "score",
            {"what": "prefixes", **model_params(spec, mixture.router_model)},
            {"weights": weights, **prefixes},
            label=f"score the contexts with router {number}",
            rank=FIRST_RANK,
            memory_bytes=inference_bytes(spec, mixture.router_model),
        )
        if result is not None:
            columns[f"column-{number:03d}"] = result.blobs["column"]
    if len(columns) < len(mixture.routers):
        return {}
    assigned = wishes.task("assign", {"rule": "least"}, columns, label="route the contexts", rank=FIRST_RANK)
    if assigned is None:
        return {}
    found = {"assignment": assigned.blobs["assignment"]}
    for number, weights in enumerate(mixture.experts):
        inputs = {"weights": weights, **spans, "assignment": found["assignment"]}
        label = f"answer as expert {number} what is routed to it"
        result = _want_scores(spec, wishes, mixture.expert_model, inputs, label, expert=number)
        if result is not None:
            found[f"expert-{number:03d}"] = result.blobs["scores"]
    return found


def _want_scores(
    spec: ChoicesSpec, wishes: Wishes, model: ModelConfig, inputs: dict[str, Digest], label: str, **params: Json
) -> TaskResult | None:
    return wishes.task(
        "eval",
        {"what": "choice_scores", **model_params(spec, model), **params},
        inputs,
        label=label,
        rank=FIRST_RANK,
        memory_bytes=inference_bytes(spec, model),
    )


def _finish(spec: ChoicesSpec, wishes: Wishes, text: TaskResult, scored: dict[str, Digest]) -> Wanted:
    names: list[Json] = [each.name for each in spec.models]
    table = wishes.task(
        "eval",
        {
            "what": "choices",
            "models": names,
            "mixture": MIXTURE,
            **bootstrap_params(spec, "choices"),
            "cut": text.figures.get("cut"),
            "facts": {"method": spec.method, "items": spec.items, "seed": spec.seed},
        },
        {"items": spec.items, "spans": text.blobs["spans"], **scored},
        label="count the right answers",
        rank=FIRST_RANK,
    )
    if table is None:
        return wishes.wanted("counting the right answers")
    figures: dict[str, Json] = {"headline": dict(table.figures)}
    return wishes.wanted("done", outcome=Finished(report=table.blobs["report"], figures=figures))


def _refused(figures: Figures) -> Failed:
    refusals = figures["refusals"]
    assert isinstance(refusals, list)
    listed: list[str] = []
    for refusal in refusals:
        assert isinstance(refusal, list)
        item, choice, why = refusal
        listed.append(f"choice {choice} of question {item!r} {WHY[str(why)]}")
    more = f"; {figures['refused']} choices in all" if figures["refused"] != len(listed) else ""
    return Failed(error_id="corpus.bad-choices", message="; ".join(listed) + more)
