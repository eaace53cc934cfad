"""A checkpoint as a Hugging Face Llama folder, which `transformers` and all that reads its format can load.

The decoder is Llama's in all but layout: queries, keys and values are one matrix, SwiGLU's two inner
layers too, and a rotary pair is two neighbouring features where Llama has feature j and j + head_dim / 2.
Nothing is computed: every number is copied to its new place, so the export can be turned back and compared.

Document attention has no place in Llama's config. It is exported all the same, since on a single document
(no `<eod>` inside) it is Llama's attention; the card says so.
"""

from __future__ import annotations

import json
import os
import shutil
import stat
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from potluck.errors import DataError, UsageError
from potluck.ids import Digest, Json, digest_file
from potluck.lm.card import ModelCard, render_card
from potluck.lm.config import ModelConfig

if TYPE_CHECKING:
    from torch import Tensor

EOD, EOD_ID = "<eod>", 0
WEIGHTS_NAME = "model.safetensors"
FILES = (
    "README.md",
    "config.json",
    "generation_config.json",
    WEIGHTS_NAME,
    "special_tokens_map.json",
    "tokenizer.json",
    "tokenizer_config.json",
)
"""All that an export writes."""


@dataclass(frozen=True, kw_only=True)
class Exported:
    folder: Path
    num_parameters: int
    files: Mapping[str, Digest]
    """Digest of each file by its name in the folder."""


def export_llama(
    config: ModelConfig, weights: Path, tokenizer: Path, card: ModelCard, out: Path, *, force: bool = False
) -> Exported:
    """Writes the folder, reads its weights back and holds them against the checkpoint; equal inputs, equal bytes.

    It is written beside `out` and renamed, so `out` is there whole or not at all.

    Args:
        config: of the checkpoint.
        weights: the checkpoint's safetensors file.
        tokenizer: a tokenizer blob, copied as it is.
        card: becomes README.md.
        out: the folder; its parents are made if need be.
        force: replaces an earlier export in `out`, and nothing else.

    Raises:
        UsageError: ``usage.out-exists``.
        DataError: ``data.wrong-weights``, or ``data.export-damaged``: what was read back is not what was written.
    """
    out = out.resolve()
    require_free(out, force=force)
    out.parent.mkdir(parents=True, exist_ok=True)
    fresh = out.with_name(f".{out.name}.{os.getpid()}.new")
    fresh.mkdir()
    try:
        _write_weights(config, weights, fresh / WEIGHTS_NAME)
        shutil.copyfile(tokenizer, fresh / "tokenizer.json")
        for name, value in _settings(config).items():
            (fresh / name).write_text(json.dumps(value, indent=2, sort_keys=True) + "\n", encoding="utf-8")
        (fresh / "README.md").write_text(render_card(card, config), encoding="utf-8")
        # Safetensors makes its file for the owner alone; the others follow the person's umask, so it does too.
        (fresh / WEIGHTS_NAME).chmod(stat.S_IMODE((fresh / "README.md").stat().st_mode))
        files = {name: digest_file(fresh / name) for name in FILES}
        _put_in_place(fresh, out)
    finally:
        shutil.rmtree(fresh, ignore_errors=True)
    return Exported(folder=out, num_parameters=config.num_parameters, files=files)


def require_free(out: Path, *, force: bool) -> None:
    """Refuses a place where something is; with `force` an earlier export may be there.

    Raises:
        UsageError: ``usage.out-exists``.
    """
    if not out.is_dir():
        if out.exists():
            raise UsageError("usage.out-exists", f"{out} is a file", "name a folder that is not there yet")
        return
    there = sorted(path.name for path in out.iterdir())
    others = [name for name in there if name not in FILES]
    if others:
        what = f"{out} holds {others[0]}, which no export wrote"
        raise UsageError("usage.out-exists", what, "name a folder that is empty or not there yet")
    if there and not force:
        raise UsageError("usage.out-exists", f"{out} holds an export already", "name another folder, or give --force")


