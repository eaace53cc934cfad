"""The tokenizer: byte-level, deterministic, and deaf to a spelled `<eod>`."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from sampling.bpe import bytes_per_token, encode, load_tokenizer, train_bpe
from sampling.target_bytes import token_bytes

TEXTS = [
    "the quick brown fox jumps over the lazy dog\n" * 20,
    "def f(x):\n    return x\n" * 20,
    "größer und schöner " * 9,
]


@pytest.fixture(scope="module")
def path(tmp_path_factory: pytest.TempPathFactory) -> Path:
    file = tmp_path_factory.mktemp("bpe") / "tokenizer.json"
    file.write_text(train_bpe(TEXTS, 320).to_str(), encoding="utf-8")
    return file


def test_any_text_comes_back_as_it_was(path: Path) -> None:
    tokenizer = load_tokenizer(path)
    for text in [*TEXTS, "\x00\x07 漢字 𝄞\r\n\t  ", " leading", "<eod>", "a<eod>b", ""]:
        (ids,) = encode(tokenizer, [text])
        assert tokenizer.decode(ids.tolist()) == text
        assert ids.dtype == np.uint16


def test_no_text_can_spell_the_end_of_a_document(path: Path) -> None:
    tokenizer = load_tokenizer(path)
    assert tokenizer.token_to_id("<eod>") == 0
    for text in ["<eod>", "x <eod> y", "<eod><eod>"]:
        assert 0 not in encode(tokenizer, [text])[0].tolist()


def test_equal_texts_give_an_equal_tokenizer(path: Path) -> None:
    assert train_bpe(TEXTS, 320).to_str() == path.read_text(encoding="utf-8")


def test_a_batch_is_encoded_as_its_texts_alone(path: Path) -> None:
    tokenizer = load_tokenizer(path)
    texts = [f"fox {i} jumps" for i in range(1500)]
    together = encode(tokenizer, texts)
    assert len(together) == len(texts)
    for i in (0, 511, 512, 1499):
        assert np.array_equal(together[i], encode(tokenizer, [texts[i]])[0])


def test_a_larger_vocabulary_covers_more_bytes_with_a_token(path: Path) -> None:
    larger = load_tokenizer(path)
    assert 1.0 < bytes_per_token(train_bpe(TEXTS, 280), TEXTS) < bytes_per_token(larger, TEXTS)


def test_the_bytes_of_a_texts_tokens_are_its_bytes_and_the_end_of_a_document_has_none(path: Path) -> None:
    tokenizer = load_tokenizer(path)
    sizes = token_bytes(tokenizer)
    assert sizes[0] == 0
    for text in [*TEXTS, "\x00\x07 漢字 𝄞\r\n\t  ", "<eod>", ""]:
        (ids,) = encode(tokenizer, [text])
        assert sizes[ids].sum() == len(text.encode())


def test_text_too_small_for_the_vocabulary_gives_a_smaller_one() -> None:
    assert 257 <= train_bpe(["ab ab ab"], 5000).get_vocab_size() < 270
