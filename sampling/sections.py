"""Cuts long text into sections at the best place near the limit: empty line, line, word, character."""

from __future__ import annotations

from collections.abc import Iterator

SECTION_BYTES = 64 * 1024


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
