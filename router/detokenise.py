"""Ids to text, token by token, of a byte-level BPE: what is emitted is always whole UTF-8 characters. Pure."""

from __future__ import annotations

import codecs
from collections.abc import Iterable, Sequence

from potluck.lm.stopping import StopScanner


def _byte_of_symbol() -> dict[str, int]:
    """The byte alphabet of byte-level BPE (GPT-2): printable bytes stand for themselves, others follow from 256."""
    printable = [*range(ord("!"), ord("~") + 1), *range(ord("¡"), ord("¬") + 1), *range(ord("®"), ord("ÿ") + 1)]
    others = [b for b in range(256) if b not in printable]
    return {chr(b): b for b in printable} | {chr(256 + i): b for i, b in enumerate(others)}


def token_bytes(tokens: Iterable[str], special: frozenset[int]) -> tuple[bytes, ...]:
    """The bytes each token stands for.

    Args:
        tokens: the vocabulary in id order, written in the byte alphabet.
        special: ids that stand for no text, such as `<eod>`.

    Raises:
        KeyError: a token that is neither special nor written in the byte alphabet.
    """
    alphabet = _byte_of_symbol()
    return tuple(b"" if i in special else bytes(alphabet[symbol] for symbol in token) for i, token in enumerate(tokens))


class TextStream:
    """One request's text. A character cut at the end of a chunk waits for its remaining bytes."""

    def __init__(self, table: Sequence[bytes]) -> None:
        self._table = table
        self._decoder = codecs.getincrementaldecoder("utf-8")("replace")

    def feed(self, ids: Iterable[int]) -> str:
        """The characters that these ids complete. Bytes that can be no character become U+FFFD.

        What is still incomplete after the last token is no text: the model did not finish it.
        """
        return self._decoder.decode(b"".join(self._table[i] for i in ids))


class StoppedText:
    """One request's text up to its first stop string, and the tokens up to the one that completed it."""

    def __init__(self, stream: TextStream, scanner: StopScanner) -> None:
        self._stream = stream
        self._scanner = scanner

    @property
    def stopped(self) -> bool:
        return self._scanner.stopped

    def feed(self, ids: Sequence[int], *, is_last: bool) -> tuple[tuple[int, ...], str]:
        """Those of the next ids that were needed, and the text that is certain now.

        The token that completes a stop string is the last one needed, whatever else it says.

        Args:
            is_last: no more ids will come, so nothing need be held back.
        """
        text = ""
        for count, token in enumerate(ids, start=1):
            text += self._scanner.feed(self._stream.feed((token,)))
            if self.stopped:
                return tuple(ids[:count]), text
        return tuple(ids), text + self._scanner.flush() if is_last else text
