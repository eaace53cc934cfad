"""Text comes in as people have it: compressed, as Parquet, as saved data sets; or is refused with its place."""

from __future__ import annotations

import gzip
import io
import json
import shutil
import sys
import tracemalloc
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import zstandard

from potluck.errors import CorpusError, ResourceError
from sampling import records
from sampling.estimate import estimate
from sampling.ingest import ingest
from sampling.records import Record, read_records
from sampling.records_folders import list_files

SAVED = Path(__file__).parents[1] / "golden" / "saved_datasets"
"""What `datasets` 5.2.0 wrote for `DatasetDict.save_to_disk`: `train` in two files after a filter, and `test`."""
ROWS: list[dict[str, Any]] = [
    {"id": f"d{i}", "text": f"Größe {i} " * 40, "source": f"s{i % 2}", "group": f"g{i // 3}", "licence": "CC0", "n": i}
    for i in range(600)
]


def lines(rows: list[dict[str, Any]]) -> bytes:
    return "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows).encode()


def zstd(data: bytes) -> bytes:
    return zstandard.ZstdCompressor().compress(data)


def parquet(rows: list[dict[str, Any]] | pa.Table, **options: Any) -> bytes:
    file = io.BytesIO()
    pq.write_table(rows if isinstance(rows, pa.Table) else pa.Table.from_pylist(rows), file, **options)
    return file.getvalue()


def arrow(rows: list[dict[str, Any]], *, footer: bool = False) -> bytes:
    file, table = io.BytesIO(), pa.Table.from_pylist(rows)
    with (pa.ipc.new_file if footer else pa.ipc.new_stream)(file, table.schema) as writer:
        writer.write_table(table, max_chunksize=100)
    return file.getvalue()


def save_dataset(folder: Path, parts: list[bytes]) -> None:
    """As `Dataset.save_to_disk` does."""
    folder.mkdir(parents=True)
    names = [f"data-{number:05d}-of-{len(parts):05d}.arrow" for number in range(len(parts))]
    for name, data in zip(names, parts, strict=True):
        (folder / name).write_bytes(data)
    (folder / "state.json").write_text(json.dumps({"_data_files": [{"filename": name} for name in names]}))
    (folder / "dataset_info.json").write_text("{}")


def saved(folder: Path, data: bytes, name: str) -> Path:
    (folder / name).write_bytes(data)
    return folder / name


def as_dataset(folder: Path) -> Path:
    save_dataset(folder / "saved", [arrow(ROWS[:250]), arrow(ROWS[250:])])
    return folder / "saved"


FORMS: dict[str, Callable[[Path], Path]] = {
    "jsonl": lambda folder: saved(folder, lines(ROWS), "in.jsonl"),
    "jsonl.gz": lambda folder: saved(folder, gzip.compress(lines(ROWS)), "in.jsonl.gz"),
    "gz of two members": lambda folder: saved(
        folder, gzip.compress(lines(ROWS[:9])) + gzip.compress(lines(ROWS[9:])), "in.jsonl.gz"
    ),
    "json.gz": lambda folder: saved(folder, gzip.compress(lines(ROWS)), "c4-train.00000-of-01024.json.gz"),
    "jsonl.zst": lambda folder: saved(folder, zstd(lines(ROWS)), "in.jsonl.zst"),
    "zst of two frames": lambda folder: saved(folder, zstd(lines(ROWS[:9])) + zstd(lines(ROWS[9:])), "IN.NDJSON.ZST"),
    "parquet": lambda folder: saved(folder, parquet(ROWS, row_group_size=100), "in.parquet"),
    "arrow stream": lambda folder: saved(folder, arrow(ROWS), "in.arrow"),
    "arrow file": lambda folder: saved(folder, arrow(ROWS, footer=True), "in.arrow"),
    "saved data set": as_dataset,
}


@pytest.mark.parametrize("form", FORMS)
def test_equal_records_give_an_equal_corpus_in_every_form(form: str, tmp_path: Path) -> None:
    plain = saved(tmp_path, lines(ROWS), "plain.jsonl")
    expected = ingest(plain, tmp_path / "expected")
    assert ingest(FORMS[form](tmp_path), tmp_path / "out").digest == expected.digest