def llama_tensors(config: ModelConfig, decoder: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The decoder's weights under Llama's names and in its layout. No output layer: it is the embedding."""
    tensors = {"model.embed_tokens.weight": decoder["embedding.weight"], "model.norm.weight": decoder["norm"]}
    for layer in range(config.layers):
        ours, theirs = f"blocks.{layer}", f"model.layers.{layer}"
        queries, keys, values = decoder[f"{ours}.qkv"].chunk(3)
        gate, up = decoder[f"{ours}.gate_up"].chunk(2)
        tensors |= {
            f"{theirs}.input_layernorm.weight": decoder[f"{ours}.attention_norm"],
            f"{theirs}.self_attn.q_proj.weight": _halves_from_pairs(queries, config.heads),
            f"{theirs}.self_attn.k_proj.weight": _halves_from_pairs(keys, config.heads),
            f"{theirs}.self_attn.v_proj.weight": values,
            f"{theirs}.self_attn.o_proj.weight": decoder[f"{ours}.out"],
            f"{theirs}.post_attention_layernorm.weight": decoder[f"{ours}.ffn_norm"],
            f"{theirs}.mlp.gate_proj.weight": gate,
            f"{theirs}.mlp.up_proj.weight": up,
            f"{theirs}.mlp.down_proj.weight": decoder[f"{ours}.down"],
        }
    return {name: tensor.detach().contiguous() for name, tensor in tensors.items()}


def decoder_tensors(config: ModelConfig, llama: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The inverse of `llama_tensors`."""
    import torch

    tensors = {"embedding.weight": llama["model.embed_tokens.weight"], "norm": llama["model.norm.weight"]}
    for layer in range(config.layers):
        ours, theirs = f"blocks.{layer}", f"model.layers.{layer}"
        queries, keys, values = (llama[f"{theirs}.self_attn.{letter}_proj.weight"] for letter in "qkv")
        turned = [_pairs_from_halves(weight, config.heads) for weight in (queries, keys)]
        gate, up = llama[f"{theirs}.mlp.gate_proj.weight"], llama[f"{theirs}.mlp.up_proj.weight"]
        tensors |= {
            f"{ours}.attention_norm": llama[f"{theirs}.input_layernorm.weight"],
            f"{ours}.qkv": torch.cat([*turned, values]),
            f"{ours}.out": llama[f"{theirs}.self_attn.o_proj.weight"],
            f"{ours}.ffn_norm": llama[f"{theirs}.post_attention_layernorm.weight"],
            f"{ours}.gate_up": torch.cat([gate, up]),
            f"{ours}.down": llama[f"{theirs}.mlp.down_proj.weight"],
        }
    return tensors


def _halves_from_pairs(weight: Tensor, heads: int) -> Tensor:
    """[heads * head_dim, hidden]: of each head's rows 0, 1, 2, 3, ... first the even ones, then the odd ones."""
    out, hidden = weight.shape
    return weight.view(heads, out // heads // 2, 2, hidden).transpose(1, 2).reshape(out, hidden)


def _pairs_from_halves(weight: Tensor, heads: int) -> Tensor:
    out, hidden = weight.shape
    return weight.view(heads, 2, out // heads // 2, hidden).transpose(1, 2).reshape(out, hidden)


def _write_weights(config: ModelConfig, weights: Path, target: Path) -> None:
    import torch
    from safetensors.torch import load_file, save_file

    from potluck.lm.model import load_decoder

    decoder = dict(load_decoder(config, weights).named_parameters())
    save_file(llama_tensors(config, decoder), target, metadata={"format": "pt"})
    found = decoder_tensors(config, load_file(target))
    count = sum(tensor.numel() for tensor in found.values())
    differing = [name for name, wanted in decoder.items() if not torch.equal(found[name], wanted)]
    if differing or count != config.num_parameters:
        what = f"{target}: {count} parameters of {config.num_parameters}; read back otherwise: {differing[:4]}"
        raise DataError("data.export-damaged", what, "check the disk, then export again")


def _settings(config: ModelConfig) -> dict[str, Json]:
    """The JSON files, by name."""
    from potluck.lm.kernels import NORM_EPSILON
    from potluck.lm.model import ROTARY_BASE

    positions = max(1, config.context - 1)
    special: dict[str, Json] = {"eos_token": EOD, "pad_token": EOD}
    ends: dict[str, Json] = {"bos_token_id": None, "eos_token_id": EOD_ID, "pad_token_id": EOD_ID}
    return {
        "config.json": {
            "architectures": ["LlamaForCausalLM"],
            "model_type": "llama",
            "vocab_size": config.vocab,
            "hidden_size": config.hidden,
            "intermediate_size": config.ffn,
            "num_hidden_layers": config.layers,
            "num_attention_heads": config.heads,
            "num_key_value_heads": config.heads,
            "head_dim": config.hidden // config.heads,
            "hidden_act": "silu",
            "attention_bias": False,
            "mlp_bias": False,
            "attention_dropout": 0.0,
            "rms_norm_eps": NORM_EPSILON,
            # A row of C tokens has C - 1 inputs: the last position of our table was never trained on.
            "max_position_embeddings": positions,
            # Transformers 5 reads the first, 4 and most other readers the second.
            "rope_parameters": {"rope_type": "default", "rope_theta": ROTARY_BASE},
            "rope_theta": ROTARY_BASE,
            "tie_word_embeddings": True,
            "use_cache": True,
            "dtype": "float32",
            "torch_dtype": "float32",
            **ends,
        },
        "generation_config.json": {"do_sample": False, **ends},
        "special_tokens_map.json": special,
        "tokenizer_config.json": {
            "tokenizer_class": "PreTrainedTokenizerFast",
            "model_max_length": positions,
            # Transformers 4 would add token types, which Llama does not take.
            "model_input_names": ["input_ids", "attention_mask"],
            "clean_up_tokenization_spaces": False,
            # As our own reader does: `<eod>` spelt out in a text is text, not the end of a document.
            "split_special_tokens": True,
            **special,
        },
    }


def _put_in_place(fresh: Path, out: Path) -> None:
    """Renames; an earlier export makes room first and is deleted last."""
    if not out.exists():
        fresh.rename(out)
        return
    former = out.with_name(f".{out.name}.{os.getpid()}.old")
    out.rename(former)
    fresh.rename(out)
    shutil.rmtree(former)
