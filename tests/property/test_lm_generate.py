"""Generation equals a full forward for every token, whatever else is decoded in the same steps."""

from __future__ import annotations

from collections.abc import Sequence

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from potluck.errors import UsageError
from potluck.lm.config import ModelConfig
from potluck.lm.decoding import BatchDecoder
from potluck.lm.generate import Continuation, SamplingParams, choose_token, generate, generate_batch
from potluck.lm.model import Decoder, init_decoder

VOCAB = 61
CONFIG = ModelConfig(vocab=VOCAB, hidden=24, layers=2, heads=2, ffn=64, context=17)
MODEL = init_decoder(CONFIG, seed=3)
# Sums of other shapes round otherwise. In float64 that decides no token, so that whole texts can be compared.
EXACT = init_decoder(CONFIG, seed=3).double()
NO_EOD = -1

Prompt = list[int]
prompts = st.lists(st.integers(1, VOCAB - 1), min_size=1, max_size=40)
sampling = st.builds(
    SamplingParams,
    max_tokens=st.integers(1, 40),
    temperature=st.sampled_from([0.0, 0.7, 1.5]),
    top_k=st.sampled_from([0, 5]),
    top_p=st.sampled_from([0.8, 1.0]),
    seed=st.integers(0, 2**64 - 1),
)
requests = st.tuples(prompts, sampling)


@pytest.fixture(autouse=True, scope="module")
def one_thread() -> None:
    torch.set_num_threads(1)


