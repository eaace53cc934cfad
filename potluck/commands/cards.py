"""Fetches what a model card says and puts it together."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from potluck.commands.home import Home, identity_of
from potluck.errors import DataError
from potluck.ids import Digest
from potluck.lm.card import HeldOut, ModelCard, RoutedShare, TextSource
from potluck.net.version import package_version

if TYPE_CHECKING:
    from potluck.net.counters import Plane
    from potluck.v1 import admin_pb2

EXPERT = "expert-"
DENSE = "dense"
SINGLE, CRISP, SOUP = "single", "crisp", "soup"


def card_of(home: Home, info: admin_pb2.RunInfo, slot: admin_pb2.PublishedSlot) -> ModelCard:
    """The card of a published slot. What only a report knows is there once the run has finished."""
    spec: dict[str, Any] = json.loads(info.spec_json)
    science = _fetched(home, info.report, "scores") if info.report else {}
    manifest = _fetched(home, str(spec["corpus"]), "corpus") if spec.get("corpus") else {}
    total_steps = next((line.total_steps for line in info.lineages if line.lineage == slot.lineage), slot.step)
    is_last = slot.step == total_steps
    return ModelCard(
        run=info.run,
        name=info.name,
        method=str(spec.get("method", "")),
        slot=slot.slot,
        described=described(spec, slot.slot),
        lineage=slot.lineage,
        step=slot.step,
        total_steps=total_steps,
        tokens_trained=tokens_trained(spec, science, slot.slot, slot.step),
        weights=Digest(slot.weights),
        checkpoint=Digest(slot.checkpoint),
        tokenizer=Digest(slot.tokenizer),
        corpus=Digest(str(spec.get("corpus", ""))),
        sources=_sources(manifest),
        # The report is about the last step; an earlier checkpoint must not borrow its figures.
        routed=routed_shares(science, slot.slot) if is_last else (),
        held_out=held_out(science, slot.slot) if is_last else None,
        version=package_version(),
    )


def described(spec: Mapping[str, Any], slot: str) -> str:
    """What a slot is in its run, in a sentence or two."""
    if spec.get("method") == "smalltalk" and slot.startswith(EXPERT):
        return (
            f"One of the {spec['experts']['num']} experts of a SmallTalk mixture (arXiv 2410.03529), trained on the "
            "text that the run's routers assigned to it. Alone it is a model of that text; the routers, which choose "
            "among the experts, are not in this folder."
        )
    if spec.get("method") == "smalltalk" and slot == DENSE:
        return (
            "The dense twin of a SmallTalk mixture (arXiv 2410.03529): one model of an expert's size, trained on "
            "unsorted text for the FLOPs of the whole mixture."
        )
    if spec.get("method") == CRISP and slot == "specialist":
        return (
            "A specialist by CRISP (arXiv 2410.03735): trained on the clusters of a corpus that look like a target, as "
            "often as the target has them; never on the target itself."
        )
    if spec.get("method") == CRISP:
        return "The generalist that a specialist by CRISP (arXiv 2410.03735) is compared with: trained evenly."
    if spec.get("method") == SOUP and slot == "bank":
        return (
            "A specialist of a soup (Soup-of-Experts, arXiv 2502.01804): the soup's shared model and experts in one "
            "weighted sum, whose weights a small network takes from the mixture below. No step was trained for it."
        )
    if spec.get("method") == SOUP:
        return (
            "A soup's model of its corpus (Soup-of-Experts, arXiv 2502.01804): the shared model and experts in one "
            "weighted sum, for the mixture that the corpus is itself."
        )
    if spec.get("method") == SINGLE:
        return "One model, trained on the whole corpus in one stream."
    return f"The model published as {slot} by a run of the method {spec.get('method', 'unknown')}."


def tokens_trained(spec: Mapping[str, Any], science: Mapping[str, Any], slot: str, step: int) -> int | None:
    """Targets of the first `step` steps: by the report's facts, else by the spec if it fixes the batch size."""
    single = spec.get("method") in (SINGLE, CRISP, SOUP)
    side = "training" if single else "experts" if slot.startswith(EXPERT) else slot
    facts = science.get("facts", {}) if single else science.get("facts", {}).get(side)
    tokens, steps = _number(facts, "tokens"), _number(facts, "steps")
    if tokens and steps:
        return step * tokens // (steps * (_number(facts, "trained") or 1))
    batch_size, targets = _number(spec, side, "batch_size"), _number(spec, "text", "sequence_length")
    is_searched = spec.get("search", {}).get("mode") == "grid"
    return None if is_searched or not batch_size or not targets else step * batch_size * targets


def routed_shares(science: Mapping[str, Any], slot: str) -> tuple[RoutedShare, ...]:
    """Of each source's test rows, those routed to the expert; nothing for a slot without routing."""
    expert, routing = _expert(slot), science.get("routing")
    if expert is None or routing is None:
        return ()
    columns = zip(
        routing["sources"], routing["table"][expert], map(sum, zip(*routing["table"], strict=True)), strict=True
    )
    return tuple(RoutedShare(source=source, rows=rows, of_rows=of_rows) for source, rows, of_rows in columns)


def held_out(science: Mapping[str, Any], slot: str) -> HeldOut | None:
    """On those test rows that are routed to it for an expert, on all for a model that stands alone."""
    expert, models = _expert(slot), science.get("models", {})
    rows, on = _number(science, "rows"), "all test rows"
    if expert is not None and "by_expert" in science:
        levels, rows = science["by_expert"][expert]["mixture"], science["by_expert"][expert]["rows"]
        on = "the test rows that the routers send to it"
    elif slot in models:
        whose = "the target's" if science["facts"].get("method") == CRISP else "all"
        levels, on = {"nll_all": models[slot]["nll"], "nll_suffix": None}, f"{whose} {science['split']} rows"
    else:
        levels = science.get(slot) if slot == DENSE else None
    if levels is None:
        return None
    return HeldOut(on=on, rows=rows, nll_all=_finite(levels["nll_all"]), nll_suffix=_finite(levels["nll_suffix"]))


def _fetched(home: Home, digest: str, plane: Plane) -> dict[str, Any]:
    """A JSON blob; empty if the coordinator has let it go, as it may a finished run's corpus."""
    from potluck.commands.transfer import get_blob

    try:
        path: Path = get_blob(identity_of(home), home.scratch("blobs"), Digest(digest), plane)
    except DataError as error:
        if error.error_id != "data.missing-blob":
            raise
        return {}
    value: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
    return value


def _sources(manifest: Mapping[str, Any]) -> tuple[TextSource, ...]:
    return tuple(
        TextSource(
            name=name, documents=source["documents"], num_bytes=source["bytes"], licences=tuple(source["licences"])
        )
        for name, source in sorted(manifest.get("sources", {}).items())
    )


def _number(value: Any, *keys: str) -> int:
    """An integer deep in a mapping; 0 if there is none."""
    for key in keys:
        value = value.get(key) if isinstance(value, Mapping) else None
    return value if isinstance(value, int) else 0


def _expert(slot: str) -> int | None:
    number = slot.removeprefix(EXPERT)
    return int(number) if slot.startswith(EXPERT) and number.isdecimal() else None


def _finite(value: Any) -> float | None:
    return float(value) if isinstance(value, int | float) and math.isfinite(value) else None
