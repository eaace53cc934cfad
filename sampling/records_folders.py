"""Which files of a folder hold text, and which describe it: plain text, JSON lines, tables, saved data sets."""

from __future__ import annotations

import json
from pathlib import Path

from potluck.errors import CorpusError
from sampling.records_compressed import COMPRESSED_SUFFIXES, begins_like_parquet, is_binary, true_suffix
from sampling.records_errors import damaged
from sampling.records_tables import TABLE_SUFFIXES

JSONL_SUFFIXES = {".jsonl", ".ndjson"}
TEXT_SUFFIXES = {".txt", ".md"}
STATE, INFO = "state.json", "dataset_info.json"
"""In a folder that `Dataset.save_to_disk` wrote; the first lists its Arrow files."""
DESCRIPTIONS = {"readme.md", "dataset_infos.json", "dataset_dict.json", INFO, STATE}
"""Beside or above tables these describe them."""
MAX_NAMED = 5
"""Files named in a message."""


def list_files(data: Path) -> tuple[list[Path], list[Path]]:
    """Files of text to read, sorted by relative path, and files passed over as not text.

    Hidden files and folders are ignored, and where there are tables, what describes them and what the library
    `datasets` keeps beside them.

    Raises:
        CorpusError: ``corpus.missing``, ``corpus.empty``, ``corpus.wrong-ending``; ``corpus.damaged``: a saved data set
            lacks a file.
    """
    if not data.exists():
        raise CorpusError("corpus.missing", f"no file or folder at {data}", "check the path of `data`")
    if data.is_file():
        _require_ending(data)
        return [data], []
    found = [p for p in data.rglob("*") if p.is_file() and not _is_hidden(p.relative_to(data))]
    found.sort(key=lambda p: p.relative_to(data).as_posix())
    described = {folder for path in found if path.suffix.lower() in TABLE_SUFFIXES for folder in path.parents}
    saved = {path.parent: _saved_files(path) for path in found if path.name == INFO and (path.parent / STATE).is_file()}
    kept: list[Path] = []
    passed_over: list[Path] = []
    for path in found:
        if (path.parent in described and path.name.lower() in DESCRIPTIONS) or _is_left_over(path, saved):
            continue
        if _holds_text(path):
            _require_ending(path)
            kept.append(path)
        else:
            passed_over.append(path)
    if not kept:
        what = f"no text file in {data}{_why_passed_over(data, passed_over)}"
        raise CorpusError("corpus.empty", what, "put .txt, .md, source, .jsonl or .parquet files there, text in UTF-8")
    return kept, passed_over


def _saved_files(info: Path) -> set[str]:
    """Names of the Arrow files of a saved data set."""
    state = info.with_name(STATE)
    try:
        names = {str(file["filename"]) for file in json.loads(state.read_bytes())["_data_files"]}
    except (ValueError, KeyError, TypeError, RecursionError) as error:
        raise damaged(state, "`_data_files`", f"no list of files ({type(error).__name__})") from None
    absent = sorted(name for name in names if not (state.parent / name).is_file())
    if absent:
        raise damaged(state, "`_data_files`", f"{', '.join(absent[:MAX_NAMED])} is missing")
    return names


def _is_left_over(path: Path, saved: dict[Path, set[str]]) -> bool:
    """Caches and indices that `datasets` leaves beside the data."""
    if path.suffix.lower() != ".arrow":
        return False
    return path.name not in saved[path.parent] if path.parent in saved else path.name.startswith("cache-")


def _holds_text(path: Path) -> bool:
    suffix = path.suffix.lower()
    if suffix in TABLE_SUFFIXES:
        return True
    if is_binary(path):
        return suffix in JSONL_SUFFIXES | TEXT_SUFFIXES and bool(
            true_suffix(path)
        )  # refused by its ending, not ignored
    return True


def _require_ending(path: Path) -> None:
    suffix, told = path.suffix.lower(), true_suffix(path)
    if told and told != suffix:
        takes_its_place = told in TABLE_SUFFIXES or suffix in COMPRESSED_SUFFIXES | TABLE_SUFFIXES
        what = f"{path} begins like a {told} file"
        fix = f"name it {path.stem if takes_its_place else path.name}{told}, or leave it out"
        raise CorpusError("corpus.wrong-ending", what, fix)
    if told or suffix not in COMPRESSED_SUFFIXES | {".parquet"}:
        return
    if begins_like_parquet(path) or not path.stat().st_size:
        raise damaged(path, "its end", "it is cut off, the rest is missing")
    raise CorpusError(
        "corpus.wrong-ending",
        f"{path} does not begin like a {suffix} file",
        "name it after what it is, or leave it out",
    )


def _is_hidden(relative: Path) -> bool:
    return any(part.startswith(".") for part in relative.parts)


def _why_passed_over(data: Path, passed_over: list[Path]) -> str:
    if not passed_over:
        return ""
    names = ", ".join(path.relative_to(data).as_posix() for path in passed_over[:MAX_NAMED])
    more = f" and {len(passed_over) - MAX_NAMED} more" if len(passed_over) > MAX_NAMED else ""
    return f"; passed over as not text (a zero byte near the start): {names}{more}"
