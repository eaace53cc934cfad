"""The spec of a run that trains nothing: a corpus divided into domains, with a card for each."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Literal

from potluck.specs.partition import PartitionSpec
from potluck.specs.sections import CommonSpec, require


@dataclass(frozen=True, kw_only=True)
class ClusterSpec(CommonSpec):
    method: Literal["cluster"]
    partition: PartitionSpec = field(default_factory=lambda: PartitionSpec(by="clusters", k=64))

    def __post_init__(self) -> None:
        super().__post_init__()
        require(self.partition.by == "clusters", "partition.by", self.partition.by, "clusters")

    def resolved(self) -> ClusterSpec:
        return self
