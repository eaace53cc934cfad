"""Plays a study as its shell would, against a world that says what comes of a cell."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass
from typing import Any

from potluck.lab.study import Budget, Cell, Found, Judgement, Study, run_file
from potluck.lm.config import PRESETS
from potluck.specs.run import UNKNOWN_DIGEST, RunSpec

MAX_TURNS = 20


@dataclass(frozen=True, kw_only=True)
class Ended:
    """What a world says of a cell."""

    results: Mapping[str, Any]
    report: Mapping[str, Any] | None = None
    state: str = "finished"


World = Callable[[Cell], Ended]


def play(study: Study, budget: Budget, world: World) -> dict[str, Found]:
    """Ends every wanted cell, the last of those wanted first; keys are unique and bodies are specs."""
    found: dict[str, Found] = {}
    for _ in range(MAX_TURNS):
        cells = study.cells(budget, found)
        assert len({cell.key for cell in cells}) == len(cells)
        missing = [cell for cell in cells if cell.key not in found]
        if not missing:
            return found
        for cell in reversed(missing):
            ended = world(cell)
            found[cell.key] = Found(
                cell=cell,
                run=spec_of(cell).id,
                state=ended.state,
                reason="",
                report=ended.report,
                results=ended.results,
                seconds=1.0,
            )
    raise AssertionError("the study wants cells for ever")


def require_sound(study: Study, budget: Budget, world: World) -> None:
    """Every cell is a valid spec that says its seed and reads texts that there are, and no two keys are one run."""
    found = play(study, budget, world)
    runs = [(each.run, each.cell.data, each.cell.target) for each in found.values()]
    assert len(set(runs)) == len(runs)
    texts = study.texts(budget)
    for each in found.values():
        assert f"seed={each.cell.body['seed']}" in each.cell.key
        assert spec_of(each.cell).seed == each.cell.body["seed"]
        assert {each.cell.data, *each.cell.target} <= set(texts)


def spec_of(cell: Cell) -> RunSpec:
    """As the shell reads a cell, with texts that have no digests yet."""
    return run_file(cell).canonical(UNKNOWN_DIGEST)


def digest_of(*what: object) -> str:
    return hashlib.sha256(repr(what).encode()).hexdigest()


def model_of(weights: str, body: Mapping[str, Any]) -> dict[str, Any]:
    """A model as `made` has it, of a cell's text and preset."""
    shape = asdict(PRESETS[body["model"]["preset"]])
    text = body["text"]
    return {
        "weights": weights,
        "model": {"vocab": text["vocab_size"], "context": text["sequence_length"] + 1, **shape},
    }


def claim(judgements: tuple[Judgement, ...], number: str) -> Judgement:
    return next(each for each in judgements if each.claim == number)
