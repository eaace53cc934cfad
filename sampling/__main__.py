"""`python -m sampling ingest|estimate|pack-encoder`: what reads a person's folder, as a process of its own.

One JSON line on stdout with --json; progress and notes on stderr. Errors leave with the error's exit
code: `[id] message` and the fix on stderr, or with --json one JSON line on stdout.
"""

from __future__ import annotations

import argparse
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path

from potluck.errors import PotluckError, ResourceError
from potluck.ids import Digest, Json, canonical_json, digest_file
from sampling.embed_sentence import SentenceEncoder, pack_encoder_folder
from sampling.estimate import SAMPLE_BYTES, estimate
from sampling.ingest import ingest
from sampling.splits import OF_A_CORPUS, OF_A_TARGET

REPORT_SECONDS = 0.5


def main(arguments: Sequence[str] | None = None) -> int:
    options = _parser().parse_args(arguments)
    try:
        try:
            answer = options.run(options)
        except OSError as error:
            what = f"{error.filename or options.data}: {error.strerror or error}"
            raise ResourceError("resource.file", what, "check permissions and free space") from error
    except PotluckError as error:
        if options.json:
            line = {"error": error.error_id, "message": error.message, "fix": error.fix}
            sys.stdout.write(canonical_json(line) + "\n")
        sys.stderr.write(f"{error}\n")
        return error.exit_code
    if options.json:
        sys.stdout.write(canonical_json(answer) + "\n")
    else:
        for key, value in answer.items():
            sys.stdout.write(f"{key}: {canonical_json(value) if isinstance(value, dict | list) else value}\n")
    return 0


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m sampling", description="Reads text for a run.")
    verbs = parser.add_subparsers(required=True)
    reading = verbs.add_parser("ingest", help="write document shards and a corpus manifest")
    reading.add_argument("data", type=Path, help="folder or file of text")
    reading.add_argument("--out", type=Path, required=True, help="folder for the shards")
    reading.add_argument("--seed", type=int, default=0)
    target_help = "examples of what a specialist is for: few are enough, and more of them is held out"
    reading.add_argument("--target", action="store_true", help=target_help)
    reading.set_defaults(run=_ingest)
    sizing = verbs.add_parser("estimate", help="guess the number of train tokens from a sample")
    sizing.add_argument("data", type=Path, help="folder or file of text")
    sizing.add_argument("--vocab-size", type=int, default=1024)
    sizing.add_argument("--sample-bytes", type=int, default=SAMPLE_BYTES)
    sizing.add_argument("--seed", type=int, default=0)
    sizing.set_defaults(run=_estimate)
    packing = verbs.add_parser("pack-encoder", help="list a sentence encoder's files in a manifest")
    packing.add_argument("data", metavar="folder", type=Path, help="folder of sentence-transformers")
    packing.add_argument("out", type=Path, help="folder for the manifest")
    packing.set_defaults(run=_pack_encoder)
    for verb in (reading, sizing, packing):
        verb.add_argument("--json", action="store_true", help="one JSON line on stdout")
    return parser


def _ingest(options: argparse.Namespace) -> dict[str, Json]:
    ingested = ingest(
        options.data,
        options.out,
        seed=options.seed,
        sharing=OF_A_TARGET if options.target else OF_A_CORPUS,
        progress=_on_stderr("ingest"),
    )
    for note in ingested.notes:
        sys.stderr.write(f"note: {note}\n")
    manifest = ingested.manifest
    return {
        "manifest": ingested.digest,
        "path": str(ingested.path.resolve()),
        "files": {digest: str(path.resolve()) for digest, path in ingested.files.items()},
        "documents": manifest["documents"],
        "bytes": manifest["bytes"],
        "duplicates_dropped": manifest["duplicates_dropped"],
        "sources": manifest["sources"],
        "notes": list(ingested.notes),
    }


def _estimate(options: argparse.Namespace) -> dict[str, Json]:
    return estimate(options.data, vocab_size=options.vocab_size, sample_bytes=options.sample_bytes, seed=options.seed)


def _pack_encoder(options: argparse.Namespace) -> dict[str, Json]:
    files: dict[Digest, Path] = {}

    def put(path: Path) -> Digest:
        digest = digest_file(path)
        files[digest] = path
        return digest

    options.out.mkdir(parents=True, exist_ok=True)
    manifest = pack_encoder_folder(options.data, options.out, put)
    dim: Json = None
    try:
        dim = SentenceEncoder(options.data).dim
    except ResourceError as error:
        sys.stderr.write(f"note: not tried here: {error.message}\n")
    return {
        "manifest": put(manifest),
        "path": str(manifest.resolve()),
        "files": {digest: str(path.resolve()) for digest, path in files.items()},
        "dim": dim,
    }


def _on_stderr(what: str) -> Callable[[float], None]:
    """Progress for people: a line now and then, not one a record."""
    last = -REPORT_SECONDS

    def report(fraction: float) -> None:
        nonlocal last
        now = time.monotonic()
        if fraction >= 1.0 or now - last >= REPORT_SECONDS:
            last = now
            sys.stderr.write(f"{what}: {fraction:.0%}\n")

    return report


if __name__ == "__main__":
    sys.exit(main())
