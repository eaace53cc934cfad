"""Every task kind from text to report, run as a node runs it: files in, files out, by digest alone."""

from __future__ import annotations

import json
import math
import random
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import save_file

from potluck.config import to_mapping
from potluck.errors import CorpusError, DataError, InvariantViolation
from potluck.ids import Digest, Json
from potluck.lm.config import ModelConfig
from potluck.lm.model import init_decoder
from sampling.bpe import load_tokenizer
from sampling.ingest import ingest
from sampling.rows import TokenRows, stream_rows
from sampling.taskio import LocalBlobs, TaskOutput, load_array
from sampling.tasks import run_task

S, M, VOCAB, EXPERTS = 24, 8, 300, 2
MODEL = ModelConfig(vocab=VOCAB, hidden=16, layers=1, heads=2, ffn=16, context=S + 1)
SCORING: dict[str, Json] = {"prefix_length": M, "batch_size": 8, "dtype": "float32", "model": to_mapping(MODEL)}
ALPHABETS = {"letters": "etaoin shrdlu\n", "digits": "0123456789 +=\n", "marks": "(){}[];:,. \n"}


class Bench:
    """A small corpus, tokenised, with two models; tasks run on it as on a node."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.blobs = LocalBlobs()
        rng = random.Random(0)
        lines = [
            json.dumps({"text": "".join(rng.choices(alphabet, k=rng.randrange(20, 400))), "source": name})
            for name, alphabet in ALPHABETS.items()
            for _ in range(90)
        ]
        (folder / "in.jsonl").write_text("\n".join(lines))
        self.corpus = ingest(folder / "in.jsonl", folder / "corpus")
        for path in self.corpus.files.values():
            self.blobs.add(path)
        (shard,) = [d for d, path in self.corpus.files.items() if path.suffix == ".jsonl"]
        self.shard = shard
        self.tokenizer = self.run("fit", FIT, {"corpus_manifest": self.corpus.digest})["tokenizer"]
        self.tokens = self.tokenise("document")
        self.manifest = json.loads(self.blobs.path(self.tokens).read_text())
        self.weights = []
        for seed in range(EXPERTS):
            path = folder / f"{seed}.safetensors"
            save_file({n: p.detach() for n, p in init_decoder(MODEL, seed=seed).named_parameters()}, path)
            self.weights.append(self.blobs.add(path))

    def output(self, kind: str, params: Mapping[str, Json], inputs: Mapping[str, Digest]) -> TaskOutput:
        out = self.folder / f"out-{len(list(self.folder.iterdir()))}"
        out.mkdir()
        seen: list[float] = []
        done = run_task(kind, params, inputs, self.blobs, out, seen.append)
        assert seen == sorted(seen)
        assert all(0 <= fraction <= 1 for fraction in seen)
        assert len(json.dumps(done.figures, allow_nan=False)) < 64 * 1024
        assert all(path.parent == out for path in done.files.values())
        return done

    def run(self, kind: str, params: Mapping[str, Json], inputs: Mapping[str, Digest]) -> dict[str, Digest]:
        return {name: self.blobs.add(path) for name, path in self.output(kind, params, inputs).files.items()}

    def tokenise(self, packing: str) -> Digest:
        names = {"tokenizer": self.tokenizer, "corpus": self.corpus.digest}
        params: dict[str, Json] = {"what": "part", "sequence_length": S, "packing": packing, "seed": 0}
        part = self.run("tokenise", params, {"documents": self.shard, **names})["part"]
        params = {"what": "collect", "sequence_length": S, "vocab_size": VOCAB}
        return self.run("tokenise", params, {"part-00000": part, **names})["tokens"]

    def score(self, weights: Digest, **params: Json) -> TaskOutput:
        inputs = {"weights": weights, "tokens_manifest": self.tokens}
        return self.output("score", {"key": 3, "start": 0, **SCORING, **params}, inputs)

    def rows(self, split: str) -> TokenRows:
        return TokenRows(self.manifest, self.blobs, split)


FIT: dict[str, Json] = {"what": "bpe", "vocab_size": VOCAB, "sample_bytes": 60_000, "seed": 0}


@pytest.fixture(scope="module")
def bench(tmp_path_factory: pytest.TempPathFactory) -> Bench:
    torch.set_num_threads(1)
    return Bench(tmp_path_factory.mktemp("bench"))


def reference_nll(bench: Bench, model: int, rows: np.ndarray) -> np.ndarray:
    """[n, S] by plain torch: log-softmax over full logits."""
    decoder = init_decoder(MODEL, seed=model)
    ids = torch.from_numpy(rows.astype(np.int64))
    with torch.no_grad():
        logits = decoder(ids[:, :-1]) @ decoder.embedding.weight.T
        log_p = torch.log_softmax(logits, dim=-1)
    return -log_p.gather(2, ids[:, 1:, None])[..., 0].numpy()


def test_equal_tasks_give_equal_bytes(bench: Bench) -> None:
    assert bench.run("fit", FIT, {"corpus_manifest": bench.corpus.digest})["tokenizer"] == bench.tokenizer
    assert bench.tokenise("document") == bench.tokens
    assert bench.tokenise("shuffled") != bench.tokens


def test_a_tokenizer_is_trained_on_train_text_alone_and_on_some_of_it_at_least(bench: Bench) -> None:
    from sampling.bpe import sample_train_text

    shard = bench.blobs.path(bench.shard)
    train = {s["text"] for s in map(json.loads, shard.read_text().splitlines()) if s["split"] == "train"}
    everything = list(sample_train_text([shard], 10**9, 1, 0))
    assert set(everything) == train
    some = list(sample_train_text([shard], 20_000, sum(map(len, train)), 0))
    assert set(some) < train
    assert 10_000 < sum(map(len, some)) < 30_000
    assert len(list(sample_train_text([shard], 0, 10**9, 0))) == 1


def test_the_tokens_manifest_lists_every_blob_it_needs(bench: Bench) -> None:
    manifest = bench.manifest
    listed = set(manifest["blobs"].values())
    for split in ("train", "valid", "test"):
        entry = manifest["splits"][split]
        assert {part[what] for part in entry["parts"] for what in ("rows", "meta")} <= listed
        assert len(bench.rows(split)) == entry["rows"] == sum(part["count"] for part in entry["parts"])
    assert manifest["tokenizer"] in listed
    assert manifest["sources"] == sorted(ALPHABETS)
    assert (manifest["sequence_length"], manifest["vocab_size"]) == (S, VOCAB)


def test_rows_hold_the_text_of_their_source(bench: Bench) -> None:
    from sampling.bpe import load_tokenizer

    tokenizer = load_tokenizer(bench.blobs.path(bench.tokenizer))
    for split in ("train", "valid", "test"):
        rows = bench.rows(split)
        every = np.arange(len(rows))
        for row, (source, pack, count) in zip(rows.take(every), rows.meta(every), strict=True):
            text = tokenizer.decode([int(t) for t in row[: count + 1] if t])
            assert set(text) <= set(ALPHABETS[bench.manifest["sources"][source]])
            assert (pack == -1) == (split == "train")


def test_the_figures_of_collect_add_up(bench: Bench) -> None:
    params: dict[str, Json] = {"what": "part", "sequence_length": S, "packing": "document", "seed": 0}
    names = {"tokenizer": bench.tokenizer, "corpus": bench.corpus.digest}
    part = bench.run("tokenise", params, {"documents": bench.shard, **names})["part"]
    params = {"what": "collect", "sequence_length": S, "vocab_size": VOCAB}
    done = bench.output("tokenise", params, {"part-00000": part, "part-00001": part, **names})
    figures: Any = done.figures
    for split in ("train", "valid", "test"):
        assert figures[f"{split}_rows"] == 2 * len(bench.rows(split))
        assert figures[f"{split}_rows"] == sum(counts[split] for counts in figures["rows_by_source"].values())
    manifest = json.loads(done.files["tokens"].read_text())
    doubled = TokenRows(manifest, bench.blobs, "test")
    packs = doubled.meta(np.arange(len(doubled)))[:, 1]
    assert np.array_equal(np.unique(packs), np.arange(figures["test_packs"]))


def test_text_too_short_for_a_row_is_refused_by_collect(bench: Bench) -> None:
    params: dict[str, Json] = {"what": "part", "sequence_length": 60_000, "packing": "document", "seed": 0}
    names = {"tokenizer": bench.tokenizer, "corpus": bench.corpus.digest}
    part = bench.run("tokenise", params, {"documents": bench.shard, **names})["part"]
    params = {"what": "collect", "sequence_length": 60_000, "vocab_size": VOCAB}
    with pytest.raises(CorpusError) as caught:
        bench.output("tokenise", params, {"part-00000": part, **names})
    assert caught.value.error_id == "corpus.too-small"


def test_a_score_is_the_mean_prefix_nll_in_fixed_point(bench: Bench) -> None:
    rows = bench.rows("train")
    start, count = len(rows) - 10, 21  # over the end of the first pass
    column = load_array(bench.score(bench.weights[1], split="train", start=start, count=count).files["column"])
    taken = rows.take(stream_rows(len(rows), 3, start, count))
    expected = reference_nll(bench, 1, taken)[:, : M - 1].mean(axis=1)
    assert column.dtype == np.dtype("<u2")
    assert np.abs(column / 4096 - expected).max() < 1e-3


def test_a_short_last_row_is_scored_on_what_there_is(bench: Bench) -> None:
    rows = bench.rows("test")
    counts = rows.meta(np.arange(len(rows)))[:, 2]
    short = np.flatnonzero(counts < M - 1)
    assert short.size
    column = load_array(bench.score(bench.weights[0], split="test", count=len(rows)).files["column"])
    nll = reference_nll(bench, 0, rows.take(np.arange(len(rows))))
    for row in range(len(rows)):
        assert column[row] / 4096 == pytest.approx(nll[row, : min(M - 1, counts[row])].mean(), abs=1e-3)


def test_a_chunk_scored_in_two_tasks_is_the_chunk_scored_in_one(bench: Bench) -> None:
    whole = load_array(bench.score(bench.weights[0], split="train", start=5, count=32).files["column"])
    parts = [bench.score(bench.weights[0], split="train", start=s, count=16).files["column"] for s in (5, 21)]
    assert np.array_equal(whole, np.concatenate([load_array(path) for path in parts]))


def test_the_nll_task_sums_real_targets_only(bench: Bench) -> None:
    params: dict[str, Json] = {"what": "nll", "split": "test", **SCORING}
    done = bench.output("eval", params, {"weights": bench.weights[0], "tokens_manifest": bench.tokens})
    rows = bench.rows("test")
    nll = reference_nll(bench, 0, rows.take(np.arange(len(rows))))
    counts = rows.meta(np.arange(len(rows)))[:, 2]
    nll[np.arange(S) >= counts[:, None]] = 0.0
    expected = np.stack([nll[:, : M - 1].sum(1), nll[:, M - 1 :].sum(1)], axis=1)
    assert np.allclose(load_array(done.files["nll"]), expected, rtol=1e-4)
    assert done.figures["targets"] == counts.sum()
    assert done.figures["nll_all"] == pytest.approx(expected.sum() / counts.sum(), rel=1e-4)
    suffix = np.maximum(0, counts - (M - 1)).sum()
    assert done.figures["nll_suffix"] == pytest.approx(expected[:, 1].sum() / suffix, rel=1e-4)


def test_a_probe_reads_the_same_rows_each_time_and_an_untrained_model_is_near_chance(bench: Bench) -> None:
    params: dict[str, Json] = {"what": "probe", "rows": 10, "key": 5, **SCORING}
    inputs = {"weights": bench.weights[0], "tokens_manifest": bench.tokens}
    figures: Any = bench.output("eval", params, inputs).figures
    assert figures == bench.output("eval", params, inputs).figures
    assert figures["finite"] is True
    assert figures["log_vocab"] == math.log(VOCAB)
    assert figures["mean_nll"] == pytest.approx(figures["log_vocab"], abs=1.5)


def test_a_broken_model_fails_its_probe_in_words_json_can_say(bench: Bench) -> None:
    broken = {n: torch.full_like(p, math.nan) for n, p in init_decoder(MODEL, seed=0).named_parameters()}
    save_file(broken, bench.folder / "broken.safetensors")
    weights = bench.blobs.add(bench.folder / "broken.safetensors")
    params: dict[str, Json] = {"what": "probe", "rows": 4, "key": 5, **SCORING}
    figures = bench.output("eval", params, {"weights": weights, "tokens_manifest": bench.tokens}).figures
    assert (figures["mean_nll"], figures["finite"]) == (None, False)
    score = bench.score(weights, split="test", count=6)
    assert (score.figures["saturated"], score.figures["mean_prefix_nll"]) == (6, None)
    assert load_array(score.files["column"]).tolist() == [65535] * 6


def test_purity_counts_the_rows_it_was_asked_for(bench: Bench) -> None:
    inputs = {f"router-{i:03d}": w for i, w in enumerate(bench.weights)}
    params: dict[str, Json] = {"what": "purity", "rows": 12, "key": 5, **SCORING}
    figures: Any = bench.output("eval", params, {**inputs, "tokens_manifest": bench.tokens}).figures
    assert sum(figures["loads"]) == sum(map(sum, figures["table"])) == 12
    assert np.array(figures["table"]).shape == (EXPERTS, 3)
    assert 1 / 3 <= figures["purity"] <= 1


def test_an_assignment_comes_with_its_shares(bench: Bench) -> None:
    count = 40
    outputs = [bench.score(w, split="train", count=count) for w in bench.weights]
    columns = {f"column-{e:03d}": bench.blobs.add(o.files["column"]) for e, o in enumerate(outputs)}
    params: dict[str, Json] = {"rule": "sorted_greedy", "num_experts": EXPERTS, "count": count}
    done = bench.output("assign", params, columns)
    figures: Any = done.figures
    assert figures["shares"] == [count // 2, count // 2]
    assert figures["mean_best_nll"] <= figures["mean_nll"]
    assignment = load_array(done.files["assignment"])
    assert assignment.dtype == np.dtype("<u2")
    as_they_come = bench.output("assign", {**params, "rule": "stream_greedy"}, columns)
    late = load_array(as_they_come.files["assignment"])
    assert np.bincount(late).tolist() == [count // 2, count // 2]
    scores = np.stack([load_array(o.files["column"]) for o in outputs], axis=1).astype(np.int64)
    first = scores[: count // 4]
    assert late[: count // 4].tolist() == first.argmin(axis=1).tolist(), "who comes early has the choice"


def test_the_comparison_reads_columns_and_nll_of_all_models(bench: Bench) -> None:
    inputs: dict[str, Digest] = {"tokens_manifest": bench.tokens}
    for e, weights in enumerate(bench.weights):
        column = bench.score(weights, split="test", count=len(bench.rows("test"))).files["column"]
        inputs[f"column-{e:03d}"] = bench.blobs.add(column)
        params: dict[str, Json] = {"what": "nll", "split": "test", **SCORING}
        inputs[f"expert-{e:03d}"] = bench.run("eval", params, {"weights": weights, "tokens_manifest": bench.tokens})[
            "nll"
        ]
    inputs["dense"] = inputs["expert-000"]
    params = {
        "what": "compare",
        "split": "test",
        "prefix_length": M,
        "bootstrap_samples": 100,
        "confidence": 0.95,
        "seed": 0,
        "facts": {"run": "a"},
        "groups": {"mixture": ["expert-000", "expert-001"], "dense": "dense", "random_split": []},
    }
    done = bench.output("eval", params, inputs)
    report = json.loads(done.files["report"].read_text())
    assert report["facts"] == {"run": "a"}
    assert report["random_split"] is None
    assert report["oracle"]["nll_suffix"] <= report["mixture"]["nll_suffix"]
    assert report["mixture_minus_dense"]["mean"] == pytest.approx(
        report["mixture"]["nll_suffix"] - report["dense"]["nll_suffix"]
    )
    assert done.figures["mixture"] == report["mixture"]
    sides = [report[side] for side in ("mixture", "dense", "oracle")]
    assert all(part["bits_per_byte_all"] > 0 for part in sides)


def test_bits_per_byte_times_bytes_times_ln_2_is_the_sum_of_nll_of_the_targets_that_are_scored(bench: Bench) -> None:
    inputs = {"weights": bench.weights[0], "tokens_manifest": bench.tokens}
    nll = bench.run("eval", {"what": "nll", "split": "test", **SCORING}, inputs)["nll"]
    params: dict[str, Json] = {"what": "contest", "split": "test", "models": ["a"], "pairs": []}
    params |= {"bootstrap_samples": 100, "confidence": 0.95, "seed": 0}
    done = bench.output("eval", params, {"tokens_manifest": bench.tokens, "a": nll})
    report = json.loads(done.files["report"].read_text())
    sums = load_array(bench.blobs.path(nll)).sum(axis=1)
    rows = bench.rows("test")
    everything = np.arange(len(rows))
    meta = rows.meta(everything)
    # The text of a pack is its documents': what its targets stand for is all of it but its first token's part.
    tokenizer = load_tokenizer(bench.blobs.path(bench.tokenizer))
    scored = dict.fromkeys(bench.manifest["sources"], 0)
    for row, (source, _, targets) in zip(rows.take(everything), meta.tolist(), strict=True):
        text = tokenizer.decode(row[1 : 1 + targets].tolist())  # ASCII: every token is whole characters
        scored[bench.manifest["sources"][source]] += len(text.encode())
    assert report["target_bytes"] == sum(scored.values()) == done.figures["target_bytes"]
    in_all = report["models"]["a"]["bits_per_byte"] * report["target_bytes"] * math.log(2)
    assert in_all == pytest.approx(float(sums.sum()))
    for number, name in enumerate(bench.manifest["sources"]):
        part = report["by_source"][name]
        assert part["target_bytes"] == scored[name]
        total = part["models"]["a"]["bits_per_byte"] * part["target_bytes"] * math.log(2)
        assert total == pytest.approx(float(sums[meta[:, 0] == number].sum()))


def test_a_column_of_another_length_is_refused(bench: Bench) -> None:
    np.save(bench.folder / "short.npy", np.zeros(3, dtype="<u2"))
    column = bench.blobs.add(bench.folder / "short.npy")
    params: dict[str, Json] = {
        "what": "compare",
        "split": "test",
        "prefix_length": M,
        "bootstrap_samples": 100,
        "confidence": 0.95,
        "seed": 0,
        "groups": {"mixture": ["expert-000"]},
    }
    with pytest.raises(DataError, match=r"column-000 has shape \(3,\)"):
        bench.output("eval", params, {"tokens_manifest": bench.tokens, "column-000": column, "expert-000": column})


def test_an_unknown_task_is_our_mistake(bench: Bench) -> None:
    with pytest.raises(InvariantViolation):
        bench.output("eval", {"what": "nothing"}, {})
