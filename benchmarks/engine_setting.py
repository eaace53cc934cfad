"""What all contestants of `benchmarks.engine` train: one recipe on the same rows, written to a folder."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from potluck.config import from_mapping, to_mapping
from potluck.ids import NO_DIGEST, Digest, canonical_json, digest_file
from potluck.lm.config import PRESETS, ModelConfig
from potluck.recipe import AdamWConfig, Profile, Recipe, Schedule, Segment, Stream

VOCAB, BATCH, ROWS, LAST_STEP = 1024, 16, 4096, 1_000_000
BYTES_PER_TOKEN = 64
"""What a node may send for each token trained on: it sets the commit grid."""
SETTING_FILE = "setting.json"


@dataclass(frozen=True, kw_only=True)
class Setting:
    recipe: Recipe
    profile: Profile
    segment: Segment
    blobs: dict[str, str]
    """Paths by digest."""

    @property
    def tokens_per_step(self) -> int:
        """Targets."""
        return self.recipe.batch_size * (self.recipe.columns - 1)

    @staticmethod
    def load(folder: Path) -> Setting:
        raw = json.loads((folder / SETTING_FILE).read_text(encoding="utf-8"))
        return Setting(
            recipe=Recipe.from_json(json.dumps(raw["recipe"])),
            profile=from_mapping(Profile, raw["profile"]),
            segment=Segment.from_json(json.dumps(raw["segment"])),
            blobs=raw["blobs"],
        )

    def save(self, folder: Path) -> None:
        raw = {
            "recipe": to_mapping(self.recipe),
            "profile": to_mapping(self.profile),
            "segment": to_mapping(self.segment),
            "blobs": self.blobs,
        }
        (folder / SETTING_FILE).write_text(canonical_json(raw), encoding="utf-8")


def make_setting(folder: Path, preset: str, sequence: int, profile: Profile) -> Setting:
    """Random rows and the setting itself, in an empty folder."""
    recipe = recipe_of(preset, sequence)
    blobs: dict[str, str] = {}
    tokens = _put_tokens(folder, sequence, blobs)
    segment = Segment(index=0, start_step=0, end_step=LAST_STEP, data=Stream(tokens=tokens, key=1, start=0))
    setting = Setting(recipe=recipe, profile=profile, segment=segment, blobs=blobs)
    setting.save(folder)
    return setting


def recipe_of(preset: str, sequence: int) -> Recipe:
    """Its commits are as far apart as the budget of bytes wants, without the clamps for short runs."""
    p = PRESETS[preset]
    model = ModelConfig(vocab=VOCAB, context=sequence + 1, hidden=p.hidden, layers=p.layers, heads=p.heads, ffn=p.ffn)
    return Recipe(
        role="expert",
        index=0,
        model=model,
        optimizer=AdamWConfig(),
        schedule=Schedule(kind="constant", learning_rate=1e-3, warmup_steps=0, total_steps=LAST_STEP),
        batch_size=BATCH,
        columns=sequence + 1,
        init_seed=0,
        data_rule="{}",
        commit_every=-(-12 * model.num_parameters // (BYTES_PER_TOKEN * BATCH * sequence)),
    )


def _put_tokens(folder: Path, sequence: int, blobs: dict[str, str]) -> Digest:
    """One shard of random rows and its manifest; the manifest's digest."""

    def put(path: Path) -> Digest:
        digest = digest_file(path)
        blobs[digest] = str(path)
        return digest

    columns = sequence + 1
    arrays: dict[str, np.ndarray] = {
        "rows": np.random.default_rng(0).integers(1, VOCAB, size=(ROWS, columns), dtype=np.uint16),
        "meta": np.tile(np.array([0, -1, sequence], dtype=np.int32), (ROWS, 1)),
    }
    part: dict[str, Any] = {"count": ROWS, "pack_offset": 0}
    for name, array in arrays.items():
        np.save(folder / f"{name}.npy", array, allow_pickle=False)
        part[name] = put(folder / f"{name}.npy")
    empty: dict[str, Any] = {"rows": 0, "parts": []}
    splits = {"train": {"rows": ROWS, "parts": [part]}, "valid": empty, "test": empty}
    manifest: dict[str, Any] = {"kind": "tokens", "version": 1, "sequence_length": sequence, "vocab_size": VOCAB}
    manifest |= {"tokenizer": NO_DIGEST, "sources": ["all"], "splits": splits, "blobs": {}}
    path = folder / "tokens.json"
    path.write_text(canonical_json(manifest), encoding="utf-8")
    return put(path)