@pytest.mark.parametrize("press", [gzip.compress, zstd])
def test_compressed_files_are_read_as_if_they_were_not(press: Callable[[bytes], bytes], tmp_path: Path) -> None:
    files = {"a/one.txt": b"one " * 9000, "a/two.md": b"two " * 9000, "b.jsonl": lines([{"text": "t" * 2000}] * 3)}
    for name, data in files.items():
        for folder, suffix, content in (
            ("plain", "", data),
            ("packed", ".gz" if press is gzip.compress else ".zst", press(data)),
        ):
            path = tmp_path / folder / (name + suffix)
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(content)
    (tmp_path / "packed" / "code.tar.gz").write_bytes(gzip.compress(b"ustar\0\0"))
    first = ingest(tmp_path / "plain", tmp_path / "first")
    second = ingest(tmp_path / "packed", tmp_path / "second")
    assert second.digest == first.digest
    assert any("1 files that are not text, code.tar.gz" in note for note in second.notes)


def read(data: Path) -> list[Record]:
    return list(read_records(data, list_files(data)[0]))


def test_a_data_set_that_the_library_saved_is_read_split_by_split_in_its_order() -> None:
    found = read(SAVED)
    assert [record.id for record in found] == ["d7", "d8", "d0", "d2", "d3", "d4", "d5", "d6"]
    assert found[0] == Record(id="d7", text="text 7", source="s", group="g3", licence="CC0")
    assert [record.id for record in read(SAVED / "train")] == ["d0", "d2", "d3", "d4", "d5", "d6"]


def test_a_saved_data_set_without_names_takes_its_folder_as_source_and_ignores_caches(tmp_path: Path) -> None:
    for split in ("train", "test"):
        save_dataset(tmp_path / "in" / split, [arrow([{"text": split}])])
    (tmp_path / "in" / "dataset_dict.json").write_text('{"splits": ["train", "test"]}')
    (tmp_path / "in" / "train" / "cache-0123.arrow").write_bytes(arrow([{"text": "cached"}]))
    (tmp_path / "in" / "train" / "indices.arrow").write_bytes(arrow([{"indices": 0}]))
    assert [(r.text, r.source, r.id) for r in read(tmp_path / "in")] == [
        ("test", "test", "test/data-00000-of-00001.arrow:1"),
        ("train", "train", "train/data-00000-of-00001.arrow:1"),
    ]
    assert [r.source for r in read(tmp_path / "in" / "train")] == ["all"]


def test_splits_that_are_read_together_are_told_of(tmp_path: Path) -> None:
    rows = [{"text": row["text"]} for row in ROWS]
    for split, part in (("train", rows[:400]), ("validation", rows[400:])):
        save_dataset(tmp_path / "in" / split, [arrow(part)])
    assert any("drawn anew" in note for note in ingest(tmp_path / "in", tmp_path / "out").notes)
    assert not any("drawn anew" in note for note in ingest(tmp_path / "in" / "train", tmp_path / "out").notes)


def test_a_snapshot_from_the_hub_gives_its_rows_and_not_its_card(tmp_path: Path) -> None:
    (tmp_path / "data").mkdir()
    for number in range(3):
        rows = [{"text": f"{number} {row}"} for row in range(3)]
        (tmp_path / "data" / f"train-0000{number}-of-00003.parquet").write_bytes(parquet(rows))
    (tmp_path / "README.md").write_text("---\ndataset_info: {}\n---\n")
    (tmp_path / "dataset_infos.json").write_text("{}")
    found = read(tmp_path)
    assert [record.text for record in found] == [f"{number} {row}" for number in range(3) for row in range(3)]
    assert {record.source for record in found} == {"train"}
    assert found[4].group == found[4].id == "data/train-00001-of-00003.parquet:2"


def test_a_readme_without_tables_is_text(tmp_path: Path) -> None:
    (tmp_path / "README.md").write_text("about")
    assert [record.text for record in read(tmp_path)] == ["about"]


@pytest.mark.parametrize("form", ["jsonl", "parquet"])
def test_the_first_known_name_holds_the_text_and_the_others_name_the_record(form: str, tmp_path: Path) -> None:
    rows = [{"body": "no", "content": "yes", "id": 7, "domain": "law", "source": "book#3", "license": "MIT"}]
    path = saved(tmp_path, lines(rows) if form == "jsonl" else parquet(rows), f"in.{form}")
    assert read(path) == [Record(id="7", text="yes", source="law", group="book", licence="MIT")]


@pytest.mark.parametrize("kind", [pa.large_string(), pa.string_view(), pa.dictionary(pa.int8(), pa.string())])
def test_strings_of_every_kind_are_text(kind: pa.DataType, tmp_path: Path) -> None:
    text = pa.array(["one", None, "two"]).cast(kind)
    table = pa.table({"text": text, "source": pa.array([["nested"]] * 3), "id": [1, 2, 3]})
    assert [(r.id, r.text, r.source) for r in read(saved(tmp_path, parquet(table), "t.parquet"))] == [
        ("1", "one", "all"),
        ("3", "two", "all"),
    ]


