"""The partition of the planted topics in a blob store, with all that a router needs to place text by it."""

from __future__ import annotations

import random
from pathlib import Path

from potluck.net.blobs.store import BlobStore
from sampling.partition import read_partition
from tests.reference.clustered_topics import Clustered
from tests.reference.topics import TOPICS, topic_text


class TopicPartition:
    def __init__(self, folder: Path, store: BlobStore) -> None:
        folder.mkdir(parents=True)
        clustered = Clustered(folder)
        self.partition = read_partition(clustered.partition)
        self.tokenizer = clustered.topics.blobs.path(clustered.topics.tokenizer)
        self.digest = store.put_file(clustered.partition)
        blobs = (clustered.topics.tokenizer, clustered.encoder, clustered.tree)
        self.listed = {self.digest, *(store.put_file(clustered.topics.blobs.path(digest)) for digest in blobs)}

    def domain_of(self, topic: str) -> str:
        """The domain whose name has the topic's words."""
        (name,) = (name for name in self.partition.domains if set(name.split("-")[1:]) & set(TOPICS[topic]))
        return name


def text_about(topic: str, words: int = 40) -> str:
    return topic_text(random.Random(topic), list(TOPICS).index(topic), words)
