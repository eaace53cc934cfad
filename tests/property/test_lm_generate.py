import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from potluck.errors import UsageError
from potluck.lm.config import ModelConfig
from potluck.lm.generate import SamplingParams, choose_token, generate
from potluck.lm.model import Decoder, init_decoder

CONFIG = ModelConfig(vocab=61, hidden=24, layers=2, heads=2, ffn=64, context=17)
MODEL = init_decoder(CONFIG, seed=3)
NO_EOD = -1


def plain(model: Decoder, ids: list[int], count: int, eod: int) -> list[int]:
    """The same rule without a cache: the whole window is run for every token."""
    limit = model.config.context - 1
    found: list[int] = []
    window = list(ids)
    while len(found) < count and eod not in found:
        if len(window) > limit:
            window = window[-(limit // 2) :]
        with torch.no_grad():
            logits = model(torch.tensor([window]))[0, -1] @ model.embedding.weight.t()
        found.append(int(logits.argmax()))
        window.append(found[-1])
    return found


@settings(max_examples=25, deadline=None)
@given(st.lists(st.integers(0, 60), min_size=1, max_size=40), st.integers(1, 40))
def test_the_cache_changes_no_token_within_and_past_the_window(ids: list[int], count: int) -> None:
    found = list(generate(MODEL, ids, SamplingParams(max_tokens=count), eod=NO_EOD))
    assert found == plain(MODEL, ids, count, NO_EOD)


def test_generation_stops_after_the_end_of_document_and_yields_it() -> None:
    free = list(generate(MODEL, [1, 2, 3], SamplingParams(max_tokens=30), eod=NO_EOD))
    eod = free[4]
    stopped = list(generate(MODEL, [1, 2, 3], SamplingParams(max_tokens=30), eod=eod))
    assert stopped == free[: free.index(eod) + 1]


@given(seed=st.integers(0, 2**31))
@settings(max_examples=10, deadline=None)
def test_equal_seeds_sample_equal_text(seed: int) -> None:
    params = SamplingParams(max_tokens=12, temperature=1.0, top_k=20, top_p=0.9, seed=seed)
    assert list(generate(MODEL, [4, 5], params)) == list(generate(MODEL, [4, 5], params))


@given(st.integers(1, 6), st.integers(0, 1000))
def test_top_k_keeps_the_k_likeliest(k: int, seed: int) -> None:
    logits = torch.randn(20, generator=torch.Generator().manual_seed(seed))
    params = SamplingParams(max_tokens=1, temperature=5.0, top_k=k)
    generator = torch.Generator().manual_seed(seed)
    allowed = set(torch.topk(logits, k).indices.tolist())
    assert {choose_token(logits, params, generator) for _ in range(20)} <= allowed


def test_top_p_keeps_the_fewest_tokens_that_reach_p() -> None:
    logits = torch.tensor([0.5, 0.3, 0.15, 0.05]).log()
    generator = torch.Generator().manual_seed(0)
    params = SamplingParams(max_tokens=1, temperature=1.0, top_p=0.6)
    assert {choose_token(logits, params, generator) for _ in range(100)} == {0, 1}


def test_an_empty_prompt_and_bad_parameters_are_the_callers_errors() -> None:
    with pytest.raises(UsageError, match="no tokens"):
        generate(MODEL, [], SamplingParams(max_tokens=1))
    for bad in ({"max_tokens": 0}, {"temperature": -1.0}, {"top_k": -1}, {"top_p": 0.0}):
        with pytest.raises(UsageError, match=next(iter(bad))):
            SamplingParams(**{"max_tokens": 1, **bad})
