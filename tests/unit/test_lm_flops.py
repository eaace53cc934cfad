import pytest
import torch
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from potluck.lm.config import ModelConfig
from potluck.lm.flops import forward_flops, train_flops
from potluck.lm.model import init_decoder

SHAPES = [
    ModelConfig(vocab=1024, hidden=40, layers=2, heads=2, ffn=112, context=129),
    ModelConfig(vocab=512, hidden=96, layers=3, heads=6, ffn=256, context=65),
]


def in_place_product(total: list[int], left: list[int], right: list[int], **_: object) -> int:
    return 2 * left[0] * left[1] * right[1]


IN_PLACE = {torch.ops.aten.addmm_: in_place_product}
"""A product the counter does not know by itself."""


def matmul_flops(config: ModelConfig, sequence: int) -> float:
    """The formula without what a counter of matrix products cannot see: look-up and softmax of the vocabulary."""
    return forward_flops(config, sequence) - sequence * config.hidden - 3 * sequence * config.vocab


@pytest.mark.parametrize("config", SHAPES)
@pytest.mark.parametrize("sequence", [16, 64])
def test_the_matrix_products_of_a_forward_pass_are_what_torch_counts(config: ModelConfig, sequence: int) -> None:
    model = init_decoder(config, seed=0)
    ids = torch.zeros(1, sequence, dtype=torch.long)
    with sdpa_kernel(SDPBackend.MATH), FlopCounterMode(display=False) as counter, torch.no_grad():
        hidden = model(ids)
        hidden.view(-1, config.hidden) @ model.embedding.weight.t()
    assert counter.get_total_flops() == matmul_flops(config, sequence)


def test_a_training_step_is_three_forward_passes_as_torch_counts_it() -> None:
    config, sequence = SHAPES[1], 32
    model = init_decoder(config, seed=0)
    ids = torch.zeros(1, sequence, dtype=torch.long)
    with sdpa_kernel(SDPBackend.MATH), FlopCounterMode(display=False, custom_mapping=IN_PLACE) as counter:
        logits = model(ids).view(-1, config.hidden) @ model.embedding.weight.t()
        logits.logsumexp(1).sum().backward()
    assert counter.get_total_flops() == 3 * matmul_flops(config, sequence)
    assert train_flops(config, sequence) == 3 * forward_flops(config, sequence)


def test_the_accounting_of_the_paper_is_met_where_only_swiglus_third_matrix_differs() -> None:
    """F_r(256) = 2.58e9 of the 4.4M router (2410.03529), whose feed-forward has two matrices of width 4 H."""
    config = ModelConfig(vocab=32_000, hidden=96, layers=12, heads=12, ffn=384, context=1024)
    third_matrix = 12 * 2 * 256 * 96 * 384
    assert forward_flops(config, 256) - third_matrix == pytest.approx(2.58e9, rel=0.01)
