"""Which domain each train row belongs to: one array of labels, and the manifest that gives them names.

The labels manifest, canonical JSON: `partition` and `tokens` (digests), `domains` (names, in the order of
the labels), `sizes` (train rows of each), `rows`, `excluded`, `sequence_length`, `labels` (digest), and `reach`
where distances were given: nearly every row is nearer than that to the centroid of its own domain.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from potluck.errors import DataError
from potluck.ids import Digest, Json, digest_file, is_digest
from potluck.jsontext import read_json
from sampling.mixture import natural
from sampling.taskio import BlobReader, TaskCall, TaskOutput, load_array

EXCLUDED = 0xFFFFFFFF
"""Label of a row that is never drawn."""
REACH_QUANTILE = 0.995
MAX_ROWS = 1 << 48
"""Of one domain: sums over as many domains as there can be stay within 64 bits."""


@dataclass(frozen=True, kw_only=True)
class Labels:
    partition: Digest
    tokens: Digest
    domains: Sequence[str]
    sizes: Mapping[str, int]
    """Rows by domain name, excluded ones not counted; in the order of `domains`."""
    excluded: int
    sequence_length: int
    label: Digest
    reach: float | None = None
    """Squared distance to a domain's centroid that nearly all rows are within; None: not known."""

    @property
    def rows(self) -> int:
        """All train rows, excluded ones too."""
        return sum(self.sizes.values()) + self.excluded

    def array(self, blobs: BlobReader) -> np.ndarray:
        """uint32 [rows], memory-mapped.

        Raises:
            DataError: ``data.bad-labels``.
        """
        labels = load_array(blobs.path(self.label))
        if labels.shape != (self.rows,) or labels.dtype != np.dtype("<u4"):
            what = f"labels {self.label[:12]}: {labels.dtype} {labels.shape}, not uint32 ({self.rows},)"
            raise DataError("data.bad-labels", what, "compute the labels again")
        return labels


def parse_labels(manifest: object) -> Labels:
    """Raises:
    DataError: ``data.bad-labels``, it is no labels manifest.
    """
    if not isinstance(manifest, dict) or manifest.get("kind") != "labels":
        raise _bad("not a labels manifest")
    domains, sizes = manifest.get("domains"), manifest.get("sizes")
    if not isinstance(domains, list) or not domains or not all(isinstance(name, str) for name in domains):
        raise _bad("domains are no list of names")
    if len(set(domains)) != len(domains):
        raise _bad("two domains have one name")
    if not isinstance(sizes, list) or len(sizes) != len(domains) or not all(_is_count(size) for size in sizes):
        raise _bad("sizes are not one count for each domain")
    counts = {name: manifest.get(name) for name in ("excluded", "sequence_length")}
    digests = {name: manifest.get(name) for name in ("partition", "tokens", "labels")}
    for name, found in counts.items():
        if not _is_count(found):
            raise _bad(f"{name} = {str(found)[:80]!r} is no count")
    for name, found in digests.items():
        if not isinstance(found, str) or not is_digest(found):
            raise _bad(f"{name} = {str(found)[:80]!r} is no digest")
    reach = manifest.get("reach")
    if reach is not None and not (isinstance(reach, float) and 0 <= reach < math.inf):
        raise _bad(f"reach = {str(reach)[:80]!r} is no distance")
    return Labels(
        partition=Digest(manifest["partition"]),
        tokens=Digest(manifest["tokens"]),
        domains=tuple(domains),
        sizes=dict(zip(domains, sizes, strict=True)),
        excluded=manifest["excluded"],
        sequence_length=manifest["sequence_length"],
        label=Digest(manifest["labels"]),
        reach=reach,
    )


def load_labels(digest: Digest, blobs: BlobReader) -> Labels:
    """Raises:
    DataError: ``data.bad-labels``.
    """
    try:
        return parse_labels(read_json(blobs.path(digest).read_bytes()))
    except ValueError as error:
        raise _bad(f"{digest[:12]} is not JSON: {error}") from None


