"""Peak memory of each task that reads a corpus, over a corpus and over one ten times as large.

    python -m benchmarks.corpus_memory [--json FILE] [--quick] [--folder DIR]

Writes two corpora of made-up words, 8 MB in 20,000 documents or more and 80 MB in ten times as many, and runs what a
run does with them from ingest to cards, near duplicates and scores, each task in a process of its own, with the sizes
that the plans use. A figure is the highest resident size (VmHWM) of any process of a task, mapped files included. It
passes if the large corpus takes at most 10% and 64 MiB more than the small one.

Words are drawn by Zipf's law from 30,000, each source with its own ranking; documents are as unequal as those of the
web (log-normal). Real text has more distinct words, which costs `fit bpe` and `fit lsi` more, in both corpora.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import subprocess
import sys
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from benchmarks.corpus_memory_text import write_corpus
from potluck.config import to_mapping
from potluck.ids import Digest, Json, digest_file
from potluck.lm.config import ModelConfig

RELATIVE, ABSOLUTE_MIB = 1.10, 64
FACTOR = 10
DOCUMENTS, QUICK_DOCUMENTS = 20_000, 2_000
VOCAB, SEQUENCE, PREFIX = 1024, 128, 32
SAMPLE_ROWS = 20_000
ROWS_PER_PART = 16_384
BPE_SAMPLE_BYTES = 16 * 1024 * 1024
"""As `coordinator.plans` asks for them."""
SCORED_ROWS = 2_048
TARGET_ROWS = 500


@dataclass(kw_only=True)
class Chain:
    """The tasks of one corpus, one after the other; each finds the files of those before it."""

    folder: Path
    files: dict[Digest, Path] = field(default_factory=dict)
    peaks_mib: dict[str, list[float]] = field(default_factory=dict)

    def run(self, task: str, params: Mapping[str, Json], inputs: Mapping[str, Digest]) -> dict[str, Digest]:
        """Digests of the task's files by name."""
        kind = task.partition(" ")[0]
        out = self.folder / f"{len(list(self.folder.iterdir())):03d}-{task.replace(' ', '-')}"
        out.mkdir()
        call = {
            "kind": kind,
            "params": dict(params),
            "inputs": dict(inputs),
            "files": {digest: str(path) for digest, path in self.files.items()},
            "out": str(out),
        }
        (out / "call.json").write_text(json.dumps(call))
        command = [sys.executable, "-m", "benchmarks.corpus_memory_task", str(out / "call.json")]
        environment = os.environ | {"OMP_NUM_THREADS": "1", "OPENBLAS_NUM_THREADS": "1"}
        done = subprocess.run(command, check=True, stdout=subprocess.PIPE, env=environment)
        answer = json.loads(done.stdout)
        self.peaks_mib.setdefault(task, []).append(answer["peak_mib"])
        found: dict[str, Digest] = {}
        for name, path in answer["files"].items():
            found[name] = digest_file(Path(path))
            self.files[found[name]] = Path(path)
        return found

    def keep(self, name: str, text: str) -> Digest:
        """Writes a file that tasks can name as an input."""
        path = self.folder / name
        path.write_text(text, encoding="utf-8")
        digest = digest_file(path)
        self.files[digest] = path
        return digest


def run_chain(data: Path, folder: Path) -> dict[str, float]:
    """The peak of each task over one corpus, MiB."""
    folder.mkdir()
    chain = Chain(folder=folder)
    corpus = chain.run("ingest", {"data": str(data)}, {})
    shards = sorted(name for name in corpus if name.startswith("documents-"))
    fit: dict[str, Json] = {"what": "bpe", "vocab_size": VOCAB, "sample_bytes": BPE_SAMPLE_BYTES, "seed": 0}
    tokenizer = chain.run("fit bpe", fit, {"corpus_manifest": corpus["corpus"]})["tokenizer"]
    names = {"tokenizer": tokenizer, "corpus": corpus["corpus"]}
    part: dict[str, Json] = {"what": "part", "sequence_length": SEQUENCE, "packing": "document", "seed": 0}
    parts = {
        name.replace("documents", "part"): chain.run("tokenise part", part, {"documents": corpus[name], **names})[
            "part"
        ]
        for name in shards
    }
    collect: dict[str, Json] = {"what": "collect", "sequence_length": SEQUENCE, "vocab_size": VOCAB}
    tokens = chain.run("tokenise collect", collect, {**parts, **names})["tokens"]
    _clusters(chain, tokens, tokenizer)
    _models(chain, tokens)
    return {task: max(peaks) for task, peaks in chain.peaks_mib.items()}


