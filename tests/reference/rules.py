"""The arithmetic of a SmallTalk run, from docs/smalltalk_run.md, written as plainly as it can be."""

from __future__ import annotations

import hashlib
import io
import json
import math
from collections.abc import Sequence

import numpy as np

from potluck.ids import Digest, digest_bytes
from potluck.lm.config import ModelConfig


def seed_for(seed: int, *purpose: str | int) -> int:
    text = json.dumps(["smalltalk", seed, *purpose], separators=(",", ":"), ensure_ascii=False)
    return int.from_bytes(hashlib.sha256(text.encode()).digest()[:8], "big") % 2**31


def naive_balanced_assignment(columns: Sequence[Sequence[int]]) -> list[int]:
    """Visits rows from the best best-score up; each takes the best of its experts that has room."""
    experts = range(len(columns))
    rows = range(len(columns[0]))
    room = [len(rows) // len(columns)] * len(columns)
    assignment = [-1] * len(rows)
    for row in sorted(rows, key=lambda n: (min(columns[e][n] for e in experts), n)):
        expert = min((e for e in experts if room[e]), key=lambda e: (columns[e][row], e))
        assignment[row] = expert
        room[expert] -= 1
    return assignment


def forward_flops(model: ModelConfig, tokens: int) -> int:
    """Per token and layer: four H x H matrices and three H x D_ff, 2 FLOPs an entry; attention over the full square."""
    a_token_a_layer = 2 * (4 * model.hidden**2 + 3 * model.hidden * model.ffn) + 4 * tokens * model.hidden
    head = 2 * model.hidden * model.vocab + 3 * model.vocab
    return tokens * (model.hidden + model.layers * a_token_a_layer + head)


def commit_every(parameters: int, *, rows: int, targets: int, steps: int, bytes_per_token: float) -> int:
    budget = int(bytes_per_token * rows * targets)
    return min(max(math.ceil(12 * parameters / budget), steps // 32, 1), max(steps // 4, 1))


def fixed_point(nll: np.ndarray) -> np.ndarray:
    return np.array([min(65535, round(4096 * float(value))) for value in nll], dtype=np.uint16)


def array_digest(array: np.ndarray) -> Digest:
    """Digest of an array as a `.npy` blob."""
    file = io.BytesIO()
    np.save(file, array, allow_pickle=False)
    return digest_bytes(file.getvalue())
