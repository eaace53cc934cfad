from __future__ import annotations

import hashlib
import json
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from potluck.errors import DataError, UsageError
from potluck.ids import Digest, digest_file
from potluck.lm.agreement import NEW_TOKENS, SAMPLE_TEXT, TOLERANCE, compare_with_transformers
from potluck.lm.card import HeldOut, ModelCard, RoutedShare, SoupMixture, TextSource, render_card
from potluck.lm.config import ModelConfig
from potluck.lm.export import FILES, decoder_tensors, export_llama, llama_tensors
from potluck.lm.model import init_decoder
from sampling.bpe import load_tokenizer, train_bpe

SHAPES = [
    ModelConfig(vocab=300, hidden=16, layers=2, heads=2, ffn=40, context=49),
    ModelConfig(vocab=320, hidden=96, layers=3, heads=3, ffn=256, context=65),
]
DIGEST = Digest("ab" * 32)
CARD = ModelCard(
    run="a" * 64,
    name="two | tongues",
    method="smalltalk",
    slot="expert-1",
    described="Expert 1 of 3.",
    lineage="b" * 64,
    step=40,
    total_steps=80,
    tokens_trained=12_345,
    weights=DIGEST,
    checkpoint=DIGEST,
    tokenizer=DIGEST,
    corpus=DIGEST,
    sources=(
        TextSource(name="wiki|de", documents=12, num_bytes=3456, licences=("CC-BY-SA-4.0", "unknown")),
        TextSource(name="code", documents=7, num_bytes=89, licences=("MIT",)),
    ),
    routed=(RoutedShare(source="code", rows=3, of_rows=4),),
    held_out=HeldOut(on="test rows routed here", rows=9, nll_all=2.5, nll_suffix=None),
    version="0.1.0",
)


def lively(config: ModelConfig, folder: Path) -> Path:
    """Weights large enough that attention, its rotary turns and the norms' gains all matter to the logits."""
    model = init_decoder(config, seed=3)
    generator = torch.Generator().manual_seed(4)
    tensors = {}
    for name, weight in model.named_parameters():
        noise = torch.randn(weight.shape, generator=generator)
        tensors[name] = 1.0 + 0.3 * noise if weight.dim() < 2 else 1.5 * weight.shape[1] ** -0.5 * noise
    folder.mkdir(exist_ok=True)
    save_file(tensors, folder / "weights.safetensors")
    return folder / "weights.safetensors"


@pytest.fixture
def tokenizer(tmp_path: Path) -> Path:
    path = tmp_path / "tokenizer-blob"
    train_bpe([SAMPLE_TEXT, "a quick brown dog, größer"] * 3, 300).save(str(path))
    return path


def digests(folder: Path) -> dict[str, str]:
    return {path.name: hashlib.sha256(path.read_bytes()).hexdigest() for path in sorted(folder.iterdir())}


@pytest.mark.parametrize(
    "config", [*SHAPES, replace(SHAPES[0], attention="document")], ids=["2-heads", "3-heads", "document"]
)
def test_transformers_computes_of_an_export_what_our_decoder_computes(
    config: ModelConfig, tmp_path: Path, tokenizer: Path
) -> None:
    weights = lively(config, tmp_path / "blobs")
    export_llama(config, weights, tokenizer, CARD, tmp_path / "out")
    agreement = compare_with_transformers(config, weights, tokenizer, tmp_path / "out")
    assert agreement.max_logit_difference <= TOLERANCE
    assert (agreement.greedy_equal, agreement.greedy_tokens) == (True, NEW_TOKENS)
    assert agreement.tokenizer_equal
    assert agreement.holds


def test_the_check_of_an_export_notices_pairs_left_where_halves_belong(tmp_path: Path, tokenizer: Path) -> None:
    config, out = SHAPES[0], tmp_path / "out"
    weights = lively(config, tmp_path / "blobs")
    export_llama(config, weights, tokenizer, CARD, out)
    tensors = load_file(out / "model.safetensors")
    tensors["model.layers.0.self_attn.q_proj.weight"] = load_file(weights)["blocks.0.qkv"][: config.hidden].clone()
    save_file(tensors, out / "model.safetensors", metadata={"format": "pt"})
    agreement = compare_with_transformers(config, weights, tokenizer, out)
    assert agreement.max_logit_difference > 100 * agreement.allowed_difference
    assert not agreement.holds


def test_the_tokenizer_of_an_export_reads_and_writes_text_as_ours_does(tmp_path: Path, tokenizer: Path) -> None:
    from transformers import AutoTokenizer

    export_llama(SHAPES[0], lively(SHAPES[0], tmp_path / "blobs"), tokenizer, CARD, tmp_path / "out")
    theirs, ours = AutoTokenizer.from_pretrained(tmp_path / "out"), load_tokenizer(tokenizer)
    for text in (SAMPLE_TEXT, "", " leading and trailing ", "naïve \u200d 👩‍👩‍👧", "<eod><eod>", "a , b ' s n't"):
        ids = theirs.encode(text)
        assert ids == ours.encode(text).ids, text
        assert 0 not in ids
        assert theirs.decode(ids) == text
    assert (theirs.eos_token_id, theirs.pad_token_id, theirs.bos_token_id) == (0, 0, None)
    assert theirs.decode([0], skip_special_tokens=True) == ""
    assert theirs.model_max_length == SHAPES[0].context - 1


