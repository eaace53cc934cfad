"""Cuts long text into sections at the best place near the limit: empty line, line, word, character."""

from __future__ import annotations

import re
from collections.abc import Iterator

SECTION_BYTES = 64 * 1024
MIN_EXAMPLES = 5
"""Fewer paragraphs or lines are no list of examples."""
EXAMPLE_BYTES = 256
"""Running text is cut into sections of at least about this, or they would be words."""
_PARAGRAPH = re.compile(r"(?s).+?(?:\n\s*\n|\Z)")
_LINE = re.compile(r".*\n|.+")


def cut(text: str, limit_bytes: int = SECTION_BYTES) -> Iterator[str]:
    """Sections of at most `limit_bytes` of UTF-8 that concatenate to the text again.

    `limit_bytes` is at least 4, the longest character.
    """
    data = text.encode()
    begin = 0
    while len(data) - begin > limit_bytes:
        end = _best_end(data, begin, begin + limit_bytes)
        yield data[begin:end].decode()
        begin = end
    if begin < len(data):
        yield data[begin:].decode()


def cut_examples(text: str, wanted_bytes: int) -> Iterator[str]:
    """Sections that keep examples whole; blank lines between them may be lost.

    Examples are paragraphs, or lines where there are fewer than five paragraphs. Short ones are joined until
    they have `wanted_bytes`. Text of fewer than five lines is cut wherever `cut` does.
    """
    for pattern in (_PARAGRAPH, _LINE):
        examples = [found for found in pattern.findall(text) if found.strip()]
        if len(examples) >= MIN_EXAMPLES:
            break
    else:
        yield from cut(text, min(SECTION_BYTES, max(EXAMPLE_BYTES, wanted_bytes)))
        return
    joined = ""
    for example in examples:
        joined += example
        if len(joined.encode()) >= wanted_bytes:
            yield from cut(joined)
            joined = ""
    yield from cut(joined)


def _best_end(data: bytes, begin: int, limit: int) -> int:
    """The end of a section: a cut in its first half is not worth its shortness."""
    half = begin + (limit - begin) // 2
    for mark in (b"\n\n", b"\n", b" "):
        found = data.rfind(mark, half, limit)
        if found >= 0:
            return found + len(mark)
    while data[limit] & 0xC0 == 0x80:
        limit -= 1
    return limit
