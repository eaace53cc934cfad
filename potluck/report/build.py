"""report.json: what a finished run found, did and cost, put together from three sources.

The science comes from the run's report blob (the `compare` task), the work from the run's lineages,
the traffic and the proof of completeness from the coordinator's ledger.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from potluck.config import to_mapping
from potluck.formatting import human_count
from potluck.report.schema import SCHEMA_VERSION, check_report
from potluck.specs.smalltalk import SmallTalkSpec

PLANES = ("control", "corpus", "scores", "weights")
SCORED_BYTES_PER_SEQUENCE_AND_EXPERT = 4
"""The paper's count: 2 bytes of float16 sent and 2 received, 4TE/S in all (2410.03529, appendix)."""
TAKEN_FROM_SCIENCE = (
    "targets",
    "target_bytes",
    "mixture",
    "dense",
    "random_split",
    "oracle",
    "mixture_minus_dense",
    "random_minus_dense",
    "mixture_minus_random",
    "by_source",
    "by_expert",
    "packs",
)


@dataclass(frozen=True, kw_only=True)
class RunFacts:
    """What the coordinator knows of a finished run."""

    run: str
    name: str
    spec: SmallTalkSpec
    curves: Mapping[str, Any]
    """{"lineages": {label: [[step, loss], ...]}, "purity": [...]}."""
    bytes_by_plane: Mapping[str, int]
    tokens_per_second: Mapping[str, float]
    ledger_ok: bool
    ledger_problems: Sequence[str]


def build_report(science: Mapping[str, Any], facts: RunFacts) -> dict[str, Any]:
    """The whole report, checked against its schema.

    Raises:
        DataError: ``data.bad-report``: the run's report blob lacks something.
    """
    tokens, flops = _work(science)
    trained = sum(tokens.values())
    routers, experts = facts.spec.routers, facts.spec.experts
    paper_per_token = SCORED_BYTES_PER_SEQUENCE_AND_EXPERT * experts.num / facts.spec.text.sequence_length
    scored_rows = (routers.rounds - 1) * routers.chunk_sequences + experts.chunks * experts.chunk_sequences
    if not facts.spec.has_routers:
        paper_per_token, scored_rows = 0.0, 0
    report: dict[str, Any] = {
        "schema_version": SCHEMA_VERSION,
        "run": facts.run,
        "name": facts.name,
        "spec_digest": facts.run,
        "spec": to_mapping(facts.spec),
        "profile": to_mapping(facts.spec.profile),
        "parameters": {
            "expert": facts.spec.expert_model().num_parameters,
            "router": facts.spec.router_model().num_parameters,
        },
        "tokens": tokens,
        "flops": flops,
        "epochs": science["facts"]["epochs"],
        "search": science["facts"]["search"],
        **{key: science[key] for key in TAKEN_FROM_SCIENCE if key in science},
        "routing": _routing(science),
        "curves": {"lineages": facts.curves.get("lineages", {}), "purity": facts.curves.get("purity", [])},
        "bytes": {plane: facts.bytes_by_plane.get(plane, 0) for plane in PLANES},
        "bytes_per_trained_token": {
            plane: facts.bytes_by_plane.get(plane, 0) / trained if trained else 0.0 for plane in PLANES
        },
        "paper_bytes": {
            "scores": scored_rows * experts.num * SCORED_BYTES_PER_SEQUENCE_AND_EXPERT,
            "scores_per_trained_token": paper_per_token,
            "formula": "4 T E / S: T tokens in rows that are scored, E experts, S targets a row",
        },
        "tokens_per_second": dict(facts.tokens_per_second),
        "ledger": {"ok": facts.ledger_ok, "problems": list(facts.ledger_problems)},
    }
    report["verdict"] = verdict(report)
    check_report(report)
    return report


