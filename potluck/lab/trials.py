"""What studies have in common whose cells are trainings of one preset and length under several rates and seeds."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Generic, TypeVar

from potluck.lab.sides import Side, contest, made, tokens_of
from potluck.lab.study import Budget, BudgetName, Cell, Found, Study, Table, TextWish

MINUTES: Mapping[BudgetName, float] = {"quick": 5, "standard": 90, "full": 600}
"""On two cores; of `full`, on a GPU."""


@dataclass(frozen=True, kw_only=True)
class Trials:
    """The cells of one budget, and the sides that are compared."""

    seeds: tuple[int, ...]
    preset: str
    steps: int
    rates: tuple[float, ...]
    sources: tuple[str, ...] = ()
    """Of the data folder; none: all."""
    batch: int = 16
    sequence: int = 128
    profile: Mapping[str, Any] | None = None

    @property
    @abstractmethod
    def texts(self) -> Mapping[str, TextWish]: ...

    @property
    @abstractmethod
    def searches(self) -> tuple[Side, ...]:
        """Sides whose search waits for nothing."""

    @abstractmethod
    def cells(self, found: Mapping[str, Found]) -> tuple[Cell, ...]:
        """As `Study.cells`."""

    @abstractmethod
    def expected(self) -> tuple[Cell, ...]:
        """As `Study.expected`."""

    @property
    def text(self) -> dict[str, int]:
        return {"vocab_size": 1024, "sequence_length": self.sequence, "prefix_length": self.sequence // 4}

    @property
    def tokens(self) -> int:
        return self.steps * self.batch * self.sequence

    def examined(self, found: Found) -> Cell:
        """All models of a run on the corpus' valid text, source by source: what choices are made by."""
        names = (found.results.get("made") or {}).get("models") or {}
        return contest(
            f"valid text of {found.cell.key}",
            seed=found.cell.body["seed"],
            text=self.text,
            tokens=tokens_of(found),
            split="valid",
            models={name: made(found, name) for name in names},
        )

    def body(self, rate: float, seed: int, *, steps: int = 0) -> dict[str, Any]:
        """Of a cell's spec file, what does not depend on its method."""
        return {
            "seed": seed,
            "text": self.text,
            "model": {"preset": self.preset},
            "training": {"steps": steps or self.steps, "batch_size": self.batch, "learning_rate": rate},
            **({"profile": dict(self.profile)} if self.profile else {}),
        }


T = TypeVar("T", bound=Trials)


class TrialStudy(Study, Generic[T]):
    """A study by its trials at each budget; a paper adds its claims."""

    designs: Mapping[BudgetName, T]

    def budget(self, name: BudgetName) -> Budget:
        return Budget(name=name, seeds=self.designs[name].seeds, minutes=MINUTES[name])

    def texts(self, budget: Budget) -> Mapping[str, TextWish]:
        return self.designs[budget.name].texts

    def cells(self, budget: Budget, found: Mapping[str, Found]) -> tuple[Cell, ...]:
        return self.designs[budget.name].cells(found)

    def expected(self, budget: Budget) -> tuple[Cell, ...]:
        return self.designs[budget.name].expected()

    def tables(self, budget: Budget, found: Mapping[str, Found]) -> tuple[Table, ...]:
        return tuple(side.search(found).table("learning rate") for side in self.designs[budget.name].searches)
