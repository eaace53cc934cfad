"""A corpus divided into domains: encoder, vectors, clusters, labels of every train row, a named partition."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from coordinator.core.values import TaskResult
from coordinator.plans.base import Wishes
from coordinator.plans.seeds import derive
from coordinator.plans.text import Text
from potluck.ids import NO_DIGEST, Digest, Json
from potluck.specs.partition import PartitionSpec
from potluck.specs.sections import CommonSpec

FIRST_RANK = 0
ROWS_PER_PART = 16_384
"""Rows of one embed task: a lost node costs that much, and its vectors are 8 MiB."""
CARD_SAMPLE_ROWS = 20_000
MAP_POINTS = 2_000


@dataclass(frozen=True, kw_only=True)
class Clusters:
    """What places other text in the same domains."""

    encoder: Digest
    encoder_name: str
    """Name of the task input: a fitted file, or the manifest of a packed folder."""
    tree: Digest


@dataclass(frozen=True, kw_only=True)
class Domains:
    """A corpus and its domains."""

    partition: Digest
    cards: Digest
    """`NO_DIGEST` where domains are sources."""
    clusters: Clusters | None
    labels_parts: Mapping[str, Digest]
    """Labels of the train rows, by part."""
    distances: Mapping[str, Digest]
    """Squared distances of the train rows to their centroids, by part."""
    figures: Mapping[str, Json]


@dataclass(frozen=True, kw_only=True)
class Labelled:
    """Which rows a mixture may draw, and from which domain."""

    labels: Digest
    """The labels manifest."""
    natural: Digest
    """The mixture of reading evenly."""
    figures: Mapping[str, Json]


@dataclass(frozen=True, kw_only=True)
class Divider:
    """Divides a run's corpus."""

    spec: CommonSpec
    how: PartitionSpec
    text: Text
    wishes: Wishes
    columns: int = 0
    """Tokens of a row that count; 0: all of them."""

    def divide(self) -> Domains | str:
        """The domains, or the stage that is under way."""
        if self.how.by == "source":
            return self._by_source()
        clusters = self._want_encoder()
        if clusters is None:
            return "fitting the encoder"
        encoder_name, encoder = clusters
        vectors = self.vectors(encoder_name, encoder, self.text.tokens, "train", self.text.train_rows, "")
        if vectors is None:
            return "embedding the rows"
        tree = self._want_tree(vectors)
        if tree is None:
            return "clustering"
        found = Clusters(encoder=encoder, encoder_name=encoder_name, tree=tree.blobs["tree"])
        placed = self._placed(found, vectors, "")
        if placed is None:
            return "assigning rows to clusters"
        labels, distances = placed
        cards = self._want_cards(found, vectors, labels)
        if cards is None:
            return "describing the clusters"
        return Domains(
            partition=cards.blobs["partition"],
            cards=cards.blobs["cards"],
            clusters=found,
            labels_parts=labels,
            distances=distances,
            figures={**tree.figures, **cards.figures},
        )

    def place(
        self, domains: Domains, tokens: Digest, split: str, rows: int, what: str
    ) -> tuple[dict[str, Digest], dict[str, Digest]] | None:
        """Labels and distances of other rows in the same domains, by part, once there; `what` names them."""
        assert domains.clusters is not None, "domains by source place no other text"
        found = domains.clusters
        vectors = self.vectors(found.encoder_name, found.encoder, tokens, split, rows, what)
        return None if vectors is None else self._placed(found, vectors, what)

    def histogram(
        self,
        placed: tuple[Mapping[str, Digest], Mapping[str, Digest]],
        labels: Digest,
        tokens: Digest,
        what: str,
        *,
        corpus_distances: Mapping[str, Digest],
        planned_tokens: int,
        smoothing: float = 0.0,
        weights: Mapping[str, float],
    ) -> TaskResult | None:
        """The mixture of placed train rows, with what it can bear.

        Args:
            placed: as `place` gave it.
            labels: the manifest of the corpus' labels.
            tokens: the manifest of the placed rows.
            what: they are called.
            corpus_distances: of the corpus' rows, by part; none where the labels tell how far these reach.
            planned_tokens: that will be trained on the mixture.
            smoothing: rows added to every domain.
            weights: of sources; those without one count alike.
        """
        rows, distances = placed
        return self.wishes.task(
            "fit",
            {
                "what": "target_histogram",
                "planned_tokens": planned_tokens,
                "smoothing": smoothing,
                "weights": dict(weights),
            },
            {
                "labels": labels,
                "tokens_manifest": tokens,
                **{name.replace("labels", "target"): digest for name, digest in rows.items()},
                **distances,
                **{f"corpus_{name}": digest for name, digest in corpus_distances.items()},
            },
            label=f"histogram of {what}",
            rank=FIRST_RANK,
        )

    def label(self, domains: Domains, excluded: Digest = NO_DIGEST, *, with_reach: bool = False) -> Labelled | None:
        """All labels in one manifest, rows that are `excluded` left out.

        Args:
            with_reach: the manifest tells how far from a domain text of the corpus lies, so that other text can be
                told to lie beyond it.
        """
        inputs = {"tokens": self.text.tokens, "partition": domains.partition, **domains.labels_parts}
        if excluded != NO_DIGEST:
            inputs["excluded"] = excluded
        if with_reach:
            inputs |= domains.distances
        found = self.wishes.task("fit", {"what": "labels"}, inputs, label="collect the labels", rank=FIRST_RANK)
        if found is None:
            return None
        return Labelled(labels=found.blobs["labels"], natural=found.blobs["natural"], figures=found.figures)

    def _by_source(self) -> Domains | str:
        assigned = self.wishes.task(
            "assign",
            {"rule": "sources", "split": "train"},
            {"tokens_manifest": self.text.tokens},
            label="assign rows to their sources",
            rank=FIRST_RANK,
        )
        if assigned is None:
            return "assigning rows to their sources"
        return Domains(
            partition=assigned.blobs["partition"],
            cards=NO_DIGEST,
            clusters=None,
            labels_parts={"labels-00000": assigned.blobs["labels"]},
            distances={},
            figures=assigned.figures,
        )

    def _want_encoder(self) -> tuple[str, Digest] | None:
        if self.how.encoder != NO_DIGEST:
            return "encoder_manifest", self.how.encoder
        fitted = self.wishes.task(
            "fit",
            {
                "what": "lsi",
                "dim": self.how.dim,
                "features": self.how.features,
                "sample_rows": self.how.sample_rows,
                "seed": derive(self.spec.seed, "lsi"),
            },
            {"tokens_manifest": self.text.tokens, "tokenizer": self.text.tokenizer},
            label="fit the encoder",
            rank=FIRST_RANK,
        )
        return None if fitted is None else ("encoder", fitted.blobs["encoder"])

    def vectors(
        self, encoder_name: str, encoder: Digest, tokens: Digest, split: str, rows: int, what: str
    ) -> dict[str, Digest] | None:
        """Vectors of all rows of a split, by part, once all are there."""
        parts: dict[str, Digest] = {}
        starts = range(0, rows, ROWS_PER_PART)
        for index, start in enumerate(starts):
            params: dict[str, Json] = {"split": split, "start": start, "count": min(ROWS_PER_PART, rows - start)}
            embedded = self.wishes.task(
                "embed",
                params | ({"columns": self.columns} if self.columns else {}),
                {"tokens_manifest": tokens, "tokenizer": self.text.tokenizer, encoder_name: encoder},
                label=f"embed {what}{split} rows, part {index} of {len(starts)}",
                rank=FIRST_RANK,
            )
            if embedded is not None:
                parts[f"vectors-{index:05d}"] = embedded.blobs["vectors"]
        return parts if len(parts) == len(starts) else None

    def _want_tree(self, vectors: Mapping[str, Digest]) -> TaskResult | None:
        shape: dict[str, Json] = {"k": self.how.k}
        if not self.how.k:
            shape = {"branch": self.how.branch, "depth": self.how.depth}
        return self.wishes.task(
            "fit_clusters",
            {
                **shape,
                "sample": self.how.sample_rows,
                "iterations": self.how.iterations,
                "spherical": self.how.spherical,
                "seed": derive(self.spec.seed, "clusters"),
            },
            vectors,
            label="fit the clusters",
            rank=FIRST_RANK,
        )

    def _placed(
        self, found: Clusters, vectors: Mapping[str, Digest], what: str
    ) -> tuple[dict[str, Digest], dict[str, Digest]] | None:
        labels: dict[str, Digest] = {}
        distances: dict[str, Digest] = {}
        for name, digest in vectors.items():
            number = name.removeprefix("vectors-")
            assigned = self.wishes.task(
                "assign",
                {"rule": "partition", "distances": True},
                {"tree": found.tree, "vectors": digest},
                label=f"assign {what}rows to clusters, part {int(number)} of {len(vectors)}",
                rank=FIRST_RANK,
            )
            if assigned is not None:
                labels[f"labels-{number}"] = assigned.blobs["labels"]
                distances[f"distances-{number}"] = assigned.blobs["distances"]
        return (labels, distances) if len(labels) == len(vectors) else None

    def _want_cards(
        self, found: Clusters, vectors: Mapping[str, Digest], labels: Mapping[str, Digest]
    ) -> TaskResult | None:
        return self.wishes.task(
            "eval",
            {
                "what": "cards",
                "split": "train",
                "sample_rows": CARD_SAMPLE_ROWS,
                "points": MAP_POINTS,
                "seed": derive(self.spec.seed, "cards"),
            },
            {
                "tokens_manifest": self.text.tokens,
                "tokenizer": self.text.tokenizer,
                "tree": found.tree,
                found.encoder_name: found.encoder,
                **vectors,
                **labels,
            },
            label="describe the clusters",
            rank=FIRST_RANK,
        )
