"""Multiple-choice questions as a file: one JSON object a line, {"id", "context", "choices", "answer", "group"}. Pure.

    {"id": "sky-1", "context": "The sky is", "choices": [" blue.", " loud."], "answer": 0, "group": "facts"}

`context` and a choice are joined as they stand: a choice that begins a word begins with a space. `answer` counts from
0. `group` may be left out. Other keys are passed over, and so are empty lines.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from potluck.errors import CorpusError
from potluck.ids import canonical_json
from potluck.jsontext import read_json

NO_GROUP = "all"
MAX_ITEMS = 50_000
MAX_CHOICES = 64
"""Of one question."""
MAX_LINE_BYTES = 1 << 20
"""Far more than any model's context."""
MAX_SHOWN = 60
"""Characters of somebody's input in a message."""
EXAMPLE = '{"id": "a", "context": "The sky is", "choices": [" blue.", " loud."], "answer": 0}'


@dataclass(frozen=True, kw_only=True)
class Item:
    id: str
    context: str
    """May be empty: the choices are then what a document begins with."""
    choices: tuple[str, ...]
    """Two or more, none of them empty, all different."""
    answer: int
    """The right one, from 0."""
    group: str


def read_items(lines: Iterable[bytes], name: str) -> tuple[Item, ...]:
    """Reads a file of questions.

    Args:
        name: of the file, for messages.

    Raises:
        CorpusError: ``corpus.bad-choices``, naming the line.
    """
    items: list[Item] = []
    seen: dict[str, int] = {}
    for number, line in enumerate(lines, 1):
        if not line.strip():
            continue
        where = f"{name}, line {number}"
        item = _item(line, where)
        if item.id in seen:
            raise _bad(where, f"id {_shown(item.id)} is that of line {seen[item.id]} too", "give each its own id")
        if len(items) == MAX_ITEMS:
            raise _bad(where, f"more than {MAX_ITEMS:,} questions", "divide the file")
        seen[item.id] = number
        items.append(item)
    if not items:
        raise _bad(name, "no question in it", f"write one a line: {EXAMPLE}")
    return tuple(items)


def items_text(items: Sequence[Item]) -> str:
    """The canonical form: equal questions, equal bytes."""
    return "".join(
        canonical_json(
            {
                "id": item.id,
                "context": item.context,
                "choices": list(item.choices),
                "answer": item.answer,
                "group": item.group,
            }
        )
        + "\n"
        for item in items
    )


def _item(line: bytes, where: str) -> Item:
    if len(line) > MAX_LINE_BYTES:
        raise _bad(where, f"{len(line):,} bytes", f"at most {MAX_LINE_BYTES:,} are read")
    try:
        value = read_json(line)
    except ValueError as error:
        raise _bad(where, f"no JSON: {error}", f"write one object a line: {EXAMPLE}") from None
    if not isinstance(value, dict):
        raise _bad(where, f"{_shown(value)} is no object", f"write one object a line: {EXAMPLE}")
    missing = [key for key in ("id", "context", "choices", "answer") if key not in value]
    if missing:
        raise _bad(where, f"without {', '.join(missing)}", f"add it, as in {EXAMPLE}")
    choices = _choices(value, where)
    answer = value["answer"]
    if type(answer) is not int or not 0 <= answer < len(choices):
        raise _bad(where, f"answer = {_shown(answer)}", f"give the number of the right choice, 0 to {len(choices) - 1}")
    named = value["id"]
    return Item(
        id=_text({"id": str(named) if type(named) is int else named}, "id", where),
        context=_text(value, "context", where, may_be_empty=True),
        choices=choices,
        answer=answer,
        group=_text(value, "group", where) if value.get("group") is not None else NO_GROUP,
    )


def _choices(value: Mapping[str, Any], where: str) -> tuple[str, ...]:
    choices = value["choices"]
    fix = f"give a list of 2 to {MAX_CHOICES} different texts, none of them empty"
    if not isinstance(choices, list) or not all(isinstance(choice, str) and choice for choice in choices):
        raise _bad(where, f"choices = {_shown(choices)}", fix)
    if not 2 <= len(choices) <= MAX_CHOICES:
        raise _bad(where, f"choices are {len(choices)}", fix)
    if len(set(choices)) < len(choices):
        twice = next(choice for choice in choices if choices.count(choice) > 1)
        raise _bad(where, f"choice {_shown(twice)} is there twice", fix)
    return tuple(choices)


def _text(value: Mapping[str, Any], key: str, where: str, *, may_be_empty: bool = False) -> str:
    text = value[key]
    if not isinstance(text, str) or not (text or may_be_empty):
        raise _bad(where, f"{key} = {_shown(text)}", f"give {key} as text")
    return text


def _shown(value: object) -> str:
    text = repr(value)
    return text if len(text) <= MAX_SHOWN else text[:MAX_SHOWN] + "..."


def _bad(where: str, what: str, fix: str) -> CorpusError:
    return CorpusError("corpus.bad-choices", f"{where}: {what}", fix)
