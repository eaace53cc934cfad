"""The hand-written gradients against numerical ones, and the parts against the plain formulas."""

import pytest
import torch

from potluck.lm.config import ModelConfig
from potluck.lm.kernels import SHORT_ROW, causal_attention, future_mask, rotary_rows, suits_kernels, swiglu, unit_norm
from potluck.lm.model import Block, init_decoder, rotary_table

CONFIG = ModelConfig(vocab=50, hidden=16, layers=1, heads=2, ffn=24, context=200)


def normal(*shape: int) -> torch.Tensor:
    generator = torch.Generator().manual_seed(sum(shape))
    return torch.randn(*shape, generator=generator, dtype=torch.float64).requires_grad_()


def test_the_gradients_of_norm_and_swiglu_are_the_numerical_ones() -> None:
    assert torch.autograd.gradcheck(unit_norm, (normal(3, 8),))
    assert torch.autograd.gradcheck(swiglu, (normal(5, 4), normal(12, 4)))


@pytest.mark.parametrize("length", [1, 5, 66])
def test_the_gradient_of_attention_is_the_numerical_one(length: int) -> None:
    rotary = rotary_rows(rotary_table(CONFIG)[:length, :2].to(torch.complex128), 2)

    def attend(qkv: torch.Tensor) -> torch.Tensor:
        return causal_attention(qkv, rotary, future_mask(length, qkv), 2)

    assert torch.autograd.gradcheck(attend, (normal(1, length, 24),), fast_mode=True)


@pytest.mark.parametrize("length", [1, 31, 64, 65, 128, 200])
def test_a_block_and_its_gradients_are_those_of_the_plain_formulas(length: int) -> None:
    block = init_decoder(CONFIG, seed=0).blocks[0].double()
    assert isinstance(block, Block)
    with torch.no_grad():
        block.attention_norm.uniform_(0.5, 2.0, generator=torch.Generator().manual_seed(1))
        block.ffn_norm.uniform_(0.5, 2.0, generator=torch.Generator().manual_seed(2))
    rotary = rotary_table(CONFIG)[:length].to(torch.complex128)
    x, weight = normal(2, length, 16), normal(2, length, 16).detach()
    found = block.by_kernels(x, rotary_rows(rotary, 2), future_mask(length, x))
    wanted = block.plainly(x, rotary_table(CONFIG)[:length])
    assert torch.allclose(found, wanted, atol=1e-6)
    inputs = [x, *block.parameters()]
    pairs = zip(*(torch.autograd.grad((y * weight).sum(), inputs) for y in (found, wanted)), strict=True)
    for one, other in pairs:
        assert torch.allclose(one, other, rtol=1e-4, atol=1e-5)


def test_long_rows_and_half_precision_take_the_plain_way() -> None:
    assert suits_kernels(torch.empty(1, SHORT_ROW, 8))
    assert not suits_kernels(torch.empty(1, SHORT_ROW + 1, 8))
    assert not suits_kernels(torch.empty(1, 8, 8, dtype=torch.bfloat16))
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert not suits_kernels(torch.empty(1, 8, 8))


def test_the_mask_closes_the_future_only() -> None:
    mask = future_mask(3, torch.empty(0))
    assert mask.tolist() == [[0, -torch.inf, -torch.inf], [0, 0, -torch.inf], [0, 0, 0]]
