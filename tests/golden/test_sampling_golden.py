"""Orders, splits and digests that old runs rest on: a change here makes their recipes mean other data."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from potluck.ids import canonical_json
from sampling.ingest import ingest
from sampling.permute import permute
from sampling.splits import draw


def test_the_permutation_of_a_key_never_changes() -> None:
    assert permute(np.arange(10), 10, 0).tolist() == [7, 5, 1, 8, 6, 3, 4, 0, 9, 2]
    assert permute(np.arange(6), 87_738, 2**63 + 5).tolist() == [26609, 9749, 80914, 46692, 72133, 37073]
    assert permute(np.array([0, 10**12 - 1]), 10**12, -3).tolist() == [641356315761, 215405902868]


def test_a_draw_never_changes() -> None:
    assert draw(7, "split", "source", "group") == 3778275648378904037


def test_the_manifest_of_a_corpus_never_changes(tmp_path: Path) -> None:
    lines = [
        canonical_json({"text": f"{i}: " + "lorem ipsum " * 60, "domain": "ab"[i % 2], "source": f"{i // 3}#{i}"})
        for i in range(120)
    ]
    (tmp_path / "in.jsonl").write_text("\n".join(lines))
    expected = "a25488e15bc3e9b84ecd66e254ac552eb9bf084f23618a7b3417bf8622bd4ad3"
    assert ingest(tmp_path / "in.jsonl", tmp_path / "out").digest == expected
