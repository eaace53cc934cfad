"""What a person is told when text cannot be read: an id, a place, a fix; also through the command."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest

from potluck.errors import CorpusError, UsageError
from sampling.__main__ import main
from sampling.ingest import ingest

Writer = Callable[[Path], Path]


def file_with(name: str, data: bytes) -> Writer:
    def write(folder: Path) -> Path:
        (folder / name).write_bytes(data)
        return folder / name

    return write


def empty_folder(folder: Path) -> Path:
    (folder / "nothing").mkdir()
    return folder / "nothing"


def only_binary(folder: Path) -> Path:
    (folder / "in").mkdir()
    (folder / "in" / "photo.txt").write_bytes(b"GIF\0\1")
    return folder / "in"


def small_source(folder: Path) -> Path:
    (folder / "in" / "big").mkdir(parents=True)
    (folder / "in" / "tiny").mkdir()
    for i in range(40):
        (folder / "in" / "big" / f"{i}.txt").write_text(f"{i} " * 2000)
    (folder / "in" / "tiny" / "note.txt").write_text("only a note")
    return folder / "in"


GOOD = b'{"text": "good"}\n'
CASES: list[tuple[str, Writer, tuple[str, ...]]] = [
    ("corpus.missing", lambda folder: folder / "absent", ("absent",)),
    ("corpus.empty", empty_folder, ("nothing",)),
    ("corpus.empty", only_binary, ("photo.txt", "zero byte")),
    ("corpus.empty", file_with("blank.jsonl", b'\n{"text": "  "}\n'), ("blank.jsonl",)),
    ("corpus.not-utf8", file_with("a.txt", b"one\ntwo \xe9 three"), ("a.txt, line 2", "0xe9", "offset 8")),
    ("corpus.not-utf8", file_with("a.jsonl", GOOD + b'{"text": "\xff"}\n'), ("a.jsonl, line 2", "offset 27")),
    ("corpus.not-utf8", file_with("caf\udce9.txt", b"text"), ("'caf\\udce9.txt'",)),
    ("corpus.not-utf8", file_with("s.jsonl", b'{"text": "\\ud800"}\n'), ("s.jsonl, line 1", "surrogate")),
    ("corpus.not-json", file_with("b.jsonl", GOOD + b"\n{oops}\n"), ("b.jsonl, line 3",)),
    ("corpus.not-json", file_with("b.jsonl", b"[1, 2]\n"), ("line 1", "list, not an object")),
    ("corpus.no-text-field", file_with("c.jsonl", GOOD + b'{"body": 1, "id": 2}\n'), ("line 2", "body, id")),
    ("corpus.no-text-field", file_with("c.jsonl", b'{"text": 7}\n'), ("line 1",)),
    ("corpus.too-small", file_with("d.txt", b"too little text"), ("15 bytes",)),
    ("corpus.too-small", small_source, ("'tiny'", "11 bytes")),
]


@pytest.mark.parametrize(("error_id", "write", "said"), CASES, ids=[f"{c[0]}-{i}" for i, c in enumerate(CASES)])
def test_unreadable_text_is_named_with_its_place_and_a_fix(
    error_id: str, write: Writer, said: tuple[str, ...], tmp_path: Path
) -> None:
    with pytest.raises(CorpusError) as caught:
        ingest(write(tmp_path), tmp_path / "out")
    assert caught.value.error_id == error_id
    assert all(piece in caught.value.message for piece in said), caught.value.message
    assert caught.value.fix
    assert not (tmp_path / "out").exists()


def test_how_much_text_is_needed_is_said(tmp_path: Path) -> None:
    (tmp_path / "d.txt").write_text("too little text")
    with pytest.raises(CorpusError, match="32,768 bytes"):
        ingest(tmp_path / "d.txt", tmp_path / "out")


def test_shards_among_the_texts_are_refused_but_not_in_a_hidden_folder(tmp_path: Path) -> None:
    (tmp_path / "in.txt").write_text("some words of text\n" * 2500)
    with pytest.raises(UsageError) as caught:
        ingest(tmp_path, tmp_path / "shards")
    assert caught.value.error_id == "usage.out-inside-data"
    first = ingest(tmp_path, tmp_path / ".shards").digest
    assert ingest(tmp_path, tmp_path / ".shards").digest == first


def test_text_that_changes_while_it_is_read_is_an_error(tmp_path: Path) -> None:
    path = tmp_path / "grows.jsonl"
    text = "".join(json.dumps({"text": f"{i} " * 60}) + "\n" for i in range(1000))
    path.write_text(text)

    def grow(fraction: float) -> None:
        if fraction > 0.9:
            path.write_text(text + json.dumps({"text": "late"}) + "\n")

    with pytest.raises(CorpusError) as caught:
        ingest(path, tmp_path / "out", progress=grow)
    assert caught.value.error_id == "corpus.changed"


def test_the_command_prints_one_json_line_and_its_progress_elsewhere(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "in.txt").write_text("".join(f"line {i} of the text\n" for i in range(4000)))
    assert main(["ingest", str(tmp_path / "in.txt"), "--out", str(tmp_path / "out"), "--json"]) == 0
    out, err = capsys.readouterr()
    answer = json.loads(out)
    assert out.count("\n") == 1
    assert answer["files"][answer["manifest"]] == str((tmp_path / "out" / "corpus.json").resolve())
    assert "ingest: 100%" in err
    assert "note: source 'all' has 1 document(s)" in err
    assert main(["ingest", str(tmp_path / "in.txt"), "--out", str(tmp_path / "out")]) == 0
    assert answer["manifest"] in capsys.readouterr().out


def test_the_command_leaves_with_the_errors_exit_code(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    arguments = ["ingest", str(tmp_path / "absent"), "--out", str(tmp_path / "out")]
    assert main(arguments) == 2
    out, err = capsys.readouterr()
    assert not out
    assert err.startswith("[corpus.missing] no file or folder at")
    assert "fix: check the path" in err
    assert main([*arguments, "--json"]) == 2
    assert json.loads(capsys.readouterr().out)["error"] == "corpus.missing"


def test_a_folder_that_cannot_be_written_is_a_resource_error(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "in.txt").write_text("some words of text\n" * 2500)
    (tmp_path / "out").write_text("a file is in the way")
    assert main(["ingest", str(tmp_path / "in.txt"), "--out", str(tmp_path / "out")]) == 5
    assert capsys.readouterr().err.splitlines()[-2].startswith("[resource.file]")


def test_an_estimate_comes_near_the_truth_and_refuses_odd_vocabularies(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    lines = [json.dumps({"text": f"the {i}th of many records, all much alike " * 5}) for i in range(400)]
    (tmp_path / "in.jsonl").write_text("\n".join(lines))
    assert main(["estimate", str(tmp_path / "in.jsonl"), "--vocab-size", "300", "--json"]) == 0
    answer = json.loads(capsys.readouterr().out)
    assert answer["documents"] == 400
    assert answer["sources"] == ["all"]
    assert answer["train_tokens"] == int(answer["tokens"] * 0.9)
    assert answer["bytes"] / answer["tokens"] == pytest.approx(answer["bytes_per_token"])
    assert main(["estimate", str(tmp_path / "in.jsonl"), "--vocab-size", "7"]) == 2
    (tmp_path / "long.txt").write_text("one long text without any end " * 10_000)
    assert main(["estimate", str(tmp_path / "long.txt"), "--sample-bytes", "10", "--json"]) == 0
    answer = json.loads(capsys.readouterr().out)
    assert (answer["bytes"], answer["documents"]) == (300_000, 1)


def test_a_folder_that_is_no_encoder_is_refused_by_the_command(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["pack-encoder", str(tmp_path / "absent"), str(tmp_path / "out"), "--json"]) == 2
    assert json.loads(capsys.readouterr().out)["error"] == "usage.bad-encoder"
