"""A train lease on a mixture's segments: row weights reach the step, and resuming reads the same draws."""

from __future__ import annotations

from pathlib import Path
from typing import Literal

import numpy as np
import pytest

from expert_node.worker import GivenBlobs
from potluck.ids import Digest, canonical_json
from potluck.lm.train import Trainer
from potluck.recipe import Clustered, Profile, Segment
from sampling.batches import SegmentReader
from sampling.mixture import normalised
from tests.unit.test_node_training import COLUMNS, RECIPE, ROWS, STEPS, Lease

PARTITION = Digest("a" * 64)
NAMES = ["some", "other"]
Mode = Literal["cluster", "importance"]


class MixtureLease(Lease):
    def __init__(self, folder: Path, mode: Mode) -> None:
        super().__init__(folder)
        tokens = self.segments[0].data.tokens
        np.save(folder / "labels.npy", (np.arange(ROWS) % 8 == 0).astype(np.uint32))
        manifest = {
            "kind": "labels",
            "partition": PARTITION,
            "tokens": tokens,
            "domains": NAMES,
            "sizes": [ROWS * 7 // 8, ROWS // 8],
            "excluded": 0,
            "sequence_length": COLUMNS - 1,
            "labels": self._put(folder / "labels.npy"),
        }
        (folder / "labels.json").write_text(canonical_json(manifest))
        (folder / "mixture.json").write_text(normalised(PARTITION, {"some": 1, "other": 2}, NAMES).to_json())
        labels, mixture = self._put(folder / "labels.json"), self._put(folder / "mixture.json")
        self.segments = [
            Segment(
                index=number,
                start_step=begin,
                end_step=end,
                data=Clustered(
                    tokens=tokens,
                    labels=labels,
                    mixture=mixture,
                    key=4,
                    start=begin * RECIPE.batch_size,
                    mode=mode,
                ),
            )
            for number, (begin, end) in enumerate([(0, 12), (12, STEPS)])
        ]

    def reader(self) -> SegmentReader:
        return SegmentReader(self.segments[0], RECIPE.batch_size, RECIPE.columns, GivenBlobs(self._blobs))


@pytest.mark.parametrize("mode", ["cluster", "importance"])
def test_a_stop_anywhere_changes_no_bit(tmp_path: Path, mode: Mode) -> None:
    unbroken, stopped = MixtureLease(tmp_path / "a", mode), MixtureLease(tmp_path / "b", mode)
    unbroken.train()
    for stop in (5, 15):  # before the first commit, and in the second segment
        stopped.train(stop_before=stop)
    stopped.train()
    assert stopped.chain() == unbroken.chain()


@pytest.mark.parametrize("mode", ["cluster", "importance"])
def test_the_lease_trains_as_the_plain_loop_does(tmp_path: Path, mode: Mode) -> None:
    lease = MixtureLease(tmp_path / "a", mode)
    lease.train(target=10)
    reader, weighted, plain = lease.reader(), Trainer(RECIPE, Profile()), Trainer(RECIPE, Profile())
    for step in range(10):
        weighted.train_step(reader.batch(step), reader.weights(step))
        plain.train_step(reader.batch(step))
    (tmp_path / "w").mkdir()
    (tmp_path / "p").mkdir()
    assert lease.commits[0]["weights"] == weighted.save(tmp_path / "w").weights_digest
    assert (plain.save(tmp_path / "p").weights_digest == lease.commits[0]["weights"]) == (mode == "cluster")
