"""The sides of a comparison: cells by learning rate and seed, the rate chosen on valid text, test read afterwards."""

from __future__ import annotations

import statistics
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from potluck.lab.statistics import Estimate, over_seeds
from potluck.lab.study import FINISHED, Cell, Found, Searched

VALID_NLL = ("headline", "valid", "models", "model", "nll")
TEST_NLL = ("headline", "test", "models", "model", "nll")
"""In the results of a single model."""


@dataclass(frozen=True, kw_only=True)
class Side:
    """Trains with every rate under the first seeds, then with the best of them under the others."""

    name: str
    values: tuple[float, ...]
    seeds: tuple[int, ...]
    cell: Callable[[float, int], Cell]
    """By rate and seed."""
    searched: int = 1
    """Seeds that the search has; the scores are their means."""
    examined: Callable[[Found], Cell] | None = None
    """The cell that tells the valid NLL of what an ended cell made; None: its own results have it."""
    valid: Callable[[Found], float | None] = lambda found: found.figure(*VALID_NLL)
    """Of the cell that has it."""

    def cells(self, found: Mapping[str, Found]) -> tuple[Cell, ...]:
        """Those wanted by now."""
        searched = [self.cell(value, seed) for value in self.values for seed in self.seeds[: self.searched]]
        finished = [found[cell.key] for cell in searched if cell.key in found and found[cell.key].state == FINISHED]
        examined = [self.examined(one) for one in finished] if self.examined is not None else []
        best = self.best(found)
        rest = [self.cell(best, seed) for seed in self.seeds[self.searched :]] if best is not None else []
        return (*searched, *examined, *rest)

    def expected(self) -> tuple[Cell, ...]:
        """As many as there will have been, but for those that examine, which cost little."""
        searched = [self.cell(value, seed) for value in self.values for seed in self.seeds[: self.searched]]
        return (*searched, *(self.cell(self.values[0], seed) for seed in self.seeds[self.searched :]))

    def search(self, found: Mapping[str, Found]) -> Searched:
        return Searched(side=self.name, values=self.values, scores={v: self._score(v, found) for v in self.values})

    def best(self, found: Mapping[str, Found]) -> float | None:
        """The value chosen on valid text, once the whole search has ended; None before, or if nothing has a figure."""
        cells = [self.cell(value, seed) for value in self.values for seed in self.seeds[: self.searched]]
        if any(self._examination(cell, found) is None for cell in cells):
            return None
        return self.search(found).best

    def at_best(self, found: Mapping[str, Found]) -> dict[int, Found]:
        """By seed, what came of the chosen value, as far as it is there."""
        best = self.best(found)
        return {} if best is None else self.at(best, found)

    def at(self, value: float, found: Mapping[str, Found]) -> dict[int, Found]:
        keys = {seed: self.cell(value, seed).key for seed in self.seeds}
        return {seed: found[key] for seed, key in keys.items() if key in found}

    def _score(self, value: float, found: Mapping[str, Found]) -> float | None:
        told = [self._examination(self.cell(value, seed), found) for seed in self.seeds[: self.searched]]
        scores = [self.valid(one) if one is not None else None for one in told]
        known = [score for score in scores if score is not None]
        return statistics.fmean(known) if known and len(known) == len(scores) else None

    def _examination(self, cell: Cell, found: Mapping[str, Found]) -> Found | None:
        """What has a searched cell's valid NLL; a failed cell is its own, and has none."""
        one = found.get(cell.key)
        if one is None or self.examined is None or one.state != FINISHED:
            return one
        return found.get(self.examined(one).key)


def unique(cells: Iterable[Cell]) -> tuple[Cell, ...]:
    """Each once, by its key."""
    return tuple({cell.key: cell for cell in cells}.values())


def by_seed(found: Mapping[int, Found], *path: str | int, blown_up: float | None = None) -> dict[int, float]:
    """A figure of the results of each seed.

    Args:
        blown_up: what a run counts as that has no such figure; None leaves its seed out.
    """
    figures = {seed: one.figure(*path) for seed, one in found.items()}
    told = {seed: blown_up if figure is None else figure for seed, figure in figures.items()}
    return {seed: figure for seed, figure in told.items() if figure is not None}


def ended_by_seed(cells: Mapping[int, Cell], found: Mapping[str, Found]) -> dict[int, Found]:
    """What came of each seed's cell, as far as it is there."""
    return {seed: found[cell.key] for seed, cell in cells.items() if cell.key in found}


def minus(first: Mapping[int, float], second: Mapping[int, float]) -> dict[int, float]:
    """Of each seed that both have."""
    return {seed: first[seed] - second[seed] for seed in sorted(set(first) & set(second))}


def paired(first: Mapping[int, float], second: Mapping[int, float]) -> Estimate | None:
    """First minus second over the seeds that both have; None if there is none."""
    differences = minus(first, second)
    return over_seeds(list(differences.values())) if differences else None


def rows(columns: Mapping[str, Mapping[int, float]]) -> list[dict[str, Any]]:
    """A small table by seed, of figures by column and seed."""
    seeds = sorted(set().union(*columns.values()))
    return [{"seed": seed, **{name: column.get(seed) for name, column in columns.items()}} for seed in seeds]


def contest(
    key: str,
    *,
    seed: int,
    text: Mapping[str, Any],
    tokens: str,
    split: str,
    models: Mapping[str, Any],
    pairs: Sequence[tuple[str, str]] = (),
) -> Cell:
    """A cell that scores models of ended runs on one text.

    Args:
        tokens: the rows' manifest, of a `made`.
        models: by the name that they get, entries of `made["models"]`.
    """
    body = {
        "method": "contest",
        "seed": seed,
        "text": dict(text),
        "tokens": tokens,
        "split": split,
        "models": [{"name": name, **model} for name, model in models.items()],
        "pairs": [list(pair) for pair in pairs],
    }
    return Cell(key=key, body=body)


def made(found: Found, name: str) -> Mapping[str, Any]:
    """A model of a finished run, as a contest names it; empty if there is none."""
    return dict(((found.results.get("made") or {}).get("models") or {}).get(name) or {})


def tokens_of(found: Found) -> str:
    """Digest of the rows that a finished run's models are judged on."""
    return str((found.results.get("made") or {}).get("tokens") or "")
