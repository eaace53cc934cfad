"""What a cluster is about: its size, words, typical rows, sources and place on a map. docs/partition.md has the keys.

Words are ranked by class-based tf-idf (Grootendorst, arXiv 2203.05794): a word's share of the cluster's
sampled words times log(1 + mean words of a cluster / uses of the word).
"""

from __future__ import annotations

import importlib
import re
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from potluck.errors import DataError
from potluck.ids import Digest, Json, canonical_json
from sampling.bpe import load_tokenizer
from sampling.cluster_extras import extra
from sampling.cluster_tree import BLOCK, Tree
from sampling.cluster_vectors import Vectors
from sampling.embed import DEFAULT_BATCH, row_texts
from sampling.evaluate import contingency
from sampling.partition import Centroids, Partition
from sampling.permute import permute
from sampling.rows import META_SOURCE, META_TARGETS, TokenRows
from sampling.taskio import TaskCall, TaskOutput, load_array

if TYPE_CHECKING:
    from tokenizers import Tokenizer

MAX_CARDS = 4096
MAX_BYTES = 2_000_000
MAX_SOURCES = 8
EXCERPTS, EXCERPT_CHARS = 3, 160
VOCABULARY = 50_000
NAME_TERMS = 2
SHRINKING = ((EXCERPTS, EXCERPT_CHARS, 12), (1, EXCERPT_CHARS, 8), (1, 80, 5), (0, 0, 3), (0, 0, 0))
"""(excerpts, their characters, terms) of a card: the first that keeps the file below its limit."""
WORD = r"(?u)\b[^\W\d_]{3,}\b"
COORDINATE_DIGITS = 4


@dataclass(frozen=True, kw_only=True)
class Census:
    """What one pass over all rows finds; K domains."""

    rows: np.ndarray
    """int64 [K]."""
    tokens: np.ndarray
    """int64 [K], targets."""
    sources: np.ndarray
    """int64 [K, sources], rows."""
    squared: np.ndarray
    """float64 [K], sum of squared distances to the centroid."""
    nearest: np.ndarray
    """int64 [K, EXCERPTS], the rows nearest to the centroid; -1 where there are fewer."""


def eval_cards(call: TaskCall) -> TaskOutput:
    """Task `eval`, what `cards`: cards of a labelled split, and the partition with names made from them.

    Inputs: tokens_manifest, tokenizer, tree, `encoder` or `encoder_manifest`, `vectors-NNNNN`,
    `labels-NNNNN`. Parameters: split, sample_rows (for the words), points (of the map), seed.

    Raises:
        DataError: ``data.bad-labels``, labels, vectors and rows do not fit together.
    """
    params = call.params
    manifest = call.json("tokens_manifest")
    rows = TokenRows(manifest, call.blobs, str(params["split"]))
    tree, vectors = Tree.load(call.path("tree")), Vectors.of(call)
    labels = np.concatenate([load_array(call.path(name)) for name in call.numbered("labels")]).astype(np.int64)
    if not len(rows) == len(vectors) == len(labels) or int(labels.max(initial=0)) >= len(tree.leaves):
        what = f"{len(labels)} labels, {len(vectors)} vectors, {len(rows)} rows, {len(tree.leaves)} domains"
        raise DataError("data.bad-labels", what, "embed and label every part of the split with this tree")
    found = census(rows, vectors, labels, tree, len(manifest["sources"]))
    call.progress(0.3)
    tokenizer = load_tokenizer(call.path("tokenizer"))
    drawn = permute(np.arange(min(len(rows), int(params["sample_rows"]))), len(rows), int(params["seed"]))
    texts = _texts(rows, drawn, tokenizer)
    call.progress(0.6)
    terms = top_terms(texts, labels[drawn], len(tree.leaves), max(count for _, _, count in SHRINKING))
    names = domain_names(terms)
    call.progress(0.8)
    listed = np.sort(np.argsort(-found.rows, kind="stable")[:MAX_CARDS])
    typical = _typical(rows, found, listed, tokenizer)
    languages, why = _languages(typical)
    head: dict[str, Json] = {
        "version": 1,
        "domains": len(names),
        "listed": len(listed),
        "rows": len(rows),
        "tokens": int(found.tokens.sum()),
        "language_skipped": why,
        "map": _map(tree, vectors, labels, listed, int(params["points"]), int(params["seed"])),
    }
    cards = [
        _card(found, k, names[k], terms[k], typical[k], languages.get(k), manifest["sources"]) for k in listed.tolist()
    ]
    path = call.out / "cards.json"
    path.write_text(_bounded(head, cards), encoding="utf-8")
    partition = _partition(call, manifest, tree, names, found)
    (call.out / "partition.json").write_text(partition.to_json(), encoding="utf-8")
    call.progress(1.0)
    return TaskOutput(
        files={"cards": path, "partition": call.out / "partition.json"},
        figures={
            "domains": len(names),
            "listed": len(listed),
            "empty_domains": int((found.rows == 0).sum()),
            "largest_share": float(found.rows.max() / max(1, len(rows))),
        },
    )


