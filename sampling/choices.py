"""Multiple-choice questions, answered by likelihood: text into tokens, log-likelihoods of a model, accuracies.

The score of a choice is the sum of the log-likelihoods of its tokens after the context. Context and choice are encoded
together and cut apart after the context's own tokens, spaces at the context's end going to the choice, as
lm-evaluation-harness does (`LM._encode_pair`). An empty context is `<eod>`: what a document begins after. A context
that does not fit beside its choice loses its beginning.

Keys of the report:

- `models.NAME.{acc,acc_norm,acc_bytes}`, each {mean, low, high}, or null where a model blew up: the share of questions
  whose right choice has the greatest score, score per character, score per byte of the choice; the first of equals
  counts. Wilson's interval over questions. `names` of the models, in their order.
- `pairs["A - B"]`: differences of the same, paired bootstrap over questions; null for a model that blew up.
- `by_group.GROUP`: all of that over the group's questions.
- `questions`, `choices`, `chance` (mean of 1 / choices), `cut` (choices whose context was cut), `routing` of a mixture.
- `answers`: each question with the score of every choice, in nats.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from statistics import NormalDist
from typing import Any

import numpy as np

from potluck.choices import Item, read_items
from potluck.config import from_mapping
from potluck.ids import Json
from potluck.lm.config import ModelConfig
from sampling.bpe import EOD_ID, encode, load_tokenizer
from sampling.compare import Bootstrap
from sampling.evaluate import paired_bootstrap
from sampling.scoring import to_fixed_point
from sampling.taskio import TaskCall, TaskOutput, load_array

ITEM, BEGIN, LENGTH, SCORED = range(4)
"""Columns of a span: question, first token and number of tokens in the flat array, how many of the last are scored."""
METRICS = ("acc", "acc_norm", "acc_bytes")
MAX_REFUSALS = 5
"""Named in figures."""


def tokenise_choices(call: TaskCall) -> TaskOutput:
    """Task `tokenise`, what `choices`: every choice with its context as a span of tokens, and each context's prefix.

    Inputs: `items` (as `potluck.choices.items_text`), `tokenizer`. Blobs: `tokens` uint16, `spans` int64 [choices, 4],
    `prefixes` uint16 [questions, M], `prefix_lengths` int32. Figures: `cut`, and `refused` with the first `refusals`
    [id, choice, why]: `no-token` of its own, or `too-long` for the model.
    """
    items = _items(call)
    length, prefix = int(call.params["sequence_length"]), int(call.params["prefix_length"])
    bare = [item.context.rstrip() for item in items]
    tokenizer = load_tokenizer(call.path("tokenizer"))
    contexts = encode(tokenizer, bare)
    joined = iter(encode(tokenizer, [item.context + choice for item in items for choice in item.choices]))
    start = np.array([EOD_ID], dtype=np.uint16)
    flat: list[np.ndarray] = []
    spans: list[tuple[int, int, int, int]] = []
    refusals: list[Json] = []
    prefixes = np.full((len(items), prefix), EOD_ID, dtype=np.uint16)
    prefix_lengths = np.ones(len(items), dtype=np.int32)
    begin = cut = 0
    for number, (item, context) in enumerate(zip(items, contexts, strict=True)):
        told = context[:prefix] if len(context) else start
        prefixes[number, : len(told)] = told
        prefix_lengths[number] = len(told)
        for place in range(len(item.choices)):
            whole = next(joined)
            scored = len(whole) - len(context)
            if scored < 1 or scored > length:
                refusals.append([item.id, place, "no-token" if scored < 1 else "too-long"])
                continue
            whole = whole if len(context) else np.concatenate([start, whole])
            cut += len(whole) > length + 1
            whole = whole[-(length + 1) :]
            flat.append(whole)
            spans.append((number, begin, len(whole), scored))
            begin += len(whole)
    return TaskOutput(
        files={
            "tokens": call.write_array("tokens", np.concatenate([np.empty(0, dtype=np.uint16), *flat])),
            "spans": call.write_array("spans", np.array(spans, dtype=np.int64).reshape(-1, 4)),
            "prefixes": call.write_array("prefixes", prefixes),
            "prefix_lengths": call.write_array("prefix_lengths", prefix_lengths),
        },
        figures={"cut": cut, "refused": len(refusals), "refusals": refusals[:MAX_REFUSALS]},
    )


def score_prefixes(call: TaskCall) -> TaskOutput:
    """Task `score`, what `prefixes`: mean NLL of each context's prefix under one router, in fixed point.

    A prefix of one token says nothing: 0 of every router.
    """
    from potluck.lm.score import nll_sums

    prefixes = np.asarray(load_array(call.path("prefixes")))
    targets = np.asarray(load_array(call.path("prefix_lengths"))) - 1
    width = prefixes.shape[1]
    sums = nll_sums(_decoder(call), prefixes, targets, prefix=width, batch_size=int(call.params["batch_size"]))
    column, saturated = to_fixed_point(sums[:, 0] / np.maximum(1, targets))
    return TaskOutput(files={"column": call.write_array("column", column)}, figures={"saturated": saturated})


def assign_least(call: TaskCall) -> TaskOutput:
    """Task `assign`, rule `least`: each row to the column of its least score, ties to the lower; none is ever full."""
    columns = np.stack([load_array(call.path(name)) for name in call.numbered("column")], axis=1)
    chosen = columns.argmin(axis=1).astype(np.uint16)
    shares = np.bincount(chosen, minlength=columns.shape[1]).tolist()
    return TaskOutput(files={"assignment": call.write_array("assignment", chosen)}, figures={"shares": shares})


def eval_choice_scores(call: TaskCall) -> TaskOutput:
    """Task `eval`, what `choice_scores`: float64 [choices], log-likelihood of each span's scored tokens; nats.

    With an input `assignment`, only of the questions that it gives to parameter `expert`; NaN else.
    """
    import torch

    from potluck.lm.loss import token_nll

    tokens, spans = load_array(call.path("tokens")), np.asarray(load_array(call.path("spans")))
    mine = np.ones(len(spans), dtype=bool)
    if "assignment" in call.inputs:
        mine = load_array(call.path("assignment"))[spans[:, ITEM]] == int(call.params["expert"])
    out = np.full(len(spans), np.nan)
    order = np.flatnonzero(mine)
    order = order[np.argsort(spans[order, LENGTH], kind="stable")]  # rows of like length waste little
    model, batch = _decoder(call), int(call.params["batch_size"])
    for first in range(0, len(order), batch):
        chosen = order[first : first + batch]
        rows = np.full((len(chosen), int(spans[chosen, LENGTH].max())), EOD_ID, dtype=np.int64)
        for row, (_, begin, length, _) in zip(rows, spans[chosen].tolist(), strict=True):
            row[:length] = tokens[begin : begin + length]
        ids = torch.from_numpy(rows).to(model.embedding.weight.device)
        nll = token_nll(model, ids).cpu().numpy().astype(np.float64)
        for place, losses, (_, _, length, scored) in zip(chosen, nll, spans[chosen].tolist(), strict=True):
            out[place] = -losses[length - 1 - scored : length - 1].sum()
        call.progress((first + len(chosen)) / len(order))
    return TaskOutput(files={"scores": call.write_array("scores", out)}, figures={"scored": len(order)})


def eval_choices(call: TaskCall) -> TaskOutput:
    """Task `eval`, what `choices`: the report.

    Inputs: `items`, `spans`, `model-NNN` (scores, in the order of parameter `models`), and of a mixture `assignment`
    and `expert-NNN`. Parameters beside `models`: those of the bootstrap, `cut`, `facts`.
    """
    params, items = call.params, _items(call)
    spans = np.asarray(load_array(call.path("spans")))
    named = dict(zip(params["models"], call.numbered("model"), strict=True))
    scores = {name: np.asarray(call.array(blob, (len(spans),))) for name, blob in named.items()}
    assignment = None
    if experts := call.numbered("expert"):
        assignment = np.asarray(call.array("assignment", (len(items),)))
        each = np.stack([call.array(name, (len(spans),)) for name in experts])
        scores = {str(params["mixture"]): each[assignment[spans[:, ITEM]], np.arange(len(spans))], **scores}
    bootstrap = Bootstrap(
        samples=int(params["bootstrap_samples"]), confidence=float(params["confidence"]), seed=int(params["seed"])
    )
    report = build_choices(items, scores, bootstrap=bootstrap)
    figures = {key: report[key] for key in ("models", "pairs", "questions", "choices", "chance")}
    routing: Json = None
    if assignment is not None:
        shares = np.bincount(assignment, minlength=len(experts)).tolist()
        routing = {"shares": shares, "experts": assignment.tolist()}
    report |= {"facts": params["facts"], "cut": params["cut"], "routing": routing}
    return TaskOutput(files={"report": call.write_json("report", report)}, figures={**figures, "cut": params["cut"]})


def build_choices(items: Sequence[Item], scores: Mapping[str, np.ndarray], *, bootstrap: Bootstrap) -> dict[str, Json]:
    """Everything that follows from the scores.

    Args:
        scores: by model, float64 [choices], one question's after the other's; the first model is compared with each.
    """
    ends = np.cumsum([len(item.choices) for item in items])
    parts = {name: np.split(array, ends[:-1]) for name, array in scores.items()}
    finite = {name: bool(np.isfinite(array).all()) for name, array in scores.items()}
    right = {name: _right(items, parts[name]) if finite[name] else None for name in scores}
    groups = list(dict.fromkeys(item.group for item in items))
    whose = np.array([groups.index(item.group) for item in items])
    by_group: dict[str, Json] = {
        group: _table(items, right, whose == number, bootstrap) for number, group in enumerate(groups)
    }
    answers: list[Json] = [
        {
            "id": item.id,
            "group": item.group,
            "answer": item.answer,
            "scores": {name: parts[name][number].tolist() if finite[name] else None for name in scores},
        }
        for number, item in enumerate(items)
    ]
    return {
        **_table(items, right, np.ones(len(items), dtype=bool), bootstrap),
        "names": list(scores),
        "by_group": by_group,
        "answers": answers,
        "bootstrap": {"samples": bootstrap.samples, "confidence": bootstrap.confidence, "seed": bootstrap.seed},
    }


@dataclass(frozen=True, kw_only=True)
class Share:
    mean: float
    low: float
    high: float


def wilson(successes: int, of: int, confidence: float) -> Share:
    """A share with its score interval (Wilson, 1927), which holds at 0 and 1 and for few, where others do not."""
    z = NormalDist().inv_cdf((1 + confidence) / 2)
    mean = successes / of
    middle = (mean + z * z / (2 * of)) / (1 + z * z / of)
    half = z / (1 + z * z / of) * math.sqrt(mean * (1 - mean) / of + z * z / (4 * of * of))
    return Share(mean=mean, low=max(0.0, middle - half), high=min(1.0, middle + half))


def _right(items: Sequence[Item], parts: Sequence[np.ndarray]) -> dict[str, np.ndarray]:
    """By metric, bool [questions]: whether the right choice is the likeliest."""
    found: dict[str, list[bool]] = {metric: [] for metric in METRICS}
    for item, scores in zip(items, parts, strict=True):
        characters = np.array([len(choice) for choice in item.choices])
        sizes = np.array([len(choice.encode()) for choice in item.choices])
        for metric, value in zip(METRICS, (scores, scores / characters, scores / sizes), strict=True):
            found[metric].append(int(value.argmax()) == item.answer)
    return {metric: np.array(values) for metric, values in found.items()}


def _table(
    items: Sequence[Item],
    right: Mapping[str, dict[str, np.ndarray] | None],
    mine: np.ndarray,
    bootstrap: Bootstrap,
) -> dict[str, Json]:
    chosen = [item for item, is_mine in zip(items, mine.tolist(), strict=True) if is_mine]
    first, *others = right
    return {
        "questions": len(chosen),
        "choices": sum(len(item.choices) for item in chosen),
        "chance": sum(1 / len(item.choices) for item in chosen) / len(chosen),
        "models": {name: _levels(found, mine, bootstrap.confidence) for name, found in right.items()},
        "pairs": {f"{first} - {other}": _differences(right[first], right[other], mine, bootstrap) for other in others},
    }


def _levels(right: dict[str, np.ndarray] | None, mine: np.ndarray, confidence: float) -> Json:
    if right is None:
        return None
    shares = {metric: wilson(int(found[mine].sum()), int(mine.sum()), confidence) for metric, found in right.items()}
    return {metric: {"mean": share.mean, "low": share.low, "high": share.high} for metric, share in shares.items()}


def _differences(
    first: dict[str, np.ndarray] | None, second: dict[str, np.ndarray] | None, mine: np.ndarray, bootstrap: Bootstrap
) -> Json:
    if first is None or second is None:
        return None
    count = int(mine.sum())
    told: dict[str, Json] = {}
    for metric in METRICS:
        interval = paired_bootstrap(
            first[metric][mine].astype(np.float64) - second[metric][mine],
            np.ones(count, dtype=np.int64),
            np.arange(count),
            samples=bootstrap.samples,
            confidence=bootstrap.confidence,
            seed=bootstrap.seed,
        )
        assert interval is not None, "there is a question"
        told[metric] = {"mean": interval.mean, "low": interval.low, "high": interval.high}
    return told


def _items(call: TaskCall) -> tuple[Item, ...]:
    with call.path("items").open("rb") as lines:
        return read_items(lines, "the questions")


def _decoder(call: TaskCall) -> Any:
    from potluck.lm.model import load_decoder

    config = from_mapping(ModelConfig, call.params["model"], "model.")
    return load_decoder(config, call.path("weights"), dtype=str(call.params["dtype"]))
