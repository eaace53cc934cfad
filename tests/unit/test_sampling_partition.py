"""The partition artifact: what it says, where it places a document, and whom it refuses."""

from __future__ import annotations

import json
import random
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from potluck.errors import DataError, PotluckError, Refused, SpecError, UsageError
from potluck.ids import Digest
from sampling.cluster_tree import Tree
from sampling.labels import load_labels
from sampling.partition import Partition, Placement, load_placer, read_partition, windows
from sampling.taskio import load_array
from tests.reference.clustered_topics import Clustered, K
from tests.reference.topics import SEQUENCE, TOPICS, topic_text


@pytest.fixture(scope="module")
def clustered(tmp_path_factory: pytest.TempPathFactory) -> Clustered:
    return Clustered(tmp_path_factory.mktemp("clustered"))


def test_a_new_document_is_placed_with_the_text_like_it(clustered: Clustered, tmp_path: Path) -> None:
    placer = load_placer(clustered.partition, clustered.topics.blobs, tmp_path)
    rng = random.Random(9)
    for number, words in enumerate(TOPICS.values()):
        (placed,) = placer.place([topic_text(rng, number, words=60)])
        name = placer.partition.domains[placed.domain]
        assert set(name.split("-")[1:]) <= set(words)
        assert len(placed.domains) > 1
        assert placed.histogram(K)[placed.domain] > 0.7
        assert placed.histogram(K).sum() == pytest.approx(1.0)


def test_the_rows_that_made_it_are_placed_where_they_are_labelled(clustered: Clustered, tmp_path: Path) -> None:
    from sampling.rows import TokenRows

    topics = clustered.topics
    placer = load_placer(clustered.partition, topics.blobs, tmp_path)
    rows = TokenRows(topics.manifest, topics.blobs, "train")
    every = np.arange(len(rows))
    whole = every[rows.meta(every)[:, 2] == SEQUENCE]
    placed = placer.place_tokens(list(rows.take(whole)), topics.tokenizer)
    labels = np.concatenate([load_array(topics.blobs.path(d)) for _, d in sorted(clustered.labels.items())])
    assert [p.domain for p in placed] == labels[whole].tolist()
    assert all(len(p.domains) == 1 for p in placed)


def test_tokens_of_another_tokenizer_are_refused(clustered: Clustered, tmp_path: Path) -> None:
    placer = load_placer(clustered.partition, clustered.topics.blobs, tmp_path)
    other = Digest("f" * 64)
    with pytest.raises(Refused, match="tokenizer ffffffffffff") as caught:
        placer.place_tokens([np.arange(5)], other)
    assert caught.value.error_id == "refused.other-tokenizer"


def test_a_document_without_text_is_refused(clustered: Clustered, tmp_path: Path) -> None:
    placer = load_placer(clustered.partition, clustered.topics.blobs, tmp_path)
    with pytest.raises(UsageError, match="document 1 has no text"):
        placer.place(["words", " \n"])


def test_the_partition_lists_the_blobs_it_places_with_and_reads_back_whole(clustered: Clustered) -> None:
    partition = read_partition(clustered.partition)
    raw = json.loads(clustered.partition.read_text())
    assert raw["blobs"] == {
        "tokenizer": clustered.topics.tokenizer,
        "encoder": clustered.encoder,
        "tree": clustered.tree,
    }
    assert raw["encoder"] == {"kind": "lsi", "digest": clustered.encoder}
    assert partition.to_json() == clustered.partition.read_text()
    tree = Tree.load(clustered.topics.blobs.path(clustered.tree))
    assert partition.centroids is not None
    assert list(partition.centroids.leaves) == tree.leaves.tolist()
    assert sum(partition.sizes) == clustered.topics.manifest["splits"]["train"]["rows"]


