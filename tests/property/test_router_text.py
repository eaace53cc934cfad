"""Streamed text equals the tokenizer's text, and no piece ends within a character."""

from __future__ import annotations

import codecs

from hypothesis import given
from hypothesis import strategies as st

from router.detokenise import TextStream, token_bytes
from sampling.bpe import train_bpe

TOKENIZER = train_bpe(["größe 漢字 héllo wörld, the quick brown fox 🙂"] * 3, 300)
TABLE = token_bytes([TOKENIZER.id_to_token(i) or "" for i in range(TOKENIZER.get_vocab_size())], frozenset({0}))


@given(st.text(max_size=40))
def test_text_comes_back_whole_however_it_is_cut(text: str) -> None:
    stream = TextStream(TABLE)
    pieces = [stream.feed([i]) for i in TOKENIZER.encode(text, add_special_tokens=False).ids]
    assert "".join(pieces) == text
    assert all("\ufffd" not in piece for piece in pieces) or "\ufffd" in text


@given(st.lists(st.integers(0, len(TABLE) - 1), max_size=40), st.integers(1, 5))
def test_any_ids_give_what_one_utf8_decoder_gives_of_their_bytes(ids: list[int], step: int) -> None:
    stream = TextStream(TABLE)
    streamed = "".join(stream.feed(ids[start : start + step]) for start in range(0, len(ids), step))
    whole = b"".join(TABLE[i] for i in ids)
    assert streamed == codecs.getincrementaldecoder("utf-8")("replace").decode(whole)
