"""SmallTalk (arXiv 2410.03529) as one plain loop in one process: the oracle of the daemons.

From a corpus to routers, experts, dense twin, random split and the comparison, with nothing of the
coordinator, the nodes or the plans. Every rule it follows is in docs/smalltalk_run.md and is written
here a second time, naively: positions, seeds, steps, commit grid, FLOPs, balanced assignment, bootstrap.
Shared with the product are the model and its trainer, the tasks that make rows, and the types whose
digests name things.
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import numpy as np

from potluck.ids import NO_DIGEST, Digest, Json, canonical_json
from potluck.lm.checkpoint import CheckpointManifest
from potluck.lm.config import ModelConfig
from potluck.lm.model import load_decoder
from potluck.lm.score import nll_sums, prefix_mean_nll
from potluck.lm.train import Trainer
from potluck.recipe import Assigned, RandomShare, Recipe, Schedule, Segment, SegmentData, Stream
from potluck.specs.smalltalk import SmallTalkSpec
from sampling.ingest import Ingested
from sampling.permute import permute
from sampling.taskio import LocalBlobs
from sampling.tasks import run_task
from tests.reference.comparison import Draws, HeldOut, Nll, compare, purity
from tests.reference.rules import (
    array_digest,
    commit_every,
    fixed_point,
    forward_flops,
    naive_balanced_assignment,
    seed_for,
)

Role = Literal["router", "expert", "dense", "random_split"]


@dataclass(kw_only=True)
class Lineage:
    """One model, and every checkpoint of it by the step it was taken at."""

    recipe: Recipe
    manifests: dict[int, CheckpointManifest] = field(default_factory=dict)
    weights: dict[int, Path] = field(default_factory=dict)

    @property
    def checkpoints(self) -> dict[int, Digest]:
        return {step: manifest.digest for step, manifest in self.manifests.items()}

    @property
    def final_weights(self) -> Path:
        return self.weights[self.recipe.schedule.total_steps]


@dataclass(kw_only=True)
class Outcome:
    """All that the loop made; columns and assignments by `round 1`, `chunk 0`, `test`."""

    tokens: Digest
    columns: dict[str, list[np.ndarray]] = field(default_factory=dict)
    assignments: dict[str, np.ndarray] = field(default_factory=dict)
    routers: list[Lineage] = field(default_factory=list)
    experts: list[Lineage] = field(default_factory=list)
    random_split: list[Lineage] = field(default_factory=list)
    dense: list[Lineage] = field(default_factory=list)
    nll: dict[str, np.ndarray] = field(default_factory=dict)
    """Test NLL, float64 [rows, 2], by role and index."""
    purity: list[float] = field(default_factory=list)
    comparison: dict[str, Any] = field(default_factory=dict)
    mixture_flops: int = 0

    @property
    def lineages(self) -> list[Lineage]:
        return [*self.routers, *self.experts, *self.random_split, *self.dense]


def run(spec: SmallTalkSpec, corpus: Ingested, folder: Path) -> Outcome:
    """Runs all of it; files go into `folder`. Controls: the random split, one expert or all."""
    loop = _Loop(spec, corpus, folder)
    outcome = Outcome(tokens=loop.text.tokens, mixture_flops=loop.mixture_flops())
    _routers(loop, outcome)
    _experts(loop, outcome)
    _opponents(loop, outcome)
    _compare(loop, outcome)
    return outcome


# --- text --------------------------------------------------------------------------------------------


class _Text:
    """The corpus as rows; tokenizer and rows are made by the tasks themselves, without daemons."""

    def __init__(self, spec: SmallTalkSpec, corpus: Ingested, folder: Path) -> None:
        self._blobs = LocalBlobs()
        self._folder = folder
        for path in corpus.files.values():
            self._blobs.add(path)
        text = spec.text
        fit: dict[str, Json] = {"what": "bpe", "vocab_size": text.vocab_size, "sample_bytes": 16 * 2**20}
        fit["seed"] = seed_for(spec.seed, "bpe")
        tokenizer = self._task("fit", fit, {"corpus_manifest": corpus.digest})["tokenizer"]
        names = {"tokenizer": tokenizer, "corpus": corpus.digest}
        part: dict[str, Json] = {"what": "part", "sequence_length": text.sequence_length, "packing": text.packing}
        part["seed"] = seed_for(spec.seed, "packing")
        shards: Any = corpus.manifest["shards"]
        parts = {
            f"part-{i:05d}": self._task("tokenise", part, {"documents": shard["digest"], **names})["part"]
            for i, shard in enumerate(shards)
        }
        collect: dict[str, Json] = {"what": "collect", "sequence_length": text.sequence_length}
        collect["vocab_size"] = text.vocab_size
        self.tokens = self._task("tokenise", collect, {**names, **parts})["tokens"]
        self._manifest = json.loads(self._blobs.path(self.tokens).read_text(encoding="utf-8"))
        self.sources: list[str] = self._manifest["sources"]
        self.rows = {split: self._stacked(split, "rows") for split in ("train", "valid", "test")}
        self.meta = {split: self._stacked(split, "meta") for split in ("train", "valid", "test")}
        vocabulary = json.loads(self._blobs.path(tokenizer).read_text(encoding="utf-8"))["model"]["vocab"]
        self._pieces = {token: piece for piece, token in vocabulary.items() if token != 0}

    def num_bytes(self, tokens: np.ndarray) -> int:
        """Of text: a piece has a character for each byte, and the end of a document has none."""
        return len("".join(self._pieces.get(token, "") for token in tokens.tolist()))

    def _task(self, kind: str, params: Mapping[str, Json], inputs: Mapping[str, Digest]) -> dict[str, Digest]:
        out = self._folder / f"task-{len(list(self._folder.iterdir()))}"
        out.mkdir()
        done = run_task(kind, params, inputs, self._blobs, out, lambda _: None)
        return {name: self._blobs.add(path) for name, path in done.files.items()}

    def _stacked(self, split: str, what: str) -> np.ndarray:
        arrays = []
        for part in self._manifest["splits"][split]["parts"]:
            array = np.load(self._blobs.path(part[what]))
            if what == "meta" and split != "train":
                array[:, 1] += part["pack_offset"]
            arrays.append(array)
        return np.concatenate(arrays)


# --- training ------------------------------------------------------------------------------------------


class _Loop:
    """What every stage needs: numbers of the spec, rows, recipes, and how to train and score."""

    def __init__(self, spec: SmallTalkSpec, corpus: Ingested, folder: Path) -> None:
        self.spec = spec
        self.folder = folder
        self.text = _Text(spec, corpus, folder)
        self.key = seed_for(spec.seed, "stream")
        self._orders: dict[int, list[int]] = {}
        self.experts_start = spec.routers.rounds * spec.routers.chunk_sequences
        self.router_model = spec.router_model()
        self.expert_model = spec.expert_model()

    def row_at(self, position: int) -> int:
        """The endless stream: each pass over the rows has a key, and so an order, of its own."""
        size = len(self.text.rows["train"])
        epoch, place = divmod(position, size)
        if epoch not in self._orders:
            self._orders[epoch] = permute(np.arange(size), size, self.key + epoch).tolist()
        return self._orders[epoch][place]

    def stream(self, start: int, count: int) -> np.ndarray:
        return self.text.rows["train"][[self.row_at(p) for p in range(start, start + count)]]

    def mixture_flops(self) -> int:
        """Routers, their scoring and the experts: what the dense twin may spend."""
        spec = self.spec
        router_forward = forward_flops(self.router_model, spec.text.prefix_length)
        router_rows = spec.routers.rounds * spec.routers.chunk_sequences
        scored_rows = router_rows - spec.routers.chunk_sequences
        expert_rows = spec.experts.chunks * spec.experts.chunk_sequences
        scoring = (scored_rows + expert_rows) * spec.experts.num * router_forward
        return router_rows * 3 * router_forward + scoring + expert_rows * 3 * self.expert_row_forward()

    def expert_row_forward(self) -> int:
        return forward_flops(self.expert_model, self.spec.text.sequence_length)

    def router_steps(self) -> int:
        """A round."""
        return self.spec.routers.chunk_sequences // (self.spec.experts.num * self.spec.routers.batch_size)

    def expert_steps(self) -> int:
        """A chunk."""
        return self.spec.experts.chunk_sequences // (self.spec.experts.num * self.spec.experts.batch_size)

    def dense_steps(self) -> int:
        a_step = self.spec.dense.batch_size * 3 * self.expert_row_forward()
        return max(1, self.mixture_flops() // a_step)

    # Recipes: docs/smalltalk_run.md, "Recipes".

    def recipe(self, role: Role, index: int) -> Recipe:
        spec = self.spec
        side: Any = {"router": spec.routers, "dense": spec.dense}.get(role, spec.experts)
        model = self.router_model if role == "router" else self.expert_model
        columns = spec.text.prefix_length if role == "router" else spec.text.sequence_length + 1
        steps = {
            "router": spec.routers.rounds * self.router_steps(),
            "dense": self.dense_steps(),
        }.get(role, spec.experts.chunks * self.expert_steps())
        purpose: tuple[str | int, ...] = ("dense",) if role == "dense" else (role, index)
        if role == "random_split":
            purpose = ("expert", index)
        decay = {} if role == "router" else {"final_fraction": side.final_fraction}
        return Recipe(
            role=role,
            index=index,
            model=model,
            optimizer=spec.optimizer,
            schedule=Schedule(
                kind="constant" if role == "router" else "cosine",
                learning_rate=side.learning_rate,
                warmup_steps=math.ceil(side.warmup_fraction * steps),
                total_steps=steps,
                **decay,
            ),
            batch_size=side.batch_size,
            columns=columns,
            init_seed=seed_for(spec.seed, *purpose),
            data_rule=canonical_json(self._data_rule(role)),
            commit_every=commit_every(
                sum(p.numel() for p in _empty_model(model)),
                rows=side.batch_size,
                targets=columns - 1,
                steps=steps,
                bytes_per_token=spec.bytes_per_token,
            ),
        )

    def _data_rule(self, role: Role) -> dict[str, Json]:
        spec = json.loads(self.spec.to_json())
        rule: dict[str, Json] = {
            "rule": {"router": "balanced_em", "expert": "routed", "dense": "stream"}.get(role, role),
            "tokens": self.text.tokens,
            "key": self.key,
            "seed": self.spec.seed,
            "num_experts": self.spec.experts.num,
        }
        if role in ("router", "expert"):
            rule["router_model"] = {
                name: getattr(self.router_model, name)
                for name in ("vocab", "hidden", "layers", "heads", "ffn", "context")
            }
            for name in ("routers", "optimizer", "profile", "bytes_per_token"):
                rule[name] = spec[name]
        if role != "router":
            rule["start"] = self.experts_start
        if role in ("expert", "random_split"):
            rule["chunks"] = self.spec.experts.chunks
            rule["chunk_sequences"] = self.spec.experts.chunk_sequences
        return rule

    def train(self, lineage: Lineage, segments: Sequence[Segment], positions: Sequence[int]) -> None:
        """Trains through the last of `segments`, on the rows at `positions`, batch by batch."""
        recipe, profile = lineage.recipe, self.spec.profile
        segment = segments[-1]
        trainer = self._trainer(lineage, segment.start_step)
        batches = self._batches(recipe, positions)
        for step in range(segment.start_step, segment.end_step):
            trainer.train_step(next(batches))
            done = step + 1
            if done % recipe.commit_every and done != segment.end_step:
                continue
            folder = self.folder / f"{recipe.role}-{recipe.index}-{done}"
            folder.mkdir()
            files = trainer.save(folder)
            before = lineage.manifests[max(lineage.manifests)].digest if lineage.manifests else NO_DIGEST
            lineage.manifests[done] = CheckpointManifest(
                lineage=recipe.id,
                step=done,
                parent=before,
                profile=profile,
                segments=tuple(s.digest for s in segments),
                data_position=(done - segment.start_step) * recipe.batch_size,
                rng={"init_seed": recipe.init_seed},
                weights=files.weights_digest,
                optimizer=files.optimizer_digest,
            )
            lineage.weights[done] = files.weights

    def _trainer(self, lineage: Lineage, step: int) -> Trainer:
        if not step:
            return Trainer(lineage.recipe, self.spec.profile)
        weights = lineage.weights[step]
        optimizer = weights.with_name("optimizer.safetensors")
        return Trainer.load(lineage.recipe, self.spec.profile, step=step, weights=weights, optimizer=optimizer)

    def _batches(self, recipe: Recipe, positions: Sequence[int]) -> Iterator[np.ndarray]:
        train, size = self.text.rows["train"], recipe.batch_size
        for first in range(0, len(positions) - size + 1, size):
            yield train[[self.row_at(p) for p in positions[first : first + size]]][:, : recipe.columns]

    def column(self, weights: Path, rows: np.ndarray, targets: np.ndarray | None = None) -> np.ndarray:
        """Fixed-point mean NLL of the prefix; rows whose real targets end inside it are averaged over those."""
        prefix, batch = self.spec.text.prefix_length, self.spec.routers.score_batch
        model = load_decoder(self.router_model, weights, dtype=self.spec.profile.dtype)
        means = prefix_mean_nll(model, rows[:, :prefix], prefix=prefix, batch_size=batch)
        if targets is not None and (short := np.flatnonzero(targets < prefix - 1)).size:
            sums = nll_sums(model, rows[short, :prefix], targets[short], prefix=prefix, batch_size=batch)
            means[short] = sums.sum(axis=1) / targets[short]
        return fixed_point(means)

    def held_out_nll(self, lineage: Lineage) -> np.ndarray:
        prefix, batch = self.spec.text.prefix_length, self.spec.evaluation.batch_size
        model = load_decoder(self.expert_model, lineage.final_weights, dtype=self.spec.profile.dtype)
        targets = np.ascontiguousarray(self.text.meta["test"][:, 2])
        return nll_sums(model, self.text.rows["test"], targets, prefix=prefix, batch_size=batch)


def _empty_model(model: ModelConfig) -> Iterator[Any]:
    """Parameters of a model of this shape: they are counted, not computed from a formula."""
    from potluck.lm.model import init_decoder

    return init_decoder(model, seed=0).parameters()


# --- stages ----------------------------------------------------------------------------------------------


def _shared_out(count: int, shares: int, seed: int) -> list[int]:
    """Which share each of `count` positions goes to in a random equal split."""
    return [place % shares for place in permute(np.arange(count), count, seed).tolist()]


def _positions(shares: Sequence[int], mine: int, start: int) -> list[int]:
    return [start + offset for offset, share in enumerate(shares) if share == mine]


def _routers(loop: _Loop, outcome: Outcome) -> None:
    """Round 0 on random shares; then each round on what the routers so far choose of a fresh chunk."""
    spec, steps = loop.spec, loop.router_steps()
    num, count = spec.experts.num, spec.routers.chunk_sequences
    routers = outcome.routers = [Lineage(recipe=loop.recipe("router", e)) for e in range(num)]
    segments: list[list[Segment]] = [[] for _ in routers]
    for round_index in range(spec.routers.rounds):
        start = round_index * count
        if round_index == 0:
            seed = seed_for(spec.seed, "first round")
            shares = _shared_out(count, num, seed)
        else:
            weights = [router.weights[round_index * steps] for router in routers]
            shares = _assign(loop, outcome, f"round {round_index}", weights, start, count)
        for e, router in enumerate(routers):
            where: dict[str, Any] = {"tokens": loop.text.tokens, "key": loop.key, "start": start, "count": count}
            data: SegmentData
            if round_index == 0:
                data = RandomShare(**where, shares=num, share=e, seed=seed)
            else:
                data = Assigned(**where, assignment=array_digest(outcome.assignments[f"round {round_index}"]), share=e)
            begin = round_index * steps
            segments[e].append(Segment(index=round_index, start_step=begin, end_step=begin + steps, data=data))
            loop.train(router, segments[e], _positions(shares, e, start))
        outcome.purity.append(_purity(loop, [router.weights[(round_index + 1) * steps] for router in routers]))


def _assign(loop: _Loop, outcome: Outcome, name: str, weights: list[Path], start: int, count: int) -> list[int]:
    rows = loop.stream(start, count)
    outcome.columns[name] = [loop.column(path, rows) for path in weights]
    shares = naive_balanced_assignment([column.tolist() for column in outcome.columns[name]])
    outcome.assignments[name] = np.array(shares, dtype=np.uint16)
    return shares


def _purity(loop: _Loop, weights: list[Path]) -> float:
    """Of at most 512 valid rows, the same ones each time."""
    size = len(loop.text.rows["valid"])
    chosen = permute(np.arange(min(size, 512)), size, seed_for(loop.spec.seed, "purity"))
    rows, meta = loop.text.rows["valid"][chosen], loop.text.meta["valid"][chosen]
    return purity([loop.column(path, rows, meta[:, 2]).tolist() for path in weights], meta[:, 0].tolist())


def _experts(loop: _Loop, outcome: Outcome) -> None:
    """Chunk c, shared out by the frozen routers, is segment c of every expert."""
    spec, steps = loop.spec, loop.expert_steps()
    count = spec.experts.chunk_sequences
    frozen = [router.final_weights for router in outcome.routers]
    outcome.experts = [Lineage(recipe=loop.recipe("expert", e)) for e in range(spec.experts.num)]
    segments: list[list[Segment]] = [[] for _ in outcome.experts]
    for chunk in range(spec.experts.chunks):
        start = loop.experts_start + chunk * count
        shares = _assign(loop, outcome, f"chunk {chunk}", frozen, start, count)
        blob = array_digest(outcome.assignments[f"chunk {chunk}"])
        for e, expert in enumerate(outcome.experts):
            data = Assigned(tokens=loop.text.tokens, key=loop.key, start=start, count=count, assignment=blob, share=e)
            begin = chunk * steps
            segments[e].append(Segment(index=chunk, start_step=begin, end_step=begin + steps, data=data))
            loop.train(expert, segments[e], _positions(shares, e, start))


def _opponents(loop: _Loop, outcome: Outcome) -> None:
    """The random split reads the experts' chunks, shared out by chance; the dense twin reads on from their start."""
    spec, steps, count = loop.spec, loop.expert_steps(), loop.spec.experts.chunk_sequences
    num = {"none": 0, "one": 1, "all": spec.experts.num}[spec.controls.random_split]
    where: dict[str, Any] = {"tokens": loop.text.tokens, "key": loop.key}
    for e in range(num):
        lineage = Lineage(recipe=loop.recipe("random_split", e))
        segments: list[Segment] = []
        for chunk in range(spec.experts.chunks):
            start, seed = loop.experts_start + chunk * count, seed_for(spec.seed, "split", chunk)
            share = RandomShare(**where, start=start, count=count, shares=spec.experts.num, share=e, seed=seed)
            begin = chunk * steps
            segments.append(Segment(index=chunk, start_step=begin, end_step=begin + steps, data=share))
            loop.train(lineage, segments, _positions(_shared_out(count, spec.experts.num, seed), e, start))
        outcome.random_split.append(lineage)
    if spec.dense.enabled:
        dense = Lineage(recipe=loop.recipe("dense", 0))
        stream = Stream(**where, start=loop.experts_start)
        total = loop.dense_steps()
        rows = range(loop.experts_start, loop.experts_start + total * spec.dense.batch_size)
        loop.train(dense, [Segment(index=0, start_step=0, end_step=total, data=stream)], rows)
        outcome.dense.append(dense)