def _clusters(chain: Chain, tokens: Digest, tokenizer: Digest) -> None:
    text = {"tokens_manifest": tokens, "tokenizer": tokenizer}
    rows = int(json.loads(chain.files[tokens].read_text())["splits"]["train"]["rows"])
    fit: dict[str, Json] = {"what": "lsi", "dim": 128, "features": 1 << 16, "sample_rows": SAMPLE_ROWS, "seed": 0}
    encoder = chain.run("fit lsi", fit, text)["encoder"]
    vectors: dict[str, Digest] = {}
    for number, start in enumerate(range(0, rows, ROWS_PER_PART)):
        params: dict[str, Json] = {"split": "train", "start": start, "count": min(ROWS_PER_PART, rows - start)}
        vectors[f"vectors-{number:05d}"] = chain.run("embed", params, {**text, "encoder": encoder})["vectors"]
    shape: dict[str, Json] = {"k": 64, "sample": SAMPLE_ROWS, "iterations": 5, "spherical": True, "seed": 0}
    tree = chain.run("fit_clusters", shape, vectors)["tree"]
    rule: dict[str, Json] = {"rule": "partition", "distances": True}
    labels = {
        name.replace("vectors", "labels"): chain.run("assign", rule, {"tree": tree, "vectors": each})["labels"]
        for name, each in vectors.items()
    }
    cards: dict[str, Json] = {"what": "cards", "split": "train", "sample_rows": 20_000, "points": 2_000, "seed": 0}
    made = chain.run("eval cards", cards, {**text, "encoder": encoder, "tree": tree, **vectors, **labels})
    inputs = {"tokens_manifest": tokens, "target_manifest": small_target(chain, tokens)}
    near = chain.run("fit near_duplicates", {"what": "near_duplicates"}, inputs)
    inputs = {"tokens": tokens, "partition": made["partition"], **labels, **near}
    chain.run("fit labels", {"what": "labels"}, inputs)


def small_target(chain: Chain, tokens: Digest) -> Digest:
    """A tokens manifest of a few test rows, for a target does not grow with the corpus."""
    manifest = json.loads(chain.files[tokens].read_text())
    part = manifest["splits"]["test"]["parts"][0]
    manifest["splits"]["test"]["parts"] = [part | {"count": min(TARGET_ROWS, part["count"])}]
    return chain.keep("target.json", json.dumps(manifest))


def _models(chain: Chain, tokens: Digest) -> None:
    from safetensors.torch import save_file

    from potluck.lm.model import init_decoder

    config = ModelConfig(vocab=VOCAB, hidden=16, layers=1, heads=2, ffn=16, context=SEQUENCE + 1)
    path = chain.folder / "weights.safetensors"
    save_file({name: tensor.detach() for name, tensor in init_decoder(config, seed=0).named_parameters()}, path)
    weights = digest_file(path)
    chain.files[weights] = path
    inputs = {"weights": weights, "tokens_manifest": tokens}
    params: dict[str, Json] = {
        "prefix_length": PREFIX,
        "batch_size": 64,
        "dtype": "float32",
        "model": to_mapping(config),
    }
    score: dict[str, Json] = {"split": "train", "key": 0, "start": 0, "count": SCORED_ROWS}
    chain.run("score", params | score, inputs)
    chain.run("eval nll", params | {"what": "nll", "split": "valid"}, inputs)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--json", type=Path, metavar="FILE", help="write the figures there")
    parser.add_argument("--quick", action="store_true", help="a tenth of both corpora: shows that it runs, no more")
    parser.add_argument("--folder", type=Path, help="of the corpora and all results, 2 GB; else a temporary one")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory(dir=options.folder) as scratch:
        result = measure(Path(scratch), QUICK_DOCUMENTS if options.quick else DOCUMENTS)
    print(table(result))
    if options.json:
        options.json.write_text(json.dumps(result, indent=2) + "\n")


def measure(folder: Path, documents: int) -> dict[str, Json]:
    """Both corpora and the peaks over them; keys: machine, corpora, peak_mib."""
    peaks: dict[str, dict[str, float]] = {}
    corpora: dict[str, Json] = {}
    for name, count in (("small", documents), ("large", FACTOR * documents)):
        data = folder / f"{name}.jsonl"
        corpora[name] = {"documents": count, "bytes": write_corpus(data, documents=count)}
        peaks[name] = run_chain(data, folder / name)
    return {
        "machine": {"processor": platform.machine(), "cores": os.cpu_count(), "python": platform.python_version()},
        "corpora": corpora,
        "peak_mib": {task: [round(peaks[name][task], 1) for name in peaks] for task in peaks["small"]},
    }


def table(result: Mapping[str, Json]) -> str:
    lines = ["| task | small, MiB | large, MiB | more | allowed | |", "|---|---|---|---|---|---|"]
    peaks: Mapping[str, Sequence[float]] = result["peak_mib"]  # type: ignore[assignment]
    for task, (small, large) in peaks.items():
        allowed = (RELATIVE - 1) * small + ABSOLUTE_MIB
        verdict = "passes" if large - small <= allowed else "FAILS"
        lines.append(f"| `{task}` | {small:.0f} | {large:.0f} | {large - small:+.0f} | {allowed:.0f} | {verdict} |")
    return "\n".join(lines)


if __name__ == "__main__":
    main()
