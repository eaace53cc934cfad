"""Coverage-guided fuzzing by hand: `python -m tests.fuzz TARGET --seconds N`, where `pip install atheris` was run."""

from __future__ import annotations

import argparse
import sys
import tempfile
from pathlib import Path


def main() -> None:
    """Runs one target until the time is up, or a finding ends it with its input on the screen and in a file."""
    import atheris

    with atheris.instrument_imports(include=["coordinator", "expert_node", "potluck", "router", "sampling"]):
        from tests.fuzz.seeds import seeds_of
        from tests.fuzz.targets import TARGETS

    parser = argparse.ArgumentParser(prog="python -m tests.fuzz", description=__doc__)
    parser.add_argument("target", choices=sorted(TARGETS))
    parser.add_argument("--seconds", type=int, default=60)
    parser.add_argument("--findings", type=Path, default=Path(tempfile.gettempdir()), help="folder of failing inputs")
    asked = parser.parse_args()
    with tempfile.TemporaryDirectory() as corpus:
        for number, seed in enumerate(seeds_of(asked.target)):
            (Path(corpus) / str(number)).write_bytes(seed)
        options = [
            f"-max_total_time={asked.seconds}",
            f"-artifact_prefix={asked.findings}/fuzz-{asked.target}-",
            "-timeout=10",  # of one input, in seconds
            "-rss_limit_mb=4096",
            "-max_len=65536",
            corpus,
        ]
        atheris.Setup([sys.argv[0], *options], TARGETS[asked.target])
        atheris.Fuzz()


if __name__ == "__main__":
    main()
