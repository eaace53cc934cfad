"""Packing: rows, packs, and what is a target how often."""

from __future__ import annotations

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from sampling.packing import Document, Packed, order_documents, pack_held_out, pack_train

SOURCES = 3


@st.composite
def documents(draw: st.DrawFn) -> list[Document]:
    """Documents whose tokens are all different, `<eod>` aside, so that each can be traced."""
    out, following = [], 1
    for length in draw(st.lists(st.integers(0, 40), max_size=25)):
        tokens = np.array([*range(following, following + length), 0], dtype=np.uint16)
        following += length
        out.append(Document(source=draw(st.integers(0, SOURCES - 1)), tokens=tokens))
    return out


def real_targets(packed: Packed) -> list[int]:
    return [
        int(token)
        for row, (_, _, count) in zip(packed.rows, packed.meta, strict=True)
        for token in row[1 : 1 + count]
        if token
    ]


@given(docs=documents(), length=st.integers(1, 12), packing=st.sampled_from(["document", "shuffled"]))
def test_held_out_text_is_a_target_exactly_once_but_for_the_first_token_of_a_pack(
    docs: list[Document], length: int, packing: str
) -> None:
    packed = pack_held_out(order_documents(docs, packing=packing, seed=5), length)
    targets = real_targets(packed)
    assert len(targets) == len(set(targets))
    words = {int(t) for d in docs for t in d.tokens if t}
    first = {int(packed.rows[np.flatnonzero(packed.meta[:, 1] == pack)[0], 0]) for pack in range(packed.num_packs)}
    # A last pack of one lone token has no target and is left out.
    assert words - set(targets) <= first
    assert sum(int(n) for n in packed.meta[:, 2]) == packed.num_targets


@given(docs=documents(), length=st.integers(1, 12))
def test_packs_hold_whole_documents_of_one_source_and_close_once_full(docs: list[Document], length: int) -> None:
    packed = pack_held_out(order_documents(docs, packing="document", seed=0), length)
    source_of = {int(t): d.source for d in docs for t in d.tokens if t}
    ends_of = {int(d.tokens[-2]) for d in docs if len(d.tokens) > 1}
    for pack in range(packed.num_packs):
        mine = np.flatnonzero(packed.meta[:, 1] == pack)
        assert np.array_equal(mine, np.arange(mine[0], mine[0] + len(mine)))
        counts = packed.meta[mine, 2]
        tokens = [int(packed.rows[mine[0], 0])]
        for row, count in zip(packed.rows[mine], counts, strict=True):
            assert int(row[0]) == tokens[-1]
            tokens += row[1 : 1 + count].tolist()
            assert not row[1 + count :].any()
        assert (counts[:-1] == length).all()
        assert tokens[-1] == 0
        assert {source_of[t] for t in tokens if t} <= {int(packed.meta[mine[0], 0])}
        closes = np.flatnonzero([t == 0 for t in tokens])
        assert not any(place + 1 >= length + 1 for place in closes[:-1])  # else it had closed before
        last_word = max((t for t in tokens if t), default=0)
        assert not last_word or last_word in ends_of


@given(docs=documents(), length=st.integers(1, 12))
def test_train_rows_are_consecutive_text_of_one_source_at_stride_s(docs: list[Document], length: int) -> None:
    packed = pack_train(order_documents(docs, packing="document", seed=0), length)
    expected = []
    for source in range(SOURCES):
        text = [int(t) for d in docs if d.source == source for t in d.tokens]
        for begin in range(0, len(text) - length, length):
            expected.append((source, text[begin : begin + length + 1]))
    assert [(int(m[0]), row.tolist()) for row, m in zip(packed.rows, packed.meta, strict=True)] == expected
    assert (packed.meta[:, 1] == -1).all()
    assert (packed.meta[:, 2] == length).all()


@given(docs=documents(), length=st.integers(1, 12), seed=st.integers(0, 9))
def test_shuffled_packing_reads_all_documents_and_names_the_source_of_the_first_token(
    docs: list[Document], length: int, seed: int
) -> None:
    (order,) = order_documents(docs, packing="shuffled", seed=seed)
    assert sorted(map(id, order)) == sorted(map(id, docs))
    packed = pack_train([order], length)
    owner = [d.source for d in order for _ in d.tokens]
    assert packed.meta[:, 0].tolist() == [owner[i * length] for i in range(len(packed.rows))]
    assert len(packed.rows) == max(0, (len(owner) - 1) // length)


def test_another_seed_shuffles_otherwise() -> None:
    docs = [Document(source=0, tokens=np.array([i, 0], dtype=np.uint16)) for i in range(1, 60)]
    first, second = (order_documents(docs, packing="shuffled", seed=s)[0] for s in (1, 2))
    assert [int(d.tokens[0]) for d in first] != [int(d.tokens[0]) for d in second]
