"""What a person is told of a file that cannot be read: errors that all readers of text share."""

from __future__ import annotations

from pathlib import Path

from potluck.errors import CorpusError, ResourceError

DOCUMENT_BYTES = 64 * 1024 * 1024
"""One line of JSON or one cell of a table may be so long. It is held in memory several times."""


def damaged(path: Path, place: str, why: str) -> CorpusError:
    return CorpusError("corpus.damaged", f"{path}, {place}: {why}", "fetch the file again, or leave it out")


def too_long(path: Path, place: str) -> CorpusError:
    what = f"{path}, {place}: a document of more than {DOCUMENT_BYTES:,} bytes"
    return CorpusError("corpus.too-long", what, "cut it into several documents with the same `group`")


def not_utf8(path: Path, place: str, error: UnicodeDecodeError, offset: int = 0) -> CorpusError:
    byte = f"byte {error.object[error.start]:#04x} at offset {offset + error.start}"
    fix = f"convert it: iconv -f latin1 -t utf-8 {path.name}"
    return CorpusError("corpus.not-utf8", f"{path}, {place}: {byte} is not UTF-8", fix)


def missing_package(path: Path, extra: str, error: ImportError) -> ResourceError:
    return ResourceError(
        "resource.missing-package", f"{path} needs a package: {error}", f"pip install 'potluck[{extra}]'"
    )
