"""Reading a person's text: `python -m sampling` as a process of its own, its progress shown."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from potluck.commands.output import Output
from potluck.errors import CorpusError, PotluckError
from potluck.net.remote_errors import error_from_id


def ingest(data: Path, out: Path, *, seed: int, output: Output, is_target: bool = False) -> Mapping[str, Any]:
    """Writes document shards and a corpus manifest into `out`.

    Args:
        is_target: examples of what a specialist is for: few are enough, and more of them is held out.

    Returns:
        The answer of `python -m sampling ingest --json`: manifest (digest), path, files (digest to
        path), documents, bytes, sources, notes.

    Raises:
        CorpusError: as the reader says.
    """
    arguments = ["ingest", str(data), "--out", str(out), "--seed", str(seed)]
    if is_target:
        return _sampling([*arguments, "--target"], "reading the target", output)
    return _sampling(arguments, "reading the text", output)


def gather(paths: Sequence[Path], folder: Path) -> Path:
    """Links to files and folders in one folder, as if they had been kept there; what it held before is gone.

    Raises:
        CorpusError: ``corpus.missing``.
    """
    shutil.rmtree(folder)
    folder.mkdir()
    for number, path in enumerate(paths, 1):
        if not path.exists():
            raise CorpusError("corpus.missing", f"no file or folder at {path}", "check the path of the target")
        name = f"{number}-{path.name}" if (folder / path.name).exists() else path.name
        files = [found for found in path.rglob("*") if found.is_file()] if path.is_dir() else [path]
        for file in files:
            link = folder / name / file.relative_to(path) if path.is_dir() else folder / name
            link.parent.mkdir(parents=True, exist_ok=True)
            link.symlink_to(file.resolve())
    return folder


def pack_encoder(folder: Path, out: Path, *, output: Output) -> Mapping[str, Any]:
    """Lists a sentence encoder's files in a manifest, after it was loaded once.

    Returns:
        manifest (digest), path, files (digest to path), dim.

    Raises:
        UsageError: ``usage.bad-encoder``, what is missing or does not load.
    """
    return _sampling(["pack-encoder", str(folder), str(out)], "trying the encoder", output)


def estimate(data: Path, *, vocab_size: int, output: Output) -> Mapping[str, Any]:
    """Bytes, sources and, guessed from a sample, tokens and train_tokens of a corpus."""
    return _sampling(["estimate", str(data), "--vocab-size", str(vocab_size)], "estimating the tokens", output)


def _sampling(arguments: Sequence[str], what: str, output: Output) -> Mapping[str, Any]:
    command = [sys.executable, "-m", "sampling", *arguments, "--json"]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    assert process.stdout is not None
    assert process.stderr is not None
    with process, output.timed(what):
        said: list[str] = []
        for line in process.stderr:
            text = line.rstrip()
            said.append(text)
            if text.startswith("note: "):
                output.note(text)
            elif text.endswith("%"):
                output.progress(f"{what}: {text.rpartition(' ')[2]}")
        answer = process.stdout.read()
    if process.returncode != 0:
        raise _error(answer, said, process.returncode)
    return dict(json.loads(answer))


def _error(answer: str, said: Sequence[str], code: int) -> PotluckError:
    """The reader's own error, as it was raised there."""
    try:
        body = json.loads(answer)
        return error_from_id(body["error"], body["message"], body["fix"])
    except (ValueError, KeyError):
        tail = "\n    ".join(said[-8:])
        return CorpusError("corpus.reader-failed", f"the reader ended with code {code}:\n    {tail}")
