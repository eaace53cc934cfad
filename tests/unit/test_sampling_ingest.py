"""What ingest makes of folders and files."""

from __future__ import annotations

import itertools
import json
import random
import shutil
from collections import defaultdict
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from potluck.errors import CorpusError
from potluck.ids import digest_file
from sampling.ingest import Ingested, ingest
from sampling.ingest_layout import first_occurrences, numbered
from sampling.records import Record
from sampling.sections import SECTION_BYTES, cut
from sampling.shards import SHARD_BYTES, ShardWriter
from sampling.splits import OF_A_TARGET, SPLITS, split_drawn

WORDS = [f"word{i}" for i in range(400)]


def prose(seed: int, characters: int) -> str:
    rng = random.Random(seed)
    words = rng.choices(WORDS, k=characters // 7)
    return " ".join(word + "\n\n" if i % 50 == 49 else word for i, word in enumerate(words))


def lines_of(done: Ingested) -> list[dict[str, Any]]:
    names = sorted(path for path in done.files.values() if path.suffix == ".jsonl")
    return [json.loads(line) for path in names for line in path.read_text(encoding="utf-8").splitlines()]


def write_jsonl(path: Path, records: list[dict[str, Any]]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(json.dumps(r, ensure_ascii=False) + "\n" for r in records), encoding="utf-8")


@pytest.fixture
def demo(tmp_path: Path) -> Path:
    """Two domains in the demo's form: pieces `#k` of original documents."""
    for domain, start in (("prose", 0), ("law", 500)):
        records = [
            {
                "id": f"{domain}/{doc}#{k}",
                "text": prose(start + 10 * doc + k, 700),
                "source": f"{doc}#{k}",
                "licence": f"L-{domain}",
                "domain": domain,
            }
            for doc in range(40)
            for k in (1, 2)
        ]
        write_jsonl(tmp_path / "demo" / f"{domain}.jsonl", records)
    return tmp_path / "demo"


def test_the_same_input_gives_the_same_digest_wherever_it_lies(demo: Path, tmp_path: Path) -> None:
    shutil.copytree(demo, tmp_path / "elsewhere" / "copy")
    first = ingest(demo, tmp_path / "a")
    second = ingest(tmp_path / "elsewhere" / "copy", tmp_path / "b")
    assert first.digest == second.digest
    assert set(first.files) == set(second.files)
    assert ingest(demo, tmp_path / "c", seed=1).digest != first.digest


def test_files_are_what_their_digests_say_and_a_second_call_replaces_the_first(demo: Path, tmp_path: Path) -> None:
    ingest(demo, tmp_path / "out", seed=4)
    (tmp_path / "out" / "documents-00077.jsonl").write_text("stale")
    done = ingest(demo, tmp_path / "out")
    assert all(digest_file(path) == digest for digest, path in done.files.items())
    assert sorted(p.name for p in (tmp_path / "out").iterdir()) == ["corpus.json", "documents-00000.jsonl"]
    assert done.digest == digest_file(done.path)


def test_domain_is_the_source_and_pieces_of_one_document_stay_in_one_split(demo: Path, tmp_path: Path) -> None:
    done = ingest(demo, tmp_path / "out")
    splits: dict[tuple[str, str], set[str]] = defaultdict(set)
    for line in lines_of(done):
        splits[line["source"], line["group"]].add(line["split"])
        assert "#" not in line["group"]
        assert line["licence"] == f"L-{line['source']}"
    assert len(splits) == 80
    assert all(len(found) == 1 for found in splits.values())


def test_every_source_has_valid_and_test_text_of_about_a_twentieth(demo: Path, tmp_path: Path) -> None:
    sources: Any = ingest(demo, tmp_path / "out").manifest["sources"]
    assert sorted(sources) == ["law", "prose"]
    for facts in sources.values():
        assert facts["groups"] == 40
        assert facts["documents"] == 80
        for split in ("valid", "test"):
            assert 0.04 < facts["splits"][split] / facts["bytes"] < 0.11
        assert sum(facts["splits"].values()) == facts["bytes"]


def test_the_manifest_counts_what_the_shards_hold(demo: Path, tmp_path: Path) -> None:
    done = ingest(demo, tmp_path / "out")
    lines = lines_of(done)
    assert done.manifest["documents"] == len(lines) == 160
    assert done.manifest["bytes"] == sum(len(line["text"].encode()) for line in lines)
    assert set(lines[0]) == {"id", "text", "source", "group", "licence", "split"}
    shards: Any = done.manifest["shards"]
    blobs: Any = done.manifest["blobs"]
    assert list(blobs.values()) == [shard["digest"] for shard in shards]


def test_exact_duplicates_are_dropped_and_counted(tmp_path: Path) -> None:
    texts = [prose(i, 900) for i in range(60)]
    write_jsonl(tmp_path / "in.jsonl", [{"text": text} for text in [*texts, *texts[:7]]])
    done = ingest(tmp_path / "in.jsonl", tmp_path / "out")
    assert done.manifest["duplicates_dropped"] == 7
    assert sorted(line["text"] for line in lines_of(done)) == sorted(texts)
    assert any("7 exact duplicates" in note for note in done.notes)


def test_of_equal_digests_the_first_is_kept() -> None:
    a, b = b"a" * 16, b"a" * 15 + b"b"
    assert first_occurrences(b + a + b + b + a).tolist() == [True, True, False, False, False]
    number, first = numbered(b + a + b + b + a)
    assert (number.tolist(), first.tolist()) == ([0, 1, 0, 0, 1], [0, 1])


def test_a_folder_of_text_gives_first_level_sources_and_a_group_a_file(tmp_path: Path) -> None:
    for i in range(12):
        for name in (f"code/deep/{i}.py", f"poems/{i}.md", f"{i}.txt"):
            (tmp_path / "in" / name).parent.mkdir(parents=True, exist_ok=True)
            (tmp_path / "in" / name).write_text(prose(hash_of(name), 1500))
    (tmp_path / "in" / ".git").mkdir()
    (tmp_path / "in" / ".git" / "config").write_text("hidden")
    (tmp_path / "in" / "picture.png").write_bytes(b"\x89PNG\0\0")
    done = ingest(tmp_path / "in", tmp_path / "out")
    sources: Any = done.manifest["sources"]
    assert sorted(sources) == ["all", "code", "poems"]
    assert {line["group"] for line in lines_of(done) if line["source"] == "code"} == {
        f"code/deep/{i}.py" for i in range(12)
    }
    assert any("1 files that are not text, picture.png" in note for note in done.notes)


def hash_of(name: str) -> int:
    return sum(ord(c) * (i + 1) for i, c in enumerate(name))


def test_a_folder_of_json_lines_takes_the_stem_and_a_record_may_say_otherwise(tmp_path: Path) -> None:
    records: list[dict[str, Any]] = [{"text": prose(i, 900)} for i in range(50)]
    records += [{"text": prose(100 + i, 900), "source": "named", "group": f"g{i // 2}", "id": i} for i in range(20)]
    write_jsonl(tmp_path / "in" / "stem.jsonl", records)
    done = ingest(tmp_path / "in", tmp_path / "out")
    sources: Any = done.manifest["sources"]
    assert {name: (s["documents"], s["groups"]) for name, s in sources.items()} == {"stem": (50, 50), "named": (20, 10)}


def test_a_source_of_two_groups_is_split_by_documents_and_says_so(tmp_path: Path) -> None:
    records = [{"text": prose(i, 900), "group": f"g{i % 2}"} for i in range(60)]
    write_jsonl(tmp_path / "in.jsonl", records)
    done = ingest(tmp_path / "in.jsonl", tmp_path / "out")
    facts: Any = done.manifest["sources"]
    assert min(facts["all"]["splits"].values()) > 0
    assert any("its documents are split" in note for note in done.notes)


@pytest.mark.parametrize("size", [40_000, 3_000_000])
def test_a_single_text_file_is_split_by_sections_and_says_so(tmp_path: Path, size: int) -> None:
    text = prose(1, size)
    (tmp_path / "book.txt").write_text(text)
    done = ingest(tmp_path / "book.txt", tmp_path / "out")
    facts: Any = done.manifest["sources"]
    assert 0.02 < facts["all"]["splits"]["test"] / facts["all"]["bytes"] < 0.1
    assert 0.02 < facts["all"]["splits"]["valid"] / facts["all"]["bytes"] < 0.1
    assert any("its sections are split" in note for note in done.notes)
    lines = lines_of(done)
    assert "".join(line["text"] for line in lines) == text
    assert len({line["id"] for line in lines}) == len(lines)


def test_long_documents_become_sections_in_order_under_one_id(tmp_path: Path) -> None:
    texts = [prose(i, 200_000) for i in range(4)]
    write_jsonl(tmp_path / "in.jsonl", [{"text": text, "id": f"doc{i}"} for i, text in enumerate(texts)])
    lines = lines_of(ingest(tmp_path / "in.jsonl", tmp_path / "out"))
    joined: dict[str, str] = defaultdict(str)
    for line in lines:
        joined[line["id"]] += line["text"]
        assert len(line["text"].encode()) <= SECTION_BYTES
    assert joined == {f"doc{i}": text for i, text in enumerate(texts)}
    runs = [line["id"] for i, line in enumerate(lines) if i == 0 or lines[i - 1]["id"] != line["id"]]
    assert len(runs) == 4


def test_neighbours_with_the_same_id_stay_two_documents(tmp_path: Path) -> None:
    write_jsonl(tmp_path / "in.jsonl", [{"text": prose(i, 900), "id": "same", "group": str(i)} for i in range(60)])
    lines = lines_of(ingest(tmp_path / "in.jsonl", tmp_path / "out"))
    assert all(a["id"] != b["id"] for a, b in itertools.pairwise(lines))


def test_shards_hold_at_most_16_mib_and_share_the_sources(tmp_path: Path) -> None:
    for source in ("a", "b"):
        records = [{"text": f"{source}{i}" + '\\\n"' * 20_000, "source": source} for i in range(120)]
        write_jsonl(tmp_path / "in" / f"{source}.jsonl", records)
    done = ingest(tmp_path / "in", tmp_path / "out")
    shards: Any = done.manifest["shards"]
    assert len(shards) == 2
    for shard in shards:
        assert shard["bytes"] <= SHARD_BYTES
        text = done.files[shard["digest"]].read_text()
        assert {json.loads(line)["source"] for line in text.splitlines()} == {"a", "b"}


def test_a_document_too_long_for_a_shard_goes_on_in_the_next(tmp_path: Path) -> None:
    record = Record(id="long", text="", source="s", group="g", licence="l")
    writer = ShardWriter(tmp_path, 1)
    sections = [f"{i:03d}" + "x" * (SECTION_BYTES - 3) for i in range(300)]
    assert writer.add(0, record, "long", "train", sections) == 300 * SECTION_BYTES
    writer.add(0, record, "after", "train", ["end"])
    shards = writer.finish()
    assert [documents for _, documents in shards] == [1, 2]
    assert all(path.stat().st_size <= SHARD_BYTES for path, _ in shards)
    lines = [json.loads(line) for path, _ in shards for line in path.read_text().splitlines()]
    assert [line["text"] for line in lines] == [*sections, "end"]


def test_a_cut_is_at_an_empty_line_where_there_is_one_and_never_inside_a_character() -> None:
    text = "ä" * 30 + "\n\n" + "ö" * 60
    parts = list(cut(text, 100))
    assert parts == ["ä" * 30 + "\n\n", "ö" * 50, "ö" * 10]
    assert "".join(cut("𝄞" * 50, 7)) == "𝄞" * 50
    assert list(cut("", 10)) == []


def test_three_units_give_one_to_each_split_and_the_largest_to_train() -> None:
    drawn = split_drawn(np.array([7, 1, 9], dtype=np.uint64), np.array([5, 900, 7]))
    assert [SPLITS[split] for split in drawn] == ["test", "train", "valid"]


def test_progress_never_goes_back_and_ends_at_one(demo: Path, tmp_path: Path) -> None:
    seen: list[float] = []
    ingest(demo, tmp_path / "out", progress=seen.append)
    assert seen == sorted(seen)
    assert seen[-1] == 1.0
    assert np.all(np.diff(seen) >= 0)


def examples(count: int, characters: int = 200) -> list[str]:
    return [prose(900 + i, characters).replace("\n\n", " ") for i in range(count)]


@pytest.mark.parametrize("form", ["files", "lines", "paragraphs", "json lines"])
def test_five_examples_of_a_target_give_text_to_every_split_and_stay_whole(tmp_path: Path, form: str) -> None:
    texts, target = examples(5), tmp_path / "target.txt"
    if form == "files":
        target = tmp_path / "target"
        target.mkdir()
        for number, text in enumerate(texts):
            (target / f"{number}.txt").write_text(text)
    elif form == "json lines":
        target = tmp_path / "target.jsonl"
        write_jsonl(target, [{"text": text} for text in texts])
    else:
        target.write_text(("\n" if form == "lines" else "\n\n").join(texts) + "\n")
    lines = lines_of(ingest(target, tmp_path / "out", sharing=OF_A_TARGET))
    assert sorted(line["split"] for line in lines) == ["test", "train", "train", "train", "valid"]
    assert sorted(line["text"].strip() for line in lines) == sorted(texts)


def test_running_text_of_a_target_is_cut_and_about_a_fifth_of_it_is_test(tmp_path: Path) -> None:
    (tmp_path / "target.txt").write_text(" ".join(examples(20)))
    facts: Any = ingest(tmp_path / "target.txt", tmp_path / "out", sharing=OF_A_TARGET).manifest["sources"]
    assert 0.1 < facts["all"]["splits"]["test"] / facts["all"]["bytes"] < 0.3


def test_many_short_lines_of_a_target_are_joined(tmp_path: Path) -> None:
    (tmp_path / "target.txt").write_text("\n".join(examples(500, 60)))
    lines = lines_of(ingest(tmp_path / "target.txt", tmp_path / "out", sharing=OF_A_TARGET))
    assert 40 <= len(lines) <= 60
    assert all(line["text"].endswith("\n") for line in lines[:-1])


def test_too_few_examples_are_refused_with_their_number_and_bytes(tmp_path: Path) -> None:
    (tmp_path / "target.txt").write_text(examples(1, 600)[0])
    with pytest.raises(CorpusError, match=r"3 examples.*train \d+, valid \d+, test 0") as caught:
        ingest(tmp_path / "target.txt", tmp_path / "out", sharing=OF_A_TARGET)
    assert caught.value.error_id == "corpus.too-few-examples"
    assert "five examples" in caught.value.fix


@pytest.mark.parametrize(("text", "error_id"), [("word", "corpus.too-small"), (" \n", "corpus.empty")])
def test_a_target_of_a_word_or_of_nothing_is_refused(tmp_path: Path, text: str, error_id: str) -> None:
    (tmp_path / "target.txt").write_text(text)
    with pytest.raises(CorpusError) as caught:
        ingest(tmp_path / "target.txt", tmp_path / "out", sharing=OF_A_TARGET)
    assert caught.value.error_id == error_id
