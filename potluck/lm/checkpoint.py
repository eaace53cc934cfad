"""What a checkpoint is: two blobs and a manifest whose digest names the commit. No torch here."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from potluck.config import from_mapping, to_mapping
from potluck.errors import SpecError
from potluck.ids import Digest, Json, LineageId, canonical_json, digest_json
from potluck.jsontext import read_json
from potluck.recipe import Profile

WEIGHTS_FILE = "weights.safetensors"
OPTIMIZER_FILE = "optimizer.safetensors"


@dataclass(frozen=True, kw_only=True)
class CheckpointFiles:
    """The two files of a checkpoint as they lie on disk, with the digests of their bytes."""

    weights: Path
    optimizer: Path
    weights_digest: Digest
    optimizer_digest: Digest


@dataclass(frozen=True, kw_only=True)
class CheckpointManifest:
    """Everything a continuation depends on, and nothing else: no time, node, path or speed.

    Two nodes that did the same steps under the same profile write the same manifest.
    """

    lineage: LineageId
    step: int
    """Steps done."""
    parent: Digest
    """Digest of the manifest this one continues; `NO_DIGEST` for a lineage's first."""
    profile: Profile
    segments: tuple[Digest, ...]
    """Digests of the segments that start before `step`, in order."""
    data_position: int
    """Rows consumed in the last of these segments."""
    rng: Mapping[str, int]
    """Seeds that training depends on; today the init's alone, for batches come from segments."""
    weights: Digest
    optimizer: Digest

    @property
    def digest(self) -> Digest:
        return digest_json(self._mapping())

    def to_json(self) -> str:
        return canonical_json(self._mapping())

    @staticmethod
    def from_json(text: str) -> CheckpointManifest:
        """Reads what `to_json` wrote.

        Raises:
            SpecError: it is no JSON object, or a key is unknown, missing or of a wrong type.
        """
        try:
            raw = read_json(text)
        except ValueError as error:
            raise _bad_manifest(f"it is not JSON: {error}") from None
        if not isinstance(raw, dict):
            raise _bad_manifest("it is no object")
        rng = raw.pop("rng", {})
        if not isinstance(rng, dict) or not all(type(seed) is int for seed in rng.values()):
            raise _bad_manifest("rng is no table of seeds")
        head = from_mapping(_Head, raw)
        return CheckpointManifest(rng=rng, **{name: getattr(head, name) for name in raw})

    def _mapping(self) -> dict[str, Json]:
        return {
            "lineage": self.lineage,
            "step": self.step,
            "parent": self.parent,
            "profile": to_mapping(self.profile),
            "segments": list(self.segments),
            "data_position": self.data_position,
            "rng": dict(self.rng),
            "weights": self.weights,
            "optimizer": self.optimizer,
        }


@dataclass(frozen=True, kw_only=True)
class _Head:
    """The manifest without its free mapping, for the checked reader of dataclasses."""

    lineage: LineageId
    step: int
    parent: Digest
    profile: Profile
    segments: tuple[Digest, ...]
    data_position: int
    weights: Digest
    optimizer: Digest


def _bad_manifest(why: str) -> SpecError:
    return SpecError("spec.bad-manifest", f"a checkpoint's manifest cannot be read: {why}", "use equal versions")
