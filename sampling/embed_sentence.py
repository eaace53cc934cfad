"""Sentence encoders: a folder of sentence-transformers, here or as blobs. torch comes in late.

A folder is data, never code: weights are safetensors, modules are the library's own.
"""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path, PurePosixPath
from typing import Any

import numpy as np

from potluck.errors import DataError, ResourceError, UsageError
from potluck.ids import Digest, Json, canonical_json, is_digest
from potluck.jsontext import read_json
from sampling.embed_lsi import normalised
from sampling.taskio import BlobReader

VERSION = 1
MAX_MANIFEST_BYTES = 1 << 20
MAX_FILES = 256
"""Of a packed folder; such folders have about ten."""
MAX_PATH = 200
MODULES = "modules.json"
PACKED_SUFFIXES = (".json", ".txt", ".safetensors", ".model", ".jinja")
"""What travels: weights, tokenizers, settings. Pickled weights and other formats of the same model stay."""
TOKENIZER_FILES = ("tokenizer.json", "vocab.txt", "sentencepiece.bpe.model", "spiece.model", "tokenizer.model")
OWN_MODULES = "sentence_transformers."
MODULES_WITHOUT_FILES = ("Normalize",)
_FIX = "give a folder as `SentenceTransformer.save_pretrained` writes it, weights as safetensors"


class SentenceEncoder:
    """A sentence-transformers model. Text beyond its window is cut, encoded piece by piece and pooled."""

    def __init__(self, folder: Path) -> None:
        """Loads the folder, on a GPU where torch sees one.

        Raises:
            UsageError: ``usage.bad-encoder``, with what is missing.
            ResourceError: ``resource.missing-package``, the library is not installed.
        """
        check_encoder_folder(folder)
        from safetensors import SafetensorError

        try:
            from sentence_transformers import SentenceTransformer
        except ImportError as error:
            what = f"sentence_transformers cannot be imported: {error}"
            raise ResourceError("resource.missing-package", what, "pip install 'potluck[embed]'") from error
        try:
            self._model = SentenceTransformer(str(folder), local_files_only=True)
        except (SafetensorError, OSError, ValueError, LookupError, TypeError, RuntimeError, ImportError) as error:
            raise UsageError("usage.bad-encoder", f"{folder} cannot be loaded: {error}", _FIX) from error
        self._tokenizer = self._model.tokenizer
        special = self._tokenizer.num_special_tokens_to_add()
        self._limit = int(self._model.max_seq_length or self._tokenizer.model_max_length) - special
        self.dim = int(self._model.encode(["a"]).shape[1])

    def encode(self, texts: Sequence[str]) -> np.ndarray:
        """float32 [n, dim], rows of length 1.

        Bits depend on the batch, for padding does: equal calls on one machine give equal bits.
        """
        pieces: list[str] = []
        owners: list[int] = []
        weights: list[int] = []
        encoded = self._tokenizer(
            list(texts), add_special_tokens=False, return_offsets_mapping=True, truncation=False, verbose=False
        )
        for owner, (text, offsets) in enumerate(zip(texts, encoded["offset_mapping"], strict=True)):
            for begin, end, tokens in cut(offsets, len(text), self._limit):
                pieces.append(text[begin:end])
                owners.append(owner)
                weights.append(tokens)
        vectors = self._model.encode(pieces, convert_to_numpy=True, show_progress_bar=False)
        return pooled(np.asarray(vectors, dtype=np.float32), np.array(owners), np.array(weights), len(texts))


def cut(offsets: Sequence[tuple[int, int]], num_chars: int, limit: int) -> list[tuple[int, int, int]]:
    """Cuts a text of given token offsets into windows of at most `limit` tokens.

    Returns:
        (first character, end, tokens) of each window; the text as a whole where it fits.
    """
    if len(offsets) <= limit:
        return [(0, num_chars, max(1, len(offsets)))]
    starts = range(0, len(offsets), limit)
    windows = [offsets[begin : begin + limit] for begin in starts]
    return [(window[0][0], window[-1][1], len(window)) for window in windows]


def pooled(vectors: np.ndarray, owners: np.ndarray, weights: np.ndarray, count: int) -> np.ndarray:
    """Mean of each owner's vectors, weighted by length, scaled to length 1; float32 [count, dim]."""
    sums = np.zeros((count, vectors.shape[1]), dtype=np.float64)
    np.add.at(sums, owners, normalised(vectors) * weights[:, None].astype(np.float64))
    return normalised(sums)


