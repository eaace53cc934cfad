"""Generated tokens per second on one thread: 8 prompts in one batch, one after the other, and by `transformers`.

    python -m benchmarks.generate [--turns 5] [--tokens 64] [--json FILE]

The ways alternate, and a ratio is taken within each turn, so that other work on the machine harms all alike.
Figures are the median of the turns with the least and the greatest. `transformers` runs a Llama of the same shape
and its own batch of 8, without the padding that unequal prompts need there.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

from benchmarks.turns import seconds_of, spread
from potluck.lm.config import PRESETS, ModelConfig
from potluck.lm.generate import SamplingParams, generate, generate_batch
from potluck.lm.model import init_decoder

VOCAB, CONTEXT, NUM_PROMPTS, NO_EOD = 1024, 129, 8, -1
PROMPT_TOKENS = 32
RATIOS = {"batched_vs_single": ("batched", "single"), "batched_vs_transformers": ("batched", "transformers")}


def ways_of(preset: str, tokens: int) -> dict[str, Callable[[], object]]:
    """Each generates `tokens` tokens of every prompt."""
    p = PRESETS[preset]
    config = ModelConfig(vocab=VOCAB, context=CONTEXT, hidden=p.hidden, layers=p.layers, heads=p.heads, ffn=p.ffn)
    model = init_decoder(config, seed=0)
    generator = torch.Generator().manual_seed(0)
    ids = torch.randint(1, VOCAB, (NUM_PROMPTS, PROMPT_TOKENS), generator=generator)
    # Of 25 to 32 tokens: what is decoded together is of unequal length.
    prompts = [row.tolist()[i:] for i, row in enumerate(ids)]
    params = SamplingParams(max_tokens=tokens)
    llama = llama_of(config)
    how = {"max_new_tokens": tokens, "min_new_tokens": tokens, "do_sample": False, "pad_token_id": 0}
    mask = torch.ones_like(ids)
    return {
        "batched": lambda: generate_batch(model, prompts, params, eod=NO_EOD),
        "single": lambda: [list(generate(model, prompt, params, eod=NO_EOD)) for prompt in prompts],
        "transformers": lambda: llama.generate(ids, attention_mask=mask, **how),
    }


def llama_of(config: ModelConfig) -> Any:
    from transformers import LlamaConfig, LlamaForCausalLM

    shape = LlamaConfig(
        vocab_size=config.vocab,
        hidden_size=config.hidden,
        intermediate_size=config.ffn,
        num_hidden_layers=config.layers,
        num_attention_heads=config.heads,
        max_position_embeddings=config.context,
        tie_word_embeddings=True,
    )
    model: Any = LlamaForCausalLM(shape)
    return model.eval()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--turns", type=int, default=5)
    parser.add_argument("--tokens", type=int, default=64)
    parser.add_argument(
        "--json", type=Path, metavar="FILE", help="write the ratios there; those of 2.5M end in its name"
    )
    options = parser.parse_args()
    torch.set_num_threads(1)
    figures: dict[str, dict[str, float]] = {}
    for preset, suffix in (("0.16M", ""), ("2.5M", "_2.5M")):
        ways = ways_of(preset, options.tokens)
        for way in ways.values():
            way()
        turns = [{name: seconds_of(way) for name, way in ways.items()} for _ in range(options.turns)]
        for name in ways:
            rate = spread([NUM_PROMPTS * options.tokens / turn[name] for turn in turns])
            print(f"{preset:6s} {name:13s} {rate['median']:8,.0f} tokens/s ({rate['low']:,.0f} to {rate['high']:,.0f})")
        for ratio, (ours, other) in RATIOS.items():
            figure = figures[ratio + suffix] = spread([turn[other] / turn[ours] for turn in turns])
            print(
                f"{preset:6s} {ratio} {figure['median']:.2f} ({figure['low']:.2f} to {figure['high']:.2f})", flush=True
            )
    if options.json:
        options.json.write_text(json.dumps(figures, indent=2) + "\n")


if __name__ == "__main__":
    main()
