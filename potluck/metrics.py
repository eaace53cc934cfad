"""What training measures, one value a moment, on its way to files for people and their tools."""

from __future__ import annotations

import math
import re
from dataclasses import asdict, dataclass
from typing import Literal

from potluck.ids import canonical_json, short

MAX_LABEL = 40
"""Characters of a label in a file's name."""
MEASURES = ("loss", "grad_norm", "learning_rate", "tokens_per_second", "flops_per_second", "mfu", "rss_bytes")


@dataclass(frozen=True, kw_only=True)
class Sample:
    """One line of a lineage's file. None where a number is not known."""

    kind: Literal["progress", "commit"]
    """What a step measured, or that the steps up to here are safe and what their mean loss was."""
    unix_ms: int
    node: str
    lineage: str
    label: str
    step: int
    """Steps done."""
    loss: float | None = None
    """Nats per target: of the last step, or the mean over a commit's steps."""
    grad_norm: float | None = None
    """Before clipping."""
    learning_rate: float | None = None
    tokens_per_second: float | None = None
    """Targets trained on."""
    flops_per_second: float | None = None
    mfu: float | None = None
    """Over the peak that `potluck.lm.peak` measured."""
    rss_bytes: int | None = None
    """Memory of the node: daemon and worker."""

    @property
    def stem(self) -> str:
        """Names the lineage's files: its id's first characters, which differ, and its label, which speaks."""
        return f"{_plain(short(self.lineage))}-{_plain(self.label)[:MAX_LABEL]}"

    def to_json(self) -> str:
        return canonical_json(asdict(self))


def known(number: float) -> float | None:
    """A number that is said as 0 where it is not known, and may be none that JSON can hold."""
    return number if number and math.isfinite(number) else None


def _plain(text: str) -> str:
    return re.sub(r"[^a-z0-9]+", "-", text.lower()).strip("-") or "x"
