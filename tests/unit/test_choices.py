"""Files of multiple-choice questions: what is read, and what is refused by line."""

from __future__ import annotations

import json
from typing import Any

import pytest

from potluck.choices import NO_GROUP, items_text, read_items
from potluck.errors import CorpusError

GOOD: dict[str, Any] = {"id": "a", "context": "The sky is", "choices": [" blue.", " loud."], "answer": 0}


def lines(*items: object) -> list[bytes]:
    return [item if isinstance(item, bytes) else json.dumps(item).encode() for item in items]


def test_questions_are_read_with_or_without_a_group_and_other_keys_and_empty_lines_passed_over() -> None:
    first, second = read_items(lines(GOOD, b" \n", {**GOOD, "id": 7, "group": "facts", "licence": "none"}), "f")
    assert (first.id, first.group, first.choices, first.answer) == ("a", NO_GROUP, (" blue.", " loud."), 0)
    assert (second.id, second.group) == ("7", "facts")


def test_equal_questions_have_equal_bytes_however_they_were_written() -> None:
    shuffled = dict(reversed(GOOD.items()))
    text = items_text(read_items(lines(GOOD), "f"))
    assert items_text(read_items(lines(b"", {**shuffled, "more": 1}), "g")) == text
    assert items_text(read_items(text.encode().splitlines(), "f")) == text


@pytest.mark.parametrize(
    ("item", "said"),
    [
        (b"{", "no JSON"),
        (b'{"id": NaN}', "no JSON"),
        ([1], "no object"),
        ({}, "without id, context, choices, answer"),
        ({**GOOD, "id": ""}, "id = ''"),
        ({**GOOD, "id": True}, "id = True"),
        ({**GOOD, "context": None}, "context = None"),
        ({**GOOD, "choices": "ab"}, "choices = 'ab'"),
        ({**GOOD, "choices": ["a", ""]}, "choices = "),
        ({**GOOD, "choices": ["a"]}, "choices are 1"),
        ({**GOOD, "choices": [str(n) for n in range(65)]}, "choices are 65"),
        ({**GOOD, "choices": ["a", "a"]}, "choice 'a' is there twice"),
        ({**GOOD, "answer": 2}, "answer = 2"),
        ({**GOOD, "answer": -1}, "answer = -1"),
        ({**GOOD, "answer": "0"}, "answer = '0'"),
        ({**GOOD, "answer": True}, "answer = True"),
        ({**GOOD, "group": 3}, "group = 3"),
        (b'"' + b"x" * (1 << 20) + b'"', "1,048,578 bytes"),
        (GOOD, "id 'a' is that of line 1 too"),
    ],
)
def test_a_bad_line_is_refused_by_its_number_and_what_is_wrong(item: object, said: str) -> None:
    with pytest.raises(CorpusError) as raised:
        read_items(lines(GOOD, b"", item), "mine.jsonl")
    assert raised.value.error_id == "corpus.bad-choices"
    assert raised.value.message.startswith("mine.jsonl, line 3: ")
    assert said in raised.value.message
    assert raised.value.fix


def test_a_file_without_a_question_is_refused() -> None:
    with pytest.raises(CorpusError, match="no question"):
        read_items(lines(b"", b" "), "mine.jsonl")