@pytest.mark.parametrize("form", ["jsonl", "parquet"])
def test_records_without_text_are_left_out_and_counted(form: str, tmp_path: Path) -> None:
    rows = [*ROWS, {"id": "null", "text": None}, {"id": "blank", "text": " \n"}]
    path = saved(tmp_path, lines(rows) if form == "jsonl" else parquet(rows), f"in.{form}")
    done = ingest(path, tmp_path / "out")
    assert done.manifest["documents"] == len(ROWS)
    assert "left out 2 records with no text in them" in done.notes


def test_a_long_text_is_read_in_parts_of_one_group(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(records, "WHOLE_TEXT_BYTES", 1000)
    monkeypatch.setattr(records, "PART_BYTES", 100)
    text = "\ufeff" + "line of words\n" * 40 + "ä𝄞" * 200
    found = read(saved(tmp_path, gzip.compress(text.encode()), "book.txt.gz"))
    assert "".join(record.text for record in found) == text.removeprefix("\ufeff")
    assert [record.id for record in found[:3]] == ["book.txt", "book.txt:1", "book.txt:2"]
    assert {record.group for record in found} == {"book.txt"}
    assert max(len(record.text.encode()) for record in found) <= 100
    assert found[2].text.endswith("\n")


def test_a_byte_that_is_no_text_has_its_line_and_offset_in_a_later_part(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(records, "WHOLE_TEXT_BYTES", 1000)
    monkeypatch.setattr(records, "PART_BYTES", 100)
    path = saved(tmp_path, b"0123456789ABCDE\n" * 100 + b"\xff" * 300, "book.txt")
    with pytest.raises(CorpusError, match="line 101: byte 0xff at offset 1600 is not UTF-8"):
        read(path)


GOOD = lines(ROWS[:50])
DAMAGED: list[tuple[str, str, bytes, str]] = [
    ("corpus.damaged", "a.jsonl.gz", gzip.compress(GOOD)[:-3], r"after 2\d,\d{3} bytes of its text: it is cut off"),
    ("corpus.damaged", "a.jsonl.gz", gzip.compress(GOOD)[:-8] + b"\0" * 8, "CRC"),
    ("corpus.damaged", "a.jsonl.gz", b"", "a.jsonl.gz, its end: it is cut off"),
    ("corpus.damaged", "a.jsonl.zst", zstd(GOOD)[:-3], "a.jsonl.zst, after .* bytes of its text: it is cut off"),
    ("corpus.damaged", "a.txt.zst", zstd(GOOD) + b"more", "after .* bytes of its text: zstd"),
    ("corpus.damaged", "a.parquet", parquet(ROWS)[:-1], "a.parquet, its end: it is cut off"),
    ("corpus.damaged", "a.parquet", b"PAR1" + parquet(ROWS)[90:], "a.parquet, after row"),
    ("corpus.damaged", "a.arrow", arrow(ROWS)[:-8], "a.arrow, after row 600: it is cut off"),
    ("corpus.damaged", "a.arrow", arrow(ROWS)[:-200], "a.arrow, after row 500: Expected"),
    ("corpus.damaged", "a.arrow", b"plain text", "a.arrow, after row 0"),
    ("corpus.wrong-ending", "a.jsonl", gzip.compress(GOOD), "a.jsonl begins like a .gz file"),
    ("corpus.wrong-ending", "a.jsonl.gz", zstd(GOOD), "begins like a .zst file"),
    ("corpus.wrong-ending", "a.txt", parquet(ROWS), "a.txt begins like a .parquet file"),
    ("corpus.wrong-ending", "a.parquet", arrow(ROWS, footer=True), "a.parquet begins like a .arrow file"),
    ("corpus.wrong-ending", "a.parquet", GOOD, "a.parquet does not begin like a .parquet file"),
    ("corpus.wrong-ending", "a.txt.gz", b"plain", "a.txt.gz does not begin like a .gz file"),
    ("corpus.not-json", "a.jsonl.gz", gzip.compress(GOOD + b"{oops}\n"), "a.jsonl.gz, line 51"),
    ("corpus.no-text-field", "a.parquet", parquet([{"title": "a", "n": 1}]), "`text` or .*title: string, n: int64"),
    ("corpus.no-text-field", "a.parquet", parquet([{"text": ["a"]}]), "text: list"),
    ("corpus.no-text-field", "a.parquet", parquet([{"text": b"bytes", "content": "c"}]), "text: binary"),
    ("corpus.no-text-field", "a.arrow", arrow([{"text": 3}]), "a.arrow: no column of strings .*text: int64"),
    ("corpus.empty", "a.parquet", parquet(pa.table({"text": pa.array([], pa.string())})), "no text in"),
    ("corpus.empty", "a.parquet", parquet(pa.table({"text": pa.array([None, None])})), "no text in"),
]  # fmt: skip


@pytest.mark.parametrize("where", ["alone", "in a folder"])
@pytest.mark.parametrize(("error_id", "name", "data", "said"), DAMAGED, ids=[f"{d[0]}-{d[1]}" for d in DAMAGED])
def test_what_cannot_be_read_is_named_with_its_place(
    error_id: str, name: str, data: bytes, said: str, where: str, tmp_path: Path
) -> None:
    (tmp_path / "in").mkdir()
    path = saved(tmp_path / "in", data, name)
    with pytest.raises(CorpusError, match=said) as caught:
        ingest(path if where == "alone" else tmp_path / "in", tmp_path / "out")
    assert caught.value.error_id == error_id
    assert caught.value.fix
    assert not (tmp_path / "out").exists()


def test_bytes_that_are_no_text_in_a_table_are_named_by_their_row(tmp_path: Path) -> None:
    broken = pa.StringArray.from_buffers(2, pa.array([b"ok", b"n\xff"]).buffers()[1], pa.py_buffer(b"okn\xff"))
    with pytest.raises(CorpusError, match=r"t\.parquet, row 2: byte 0xff at offset 1 is not UTF-8"):
        read(saved(tmp_path, parquet(pa.table({"text": broken})), "t.parquet"))


def test_a_saved_data_set_that_lacks_a_file_is_refused(tmp_path: Path) -> None:
    shutil.copytree(SAVED, tmp_path / "in")
    (tmp_path / "in" / "train" / "data-00001-of-00002.arrow").unlink()
    with pytest.raises(CorpusError, match=r"state.json.*data-00001-of-00002.arrow is missing"):
        read(tmp_path / "in")


@pytest.mark.parametrize(
    ("name", "data", "package", "extra"),
    [("a.parquet", parquet(ROWS), "pyarrow", "parquet"), ("a.jsonl.zst", zstd(GOOD), "zstandard", "zstd")],
)
def test_without_its_package_a_file_is_refused_with_what_to_install(
    name: str, data: bytes, package: str, extra: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, package, None)
    saved(tmp_path, data, name)
    with pytest.raises(ResourceError, match=name) as caught:
        read(tmp_path)
    assert (caught.value.error_id, caught.value.fix) == ("resource.missing-package", f"pip install 'potluck[{extra}]'")


def many_times(line: bytes, count: int) -> bytes:
    """A small `.zst` that stands for a lot."""
    press = zstandard.ZstdCompressor().compressobj()
    return b"".join([*(press.compress(line) for _ in range(count)), press.flush()])


def test_a_few_bytes_that_stand_for_gigabytes_never_lie_in_memory(tmp_path: Path) -> None:
    data = many_times(lines([{"text": "x" * (1 << 20)}]), 256)
    assert len(data) < 1 << 16
    path = saved(tmp_path, data, "bomb.jsonl.zst")
    tracemalloc.start()
    assert sum(1 for _ in read_records(path, [path])) == 256
    assert tracemalloc.get_traced_memory()[1] < 40 << 20
    tracemalloc.stop()


@pytest.mark.parametrize("form", ["zst", "gz", "parquet"])
def test_a_document_of_gigabytes_is_refused_with_its_place(form: str, tmp_path: Path) -> None:
    if form == "parquet":
        path = saved(tmp_path, parquet([{"text": "x" * (130 << 20)}]), "bomb.parquet")
    elif form == "zst":
        path = saved(tmp_path, zstd(GOOD) + many_times(b"x" * (1 << 20), 80), "bomb.jsonl.zst")
    else:
        path = saved(tmp_path, gzip.compress(GOOD + b"x" * (80 << 20), 1), "bomb.jsonl.gz")
    with pytest.raises(CorpusError, match="rows 1 to 1" if form == "parquet" else "line 51") as caught:
        read(path)
    assert caught.value.error_id == "corpus.too-long"


def test_an_estimate_counts_compressed_text_and_keeps_its_sample_small(tmp_path: Path) -> None:
    path = saved(tmp_path, zstd(lines(ROWS) * 20), "in.jsonl.zst")
    told = estimate(path, vocab_size=300, sample_bytes=20_000)
    assert told["documents"] == 12_000
    assert told["bytes"] == 20 * sum(len(row["text"].encode()) for row in ROWS)
