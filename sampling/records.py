"""Reads text as people keep it: a folder or a file of JSON lines or plain text, one record at a time."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from potluck.errors import CorpusError

JSONL_SUFFIXES = {".jsonl", ".ndjson"}
BINARY_PROBE_BYTES = 8192
"""A file with a NUL this early is not text; in a folder it is passed over, named alone it is refused."""
DEFAULT_SOURCE = "all"
UNKNOWN_LICENCE = "unknown"
_PIECE = re.compile(r"#\d+$")


@dataclass(frozen=True, kw_only=True, slots=True)
class Record:
    id: str
    text: str
    source: str
    """What the world calls a domain."""
    group: str
    """One original document: its pieces must not be split between train and test."""
    licence: str


MAX_NAMED = 5
"""Files named in a message."""


def list_files(data: Path) -> tuple[list[Path], list[Path]]:
    """Text files to read, sorted by relative path, and files passed over as not text.

    Hidden files and folders are ignored.

    Raises:
        CorpusError: ``corpus.missing`` or ``corpus.empty``.
    """
    if not data.exists():
        raise CorpusError("corpus.missing", f"no file or folder at {data}", "check the path of `data`")
    if data.is_file():
        return [data], []
    found = [p for p in data.rglob("*") if p.is_file() and not _is_hidden(p.relative_to(data))]
    found.sort(key=lambda p: p.relative_to(data).as_posix())
    kept: list[Path] = []
    passed_over: list[Path] = []
    for path in found:
        (passed_over if _is_binary(path) else kept).append(path)
    if not kept:
        what = f"no text file in {data}{_why_passed_over(data, passed_over)}"
        raise CorpusError("corpus.empty", what, "put .txt, .md, source or .jsonl files in UTF-8 there")
    return kept, passed_over


def read_records(data: Path, files: list[Path]) -> Iterator[Record]:
    """Every record with text in it, file by file, line by line.

    In JSON lines, `domain` names the source if it is there, and then `source` without its `#k` names
    the group; else `source` names the source, or the file's stem in a folder. Of plain text, the
    first folder level is the source and the file is the group.

    Raises:
        CorpusError: ``corpus.not-utf8``, ``corpus.not-json``, ``corpus.no-text-field``; file and place named.
    """
    in_folder = data.is_dir()
    for path in files:
        relative = path.relative_to(data).as_posix() if in_folder else path.name
        if path.suffix.lower() in JSONL_SUFFIXES:
            yield from _json_records(path, relative, path.stem if in_folder else DEFAULT_SOURCE)
        else:
            text = _decode(path.read_bytes(), path, 0).removeprefix("\ufeff")
            first, _, rest = relative.partition("/")
            source = first if rest else DEFAULT_SOURCE
            if text.strip():
                yield Record(id=relative, text=text, source=source, group=relative, licence=UNKNOWN_LICENCE)


def _json_records(path: Path, relative: str, default_source: str) -> Iterator[Record]:
    with path.open("rb") as lines:
        offset = 0
        for number, line in enumerate(lines, 1):
            text_line = _decode(line, path, offset, number).removeprefix("\ufeff")
            offset += len(line)
            if text_line.strip():
                record = _to_record(_parse(text_line, path, number), path, number, relative, default_source)
                if record is not None:
                    yield record


def _parse(line: str, path: Path, number: int) -> dict[str, Any]:
    fix = "each line of a .jsonl file is one JSON object"
    try:
        value = json.loads(line)
    except (json.JSONDecodeError, RecursionError) as error:
        raise CorpusError("corpus.not-json", f"{path}, line {number}: {error}", fix) from None
    if not isinstance(value, dict):
        raise CorpusError("corpus.not-json", f"{path}, line {number}: {type(value).__name__}, not an object", fix)
    return value


def _to_record(raw: dict[str, Any], path: Path, number: int, relative: str, default_source: str) -> Record | None:
    text = raw.get("text")
    if not isinstance(text, str):
        has = ", ".join(sorted(raw)) or "nothing"
        what = f"{path}, line {number}: no string `text` (the object has: {has})"
        raise CorpusError("corpus.no-text-field", what, 'write {"text": "..."} on every line')
    if not text.strip():
        return None
    identifier = _name(raw.get("id")) or f"{relative}:{number}"
    domain, source, group = (_name(raw.get(key)) for key in ("domain", "source", "group"))
    if domain:
        group = group or _PIECE.sub("", source)
        source = domain
    record = Record(
        id=identifier,
        text=text,
        source=source or default_source,
        group=group or _PIECE.sub("", identifier),
        licence=_name(raw.get("licence")) or _name(raw.get("license")) or UNKNOWN_LICENCE,
    )
    try:
        "\n".join((record.id, record.text, record.source, record.group, record.licence)).encode()
    except UnicodeEncodeError as error:
        what = f"{path}, line {number}: a lone surrogate at character {error.start} is no text"
        raise CorpusError("corpus.not-utf8", what, "write the character itself instead of \\udXXX") from None
    return record


def _name(value: object) -> str:
    return "" if value is None or isinstance(value, dict | list) else str(value)


def _decode(data: bytes, path: Path, offset: int, line: int = 0) -> str:
    try:
        return data.decode("utf-8")
    except UnicodeDecodeError as error:
        at = line or data.count(b"\n", 0, error.start) + 1
        what = f"{path}, line {at}: byte {data[error.start]:#04x} at offset {offset + error.start} is not UTF-8"
        fix = f"convert it: iconv -f latin1 -t utf-8 {path.name}"
        raise CorpusError("corpus.not-utf8", what, fix) from None


def _is_hidden(relative: Path) -> bool:
    return any(part.startswith(".") for part in relative.parts)


def _why_passed_over(data: Path, passed_over: list[Path]) -> str:
    if not passed_over:
        return ""
    names = ", ".join(path.relative_to(data).as_posix() for path in passed_over[:MAX_NAMED])
    more = f" and {len(passed_over) - MAX_NAMED} more" if len(passed_over) > MAX_NAMED else ""
    return f"; passed over as not text (a zero byte near the start): {names}{more}"


def _is_binary(path: Path) -> bool:
    with path.open("rb") as file:
        return b"\0" in file.read(BINARY_PROBE_BYTES)
