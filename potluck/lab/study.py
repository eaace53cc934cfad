"""What a study of a paper is: cells, each an ordinary run, and claims about what came of them. No I/O here."""

from __future__ import annotations

import hashlib
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal, Protocol

from potluck.ids import RunId
from potluck.lab.statistics import Estimate, Verdict
from potluck.specs.instantiate import InstantiateSpec
from potluck.specs.run import RunFile, method_of, parse_run_file

BudgetName = Literal["quick", "standard", "full"]

CORPUS = "corpus"
NATS = "nats per token"
ONE_SEED = "one seed, quick mode: makes no claim"
FINISHED = "finished"
WHOLE = (0, 10)
"""All tenths of a source's documents."""


@dataclass(frozen=True, kw_only=True)
class TextWish:
    """A text that cells name: the data folder as it is, or a part of it."""

    sources: tuple[str, ...] = ()
    """Entries of the folder, without their endings (of the demo corpus its domains); none: all."""
    without: tuple[str, ...] = ()
    smallest: int = 0
    """Of those, so many of the fewest bytes; 0: all. For what must be quick with any text."""
    parts: Mapping[str, tuple[int, int]] = field(default_factory=dict)
    """By entry, the tenths [from, until) of its original documents (`tenth_of`); under "", those of all others."""

    def part_of(self, entry: str) -> tuple[int, int]:
        return self.parts.get(entry, self.parts.get("", WHOLE))


def tenth_of(document: str) -> int:
    """The tenth that an original document is in, by the hash of its name: its pieces, `NAME#k`, are in the same."""
    return int(hashlib.sha256(document.split("#")[0].encode()).hexdigest(), 16) % 10


@dataclass(frozen=True, kw_only=True)
class Cell:
    """One run of a study."""

    key: str
    """Unique in its study, for people: `adamw lr=0.006 seed=1`."""
    body: Mapping[str, Any]
    """What a spec file holds, but for data, target, name and priority."""
    data: str = CORPUS
    """A text's name; empty for what needs none."""
    target: tuple[str, ...] = ()
    """Names of texts, where the method has a target."""


@dataclass(frozen=True, kw_only=True)
class Found:
    """What came of a cell."""

    cell: Cell
    run: RunId
    state: str
    """finished | failed | cancelled."""
    reason: str
    report: Mapping[str, Any] | None
    """As `potluck report` writes it; None of a run that did not finish."""
    results: Mapping[str, Any]
    """The run's small figures: headline, lineages, made, ..."""
    seconds: float
    """By the clock, from its start to its end; runs share the nodes."""

    def figure(self, *path: str | int) -> float | None:
        """A number of the results; None where it is not there, or not finite."""
        return number(self.results, *path)

    def told(self, *path: str | int) -> float | None:
        """The same of the report."""
        return number(self.report, *path)


@dataclass(frozen=True, kw_only=True)
class Budget:
    name: BudgetName
    seeds: tuple[int, ...]
    minutes: float
    """What it promises to take at most, on two cores."""


@dataclass(frozen=True, kw_only=True)
class Judgement:
    """What a study says of one claim of its paper."""

    claim: str
    """Its number."""
    words: str
    verdict: Verdict
    effect: float | None
    low: float | None
    high: float | None
    smallest_effect: float | None
    """Half the interval: what could have been seen. These four are in `unit`, and None where nothing was measured."""
    unit: str = NATS
    seeds: int
    tokens: int
    """That a side of the comparison was trained on, all models of a mixture together."""
    note: str
    """What was compared with what, what search each side had, what a miss means."""
    numbers: tuple[Mapping[str, Any], ...] = ()
    """A small table by seed and setting, every row with the same keys."""


@dataclass(frozen=True, kw_only=True)
class Lines:
    title: str
    x_label: str
    series: Mapping[str, Sequence[tuple[float, float]]]
    y_label: str = NATS
    x_log: bool = False


@dataclass(frozen=True, kw_only=True)
class Bars:
    title: str
    groups: Mapping[str, Mapping[str, float | None]]
    """By group, by member."""
    y_label: str = NATS


Plot = Lines | Bars


@dataclass(frozen=True, kw_only=True)
class Table:
    title: str
    columns: tuple[str, ...]
    rows: tuple[tuple[str | float | int | None, ...], ...]
    note: str = ""


@dataclass(frozen=True, kw_only=True)
class Quoted:
    """A figure of the paper itself, as its method card has it from the paper's own text."""

    what: str
    value: str


