"""Texts of a study that are parts of a folder."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from potluck.commands.study_texts import StudyTexts
from potluck.errors import CorpusError
from potluck.lab.study import TextWish, tenth_of

WISHES = {
    "corpus": TextWish(parts={"legal": (3, 10)}),
    "legal": TextWish(sources=("legal",), parts={"legal": (0, 3)}),
    "few": TextWish(sources=("legal",), parts={"legal": (0, 1)}),
}


def texts_in(tmp_path: Path) -> StudyTexts:
    data = tmp_path / "data"
    data.mkdir()
    for name in ("legal", "quotes"):
        lines = [json.dumps({"id": n, "text": "x", "source": f"{name}/{n // 2}#{n % 2}"}) for n in range(200)]
        (data / f"{name}.jsonl").write_text("\n".join(lines) + "\n", encoding="utf-8")
    return StudyTexts(folder=tmp_path / "texts", data=data, wishes=WISHES)


def sources(path: Path) -> list[str]:
    return [json.loads(line)["source"] for line in path.read_text(encoding="utf-8").splitlines()]


def test_a_target_and_what_is_left_of_its_source_share_no_document_and_lose_none(tmp_path: Path) -> None:
    texts = texts_in(tmp_path)
    legal = texts.data / "legal.jsonl"
    taken, kept = sources(texts._part(legal, "legal")), sources(texts._part(legal, "corpus"))
    assert sorted(taken + kept) == sorted(sources(legal))
    assert {one.split("#")[0] for one in taken}.isdisjoint(one.split("#")[0] for one in kept)
    assert all(tenth_of(one) < 3 for one in taken)
    assert texts._part(texts.data / "quotes.jsonl", "corpus") == texts.data / "quotes.jsonl"


def test_texts_of_other_parts_are_known_apart(tmp_path: Path) -> None:
    texts = texts_in(tmp_path)
    before = texts._key(("legal",), "target")
    texts.wishes = {**WISHES, "legal": WISHES["few"]}
    assert texts._key(("legal",), "target") != before


def test_what_has_no_lines_is_not_divided_in_silence(tmp_path: Path) -> None:
    texts = texts_in(tmp_path)
    with pytest.raises(CorpusError, match=r"corpus\.not-divisible"):
        texts._part(tmp_path / "legal.txt", "few")
