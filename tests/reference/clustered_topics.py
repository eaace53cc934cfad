"""The planted topics through every task, from rows to partition."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from sampling.taskio import load_array
from tests.reference.topics import TOPICS, TopicText

K = len(TOPICS)


class Clustered:
    """Encoder, vectors and labels in two parts, tree, cards and partition, each as a blob."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        topics = self.topics = TopicText(folder)
        rows = topics.manifest["splits"]["train"]["rows"]
        fit = {"what": "lsi", "dim": 8, "features": 1024, "sample_rows": rows, "seed": 0}
        self.encoder = topics.run("fit", fit, topics.inputs)["encoder"]
        inputs = {**topics.inputs, "encoder": self.encoder}
        parts = {}
        for number, (start, count) in enumerate(((0, 100), (100, rows - 100))):
            params = {"split": "train", "start": start, "count": count, "batch_size": 64}
            parts[f"vectors-{number:05d}"] = topics.run("embed", params, inputs)["vectors"]
        params = {"k": K, "iterations": 8, "sample": rows, "spherical": True, "seed": 0}
        self.tree = topics.run("fit_clusters", params, parts)["tree"]
        labels = {}
        for name, vectors in parts.items():
            done = topics.run(
                "assign", {"rule": "partition", "distances": True}, {"tree": self.tree, "vectors": vectors}
            )
            assert (
                load_array(topics.blobs.path(done["distances"])).shape
                == load_array(topics.blobs.path(vectors)).shape[:1]
            )
            labels[name.replace("vectors", "labels")] = done["labels"]
        self.labels = labels
        self.inputs = {**inputs, "tree": self.tree, **parts, **labels}
        self.cards = topics.output("eval", self.params(), self.inputs)
        self.partition = self.cards.files["partition"]
        self.digest = topics.blobs.add(self.partition)

    def params(self, **changes: int) -> dict[str, Any]:
        return {"what": "cards", "split": "train", "sample_rows": 200, "points": 50, "seed": 0, **changes}