def pack_encoder_folder(folder: Path, out: Path, put: Callable[[Path], Digest]) -> Path:
    """Puts the folder's files into a blob store and writes the manifest that lists them.

    Args:
        folder: a sentence-transformers folder.
        out: an existing folder for `encoder.json`.
        put: takes a file in, gives back its digest.

    Returns:
        The manifest's path; give its blob to tasks as `encoder_manifest`.

    Raises:
        UsageError: ``usage.bad-encoder``.
    """
    check_encoder_folder(folder)
    paths = [p for p in sorted(folder.rglob("*")) if p.is_file() and p.suffix in PACKED_SUFFIXES]
    names = [p.relative_to(folder) for p in paths]
    shown = [(n.as_posix(), p) for n, p in zip(names, paths, strict=True) if not any(s[0] == "." for s in n.parts)]
    digests: dict[str, Json] = {name: put(path) for name, path in shown}
    manifest: dict[str, Json] = {
        "kind": "sentence",
        "version": VERSION,
        "files": [{"path": name, "digest": digest} for name, digest in digests.items()],
        "blobs": digests,
    }
    path = out / "encoder.json"
    path.write_text(canonical_json(manifest), encoding="utf-8")
    return path


def read_encoder_manifest(path: Path) -> Mapping[str, Any]:
    """Raises:
    DataError: ``data.bad-encoder``, it is no JSON object.
    """
    try:
        if path.stat().st_size > MAX_MANIFEST_BYTES:
            raise ValueError(f"{path.stat().st_size} bytes")
        manifest = read_json(path.read_bytes())
    except ValueError as error:
        raise DataError("data.bad-encoder", f"encoder manifest {path.name}: {error}", "pack the folder again") from None
    if not isinstance(manifest, dict):
        raise DataError("data.bad-encoder", f"encoder manifest {path.name} is no object", "pack the folder again")
    return manifest


def unpack_encoder_folder(manifest: Mapping[str, Any], blobs: BlobReader, folder: Path) -> Path:
    """Rebuilds a packed folder from blobs, by hard links where the file system has them.

    Raises:
        DataError: ``data.bad-encoder``, the manifest is of another kind or names a path outside.
    """
    if manifest.get("kind") != "sentence" or manifest.get("version") != VERSION:
        what = f"encoder manifest of kind {manifest.get('kind')!r}, version {manifest.get('version')}"
        raise DataError("data.bad-encoder", what, "use equal versions of potluck on all machines")
    for name, digest in _packed_files(manifest.get("files")).items():
        target = folder / name
        target.parent.mkdir(parents=True, exist_ok=True)
        source = blobs.path(digest)
        try:
            os.link(source, target)
        except OSError:
            shutil.copyfile(source, target)
    return folder


def _packed_files(files: object) -> dict[PurePosixPath, Digest]:
    """What a manifest lists, each path inside the folder and named once."""
    found: dict[PurePosixPath, Digest] = {}
    for entry in files if isinstance(files, list) else (None,):
        path, digest = (entry.get("path"), entry.get("digest")) if isinstance(entry, dict) else (None, None)
        if not isinstance(path, str) or not isinstance(digest, str) or not is_digest(digest):
            raise DataError("data.bad-encoder", "encoder manifest without a list of files", "pack the folder again")
        name = PurePosixPath(path)
        inside = not name.is_absolute() and ".." not in name.parts and "\0" not in path and len(path) <= MAX_PATH
        # One that is a file cannot be a folder too.
        clash = name in found or any(other in name.parents or name in other.parents for other in found)
        if not inside or clash or name.suffix not in PACKED_SUFFIXES or len(found) >= MAX_FILES:
            raise DataError("data.bad-encoder", f"encoder manifest names {path[:80]!r}", "pack the folder again")
        found[name] = Digest(digest)
    return found


def check_encoder_folder(folder: Path) -> None:
    """Raises:
    UsageError: ``usage.bad-encoder``, no sentence-transformers folder; the message names what is missing.
    """
    if not folder.is_dir():
        raise UsageError("usage.bad-encoder", f"{folder} is no folder", _FIX)
    missing = _missing(folder)
    if missing:
        raise UsageError("usage.bad-encoder", f"{folder} lacks {', '.join(missing)}", _FIX)


def _missing(folder: Path) -> list[str]:
    if not (folder / MODULES).is_file():
        return [MODULES]
    try:
        modules = [(str(m["type"]), str(m["path"])) for m in read_json((folder / MODULES).read_bytes())]
    except (ValueError, KeyError, TypeError):
        return [f"a list of modules in {MODULES}"]
    missing: list[str] = []
    for place, (kind, path) in enumerate(modules):
        inside = folder / path
        if not kind.startswith(OWN_MODULES):
            missing.append(f"a module of {OWN_MODULES[:-1]} in place of {kind}")
        elif not kind.endswith(MODULES_WITHOUT_FILES) and not (inside / "config.json").is_file():
            missing.append((PurePosixPath(path) / "config.json").as_posix())
        if place == 0 and not any(inside.glob("*.safetensors")):
            missing.append((PurePosixPath(path) / "model.safetensors").as_posix())
        if place == 0 and not any((inside / name).is_file() for name in TOKENIZER_FILES):
            missing.append((PurePosixPath(path) / "tokenizer.json").as_posix())
    return missing or ([] if modules else [f"a list of modules in {MODULES}"])