def census(rows: TokenRows, vectors: Vectors, labels: np.ndarray, tree: Tree, num_sources: int) -> Census:
    """Counts and nearest rows of each domain, in one pass of bounded memory."""
    k = len(tree.leaves)
    centroids = tree.levels[-1].centroids
    tokens = np.zeros(k, dtype=np.int64)
    squared = np.zeros(k, dtype=np.float64)
    sources = np.zeros((k, num_sources), dtype=np.int64)
    best = np.empty((3, 0))
    for begin in range(0, len(rows), BLOCK):
        indices = np.arange(begin, min(begin + BLOCK, len(rows)), dtype=np.int64)
        domain, meta = labels[indices], rows.meta(indices)
        distance = ((vectors[indices] - centroids[domain]) ** 2).sum(axis=1, dtype=np.float64)
        tokens += np.bincount(domain, weights=meta[:, META_TARGETS], minlength=k).astype(np.int64)
        squared += np.bincount(domain, weights=distance, minlength=k)
        sources += contingency(domain, meta[:, META_SOURCE], k, num_sources)
        best = _first_of_each(np.concatenate([best, np.stack([domain, distance, indices])], axis=1))
    nearest = np.full((k, EXCERPTS), -1, dtype=np.int64)
    domain = best[0].astype(np.int64)
    nearest[domain, _rank_in_group(domain)] = best[2].astype(np.int64)
    return Census(
        rows=np.bincount(labels, minlength=k), tokens=tokens, sources=sources, squared=squared, nearest=nearest
    )


def top_terms(texts: Sequence[str], labels: np.ndarray, num_domains: int, count: int) -> list[list[str]]:
    """The `count` words of each domain that class-based tf-idf ranks highest; English stop words left out."""
    vectorizer = extra("sklearn.feature_extraction.text").CountVectorizer(
        token_pattern=WORD, stop_words="english", max_features=VOCABULARY
    )
    if not any(re.search(WORD, text) for text in texts):
        return [[] for _ in range(num_domains)]
    try:
        counts = vectorizer.fit_transform(texts)
    except ValueError:  # nothing but stop words
        return [[] for _ in range(num_domains)]
    words = vectorizer.get_feature_names_out()
    membership = extra("scipy.sparse").csr_matrix(
        (np.ones(len(labels)), (labels, np.arange(len(labels)))), shape=(num_domains, len(labels))
    )
    by_domain = (membership @ counts).tocsr()
    totals = np.asarray(by_domain.sum(axis=1)).ravel()
    uses = np.asarray(by_domain.sum(axis=0)).ravel()
    rarity = np.log1p(totals.sum() / max(1, int((totals > 0).sum())) / uses)
    chosen: list[list[str]] = []
    for k in range(num_domains):
        span = slice(by_domain.indptr[k], by_domain.indptr[k + 1])
        columns, values = by_domain.indices[span], by_domain.data[span]
        order = np.lexsort((columns, -values * rarity[columns]))[:count]
        chosen.append([str(words[column]) for column in columns[order]])
    return chosen


def domain_names(terms: Sequence[Sequence[str]]) -> tuple[str, ...]:
    """`c017-term-term`: unique by number, told apart by words."""
    width = max(3, len(str(len(terms) - 1)))
    return tuple("-".join([f"c{k:0{width}d}", *words[:NAME_TERMS]]) for k, words in enumerate(terms))