def test_the_labels_of_all_parts_are_collected_under_the_partitions_names(clustered: Clustered) -> None:
    topics = clustered.topics
    inputs = {**clustered.labels, "tokens": topics.tokens, "partition": clustered.digest}
    collected = load_labels(topics.run("fit", {"what": "labels"}, inputs)["labels"], topics.blobs)
    partition = read_partition(clustered.partition)
    assert tuple(collected.domains) == partition.domains
    assert tuple(collected.sizes.values()) == partition.sizes


def test_a_partition_by_source_labels_rows_and_cannot_place_text(clustered: Clustered, tmp_path: Path) -> None:
    topics = clustered.topics
    done = topics.output("assign", {"rule": "sources", "split": "test"}, {"tokens_manifest": topics.tokens})
    assert load_array(done.files["labels"]).tolist() == [i % K for i in range(40)]
    partition = read_partition(done.files["partition"])
    assert (partition.domains, partition.sizes, partition.centroids) == (tuple(TOPICS), (10,) * K, None)
    with pytest.raises(UsageError) as caught:
        load_placer(done.files["partition"], topics.blobs, tmp_path)
    assert caught.value.error_id == "usage.cannot-place"


def test_a_sentence_encoders_files_travel_with_the_partition() -> None:
    from sampling.partition import Centroids

    digests = [Digest(c * 64) for c in "abcdef"]
    centroids = Centroids(encoder=digests[0], encoder_files=tuple(digests[1:4]), tree=digests[4], leaves=(0, 2))
    partition = Partition(
        tokenizer=digests[5], sequence_length=8, domains=("a", "b"), sizes=(1, 2), centroids=centroids
    )
    raw = json.loads(partition.to_json())
    assert raw["encoder"]["kind"] == "sentence"
    assert set(raw["blobs"].values()) == set(digests)


def test_domains_share_no_name() -> None:
    with pytest.raises(SpecError, match="2 domains, 1 names"):
        Partition(tokenizer=Digest(""), sequence_length=8, domains=("a", "a"), sizes=(1, 1), centroids=None)


@pytest.mark.parametrize(
    "change", [{"version": 2}, {"kind": "moods"}, {"domains": ["a", "a"]}, {"tokenizer": None, "sizes": 3}]
)
def test_a_file_that_is_no_partition_is_refused(clustered: Clustered, tmp_path: Path, change: dict[str, Any]) -> None:
    path = tmp_path / "p.json"
    for text in (json.dumps({**json.loads(clustered.partition.read_text()), **change}), "{}", "["):
        path.write_text(text)
        with pytest.raises(PotluckError) as caught:
            read_partition(path)
        assert caught.value.error_id == "data.bad-partition"


def test_a_tree_of_other_leaves_is_refused(clustered: Clustered, tmp_path: Path) -> None:
    raw = json.loads(clustered.partition.read_text())
    raw["leaves"] = raw["leaves"][::-1]
    (tmp_path / "p.json").write_text(json.dumps(raw))
    with pytest.raises(DataError, match="other leaves"):
        load_placer(tmp_path / "p.json", clustered.topics.blobs, tmp_path)


def test_a_document_is_cut_as_rows_are() -> None:
    ids = np.arange(10)
    assert [w.tolist() for w in windows(ids, 4)] == [[0, 1, 2, 3, 4], [4, 5, 6, 7, 8], [8, 9]]
    assert [w.tolist() for w in windows(ids[:9], 4)] == [[0, 1, 2, 3, 4], [4, 5, 6, 7, 8]]
    assert [w.tolist() for w in windows(ids[:1], 4)] == [[0]]


def test_a_documents_domain_is_that_of_most_tokens_and_the_lower_of_equals() -> None:
    placed = Placement(domains=np.array([3, 1, 3]), distances=np.zeros(3, np.float32), tokens=np.array([10, 25, 5]))
    assert placed.domain == 1
    assert placed.histogram(5).tolist() == [0.0, 0.625, 0.0, 0.375, 0.0]
    even = Placement(domains=np.array([3, 1]), distances=np.zeros(2, np.float32), tokens=np.array([7, 7]))
    assert even.domain == 1
