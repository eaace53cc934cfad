"""Tasks that turn document shards into rows: fit a tokenizer, tokenise a shard, collect the parts."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from itertools import groupby, islice
from pathlib import Path
from typing import Any

import numpy as np

from potluck.errors import CorpusError
from potluck.ids import Digest, Json, digest_file
from sampling.bpe import EOD_ID, FIGURE_BYTES, bytes_per_token, encode, load_tokenizer, sample_train_text, train_bpe
from sampling.packing import Document, Packed, order_documents, pack_held_out, pack_train
from sampling.splits import SPLITS
from sampling.taskio import Progress, TaskCall, TaskOutput

ENCODE_SECTIONS = 1024
"""Sections encoded between two reports of progress."""


def fit_bpe(call: TaskCall) -> TaskOutput:
    """Task `fit`, what `bpe`: the tokenizer of a corpus, from its train split alone."""
    params = call.params
    manifest = call.json("corpus_manifest")
    shards = [call.blobs.path(Digest(shard["digest"])) for shard in manifest["shards"]]
    train_bytes = sum(source["splits"]["train"] for source in manifest["sources"].values())
    measured: list[str] = []
    sampled_bytes = 0

    def texts() -> Iterator[str]:
        nonlocal sampled_bytes
        for text in sample_train_text(shards, int(params["sample_bytes"]), train_bytes, int(params["seed"])):
            if sampled_bytes < FIGURE_BYTES:
                measured.append(text)
            sampled_bytes += len(text.encode())
            yield text

    tokenizer = train_bpe(texts(), int(params["vocab_size"]))
    path = call.out / "tokenizer.json"
    path.write_text(tokenizer.to_str(), encoding="utf-8")
    call.progress(0.9)
    return TaskOutput(
        files={"tokenizer": path},
        figures={
            "bytes_per_token": bytes_per_token(load_tokenizer(path), measured),
            "vocab_size": tokenizer.get_vocab_size(),
            "sample_bytes": sampled_bytes,
        },
    )


def tokenise_part(call: TaskCall) -> TaskOutput:
    """Task `tokenise`, what `part`: one document shard into rows of the three splits."""
    params = call.params
    sequence_length = int(params["sequence_length"])
    names = sorted(call.json("corpus")["sources"])
    documents = read_documents(call.path("documents"), call.path("tokenizer"), names, call.progress)
    files: dict[str, Path] = {}
    blobs: dict[str, Json] = {}
    splits: dict[str, Json] = {}
    figures: dict[str, Json] = {}
    for split in SPLITS:
        lists = order_documents(documents[split], packing=str(params["packing"]), seed=int(params["seed"]))
        packed = pack_train(lists, sequence_length) if split == "train" else pack_held_out(lists, sequence_length)
        for what, array in (("rows", packed.rows), ("meta", packed.meta)):
            name = f"{split}_{what}"
            files[name] = call.write_array(name, array)
            blobs[name] = digest_file(files[name])
        splits[split] = {
            "rows": blobs[f"{split}_rows"],
            "meta": blobs[f"{split}_meta"],
            "count": len(packed.rows),
            "packs": packed.num_packs,
            "targets": packed.num_targets,
            "tokens": sum(len(document.tokens) for document in documents[split]),
            "rows_by_source": _by_source(packed, names),
        }
        figures[f"{split}_rows"] = len(packed.rows)
        figures[f"{split}_tokens"] = sum(len(document.tokens) for document in documents[split])
    part: Json = {
        "kind": "tokens-part",
        "version": 1,
        "sequence_length": sequence_length,
        "splits": splits,
        "blobs": blobs,
    }
    files["part"] = call.write_json("part", part)
    return TaskOutput(files=files, figures=figures)


def collect(call: TaskCall) -> TaskOutput:
    """Task `tokenise`, what `collect`: the tokens manifest over all parts; no array is touched.

    Raises:
        CorpusError: ``corpus.too-small``, a split has no row.
    """
    names = sorted(call.json("corpus")["sources"])
    parts = [call.json(name) for name in call.numbered("part")]
    sequence_length = int(call.params["sequence_length"])
    tokenizer = call.inputs["tokenizer"]
    blobs: dict[str, Json] = {"tokenizer": tokenizer}
    splits: dict[str, Json] = {}
    figures: dict[str, Json] = {}
    for split in SPLITS:
        listed, packs = _listed(parts, split, blobs)
        rows = sum(int(part["count"]) for part in listed)
        if not rows:
            what = f"the {split} split makes no row of {sequence_length} tokens"
            raise CorpusError("corpus.too-small", what, "give more text or a shorter text.sequence_length")
        splits[split] = {"rows": rows, "packs": packs, "parts": listed}
        figures[f"{split}_rows"] = rows
        figures[f"{split}_tokens"] = sum(int(part["splits"][split]["tokens"]) for part in parts)
        if split != "train":
            figures[f"{split}_packs"] = packs
    figures["rows_by_source"] = {
        name: {split: sum(part["splits"][split]["rows_by_source"].get(name, 0) for part in parts) for split in SPLITS}
        for name in names
    }
    manifest: dict[str, Json] = {
        "kind": "tokens",
        "version": 1,
        "sequence_length": sequence_length,
        "vocab_size": int(call.params["vocab_size"]),
        "tokenizer": tokenizer,
        "sources": names,
        "splits": splits,
        "blobs": blobs,
    }
    return TaskOutput(files={"tokens": call.write_json("tokens", manifest)}, figures=figures)


def read_documents(
    shard: Path, tokenizer_path: Path, names: Sequence[str], progress: Progress
) -> dict[str, list[Document]]:
    """Documents of each split in shard order; successive sections of one id are joined, `<eod>` added."""
    index = {name: i for i, name in enumerate(names)}
    documents: dict[str, list[Document]] = {split: [] for split in SPLITS}
    end_of_document = np.array([EOD_ID], dtype=np.uint16)
    for (split, source, _), sections in groupby(_encoded(shard, tokenizer_path, progress), key=lambda one: one[0]):
        tokens = np.concatenate([*(ids for _, ids in sections), end_of_document])
        documents[split].append(Document(source=index[source], tokens=tokens))
    return documents


def _encoded(
    shard: Path, tokenizer_path: Path, progress: Progress
) -> Iterator[tuple[tuple[str, str, str], np.ndarray]]:
    """(split, source, id) and tokens of each section, a block of sections in memory at a time."""
    tokenizer = load_tokenizer(tokenizer_path)
    size = shard.stat().st_size
    done = 0
    with shard.open("rb") as lines:
        while block := list(islice(lines, ENCODE_SECTIONS)):
            sections = [json.loads(line) for line in block]
            ids = encode(tokenizer, [section["text"] for section in sections])
            for section, tokens in zip(sections, ids, strict=True):
                yield (section["split"], section["source"], section["id"]), tokens
            done += sum(len(line) for line in block)
            progress(0.9 * done / size)


def _by_source(packed: Packed, names: Sequence[str]) -> dict[str, Json]:
    counts = np.bincount(packed.meta[:, 0], minlength=len(names)).tolist()
    return {name: count for name, count in zip(names, counts, strict=True) if count}


def _listed(parts: Sequence[Mapping[str, Any]], split: str, blobs: dict[str, Json]) -> tuple[list[dict[str, Any]], int]:
    """The parts of a split, each with the number of packs before it, and the number of all packs."""
    listed: list[dict[str, Any]] = []
    packs = 0
    for number, part in enumerate(parts):
        entry = part["splits"][split]
        blobs[f"{split}-rows-{number:05d}"] = entry["rows"]
        blobs[f"{split}-meta-{number:05d}"] = entry["meta"]
        listed.append({**{k: entry[k] for k in ("rows", "meta", "count")}, "pack_offset": packs})
        packs += int(entry["packs"])
    return listed, packs
