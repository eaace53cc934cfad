from pathlib import Path

import pytest
import torch
import torch.nn.functional as F

from potluck.errors import DataError
from potluck.lm.config import ModelConfig
from potluck.lm.loss import mean_nll, position_nll, token_nll
from potluck.lm.model import init_decoder, load_decoder, rotary_table, rotate

CONFIG = ModelConfig(vocab=97, hidden=24, layers=2, heads=2, ffn=64, context=33)


def ids_of(seed: int, *shape: int) -> torch.Tensor:
    return torch.randint(0, CONFIG.vocab, shape, generator=torch.Generator().manual_seed(seed))


def test_a_later_token_never_changes_an_earlier_hidden_state() -> None:
    model = init_decoder(CONFIG, seed=1)
    ids = ids_of(0, 3, 32)
    with torch.no_grad():
        before = model(ids)
        for position in (1, 9, 31):
            changed = ids.clone()
            changed[:, position] = (changed[:, position] + 1) % CONFIG.vocab
            after = model(changed)
            assert torch.equal(after[:, :position], before[:, :position])
            assert not torch.allclose(after[:, position], before[:, position])


def test_every_earlier_token_can_change_the_last_hidden_state() -> None:
    model = init_decoder(CONFIG, seed=1)
    ids = ids_of(0, 1, 12)
    with torch.no_grad():
        before = model(ids)[:, -1]
        for position in range(12):
            changed = ids.clone()
            changed[:, position] = (changed[:, position] + 1) % CONFIG.vocab
            assert not torch.allclose(model(changed)[:, -1], before, atol=1e-6)


def test_rotated_products_depend_on_the_distance_only() -> None:
    table = rotary_table(CONFIG)
    q, k = torch.randn(2, 12, generator=torch.Generator().manual_seed(3))
    turned_q = rotate(q.expand(1, 33, 1, 12).contiguous(), table)[0, :, 0]
    turned_k = rotate(k.expand(1, 33, 1, 12).contiguous(), table)[0, :, 0]
    products = turned_q @ turned_k.t()
    for distance in range(-8, 9):
        diagonal = products.diagonal(distance)
        assert torch.allclose(diagonal, diagonal[0].expand_as(diagonal), atol=1e-4)


def test_equal_seeds_give_equal_bits_and_others_do_not() -> None:
    one, same, other = (init_decoder(CONFIG, seed=s) for s in (5, 5, 6))
    pairs = list(zip(one.parameters(), same.parameters(), strict=True))
    assert all(torch.equal(a, b) for a, b in pairs)
    assert not torch.equal(one.embedding.weight, other.embedding.weight)


def test_initialising_leaves_the_global_generator_alone() -> None:
    torch.manual_seed(11)
    wanted = torch.rand(3)
    torch.manual_seed(11)
    init_decoder(CONFIG, seed=5)
    assert torch.equal(torch.rand(3), wanted)


def test_the_parameter_count_is_the_configs() -> None:
    model = init_decoder(CONFIG, seed=0)
    assert sum(p.numel() for p in model.parameters()) == CONFIG.num_parameters


@pytest.mark.parametrize("positions", [1, 255, 256, 700])
@pytest.mark.parametrize("scale", [1.0, 40.0])
def test_the_chunked_loss_and_its_gradients_are_torchs(positions: int, scale: float) -> None:
    generator = torch.Generator().manual_seed(positions)
    hidden = (torch.randn(positions, 16, generator=generator, dtype=torch.float64) * scale).requires_grad_()
    embedding = torch.randn(301, 16, generator=generator, dtype=torch.float64).requires_grad_()
    targets = torch.randint(0, 301, (positions,), generator=generator)
    wanted = F.cross_entropy(hidden @ embedding.t(), targets)
    wanted_grads = torch.autograd.grad(3.0 * wanted, (hidden, embedding))
    found = mean_nll(hidden, embedding, targets)
    found_grads = torch.autograd.grad(3.0 * found, (hidden, embedding))
    assert torch.allclose(found, wanted, rtol=1e-9)
    for a, b in zip(found_grads, wanted_grads, strict=True):
        assert torch.allclose(a, b, rtol=1e-6, atol=1e-9)
    with torch.no_grad():
        assert torch.allclose(mean_nll(hidden, embedding, targets).double(), wanted, rtol=1e-5)


def test_the_loss_survives_logits_that_overflow_an_exponential() -> None:
    hidden = torch.tensor([[200.0, 0.0]], requires_grad=True)
    embedding = torch.tensor([[1.0, 0.0], [-1.0, 0.0], [0.5, 0.0]])
    loss = mean_nll(hidden, embedding, torch.tensor([2]))
    loss.backward()
    assert loss.item() == pytest.approx(100.0)
    assert hidden.grad is not None
    assert torch.allclose(hidden.grad, torch.tensor([[0.5, 0.0]]))


def test_token_nll_is_the_cross_entropy_of_each_next_token() -> None:
    model = init_decoder(CONFIG, seed=2)
    ids = ids_of(4, 3, 20)
    found = token_nll(model, ids)
    logits = model(ids[:, :-1]) @ model.embedding.weight.t()
    wanted = F.cross_entropy(logits.reshape(-1, CONFIG.vocab), ids[:, 1:].reshape(-1), reduction="none").view(3, 19)
    assert found.shape == (3, 19)
    assert not found.requires_grad
    assert torch.allclose(found, wanted, atol=1e-5)


def test_position_nll_agrees_with_and_without_the_shift() -> None:
    generator = torch.Generator().manual_seed(0)
    hidden, embedding = torch.randn(300, 16, generator=generator), torch.randn(50, 16, generator=generator)
    targets = torch.randint(0, 50, (300,), generator=generator)
    far = torch.cat([hidden, torch.full((1, 16), 30.0)])
    both = position_nll(far, embedding, torch.cat([targets, targets[:1]]))
    assert torch.allclose(position_nll(hidden, embedding, targets), both[:-1], atol=1e-5)


def test_weights_of_another_shape_are_refused_by_name(tmp_path: Path) -> None:
    from safetensors.torch import save_file

    model = init_decoder(CONFIG, seed=0)
    save_file({n: p.detach() for n, p in model.named_parameters()}, tmp_path / "w.safetensors")
    loaded = load_decoder(CONFIG, tmp_path / "w.safetensors")
    assert torch.equal(loaded.norm, model.norm)
    half = load_decoder(CONFIG, tmp_path / "w.safetensors", dtype="bfloat16")
    assert half.norm.dtype == torch.bfloat16
    ids = ids_of(0, 2, 20)
    assert torch.allclose(token_nll(half, ids), token_nll(model, ids), atol=0.2)
    wider = ModelConfig(vocab=97, hidden=24, layers=2, heads=2, ffn=72, context=33)
    with pytest.raises(DataError, match="gate_up") as caught:
        load_decoder(wider, tmp_path / "w.safetensors")
    assert caught.value.error_id == "data.wrong-weights"
