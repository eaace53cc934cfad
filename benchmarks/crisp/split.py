"""Takes three targets out of the demo corpus: `python -m benchmarks.crisp.split demo/text demo/crisp`.

Of each target's domain three documents in ten, chosen by the hash of their source, become the target; the rest
stays in the corpus, diluted among seven other domains. `potluck run start benchmarks/crisp/TARGET.toml` does the rest.
"""

from __future__ import annotations

import argparse
import hashlib
import json
from pathlib import Path

TARGETS = ("legal", "recipes", "code_python")
TENTHS = 3


def is_target(line: str) -> bool:
    """Whole original documents go one way: pieces of a document share a source up to the last `#`."""
    source = json.loads(line)["source"].split("#")[0]
    return int(hashlib.sha256(source.encode()).hexdigest(), 16) % 10 < TENTHS


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.crisp.split", description=__doc__)
    parser.add_argument("text", type=Path, help="the demo corpus, as tools/demo_corpus.py writes it")
    parser.add_argument("out", type=Path, help="gets a folder `corpus` and one for each target")
    options = parser.parse_args()
    corpus = options.out / "corpus"
    corpus.mkdir(parents=True, exist_ok=True)
    for path in sorted(options.text.glob("*.jsonl")):
        lines = path.read_text(encoding="utf-8").splitlines(keepends=True)
        taken = [path.stem in TARGETS and is_target(line) for line in lines]
        stays = "".join(x for x, t in zip(lines, taken, strict=True) if not t)
        (corpus / path.name).write_text(stays, encoding="utf-8")
        if path.stem in TARGETS:
            target = options.out / path.stem
            target.mkdir(exist_ok=True)
            text = "".join(x for x, t in zip(lines, taken, strict=True) if t)
            (target / path.name).write_text(text, encoding="utf-8")
        print(f"{path.stem}: {len(lines) - sum(taken):,} documents stay, {sum(taken):,} are taken")


if __name__ == "__main__":
    main()