def _reach(call: TaskCall) -> dict[str, Json]:
    """What distances add to a manifest; nothing where none were given."""
    distances = [np.asarray(load_array(call.path(name))) for name in call.numbered("distances")]
    return {"reach": distance_threshold(np.concatenate(distances))} if distances else {}


def distance_threshold(distances: np.ndarray, quantile: float = REACH_QUANTILE) -> float:
    """What nearly all of the corpus is nearer than: rows to the centre of their own domain."""
    return float(np.quantile(np.asarray(distances, dtype=np.float64), quantile))


def _is_count(value: object) -> bool:
    return type(value) is int and 0 <= value <= MAX_ROWS


def _bad(what: str) -> DataError:
    return DataError("data.bad-labels", what, "compute the labels again")


def join_labels(call: TaskCall) -> TaskOutput:
    """Task `fit`, what `joined`: labels `labels-NNNNN` of parts as one array."""
    parts = [np.asarray(load_array(call.path(name)), dtype=np.uint32) for name in call.numbered("labels")]
    return TaskOutput(files={"joined": call.write_array("joined", np.concatenate(parts))})


def collect_labels(call: TaskCall) -> TaskOutput:
    """Task `fit`, what `labels`: the labels of all parts, in the order of the tokens manifest's train parts.

    Inputs: `labels-NNNNN` (uint32 [rows of the part]), `tokens`, `partition` (JSON whose `domains` are in the order of
    the labels), and perhaps `excluded` (uint8 or bool [train rows], rows to leave out) and `distances-NNNNN` (squared,
    to the centroids, by part), which tell the `reach`. Beside it comes `natural`, the mixture of reading evenly.

    Raises:
        DataError: ``data.bad-labels``, lengths or labels do not fit.
    """
    domains = [str(name) for name in call.json("partition")["domains"]]
    tokens = call.json("tokens")
    count = int(tokens["splits"]["train"]["rows"])
    parts = [load_array(call.path(name)) for name in call.numbered("labels")]
    if sum(len(part) for part in parts) != count:
        what = f"{sum(len(part) for part in parts)} labels for {count} train rows"
        raise DataError("data.bad-labels", what, "label every part of the corpus")
    labels = np.concatenate([np.asarray(part, dtype=np.uint32) for part in parts])
    if "excluded" in call.inputs:
        excluded = load_array(call.path("excluded"))
        if excluded.shape != labels.shape:
            what = f"excluded has shape {excluded.shape}, not {labels.shape}"
            raise DataError("data.bad-labels", what, "find the duplicates of this corpus")
        labels[excluded.astype(bool)] = EXCLUDED
    kept = labels[labels != EXCLUDED]
    if kept.size and int(kept.max()) >= len(domains):
        what = f"label {int(kept.max())} with {len(domains)} domains"
        raise DataError("data.bad-labels", what, "label with the partition that is named")
    sizes = np.bincount(kept, minlength=len(domains)).tolist()
    if not kept.size:
        raise DataError("data.bad-labels", "every row is excluded", "take a corpus that is not the target itself")
    path = call.write_array("array", labels)
    digest = digest_file(path)
    manifest: dict[str, Json] = {
        "kind": "labels",
        "version": 1,
        "partition": call.inputs["partition"],
        "tokens": call.inputs["tokens"],
        "sequence_length": int(tokens["sequence_length"]),
        "domains": domains,
        "sizes": sizes,
        "rows": count,
        "excluded": count - len(kept),
        "labels": digest,
        "blobs": {"labels": digest},
        **_reach(call),
    }
    partition = Digest(call.inputs["partition"])
    evenly = call.out / "natural.json"
    evenly.write_text(natural(partition, dict(zip(domains, sizes, strict=True))).to_json(), encoding="utf-8")
    return TaskOutput(
        files={"labels": call.write_json("labels", manifest), "array": path, "natural": evenly},
        figures={
            "rows": count,
            "excluded": count - len(kept),
            "domains": len(domains),
            "empty_domains": sizes.count(0),
            "largest_domain": max(sizes),
        },
    )
