"""Rows of Parquet and Arrow files, a batch at a time; the only place that knows pyarrow.

Parquet is read in batches of a few MiB, whatever its row groups. Arrow files, streams (as Hugging Face `datasets` saves
and caches them) or with a footer, are read batch by batch as they were written.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from potluck.errors import CorpusError
from sampling.records_errors import DOCUMENT_BYTES, damaged, missing_package, not_utf8, too_long

TABLE_SUFFIXES = {".parquet", ".arrow"}
BATCH_BYTES = 4 * 1024 * 1024
"""In a batch of Parquet rows, by the mean length that the file tells."""
MAX_BATCH_ROWS = 1024
BUFFER_BYTES = 1024 * 1024
NAMED_COLUMNS = 20
"""Columns named in a message."""


def read_rows(path: Path, text_names: Sequence[str], other_names: Sequence[str]) -> Iterator[dict[str, Any]]:
    """Rows in the file's order: the first of `text_names` that is there, and each of `other_names` that is plain.

    Plain are strings, numbers and truth values; columns of other types are left out.

    Raises:
        CorpusError: ``corpus.no-text-field``, ``corpus.damaged``, ``corpus.not-utf8``, ``corpus.too-long``.
        ResourceError: ``resource.missing-package``.
    """
    try:
        import pyarrow as pa
        import pyarrow.parquet  # a build without it is told of here, not later
    except ImportError as error:
        raise missing_package(path, "parquet", error) from error
    batches = _parquet if path.suffix.lower() == ".parquet" else _arrow
    row = 0
    try:
        for batch in batches(path, text_names, other_names):
            columns = list(zip(batch.schema.names, batch.columns, strict=True))
            for place in range(batch.num_rows):
                row += 1
                yield {name: _value(column[place], path, row) for name, column in columns}
    except (pa.ArrowException, EOFError, KeyError, TypeError, ValueError, MemoryError, OSError) as error:
        if isinstance(error, CorpusError) or (isinstance(error, OSError) and error.errno is not None):
            raise
        why = " ".join(str(error).split()) or type(error).__name__
        raise damaged(path, f"after row {row}", why) from error


def _value(scalar: Any, path: Path, row: int) -> Any:
    try:
        return scalar.as_py()
    except UnicodeDecodeError as error:
        raise not_utf8(path, f"row {row}", error) from None


def _parquet(path: Path, text_names: Sequence[str], other_names: Sequence[str]) -> Iterator[Any]:
    import pyarrow.parquet as pq

    with pq.ParquetFile(path, pre_buffer=False, buffer_size=BUFFER_BYTES) as file:
        names = _columns(path, file.schema_arrow, text_names, other_names)
        rows = _rows_a_batch(path, file.metadata)
        yield from file.iter_batches(batch_size=rows, columns=names, use_threads=False)


def _rows_a_batch(path: Path, metadata: Any) -> int:
    """So many rows that all their columns hold about `BATCH_BYTES`.

    What is told of a single column is left alone: of a damaged file, pyarrow 26 ends the process there.

    Raises:
        CorpusError: ``corpus.too-long``: the rows of a group are longer than documents may be.
    """
    longest = 1
    before = 0
    for number in range(metadata.num_row_groups):
        group = metadata.row_group(number)
        rows = max(1, group.num_rows)
        if group.total_byte_size > (rows + 1) * DOCUMENT_BYTES:  # one more, for lengths and dictionaries
            raise too_long(path, f"one of the rows {before + 1} to {before + rows}")
        longest = max(longest, group.total_byte_size // rows)
        before += rows
    return max(1, min(MAX_BATCH_ROWS, BATCH_BYTES // longest))


def _arrow(path: Path, text_names: Sequence[str], other_names: Sequence[str]) -> Iterator[Any]:
    """Checked in full: pyarrow trusts the offsets inside a batch."""
    import pyarrow as pa

    with pa.OSFile(str(path), "rb") as file:
        has_footer = file.read(6) == b"ARROW1"
        file.seek(0)
        opened = pa.ipc.open_file if has_footer else pa.ipc.open_stream
        names = _columns(path, opened(file).schema, text_names, other_names)
        file.seek(0)
        with opened(file) as reader:
            for batch in _footed(reader) if has_footer else _streamed(reader, file):
                chosen = batch.select(names)
                chosen.validate(full=True)
                yield chosen


def _footed(reader: Any) -> Iterator[Any]:
    for number in range(reader.num_record_batches):
        yield reader.get_batch(number)


def _streamed(reader: Any, file: Any) -> Iterator[Any]:
    """A stream cut off between two batches reads like a whole one, but for the mark at its end."""
    end = file.tell()
    for batch in reader:
        end = file.tell()
        yield batch
    if file.size() == end:
        raise EOFError("it is cut off, the mark of its end is missing")


def _columns(path: Path, schema: Any, text_names: Sequence[str], other_names: Sequence[str]) -> list[str]:
    """The text's column first, then the others that are there and plain."""
    import pyarrow as pa

    types = dict(zip(schema.names, schema.types, strict=True))
    text_name = next((name for name in text_names if name in types), None)
    wanted = " or ".join(f"`{name}`" for name in text_names)
    if text_name is None or not (_is_string(types[text_name]) or pa.types.is_null(types[text_name])):
        listed = ", ".join(f"{name}: {kind}" for name, kind in list(types.items())[:NAMED_COLUMNS])
        more = ", ..." if len(types) > NAMED_COLUMNS else ""
        what = f"{path}: no column of strings named {wanted} (the columns are: {listed or 'none'}{more})"
        raise CorpusError(
            "corpus.no-text-field", what, "call the text's column `text` and make it a string, or leave the file out"
        )
    return [
        text_name,
        *(name for name in other_names if name in types and name != text_name and _is_plain(types[name])),
    ]


def _is_string(kind: Any) -> bool:
    import pyarrow as pa

    value = kind.value_type if pa.types.is_dictionary(kind) else kind
    return bool(pa.types.is_string(value) or pa.types.is_large_string(value) or pa.types.is_string_view(value))


def _is_plain(kind: Any) -> bool:
    import pyarrow as pa

    numbers = (pa.types.is_integer, pa.types.is_floating, pa.types.is_boolean)
    return _is_string(kind) or any(is_number(kind) for is_number in numbers)
