"""Packed rows under attention = "document": every document as if it stood alone."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor

from potluck.lm.config import ModelConfig
from potluck.lm.documents import EOD, document_positions, hidden_keys, last_document
from potluck.lm.kernels import SHORT_ROW, additive_mask, causal_attention, rotary_rows
from potluck.lm.loss import mean_nll, token_nll
from potluck.lm.model import Decoder, init_decoder, rotary_table
from potluck.lm.score import StackedDecoders, prefix_mean_nll

CONFIG = ModelConfig(vocab=97, hidden=24, layers=2, heads=2, ffn=64, context=401, attention="document")
SHORT, LONG = [[1, 30, 2, 64, 24, 1], [60, 5, 57], [122]], [[1, 150, 90, 2, 62], [305]]
"""Lengths of the documents of each row; rows of 122 tokens go by the kernels, rows of 305 the plain way."""


def packed(rows: list[list[int]]) -> tuple[Tensor, list[list[Tensor]]]:
    """Ids [batch, T + 1], and each row's documents with the token after them; the last may be cut by the row's end."""
    generator = torch.Generator().manual_seed(1)
    ids = torch.randint(1, CONFIG.vocab, (len(rows), sum(rows[0]) + 1), generator=generator)
    documents = []
    for row, lengths in zip(ids, rows, strict=True):
        ends = torch.tensor(lengths).cumsum(0).tolist()
        row[torch.tensor(ends[:-1], dtype=torch.long) - 1] = EOD
        documents.append([row[end - length : end + 1] for end, length in zip(ends, lengths, strict=True)])
    return ids, documents


def loss(model: Decoder, ids: Tensor) -> Tensor:
    return mean_nll(model(ids[:, :-1]).flatten(0, 1), model.embedding.weight, ids[:, 1:].flatten())


def test_documents_begin_after_an_eod_and_positions_begin_anew() -> None:
    ids = torch.tensor([[5, 6, EOD, 7, EOD, EOD, 8], [EOD, 1, 2, 3, 4, 5, EOD]])
    assert document_positions(ids).tolist() == [[0, 1, 2, 0, 1, 0, 0], [0, 0, 1, 2, 3, 4, 5]]
    assert hidden_keys(ids[0, 1:5]).int().tolist() == [[0, 1, 1, 1], [0, 0, 1, 1], [1, 1, 0, 1], [1, 1, 0, 0]]


@pytest.mark.parametrize("rows", [SHORT, LONG])
def test_losses_of_a_packed_row_are_those_of_its_documents_alone(rows: list[list[int]]) -> None:
    ids, documents = packed(rows)
    assert (ids.shape[1] - 1 <= SHORT_ROW) == (rows is SHORT)
    model = init_decoder(CONFIG, seed=1)
    found = token_nll(model, ids)
    for nll, texts in zip(found, documents, strict=True):
        alone = torch.cat([token_nll(model, text.unsqueeze(0))[0] for text in texts])
        assert torch.allclose(nll, alone, rtol=0, atol=1e-5)
    whole_rows = token_nll(init_decoder(replace(CONFIG, attention="row"), seed=1), ids)
    first = rows[0][0]
    assert torch.allclose(found[0, :first], whole_rows[0, :first], rtol=0, atol=1e-5)
    assert (found[0, first:] - whole_rows[0, first:]).abs().max() > 1e-3


@pytest.mark.parametrize("rows", [SHORT, LONG])
def test_gradients_of_packed_rows_are_those_of_their_documents_alone(rows: list[list[int]]) -> None:
    ids, documents = packed(rows)
    model = init_decoder(CONFIG, seed=1)
    weights = list(model.parameters())
    found = torch.autograd.grad(loss(model, ids), weights)
    texts = [text for row in documents for text in row]
    alone = torch.stack([loss(model, t.unsqueeze(0)) * (len(t) - 1) for t in texts]).sum() / ids[:, 1:].numel()
    for one, other in zip(found, torch.autograd.grad(alone, weights), strict=True):
        assert torch.allclose(one, other, rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("rows", [SHORT, LONG])
def test_a_packed_document_never_feels_another(rows: list[list[int]]) -> None:
    ids, _ = packed(rows)
    model = init_decoder(CONFIG, seed=1)
    changed = ids.clone()
    start, end = 1, 1 + rows[0][1]
    changed[0, start : end - 1] = ids[0, start : end - 1] % (CONFIG.vocab - 1) + 1
    with torch.no_grad():
        before, after = model(ids), model(changed)
    same = (before == after).all(-1)
    assert same[0, :start].all()
    assert same[0, end:].all()
    assert not same[0, start:end].any()
    assert same[1:].all()


def test_the_gradient_of_attention_within_documents_is_the_numerical_one() -> None:
    ids = torch.tensor([[3, EOD, 4, 5, 6, EOD, 7], [1, 2, 3, 4, EOD, 6, 7]])
    table = rotary_table(CONFIG)[:, :2].to(torch.complex128)
    rotary = rotary_rows(table[document_positions(ids)], 2)
    generator = torch.Generator().manual_seed(0)
    qkv = torch.randn(2, 7, 24, generator=generator, dtype=torch.float64).requires_grad_()

    def attend(qkv: Tensor) -> Tensor:
        return causal_attention(qkv, rotary, additive_mask(hidden_keys(ids), qkv), 2)

    assert torch.autograd.gradcheck(attend, (qkv,))


def test_half_precision_sees_the_same_packed_documents() -> None:
    ids, _ = packed(SHORT)
    model = init_decoder(CONFIG, seed=1)
    wanted = token_nll(model, ids)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        found = token_nll(model, ids)
    assert torch.allclose(found, wanted, atol=0.1)


def test_stacked_decoders_honour_the_documents_of_a_prompt(tmp_path: Path) -> None:
    ids, documents = packed(SHORT)
    model = init_decoder(CONFIG, seed=1)
    save_file({name: p.detach() for name, p in model.named_parameters()}, tmp_path / "w.safetensors")
    found = StackedDecoders(CONFIG, [tmp_path / "w.safetensors"] * 2).prefix_nll(ids[0].tolist())
    rows = ids.numpy().astype(np.uint16)
    alone = torch.cat([token_nll(model, text.unsqueeze(0))[0] for text in documents[0]]).mean().item()
    assert found.tolist() == pytest.approx([alone] * 2, abs=1e-5)
    means = prefix_mean_nll(model, rows, prefix=rows.shape[1], batch_size=2)
    assert means[0] == pytest.approx(alone, abs=1e-5)


@pytest.mark.parametrize(
    ("prompt", "seen"),
    [([4, 5], [4, 5]), ([4, EOD, 5, 6], [5, 6]), ([EOD, 4, EOD], [4, EOD]), ([EOD], [EOD]), ([4, EOD, EOD], [EOD])],
)
def test_a_prompt_ends_in_the_document_of_its_last_token(prompt: list[int], seen: list[int]) -> None:
    assert list(last_document(prompt)) == seen
    with torch.no_grad():
        model = init_decoder(CONFIG, seed=1)
        whole, tail = model(torch.tensor([prompt]))[0, -1], model(torch.tensor([seen]))[0, -1]
    assert torch.allclose(whole, tail, atol=1e-6)