def projection(centroids: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Mean [dim] and the two principal axes [dim, 2] of the centroids; each axis's largest entry is positive."""
    mean = centroids.mean(axis=0, dtype=np.float64)
    centred = centroids - mean
    axes = np.linalg.eigh(centred.T @ centred)[1][:, ::-1][:, :2]
    axes = axes * np.sign(axes[np.abs(axes).argmax(axis=0), np.arange(axes.shape[1])])
    return mean, np.pad(axes, ((0, 0), (0, 2 - axes.shape[1])))


def excerpt(text: str, chars: int) -> str:
    """The start of a text on one line; broken characters of a cut row are dropped."""
    return " ".join(text.replace("\ufffd", " ").split())[:chars]


def _card(
    found: Census,
    k: int,
    name: str,
    terms: Sequence[str],
    typical: Sequence[str],
    language: str | None,
    names: Sequence[str],
) -> dict[str, Json]:
    rows = int(found.rows[k])
    order = np.argsort(-found.sources[k], kind="stable")[:MAX_SOURCES]
    sources = {names[s]: int(found.sources[k, s]) for s in order.tolist() if found.sources[k, s]}
    return {
        "index": k,
        "name": name,
        "rows": rows,
        "tokens": int(found.tokens[k]),
        "share": rows / max(1, int(found.rows.sum())),
        "mean_squared_distance": float(found.squared[k]) / rows if rows else None,
        "terms": list(terms),
        "excerpts": list(typical),
        "sources": sources,
        "other_sources": rows - sum(sources.values()),
        "language": language,
    }


def _bounded(head: dict[str, Json], cards: Sequence[dict[str, Any]]) -> str:
    """The cards as JSON, with less on each card until all fit."""
    for excerpts, chars, terms in SHRINKING:
        less: list[Json] = [
            {**card, "terms": card["terms"][:terms], "excerpts": [e[:chars] for e in card["excerpts"][:excerpts]]}
            for card in cards
        ]
        text = canonical_json({**head, "cards": less})
        if len(text.encode()) <= MAX_BYTES:
            break
    return text


def _typical(rows: TokenRows, found: Census, listed: np.ndarray, tokenizer: Tokenizer) -> dict[int, list[str]]:
    """Excerpts of the rows nearest to each listed domain's centroid."""
    nearest = found.nearest[listed]
    known = nearest >= 0
    texts = iter(_texts(rows, nearest[known], tokenizer))
    per_domain = zip(listed.tolist(), known.sum(axis=1).tolist(), strict=True)
    return {k: [excerpt(next(texts), EXCERPT_CHARS) for _ in range(count)] for k, count in per_domain}


def _languages(typical: dict[int, list[str]]) -> tuple[dict[int, str], str | None]:
    """Language of most of a domain's excerpts, or none and why not."""
    try:
        classify = importlib.import_module("py3langid").classify
    except ImportError:
        return {}, "py3langid is not installed"
    votes = {k: Counter(str(classify(text)[0]) for text in texts) for k, texts in typical.items() if texts}
    return {k: min(vote, key=lambda code: (-vote[code], code)) for k, vote in votes.items()}, None


def _map(
    tree: Tree, vectors: Vectors, labels: np.ndarray, listed: np.ndarray, points: int, seed: int
) -> dict[str, Json]:
    """Listed centroids and a sample of rows on the plane of the centroids' two principal axes."""
    mean, axes = projection(tree.levels[-1].centroids)
    drawn = np.sort(permute(np.arange(min(points, len(vectors))), len(vectors), seed + 1))
    coordinates = np.round((vectors[drawn] - mean) @ axes, COORDINATE_DIGITS)
    centres = np.round((tree.levels[-1].centroids[listed] - mean) @ axes, COORDINATE_DIGITS)
    return {"centroids": centres.tolist(), "points": coordinates.tolist(), "point_domains": labels[drawn].tolist()}


def _partition(
    call: TaskCall, manifest: dict[str, Any], tree: Tree, names: tuple[str, ...], found: Census
) -> Partition:
    files: tuple[Digest, ...] = ()
    if "encoder_manifest" in call.inputs:
        files = tuple(Digest(entry["digest"]) for entry in call.json("encoder_manifest")["files"])
    return Partition(
        tokenizer=Digest(manifest["tokenizer"]),
        sequence_length=int(manifest["sequence_length"]),
        domains=names,
        sizes=tuple(found.rows.tolist()),
        centroids=Centroids(
            encoder=call.inputs["encoder_manifest" if files else "encoder"],
            encoder_files=files,
            tree=call.inputs["tree"],
            leaves=tuple(tree.leaves.tolist()),
        ),
    )


def _texts(rows: TokenRows, indices: np.ndarray, tokenizer: Tokenizer) -> list[str]:
    texts: list[str] = []
    for begin in range(0, len(indices), DEFAULT_BATCH):
        texts += row_texts(rows, indices[begin : begin + DEFAULT_BATCH], tokenizer)
    return texts


def _first_of_each(table: np.ndarray) -> np.ndarray:
    """Columns (domain, distance, row) sorted, at most EXCERPTS of each domain: the nearest, then the first."""
    table = table[:, np.lexsort((table[2], table[1], table[0]))]
    return table[:, _rank_in_group(table[0]) < EXCERPTS]


def _rank_in_group(sorted_groups: np.ndarray) -> np.ndarray:
    """Place of each entry within its run of equal values."""
    places = np.arange(len(sorted_groups))
    starts = np.flatnonzero(np.diff(sorted_groups, prepend=np.nan) != 0)
    return places - np.repeat(starts, np.diff(np.append(starts, len(sorted_groups))))
