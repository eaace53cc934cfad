"""Reads text as people keep it, one record at a time: plain text, JSON lines and tables, in files and folders.

Plain text and JSON lines may be compressed (`.gz`, `.zst`): they are read as the file without that ending would be.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

from potluck.errors import CorpusError
from sampling.records_compressed import open_text, plain_name
from sampling.records_errors import DOCUMENT_BYTES, not_utf8, too_long
from sampling.records_folders import JSONL_SUFFIXES, STATE
from sampling.records_tables import TABLE_SUFFIXES, read_rows

TEXT_NAMES = ("text", "content", "raw_content", "document", "body")
"""Keys of an object or columns of a table: the first that is there holds the text."""
OTHER_NAMES = ("id", "domain", "source", "group", "licence", "license")
DEFAULT_SOURCE = "all"
UNKNOWN_LICENCE = "unknown"
WHOLE_TEXT_BYTES = 64 * 1024 * 1024
"""A longer file of plain text is read as documents of `PART_BYTES`, or it would not fit in memory."""
PART_BYTES = 4 * 1024 * 1024
_PIECE = re.compile(r"#\d+$")
_PART_OF = re.compile(r"[-._]\d{5}-of-\d{5}$")
"""How the files of one split are numbered on Hugging Face."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Record:
    id: str
    text: str
    source: str
    """What the world calls a domain."""
    group: str
    """One original document: its pieces must not be split between train and test."""
    licence: str


def read_records(data: Path, files: list[Path], *, on_blank: Callable[[], None] = lambda: None) -> Iterator[Record]:
    """Every record with text in it, file by file, line by line, row by row.

    In JSON lines and tables, `domain` names the source if it is there, and then `source` without its `#k` names
    the group; else `source` names the source, or in a folder the file's name without endings and without
    `-00000-of-00005`, or the folder's name of a saved data set. Of plain text, the first folder level is the source
    and the file is the group.

    Args:
        data: the file or folder that was given.
        files: those of it that `records_folders.list_files` lists.
        on_blank: called for each record whose text is null or blank; it is left out.

    Raises:
        CorpusError: ``corpus.not-utf8``, ``corpus.not-json``, ``corpus.no-text-field``, ``corpus.damaged``,
            ``corpus.too-long``; file and place named.
        ResourceError: ``resource.missing-package``: tables and `.zst` need one.
    """
    in_folder = data.is_dir()
    for path in files:
        relative = plain_name(_utf8(path.relative_to(data).as_posix() if in_folder else path.name))
        default_source = _default_source(path, data) if in_folder else DEFAULT_SOURCE
        found: Iterator[Record | None]
        if path.suffix.lower() in TABLE_SUFFIXES:
            found = _table_records(path, relative, default_source)
        elif _is_json_lines(path.name):
            found = _json_records(path, relative, default_source)
        else:
            found = _text_records(path, relative)
        for record in found:
            if record is None:
                on_blank()
            else:
                yield record


def _utf8(name: str) -> str:
    """A file's name, for it names records."""
    try:
        name.encode()
    except UnicodeEncodeError:
        raise CorpusError("corpus.not-utf8", f"the file name {name!a} is not UTF-8", "rename the file") from None
    return name


def _default_source(path: Path, data: Path) -> str:
    if path.suffix.lower() == ".arrow" and path.with_name(STATE).is_file():
        return DEFAULT_SOURCE if path.parent == data else path.parent.name
    return _PART_OF.sub("", Path(plain_name(path.name)).stem)


def _is_json_lines(name: str) -> bool:
    """A compressed `.json` is a piece of a large corpus, such as C4 or Dolma, and holds JSON lines too."""
    plain = plain_name(name)
    suffix = Path(plain).suffix.lower()
    return suffix in JSONL_SUFFIXES or (suffix == ".json" and plain != name)


def _text_records(path: Path, relative: str) -> Iterator[Record]:
    first, _, rest = relative.partition("/")
    source = first if rest else DEFAULT_SOURCE
    with open_text(path) as file:
        for number, text in enumerate(_parts(file, path)):
            identifier = f"{relative}:{number}" if number else relative
            if text.strip():
                yield Record(id=identifier, text=text, source=source, group=relative, licence=UNKNOWN_LICENCE)