# --- comparison ------------------------------------------------------------------------------------------


def _compare(loop: _Loop, outcome: Outcome) -> None:
    spec, meta = loop.spec, loop.text.meta["test"]
    rows, targets = loop.text.rows["test"], meta[:, 2]
    frozen = [router.final_weights for router in outcome.routers]
    outcome.columns["test"] = [loop.column(path, rows, targets) for path in frozen]
    for lineage in (*outcome.experts, *outcome.random_split, *outcome.dense):
        outcome.nll[f"{lineage.recipe.role} {lineage.recipe.index}"] = loop.held_out_nll(lineage)
    others: dict[str, list[Nll]] = {}
    if outcome.dense:
        others["dense"] = _pairs(outcome.nll["dense 0"])
    if outcome.random_split:
        arrays = [outcome.nll[f"random_split {e}"] for e in range(len(outcome.random_split))]
        others["random_split"] = _pairs(np.mean(arrays, axis=0))
    outcome.comparison = compare(
        [column.tolist() for column in outcome.columns["test"]],
        [_pairs(outcome.nll[f"expert {e}"]) for e in range(spec.experts.num)],
        others,
        HeldOut(
            sources=meta[:, 0].tolist(),
            packs=meta[:, 1].tolist(),
            targets=targets.tolist(),
            suffix=[max(0, n - (spec.text.prefix_length - 1)) for n in targets.tolist()],
            bytes_all=[loop.text.num_bytes(row[1 : 1 + n]) for row, n in zip(rows, targets.tolist(), strict=True)],
            bytes_suffix=[
                loop.text.num_bytes(row[spec.text.prefix_length : 1 + n])
                for row, n in zip(rows, targets.tolist(), strict=True)
            ],
            names=loop.text.sources,
        ),
        Draws(
            samples=spec.evaluation.bootstrap_samples,
            confidence=spec.evaluation.confidence,
            seed=seed_for(spec.seed, "bootstrap"),
        ),
    )


def _pairs(nll: np.ndarray) -> list[Nll]:
    return [(float(prefix), float(suffix)) for prefix, suffix in nll]