def plain(model: Decoder, ids: Sequence[int], params: SamplingParams, eod: int) -> list[int]:
    """The same rule without a cache and for one text: the whole window is run for every token."""
    limit = model.config.context - 1
    generator = torch.Generator().manual_seed(params.seed)
    found: list[int] = []
    window = list(ids)
    while len(found) < params.max_tokens and eod not in found:
        if len(window) > limit:
            window = window[-(limit // 2) :]
        with torch.no_grad():
            logits = model(torch.tensor([window]))[0, -1] @ model.embedding.weight.t()
        found.append(choose_token(logits.float(), params, generator))
        window.append(found[-1])
    return found


@settings(max_examples=40)
@given(requests)
def test_generate_with_a_cache_changes_no_token_within_and_past_the_window(
    request: tuple[Prompt, SamplingParams],
) -> None:
    ids, params = request
    assert list(generate(EXACT, ids, params, eod=NO_EOD)) == plain(EXACT, ids, params, NO_EOD)


@settings(max_examples=40)
@given(st.lists(requests, min_size=1, max_size=6), st.integers(1, 4), st.integers(0, VOCAB - 1))
def test_generate_batch_gives_each_prompt_what_it_gets_alone(
    asked: list[tuple[Prompt, SamplingParams]], slots: int, eod: int
) -> None:
    found = generate_batch(EXACT, [ids for ids, _ in asked], [params for _, params in asked], eod=eod, slots=slots)
    assert found == [plain(EXACT, ids, params, eod) for ids, params in asked]


@settings(max_examples=40)
@given(st.lists(requests, min_size=1, max_size=5), st.integers(1, 3), st.data())
def test_generate_is_the_same_however_texts_join_pause_and_leave(
    asked: list[tuple[Prompt, SamplingParams]], slots: int, data: st.DataObject
) -> None:
    """Any texts may step together; more of them than slots are in use, and some leave before their end."""
    decoder = BatchDecoder(EXACT, slots)
    texts = [Continuation(CONFIG, ids, params, eod=NO_EOD) for ids, params in asked]
    found: list[list[int]] = [[] for _ in texts]
    open_ones = set(range(len(texts)))
    while open_ones:
        among = st.lists(st.sampled_from(sorted(open_ones)), min_size=1, max_size=slots, unique=True)
        stepping = data.draw(among)
        for _ in range(data.draw(st.integers(1, 12))):
            stepping = [i for i in stepping if not texts[i].finish]
            if not stepping:
                break
            for i, logits in zip(stepping, decoder.logits([texts[i].window for i in stepping]), strict=True):
                found[i].append(texts[i].take(logits))
        gone = data.draw(st.sampled_from([None, *sorted(open_ones)]))
        for i in list(open_ones):
            if texts[i].finish or i == gone:
                decoder.leave(texts[i].window)
                open_ones.remove(i)
    for (ids, params), ours in zip(asked, found, strict=True):
        assert ours == plain(EXACT, ids, params, NO_EOD)[: len(ours)]


@settings(max_examples=20)
@given(st.lists(prompts, min_size=2, max_size=6))
def test_generate_in_float32_depends_on_neighbours_by_rounding_only(texts: list[Prompt]) -> None:
    params = SamplingParams(max_tokens=1)
    windows = [Continuation(CONFIG, ids, params).window for ids in texts]
    alone = [BatchDecoder(MODEL, slots=1).logits([Continuation(CONFIG, ids, params).window])[0] for ids in texts]
    torch.testing.assert_close(BatchDecoder(MODEL).logits(windows), torch.stack(alone), atol=2e-6, rtol=0)


def test_generate_lets_no_broken_number_reach_another_text() -> None:
    broken = init_decoder(CONFIG, seed=3)
    with torch.no_grad():
        broken.embedding.weight[7] = torch.nan
    decoder = BatchDecoder(broken, slots=2)
    params = SamplingParams(max_tokens=8, temperature=1.0, seed=1)
    sick, sound = Continuation(CONFIG, [7] * 9, params), Continuation(CONFIG, [1, 2], params)
    logits = decoder.logits([sick.window, sound.window])
    assert logits.isnan().any(1).tolist() == [True, True]  # the head knows token 7 in both
    assert logits[1].isnan().sum() == 1
    decoder.leave(sick.window)
    later = Continuation(CONFIG, [3], params)
    assert decoder.logits([later.window, sound.window]).isnan().sum(1).tolist() == [1, 1]


def test_generate_within_documents_sees_nothing_of_the_document_before() -> None:
    by_document = ModelConfig(vocab=VOCAB, hidden=24, layers=2, heads=2, ffn=64, context=17, attention="document")
    model = Decoder(by_document)
    model.load_state_dict(EXACT.state_dict())
    model = model.double()
    params = SamplingParams(max_tokens=20, temperature=1.0, seed=5)
    alone = list(generate(EXACT, [9, 4, 6], params, eod=NO_EOD))
    assert 0 not in alone, "the seed should give a text of one document"
    assert list(generate(model, [5, 8, 0, 3, 0, 9, 4, 6], params, eod=NO_EOD)) == alone
    # The end of a document belongs to it: what follows is predicted from the whole of it.
    (after,) = generate_batch(model, [[5, 0, 9, 4, 0]], SamplingParams(max_tokens=1, temperature=1.0, seed=5))
    assert after == generate_batch(EXACT, [[9, 4, 0]], SamplingParams(max_tokens=1, temperature=1.0, seed=5))[0]


def test_generation_stops_after_the_end_of_document_and_yields_it() -> None:
    free = list(generate(MODEL, [1, 2, 3], SamplingParams(max_tokens=30), eod=NO_EOD))
    eod = free[4]
    stopped = list(generate(MODEL, [1, 2, 3], SamplingParams(max_tokens=30), eod=eod))
    assert stopped == free[: free.index(eod) + 1]


@given(seed=st.integers(0, 2**31))
@settings(max_examples=10)
def test_equal_seeds_generate_equal_text(seed: int) -> None:
    params = SamplingParams(max_tokens=12, temperature=1.0, top_k=20, top_p=0.9, seed=seed)
    assert list(generate(MODEL, [4, 5], params)) == list(generate(MODEL, [4, 5], params))


@given(st.integers(1, 6), st.integers(0, 1000))
def test_generate_with_top_k_keeps_the_k_likeliest(k: int, seed: int) -> None:
    logits = torch.randn(20, generator=torch.Generator().manual_seed(seed))
    params = SamplingParams(max_tokens=1, temperature=5.0, top_k=k)
    generator = torch.Generator().manual_seed(seed)
    allowed = set(torch.topk(logits, k).indices.tolist())
    assert {choose_token(logits, params, generator) for _ in range(20)} <= allowed


def test_generate_with_top_p_keeps_the_fewest_tokens_that_reach_p() -> None:
    logits = torch.tensor([0.15, 0.5, 0.05, 0.3]).log()
    generator = torch.Generator().manual_seed(0)
    params = SamplingParams(max_tokens=1, temperature=1.0, top_p=0.6)
    assert {choose_token(logits, params, generator) for _ in range(100)} == {1, 3}


def test_generate_draws_as_often_as_likely() -> None:
    chances = torch.tensor([0.1, 0.6, 0.3])
    generator = torch.Generator().manual_seed(0)
    for top_k in (0, 3):
        params = SamplingParams(max_tokens=1, temperature=1.0, top_k=top_k)
        drawn = torch.tensor([choose_token(chances.log(), params, generator) for _ in range(2000)])
        torch.testing.assert_close(torch.bincount(drawn, minlength=3) / 2000, chances, atol=0.04, rtol=0)


def test_generate_refuses_an_empty_prompt_and_bad_parameters() -> None:
    with pytest.raises(UsageError, match="no tokens"):
        generate(MODEL, [], SamplingParams(max_tokens=1))
    for bad in ({"max_tokens": 0}, {"temperature": -1.0}, {"top_k": -1}, {"top_p": 0.0}):
        with pytest.raises(UsageError, match=next(iter(bad))):
            SamplingParams(**{"max_tokens": 1, **bad})
    assert generate_batch(MODEL, [], SamplingParams(max_tokens=1)) == []
    with pytest.raises(ValueError, match="shorter"):
        generate_batch(MODEL, [[1], [2]], [SamplingParams(max_tokens=1)])
    with pytest.raises(ValueError, match="give 1 to 1"):
        BatchDecoder(MODEL, slots=1).logits([])