def _parts(file: BinaryIO, path: Path) -> Iterator[str]:
    """A whole text, or parts of a long one that end with a line if they can."""
    data = file.read(WHOLE_TEXT_BYTES + 1)
    if len(data) <= WHOLE_TEXT_BYTES:
        yield _decode(data, path, 0, 1).removeprefix("\ufeff")
        return
    pending = bytearray(data)
    offset, line = 0, 1
    while pending:
        end = _end_of_part(pending)
        data = bytes(pending[:end])
        del pending[:end]
        text = _decode(data, path, offset, line)
        yield text if offset else text.removeprefix("\ufeff")
        offset += end
        line += data.count(b"\n")
        if len(pending) <= PART_BYTES:
            pending += file.read(PART_BYTES)


def _end_of_part(pending: bytearray) -> int:
    if len(pending) <= PART_BYTES:
        return len(pending)
    newline = pending.rfind(b"\n", PART_BYTES // 2, PART_BYTES)
    if newline >= 0:
        return newline + 1
    starts = (end for end in range(PART_BYTES, PART_BYTES - 4, -1) if pending[end] & 0xC0 != 0x80)
    return next(starts, PART_BYTES)


def _json_records(path: Path, relative: str, default_source: str) -> Iterator[Record | None]:
    with open_text(path) as file:
        offset = number = 0
        while line := file.readline(DOCUMENT_BYTES + 1):
            number += 1
            place = f"line {number}"
            if len(line) > DOCUMENT_BYTES:
                raise too_long(path, place)
            text_line = _decode(line, path, offset, number).removeprefix("\ufeff")
            offset += len(line)
            if text_line.strip():
                yield _to_record(_parse(text_line, path, place), path, place, f"{relative}:{number}", default_source)


def _table_records(path: Path, relative: str, default_source: str) -> Iterator[Record | None]:
    for number, row in enumerate(read_rows(path, TEXT_NAMES, OTHER_NAMES), 1):
        yield _to_record(row, path, f"row {number}", f"{relative}:{number}", default_source)


def _parse(line: str, path: Path, place: str) -> dict[str, Any]:
    fix = "each line of a .jsonl file is one JSON object"
    try:
        value = json.loads(line)
    except (ValueError, RecursionError) as error:
        raise CorpusError("corpus.not-json", f"{path}, {place}: {error}", fix) from None
    if not isinstance(value, dict):
        raise CorpusError("corpus.not-json", f"{path}, {place}: {type(value).__name__}, not an object", fix)
    return value


def _to_record(raw: dict[str, Any], path: Path, place: str, default_id: str, default_source: str) -> Record | None:
    text = _text_of(raw, path, place)
    if not text.strip():
        return None
    identifier = _name(raw.get("id")) or default_id
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
        "\n".join((record.id, record.source, record.group, record.licence)).encode()
        size = len(text.encode())
    except UnicodeEncodeError as error:
        what = f"{path}, {place}: a lone surrogate at character {error.start} is no text"
        raise CorpusError("corpus.not-utf8", what, "write the character itself instead of \\udXXX") from None
    if size > DOCUMENT_BYTES:
        raise too_long(path, place)
    return record


def _text_of(raw: dict[str, Any], path: Path, place: str) -> str:
    text_name = next((name for name in TEXT_NAMES if name in raw), "text")
    if text_name not in raw or not isinstance(raw[text_name], str | None):
        has = ", ".join(sorted(raw)) or "nothing"
        what = f"{path}, {place}: no string `{text_name}` (the object has: {has})"
        raise CorpusError("corpus.no-text-field", what, 'write {"text": "..."} on every line')
    return raw[text_name] or ""


def _name(value: object) -> str:
    return "" if value is None or isinstance(value, dict | list) else str(value)


def _decode(data: bytes, path: Path, offset: int, line: int) -> str:
    """Text of bytes that lie at an offset of a file, in a line."""
    try:
        return data.decode("utf-8")
    except UnicodeDecodeError as error:
        raise not_utf8(path, f"line {line + data.count(10, 0, error.start)}", error, offset) from None
