"""How a corpus is divided into domains, and how a mixture over them is read."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from potluck.ids import NO_DIGEST, Digest, is_digest
from potluck.specs.sections import require

MAX_DOMAINS = 1 << 16


@dataclass(frozen=True, kw_only=True)
class PartitionSpec:
    """Domains: none, the corpus' sources, or clusters of its rows (CRISP, 2410.03735, section 2)."""

    by: Literal["none", "source", "clusters"] = "none"
    k: int = 0
    """Clusters of one flat level; or 0, and `branch` and `depth` make a tree."""
    branch: int = 0
    depth: int = 0
    encoder: Digest = NO_DIGEST
    """Manifest of a packed sentence-transformers folder, which a spec file names; none: LSI, fitted on the corpus."""
    dim: int = 128
    """Of LSI."""
    features: int = 1 << 16
    """Hashed terms of LSI."""
    sample_rows: int = 20_000
    """Rows that LSI's decomposition and the clusters are fitted on."""
    iterations: int = 20
    spherical: bool = True

    def __post_init__(self) -> None:
        if self.by == "clusters":
            flat, tree = self.k > 0, self.branch > 0
            require(flat != tree, "partition.k", self.k, "k alone, or branch and depth")
            if tree:
                require(2 <= self.branch <= 64, "partition.branch", self.branch, "2 to 64")
                require(1 <= self.depth <= 4, "partition.depth", self.depth, "1 to 4")
            require(self.k != 1, "partition.k", self.k, "2 or more")
            domains = self.k if flat else self.branch**self.depth
            require(domains <= MAX_DOMAINS, "partition", domains, f"at most {MAX_DOMAINS} domains")
        require(self.encoder == NO_DIGEST or is_digest(self.encoder), "partition.encoder", self.encoder, "a folder")
        require(2 <= self.dim <= 1024, "partition.dim", self.dim, "2 to 1024")
        require(1 <= self.iterations <= 1000, "partition.iterations", self.iterations, "1 to 1000")
        require(self.sample_rows >= 16, "partition.sample_rows", self.sample_rows, "16 or more")
        ok = 1 << 10 <= self.features <= 1 << 20
        require(ok, "partition.features", self.features, "1024 to 1048576")


@dataclass(frozen=True, kw_only=True)
class MixtureSpec:
    """How a mixture is read, and how finely a run can be steered."""

    mode: Literal["cluster", "importance"] = "cluster"
    """`importance` reads evenly and weighs rows: the control."""
    segments: int = 16
    """Parts of the training between which the mixture can change."""
    gate_segments: int = 1
    """Length of the gate's forks."""

    def __post_init__(self) -> None:
        require(1 <= self.segments <= 1024, "mixture.segments", self.segments, "1 to 1024")
        ok = 1 <= self.gate_segments <= self.segments
        require(ok, "mixture.gate_segments", self.gate_segments, "1 to mixture.segments")
