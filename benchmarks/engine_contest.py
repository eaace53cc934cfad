"""Contestants in processes of their own, their turns, and what pairs of turns say."""

from __future__ import annotations

import json
import os
import statistics
import subprocess
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

RESAMPLES = 10_000
WARM_UP_SECONDS = 0.5
END_SECONDS = 30.0


@dataclass(frozen=True, kw_only=True)
class Turn:
    """What one contestant did between two moments, both right after a step."""

    steps: int
    seconds: float
    cpu_seconds: float
    """Processor time of the process that trains, all its threads together."""
    optimizer_seconds: float = 0.0
    first_step_seconds: float = 0.0
    """Of the step before the timed ones."""
    peak_mib: float = 0.0
    """Resident memory, the most so far."""
    base_mib: float = 0.0
    """Resident memory before the model was built."""
    commits: int = 0


Rounds = Sequence[Mapping[str, Turn]]
"""In each round every contestant has one turn."""


class Contestant:
    """A process that trains for so many seconds when it is told to, and waits in between."""

    def __init__(self, module: str, *arguments: str) -> None:
        one_thread = {f"{name}_NUM_THREADS": "1" for name in ("OMP", "MKL", "RAYON")}
        self._name = " ".join([module, *arguments])
        self._process = subprocess.Popen(
            [sys.executable, "-m", module, *arguments],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            cwd=Path(__file__).resolve().parents[1],
            env={**os.environ, **one_thread},
        )

    def turn(self, seconds: float) -> Turn:
        """Raises:
        RuntimeError: it has ended; its stderr says why.
        """
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        try:
            self._process.stdin.write(f"{seconds}\n")
            self._process.stdin.flush()
            line = self._process.stdout.readline()
        except BrokenPipeError:
            line = ""
        if not line:
            raise RuntimeError(f"{self._name} ended with code {self._process.wait()}")
        return Turn(**json.loads(line))

    def close(self) -> None:
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        try:
            self._process.stdin.close()
            self._process.wait(END_SECONDS)
        except (BrokenPipeError, subprocess.TimeoutExpired):
            self._process.kill()
            self._process.wait()
        self._process.stdout.close()


def contest(contestants: Mapping[str, Contestant], rounds: int, seconds: float) -> tuple[dict[str, Turn], Rounds]:
    """A warm-up turn of each, then rounds in an order that is reversed every time."""
    warm_up = {name: contestant.turn(min(WARM_UP_SECONDS, seconds)) for name, contestant in contestants.items()}
    done: list[dict[str, Turn]] = []
    for i in range(rounds):
        names = list(contestants)[:: -1 if i % 2 else 1]
        done.append({name: contestants[name].turn(seconds) for name in names})
    return warm_up, done


def ratios(rounds: Rounds, ours: str, other: str, *, clock: str = "seconds") -> list[float]:
    """Steps a second of `ours` over those of `other`, round by round."""

    def rate(turn: Turn) -> float:
        return turn.steps / float(getattr(turn, clock))

    return [rate(each[ours]) / rate(each[other]) for each in rounds]


def overall(rounds: Rounds, ours: str, other: str) -> float:
    """The same ratio over all turns together: what comes seldom, as a checkpoint, counts here in full."""

    def rate(name: str) -> float:
        return sum(each[name].steps for each in rounds) / sum(each[name].seconds for each in rounds)

    return rate(ours) / rate(other)


def median_with_interval(values: Sequence[float]) -> dict[str, float]:
    """With the 95% interval of the percentile bootstrap of the median; equal values give equal intervals."""
    drawn = np.random.default_rng(0).choice(np.asarray(values), size=(RESAMPLES, len(values)))
    low, high = np.quantile(np.median(drawn, axis=1), [0.025, 0.975])
    return {"median": statistics.median(values), "low": float(low), "high": float(high)}
