"""Rows about planted topics, with their tokenizer: what encoders and clusters should tell apart."""

from __future__ import annotations

import random
from pathlib import Path
from typing import Any

import numpy as np

from potluck.ids import Digest, Json, canonical_json
from sampling.bpe import EOD_ID, encode, load_tokenizer, train_bpe
from sampling.taskio import LocalBlobs, TaskOutput
from sampling.tasks import run_task

TOPICS = {
    "birds": ["sparrow", "eagle", "feather", "nest", "wing", "robin", "heron", "flight", "beak", "song"],
    "ships": ["anchor", "sail", "harbour", "captain", "mast", "deck", "voyage", "rudder", "cargo", "tide"],
    "bread": ["flour", "yeast", "oven", "dough", "crust", "knead", "loaf", "baker", "butter", "rye"],
    "stars": ["galaxy", "comet", "orbit", "planet", "nebula", "eclipse", "telescope", "lunar", "solar", "meteor"],
}
SEQUENCE = 24
PARTS = 2


class TopicText:
    """A tokens manifest over two parts; row i of a split is about topic i mod 4, and so is its source."""

    def __init__(self, folder: Path, *, train: int = 240, test: int = 40) -> None:
        self.folder = folder
        self.blobs = LocalBlobs()
        rng = random.Random(0)
        texts = {split: [topic_text(rng, i % len(TOPICS)) for i in range(n)] for split, n in _sizes(train, test)}
        path = folder / "tokenizer.json"
        path.write_text(train_bpe(texts["train"], 420).to_str(), encoding="utf-8")
        self.tokenizer = self.blobs.add(path)
        splits = {split: self._split(split, each, path) for split, each in texts.items()}
        listed = {
            f"{split}-{what}-{i}": part[what]
            for split, entry in splits.items()
            for i, part in enumerate(entry["parts"])
            for what in ("rows", "meta")
        }
        self.manifest: dict[str, Any] = {
            "kind": "tokens",
            "sequence_length": SEQUENCE,
            "tokenizer": self.tokenizer,
            "sources": list(TOPICS),
            "splits": splits,
            "blobs": {**listed, "tokenizer": self.tokenizer},
        }
        (folder / "tokens.json").write_text(canonical_json(self.manifest))
        self.tokens = self.blobs.add(folder / "tokens.json")
        self.inputs = {"tokens_manifest": self.tokens, "tokenizer": self.tokenizer}

    def output(self, kind: str, params: dict[str, Json], inputs: dict[str, Digest]) -> TaskOutput:
        out = self.folder / f"out-{len(list(self.folder.iterdir()))}"
        out.mkdir()
        seen: list[float] = []
        done = run_task(kind, params, inputs, self.blobs, out, seen.append)
        assert seen == sorted(seen)
        assert all(0 <= fraction <= 1 for fraction in seen)
        return done

    def run(self, kind: str, params: dict[str, Json], inputs: dict[str, Digest]) -> dict[str, Digest]:
        return {name: self.blobs.add(path) for name, path in self.output(kind, params, inputs).files.items()}

    def _split(self, split: str, texts: list[str], tokenizer: Path) -> dict[str, Any]:
        ids = encode(load_tokenizer(tokenizer), texts)
        rows = np.full((len(texts), SEQUENCE + 1), EOD_ID, dtype="<u2")
        targets = np.array([min(len(each), SEQUENCE) for each in ids])
        for row, each in zip(rows, ids, strict=True):
            row[: min(len(each), SEQUENCE + 1)] = each[: SEQUENCE + 1]
        meta = np.stack([np.arange(len(texts)) % len(TOPICS), np.full(len(texts), -1), targets], axis=1).astype("<i4")
        parts = []
        for number, chosen in enumerate(np.array_split(np.arange(len(texts)), PARTS)):
            digests = {}
            for what, array in (("rows", rows), ("meta", meta)):
                np.save(self.folder / f"{split}-{what}-{number}.npy", array[chosen])
                digests[what] = self.blobs.add(self.folder / f"{split}-{what}-{number}.npy")
            parts.append({**digests, "count": len(chosen), "pack_offset": 0})
        return {"rows": len(texts), "packs": 0, "parts": parts}


def topic_text(rng: random.Random, topic: int, words: int = 9) -> str:
    """Words of one topic among a few that all share."""
    own = list(TOPICS.values())[topic]
    return " ".join(rng.choice(own) if rng.random() < 0.7 else rng.choice(("the", "and", "of")) for _ in range(words))


def _sizes(train: int, test: int) -> tuple[tuple[str, int], ...]:
    return (("train", train), ("valid", test), ("test", test))