def verdict(report: Mapping[str, Any]) -> dict[str, str]:
    """Who did better on the text after the prefix, by the sign of an interval; never rounded to a win."""
    difference = report.get("mixture_minus_dense")
    if difference is None:
        return {"better": "none", "text": "no dense twin was trained, so there is nothing to compare with"}
    low, mean, high = difference["low"], difference["mean"], difference["high"]
    if low is None or high is None:
        return {"better": "undecided", "text": f"undecided: {mean:+.4f} nats a token, too little text for an interval"}
    interval = f"{mean:+.4f} nats a token, interval [{low:+.4f}, {high:+.4f}]"
    if high < 0:
        percent = 100 * (1 - math.exp(mean))
        return {"better": "mixture", "text": f"the mixture is better: {interval} ({percent:.1f}% lower perplexity)"}
    if low > 0:
        percent = 100 * (1 - math.exp(-mean))
        return {"better": "dense", "text": f"the dense twin is better: {interval} ({percent:.1f}% lower perplexity)"}
    return {"better": "undecided", "text": f"undecided: {interval} holds zero"}


def where_dense_wins(report: Mapping[str, Any]) -> list[str]:
    """Sources on which the dense twin has the lower suffix NLL, worst for the mixture first."""
    losses = {
        source: mixture - dense
        for source in report["by_source"]
        if (mixture := source_nll(report, source, "mixture")) is not None
        and (dense := source_nll(report, source, "dense")) is not None
        and mixture > dense
    }
    return sorted(losses, key=lambda source: -losses[source])


def source_nll(report: Mapping[str, Any], source: str, side: str) -> float | None:
    """Suffix NLL of a side on a source; None where the side or the text is missing."""
    levels = report["by_source"][source].get(side)
    return None if levels is None else levels["nll_suffix"]


def tokens_per_parameter(report: Mapping[str, Any]) -> float:
    """Tokens each expert trained on, per parameter of one expert."""
    per_expert = report["tokens"].get("experts", 0) / report["spec"]["experts"]["num"]
    return float(per_expert / report["parameters"]["expert"])


def _work(science: Mapping[str, Any]) -> tuple[dict[str, int], dict[str, float]]:
    """Target tokens and FLOPs by side, as the plan counted them."""
    told = science["facts"]
    sides = ("routers", "experts", "dense", "random_split")
    tokens = {side: told[side]["tokens"] for side in sides if told.get(side) is not None}
    spent = told["flops"]
    parts = spent["mixture"]
    flops = {
        "routers": parts["router_training"],
        "scoring": parts["router_scoring"] + parts["expert_scoring"],
        "experts": parts["experts"],
        "mixture": parts["total"],
    }
    flops |= {side: spent[side] for side in ("dense", "random_split") if side in tokens}
    return tokens, flops


def work_rows(report: Mapping[str, Any]) -> list[list[str]]:
    """Side, tokens and FLOPs, as cells of a table."""
    tokens, flops = report["tokens"], report["flops"]
    names = {"mixture": "mixture in all", "random_split": "random split"}
    return [
        [names.get(side, side), human_count(tokens[side]) if side in tokens else "", human_count(spent)]
        for side, spent in flops.items()
    ]


def search_rows(report: Mapping[str, Any]) -> list[list[str]]:
    """Every cell of a grid search of both sides, as cells of a table; the best of each side is marked."""
    rows: list[list[str]] = []
    for side, name in (("experts", "mixture"), ("dense", "dense twin")):
        cells = report["search"][side]
        known = [cell["valid_nll_suffix"] for cell in cells if cell["valid_nll_suffix"] is not None]
        for cell in cells:
            nll = cell["valid_nll_suffix"]
            mark = "taken" if known and nll == min(known) else ""
            shown = "-" if nll is None else f"{nll:.4f}"
            rate = f"{cell['learning_rate']:g}"
            rows.append([name, str(cell["batch_size"]), rate, str(cell["steps"]), shown, mark])
    return rows


def search_note(report: Mapping[str, Any]) -> str:
    """How the batch sizes and learning rates were chosen, in a sentence."""
    search = report["search"]
    if search["mode"] == "recorded":
        return f"Batch sizes and learning rates of both sides are those found by {search['table']}."
    if search["mode"] == "grid":
        return "Batch sizes and learning rates of both sides were chosen on validation text among the cells above."
    return "Batch sizes and learning rates were not searched, on either side."


def _routing(science: Mapping[str, Any]) -> dict[str, Any]:
    routing = dict(science.get("routing", {}))
    routing.setdefault("sources", list(science.get("by_source", {})))
    return routing
