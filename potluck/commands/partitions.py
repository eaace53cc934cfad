"""Options of the commands that divide a corpus into clusters, and the spec file that each of them leaves behind."""

from __future__ import annotations

import argparse
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from potluck.commands.output import Output
from potluck.errors import SpecError, UsageError
from potluck.ids import NO_DIGEST
from potluck.specfile import same_call, spec_text
from potluck.specs.partition import PartitionSpec
from potluck.specs.run import MAX_NAME, UNKNOWN_DIGEST, RunSpec

CLUSTERS, DIM = 64, 128
ROWS_PER_CLUSTER = 8
"""With fewer, the default number of clusters is lowered."""


def add_partition(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--k", type=int, default=0, help=f"clusters of one level (default {CLUSTERS}, fewer for little)"
    )
    parser.add_argument("--branch", type=int, default=0, help="instead: a tree of this many branches")
    parser.add_argument("--depth", type=int, default=0, help="and of this many levels (default 2)")
    parser.add_argument("--encoder", type=Path, metavar="FOLDER", help="sentence-transformers folder (default: LSI)")
    parser.add_argument("--dim", type=int, default=0, help=f"dimensions of LSI (default {DIM})")


def add_spec_file(parser: argparse.ArgumentParser, default: str) -> None:
    """--name, --out and --force."""
    parser.add_argument("--name", default="", help="the run's name (default: from the text's)")
    parser.add_argument("--out", type=Path, metavar="DIR", help=f"where to write (default: {default} here)")
    parser.add_argument("--force", action="store_true", help="write over a spec that another call wrote")


def partition_of(args: argparse.Namespace, train_rows: int, output: Output) -> PartitionSpec:
    """The partition that a person asked for; what was not asked for fits the text.

    Raises:
        SpecError: ``spec.k-too-large`` or ``spec.bad-value``.
    """
    depth = args.depth or (2 if args.branch else 0)
    k = args.k or (0 if args.branch else max(2, min(CLUSTERS, train_rows // ROWS_PER_CLUSTER)))
    if not args.k and not args.branch and k < CLUSTERS:
        output.note(f"{k} clusters: the text makes about {train_rows} rows")
    partition = PartitionSpec(
        by="clusters",
        k=k,
        branch=args.branch,
        depth=depth,
        encoder=UNKNOWN_DIGEST if args.encoder else NO_DIGEST,
        dim=args.dim or max(2, min(DIM, train_rows // 2)),
    )
    domains = k or args.branch**depth
    if domains > train_rows:
        what = f"{domains} clusters of a text that makes about {train_rows} rows"
        raise SpecError(
            "spec.k-too-large", what, f"give more text, or at most {train_rows // ROWS_PER_CLUSTER} clusters"
        )
    return partition


def run_name(name: str, text: Path) -> str:
    """A name of at most 64 characters."""
    return name or text.resolve().stem[:MAX_NAME] or "run"


def write_spec(
    path: Path,
    spec: RunSpec,
    *,
    name: str,
    data: Path,
    target: Sequence[Path] = (),
    encoder: Path | None = None,
    call: Mapping[str, Any],
    remarks: list[str],
) -> None:
    """Writes the TOML file that `potluck run start` repeats the run from."""
    folder = path.parent
    folder.mkdir(parents=True, exist_ok=True)
    body = spec_text(
        spec,
        data=os.path.relpath(data, folder),
        name=name,
        call=call,
        remarks=remarks,
        target=[os.path.relpath(one, folder) for one in target],
        encoder="" if encoder is None else os.path.relpath(encoder, folder),
    )
    path.write_text(body, encoding="utf-8")


def is_written(path: Path, call: Mapping[str, Any], texts: Sequence[Path], *, force: bool, output: Output) -> bool:
    """Whether this very call has left its spec file behind, so that the same run is gone on with.

    Raises:
        UsageError: ``usage.out-inside-data``, or ``usage.file-exists`` where another call wrote it.
    """
    out = path.parent.resolve()
    for text in texts:
        if text.is_dir() and out.is_relative_to(text.resolve()):
            what = f"--out {path.parent} lies inside {text}: what is written there would be read as text"
            raise UsageError("usage.out-inside-data", what, "name a folder elsewhere with --out")
    if same_call(path, call):
        output.note(f"{path} was written by this same call; it is used as it is")
        return True
    if path.exists() and not force:
        message = f"{path} is there already, and another call wrote it"
        raise UsageError("usage.file-exists", message, "name another folder with --out, or add --force")
    return False