def test_the_program_on_an_exports_card_runs(
    tmp_path: Path, tokenizer: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "out"
    export_llama(SHAPES[0], lively(SHAPES[0], tmp_path / "blobs"), tokenizer, CARD, out)
    program = (out / "README.md").read_text().split("```")[1].removeprefix("python\n")
    exec(program.replace("FOLDER", str(out)), {})
    assert capsys.readouterr().out.startswith("The ")


def test_equal_exports_have_equal_bytes_and_leave_nothing_beside_them(tmp_path: Path, tokenizer: Path) -> None:
    weights = lively(SHAPES[0], tmp_path / "blobs")
    one, two = (export_llama(SHAPES[0], weights, tokenizer, CARD, tmp_path / "made" / name) for name in ("1", "2"))
    assert digests(one.folder) == digests(two.folder) == dict(one.files)
    assert tuple(digests(one.folder)) == FILES
    assert len({path.stat().st_mode for path in one.folder.iterdir()}) == 1
    assert sorted(path.name for path in (tmp_path / "made").iterdir()) == ["1", "2"]
    assert one.files["tokenizer.json"] == digest_file(tokenizer)


def test_an_exports_layout_turns_back_to_the_bit() -> None:
    for config in SHAPES:
        ours = dict(init_decoder(config, seed=1).named_parameters())
        back = decoder_tensors(config, llama_tensors(config, ours))
        assert back.keys() == ours.keys()
        assert all(torch.equal(back[name], ours[name]) for name in ours)


def test_an_export_writes_over_an_earlier_export_only_when_told_and_over_nothing_else(
    tmp_path: Path, tokenizer: Path
) -> None:
    weights, out = lively(SHAPES[0], tmp_path / "blobs"), tmp_path / "out"
    out.mkdir()
    export_llama(SHAPES[0], weights, tokenizer, CARD, out)
    with pytest.raises(UsageError) as caught:
        export_llama(SHAPES[0], weights, tokenizer, CARD, out)
    assert caught.value.error_id == "usage.out-exists"
    again = export_llama(SHAPES[0], weights, tokenizer, replace(CARD, step=80), out, force=True)
    assert "80 of 80" in (again.folder / "README.md").read_text()
    (out / "thesis.tex").write_text("years of work")
    before = digests(out)
    with pytest.raises(UsageError, match=r"thesis\.tex"):
        export_llama(SHAPES[0], weights, tokenizer, CARD, out, force=True)
    with pytest.raises(UsageError, match="is a file"):
        export_llama(SHAPES[0], weights, tokenizer, CARD, out / "thesis.tex", force=True)
    assert digests(out) == before
    assert sorted(path.name for path in tmp_path.iterdir()) == ["blobs", "out", "tokenizer-blob"]


def test_an_export_of_another_models_weights_is_refused_and_leaves_no_folder(tmp_path: Path, tokenizer: Path) -> None:
    weights = lively(SHAPES[0], tmp_path / "blobs")
    with pytest.raises(DataError) as caught:
        export_llama(SHAPES[1], weights, tokenizer, CARD, tmp_path / "out")
    assert caught.value.error_id == "data.wrong-weights"
    assert sorted(path.name for path in tmp_path.iterdir()) == ["blobs", "tokenizer-blob"]


def test_an_exports_card_says_where_the_model_and_its_text_come_from() -> None:
    text = render_card(CARD, SHAPES[0])
    _, front, body = text.split("---\n", 2)
    assert "library_name: transformers\n" in front
    assert '- "smalltalk"\n' in front
    for words in (
        "# two \\| tongues: expert-1",
        f"`{CARD.run}`",
        f"`{CARD.lineage}`",
        "40 of 80",
        "12,345",
        "| wiki\\|de | 12 | 3,456 | CC-BY-SA-4.0, unknown |",
        "| code | 3 | 4 | 75% |",
        "On test rows routed here (9), nats per target token: 2.5000 over all targets.",
        "Potluck 0.1.0",
    ):
        assert words in body, words
    assert "own document" not in body
    assert "own document" in render_card(CARD, replace(SHAPES[0], attention="document"))
    bare = render_card(replace(CARD, sources=(), routed=(), held_out=None, tokens_trained=None), SHAPES[0])
    assert "no longer at the coordinator" in bare
    assert "not recorded" in bare
    assert "Mixture" not in bare


def test_an_exports_config_names_every_number_of_the_model(tmp_path: Path, tokenizer: Path) -> None:
    config = SHAPES[1]
    export_llama(config, lively(config, tmp_path / "blobs"), tokenizer, CARD, tmp_path / "out")
    written = json.loads((tmp_path / "out" / "config.json").read_text())
    assert (written["num_attention_heads"], written["head_dim"]) == (3, 32)
    assert (written["eos_token_id"], written["pad_token_id"], written["bos_token_id"]) == (0, 0, None)
    assert written["max_position_embeddings"] == 64
    assert written["tie_word_embeddings"] is True
    assert "lm_head.weight" not in load_file(tmp_path / "out" / "model.safetensors")


def test_the_card_of_a_soups_specialist_tells_its_mixture_its_noise_and_its_coefficients() -> None:
    domains = tuple((f"d|{number}", 1 / 128, 1 / 256) for number in range(128))
    mixture = SoupMixture(domains=domains, coefficients=(0.5, -0.25), windows=1200, expected_noise=0.314, unplaced=0.25)
    text = render_card(replace(CARD, routed=(), soup=mixture), SHAPES[0])
    assert "| d\\|0 | 0.0078125 | 0% |" in text
    assert "And 28 domains more" in text
    assert "1,200 windows of text" in text
    assert "off by 0.31 in L1 distance (of at most 2). 25% of it lies in no domain." in text
    assert "Coefficients of the 2 experts: 0.5, -0.25." in text
    by_name = replace(CARD, soup=SoupMixture(domains=domains[:1], coefficients=(1.0,)))
    assert "windows of text" not in render_card(by_name, SHAPES[0])
