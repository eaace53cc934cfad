"""SmallTalk runs that something else than routers sorts: the paper's baseline, and the sources as they are known."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any, Literal

import pytest

from potluck.ids import Digest
from potluck.report.build import RunFacts, build_report
from tests.integration.harness import Cluster
from tests.integration.smalltalk_runs import read_json, small_corpus, small_spec


@pytest.mark.parametrize("partition_by", ["clusters", "source"])
def test_a_run_is_sorted_by_clusters_or_by_sources(tmp_path: Path, partition_by: Literal["clusters", "source"]) -> None:
    corpus = small_corpus(tmp_path)
    spec = replace(small_spec(corpus.digest), partition_by=partition_by)
    with Cluster(tmp_path / "cluster") as cluster:
        cluster.start_coordinator()
        cluster.put_corpus(corpus.files)
        cluster.start_node("a")
        info = cluster.wait_ended(cluster.start_run(spec))
        assert info.state == "finished", f"{info.reason}{cluster.tails()}"
        roles = {line.role for line in info.lineages}
        assert roles == {"expert", "dense", "random_split"}
        science: dict[str, Any] = read_json(cluster.blobs(), Digest(info.report))
    assert science["facts"]["partition_by"] == partition_by
    assert science["facts"]["routers"] is None
    flops = science["facts"]["flops"]["mixture"]
    assert flops["total"] == flops["experts"] > 0
    # Languages are told apart by their words: each goes to one expert, nearly whole.
    table = science["routing"]["table"]
    by_language = [max(column) / sum(column) for column in zip(*table, strict=True)]
    assert min(by_language) > 0.9, table
    report = build_report(
        science,
        RunFacts(
            run=info.run,
            name="sorted",
            spec=spec,
            curves={},
            bytes_by_plane={},
            tokens_per_second={},
            ledger_ok=True,
            ledger_problems=(),
        ),
    )
    assert report["paper_bytes"]["scores"] == 0