class Study(Protocol):
    """A paper's claims at small scale. Pure and cheap: everything is called again whenever a cell ends."""

    name: str
    paper: str
    """arXiv id."""
    title: str
    quoted: tuple[Quoted, ...] = ()

    def budget(self, name: BudgetName) -> Budget: ...

    def texts(self, budget: Budget) -> Mapping[str, TextWish]:
        """By name."""
        return {CORPUS: TextWish()}

    def cells(self, budget: Budget, found: Mapping[str, Found]) -> tuple[Cell, ...]:
        """All cells wanted, the ended ones too, given what has ended so far (by key).

        A search comes first, and the cells that use its winner once it is there.
        """
        ...

    def expected(self, budget: Budget) -> tuple[Cell, ...]:
        """All cells that will have been wanted, whichever wins a search: what the cost is told from beforehand."""
        return self.cells(budget, {})

    def claims(self, budget: Budget, found: Mapping[str, Found]) -> tuple[Judgement, ...]:
        """Once every wanted cell has ended."""
        ...

    def plots(self, budget: Budget, found: Mapping[str, Found]) -> tuple[Plot, ...]:
        return ()

    def tables(self, budget: Budget, found: Mapping[str, Found]) -> tuple[Table, ...]:
        """Searches, with their edges, and what else a reader needs to doubt the claims well."""
        return ()


@dataclass(frozen=True, kw_only=True)
class Searched:
    """A value that one side searched on valid text."""

    side: str
    values: tuple[float, ...]
    scores: Mapping[float, float | None] = field(default_factory=dict)
    """Valid NLL by value; None of a cell that failed or blew up."""

    @property
    def best(self) -> float | None:
        """The value of least NLL, the earlier of equals; None if no cell has a figure."""
        known = {value: score for value in self.values if (score := self.scores.get(value)) is not None}
        return min(known, key=lambda value: known[value]) if known else None

    @property
    def edge(self) -> str:
        """In words, if the best is the least or largest value tried: a better one may lie beyond."""
        ends = {min(self.values): "the least", max(self.values): "the largest"} if len(self.values) > 1 else {}
        return f"{ends[self.best]} tried" if self.best in ends else ""

    def table(self, what: str) -> Table:
        marks = {self.best: f"chosen, {self.edge}" if self.edge else "chosen"}
        rows = tuple((value, self.scores.get(value), marks.get(value, "")) for value in self.values)
        return Table(title=f"Search of {self.side}", columns=(what, "valid NLL", ""), rows=rows)


def judge(
    claim: str,
    words: str,
    estimate: Estimate | None,
    verdict: Verdict,
    *,
    note: str,
    tokens: int,
    unit: str = NATS,
    numbers: Sequence[Mapping[str, Any]] = (),
) -> Judgement:
    """A claim's judgement. One seed decides nothing, and it says so.

    Args:
        estimate: that the verdict rests on, of several the one furthest from what is claimed; None: nothing measured.
    """
    seeds = estimate.seeds if estimate is not None else 0
    if seeds < 2:
        verdict = "not decidable"
    if seeds == 1:
        note = f"{ONE_SEED}. {note[:1].upper()}{note[1:]}"
    return Judgement(
        claim=claim,
        words=words,
        verdict=verdict,
        effect=_finite(estimate.mean) if estimate is not None else None,
        low=_finite(estimate.low) if estimate is not None else None,
        high=_finite(estimate.high) if estimate is not None else None,
        smallest_effect=_finite(estimate.smallest_effect) if estimate is not None else None,
        unit=unit,
        seeds=seeds,
        tokens=tokens,
        note=note,
        numbers=tuple(numbers),
    )


def undecided(
    claim: str, words: str, *, note: str, tokens: int = 0, numbers: Sequence[Mapping[str, Any]] = ()
) -> Judgement:
    """A claim of which nothing was measured, with the reason."""
    return judge(claim, words, None, "not decidable", note=note, tokens=tokens, numbers=numbers)


def ended(cells: Sequence[Cell], found: Mapping[str, Found]) -> list[Found] | None:
    """What came of cells, in their order; None until all have ended."""
    each = [found.get(cell.key) for cell in cells]
    known = [one for one in each if one is not None]
    return known if len(known) == len(each) else None


def run_file(cell: Cell) -> RunFile:
    """A cell as its spec file would be read; checks all of it but the texts.

    Raises:
        SpecError: naming the key.
    """
    if method_of(cell.body) is InstantiateSpec:  # has no spec file: it names blobs of a run
        return RunFile(data=cell.data, target=(), encoder="", name=cell.key, priority=0, body=cell.body)
    target = {"target": list(cell.target)} if cell.target else {}
    return parse_run_file({"data": cell.data, **cell.body, **target})


def number(value: Any, *path: str | int) -> float | None:
    """A finite number inside nested mappings and lists; None where it is not there."""
    for part in path:
        if isinstance(value, Mapping):
            value = value.get(part)
        elif isinstance(value, list | tuple) and isinstance(part, int) and part < len(value):
            value = value[part]
        else:
            return None
    return _finite(float(value)) if isinstance(value, int | float) and not isinstance(value, bool) else None


def _finite(value: float) -> float | None:
    return value if math.isfinite(value) else None
