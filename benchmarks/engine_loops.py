"""The bare loops of `benchmarks.engine`, each in a process that lives through all turns.

    python -m benchmarks.engine_loops FOLDER bare|sdpa|eager|trainer

`bare` is a loop around the product's own model, `sdpa` and `eager` are transformers' Llama of the same shape,
`trainer` is the product's step without a node around it. A line with a number of seconds on stdin is a turn;
its figures are a line of JSON on stdout. The first step of a turn is not timed.
"""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import numpy as np
import psutil
import torch
from torch import Tensor, nn

from benchmarks.engine_setting import LAST_STEP, Setting
from expert_node.worker import GivenBlobs
from potluck.lm.loss import mean_nll
from potluck.lm.model import init_decoder
from potluck.lm.optim.adamw import is_decayed
from potluck.lm.train import Trainer, apply_profile
from sampling.batches import SegmentReader

NUM_BATCHES = 64
MIB = 1 << 20

Step = Callable[[int], float]
"""From the step's index to the seconds of it that the optimizer took."""


def bare(setting: Setting) -> Step:
    """Our decoder and loss under the textbook's loop."""
    model = init_decoder(setting.recipe.model, seed=0).to(setting.profile.device)
    forward: Any = torch.compile(model) if setting.profile.compile else model

    def loss_of(ids: Tensor, targets: Tensor) -> Tensor:
        hidden = forward(ids)
        return mean_nll(hidden.float().reshape(-1, hidden.shape[-1]), model.embedding.weight, targets.view(-1))

    return textbook(setting, model, loss_of)


def transformers(setting: Setting, attention: str) -> Step:
    from transformers import LlamaConfig, LlamaForCausalLM

    c = setting.recipe.model
    shape: dict[str, Any] = {
        "vocab_size": c.vocab,
        "hidden_size": c.hidden,
        "intermediate_size": c.ffn,
        "num_hidden_layers": c.layers,
        "num_attention_heads": c.heads,
        "max_position_embeddings": c.context,
        "tie_word_embeddings": True,
        "attn_implementation": attention,
    }
    model: Any = LlamaForCausalLM(LlamaConfig(**shape)).train().to(setting.profile.device)
    found = sum(p.numel() for p in model.parameters())
    assert found == c.num_parameters, (found, c.num_parameters)
    forward: Any = torch.compile(model) if setting.profile.compile else model

    def loss_of(ids: Tensor, targets: Tensor) -> Tensor:
        # Targets given as shifted: `labels` alone would have it compute one position more, and not use it.
        loss: Tensor = forward(input_ids=ids, labels=targets, shift_labels=targets, use_cache=False).loss
        return loss

    return textbook(setting, model, loss_of)


def textbook(setting: Setting, model: nn.Module, loss_of: Callable[[Tensor, Tensor], Tensor]) -> Step:
    """zero_grad, loss, backward, clip, torch's fused AdamW; batches are in memory, on the device."""
    recipe, profile = setting.recipe, setting.profile
    o = recipe.optimizer
    named = dict(model.named_parameters())
    decayed = [p for name, p in named.items() if is_decayed(name.removeprefix("model.embed_tokens."), p)]
    plain = [p for p in named.values() if all(p is not other for other in decayed)]
    groups = [{"params": decayed, "weight_decay": o.weight_decay}, {"params": plain, "weight_decay": 0.0}]
    rate = recipe.schedule.learning_rate
    optimizer = torch.optim.AdamW(groups, lr=rate, betas=(o.beta1, o.beta2), eps=o.epsilon, fused=True)
    device = profile.device
    rows = [torch.from_numpy(batch.astype("int64")) for batch in batches_of(setting)]
    batches = [(ids[:, :-1].contiguous().to(device), ids[:, 1:].contiguous().to(device)) for ids in rows]
    kind, half = torch.device(device).type, profile.dtype == "bfloat16"

    def step(i: int) -> float:
        optimizer.zero_grad()
        with torch.autocast(kind, dtype=torch.bfloat16, enabled=half):
            loss = loss_of(*batches[i % NUM_BATCHES])
        loss.backward()  # type: ignore[no-untyped-call]
        nn.utils.clip_grad_norm_(named.values(), o.grad_clip)
        began = time.perf_counter()
        optimizer.step()
        took = time.perf_counter() - began
        loss.item()
        return took

    return step


def trainer(setting: Setting) -> Step:
    """The product's step on rows from memory: what a profile makes of it."""
    trained = Trainer(setting.recipe, setting.profile)
    rows = batches_of(setting)

    def step(i: int) -> float:
        trained.train_step(rows[i % NUM_BATCHES])
        return 0.0

    return step


def batches_of(setting: Setting) -> list[np.ndarray]:
    """The rows that a node reads in its first steps, each uint16 [batch, columns]."""
    recipe = setting.recipe
    reader = SegmentReader(setting.segment, recipe.batch_size, recipe.columns, GivenBlobs(setting.blobs))
    return [reader.batch(i) for i in range(NUM_BATCHES)]


def turn(step: Step, first: int, seconds: float) -> dict[str, float]:
    """Steps from index `first` on; at least one that is timed."""
    began = time.perf_counter()
    step(first)
    first_step_seconds = time.perf_counter() - began
    optimizer_seconds, steps = 0.0, 0
    cpu, began = time.process_time(), time.perf_counter()
    while not steps or time.perf_counter() - began < seconds:
        steps += 1
        optimizer_seconds += step(first + steps)
    took = time.perf_counter() - began
    return {
        "steps": steps,
        "seconds": took,
        "cpu_seconds": time.process_time() - cpu,
        "optimizer_seconds": optimizer_seconds,
        "first_step_seconds": first_step_seconds,
    }


def serve(step: Step, orders: Iterable[str], rss_before: int) -> None:
    done = 0
    for line in orders:
        figures = turn(step, done, float(line))
        done += int(figures["steps"]) + 1
        assert done < LAST_STEP
        memory = psutil.Process().memory_info()
        figures["peak_mib"] = (peak_rss_bytes(psutil.Process().pid) or memory.rss) / MIB
        figures["base_mib"] = rss_before / MIB
        sys.stdout.write(json.dumps(figures) + "\n")
        sys.stdout.flush()


def peak_rss_bytes(pid: int) -> int:
    """The most that a process has been resident with; 0 where the system does not tell."""
    try:
        lines = Path(f"/proc/{pid}/status").read_text(encoding="utf-8").splitlines()
    except OSError:
        return 0
    return next((int(line.split()[1]) << 10 for line in lines if line.startswith("VmHWM:")), 0)


def main() -> None:
    folder, kind = Path(sys.argv[1]), sys.argv[2]
    setting = Setting.load(folder)
    # All contestants have the memory allocator and the flushed denormals of a node; these are faster with them.
    apply_profile(setting.profile)
    if kind in ("sdpa", "eager"):
        import transformers as _  # noqa: F401 - loaded before memory is read
    if kind != "trainer":
        torch.optim.AdamW([torch.zeros(1, requires_grad=True)])  # Loads the compiler: tens of MiB that a node spares.
    rss = psutil.Process().memory_info().rss
    if kind != "trainer":
        torch.set_deterministic_debug_mode("default")
    makers: dict[str, Callable[[], Step]] = {
        "bare": lambda: bare(setting),
        "sdpa": lambda: transformers(setting, "sdpa"),
        "eager": lambda: transformers(setting, "eager"),
        "trainer": lambda: trainer(setting),
    }
    serve(makers[kind](), sys.stdin, rss)


if __name__ == "__main__":
    main()
