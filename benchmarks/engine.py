"""What a node runs, against a bare loop in torch and against transformers' Llama, in turns.

    python -m benchmarks.engine [--preset 2.5M] [--pairs 20] [--seconds-per-turn 3] [--json FILE]
    python -m benchmarks.engine --variants
    python -m benchmarks.engine --device cuda [--dtype bfloat16] [--compile]

The same shape, rows, threads (1) and hyper-parameters for all. `node` is the real worker with the real workshop
and outbox at the other end of its pipe: commits, local checkpoints, progress and metrics included. `bare` is our
model and loss with `torch.optim.AdamW(fused=True)`, batches in memory. `sdpa` and `eager` are transformers' Llama;
`node_vs_transformers` takes the better of the two. Each lives in a process of its own and trains when it has the
turn. A figure is the median of the rounds' ratios with its bootstrap interval. `--variants` times what a profile's
dtype and compile make of the product's step, with the seconds that the first step costs.
"""

from __future__ import annotations

import argparse
import json
import math
import os
import platform
import sys
import tempfile
from collections.abc import Mapping, Sequence
from contextlib import ExitStack, closing
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path

from benchmarks.engine_contest import Contestant, Rounds, Turn, contest, median_with_interval, overall, ratios
from benchmarks.engine_setting import Setting, make_setting
from potluck.errors import PotluckError
from potluck.recipe import Profile

SMALL = ("0.35M", 128)
SEQUENCE = 256
QUICK = ("router-16", 16)
ATTENTIONS = ("sdpa", "eager")

Figures = dict[str, dict[str, float]]


@dataclass(frozen=True, kw_only=True)
class Options:
    pairs: int
    seconds: float
    profile: Profile
    attentions: tuple[str, ...] = ATTENTIONS
    """Of transformers' Llama."""
    ademamix: bool = True


def run_size(preset: str, sequence: int, suffix: str, options: Options) -> Figures:
    """Contest, table and figures of one size."""
    with tempfile.TemporaryDirectory(prefix="potluck-engine-") as name, ExitStack() as stack:
        setting = make_setting(Path(name), preset, sequence, options.profile)
        contestants = {"node": Contestant("benchmarks.engine_node", name)}
        loops = ("bare", *options.attentions)
        contestants |= {loop: Contestant("benchmarks.engine_loops", name, loop) for loop in loops}
        for each in contestants.values():
            stack.enter_context(closing(each))
        warm_up, rounds = contest(contestants, options.pairs, options.seconds)
    figures = {f"{key}{suffix}": value for key, value in speed_figures(rounds, options).items()}
    commits = sum(each["node"].commits for each in rounds)
    recipe = setting.recipe
    print(f"{preset}: {recipe.model.num_parameters:,} parameters, {recipe.batch_size} rows of {sequence}")
    print(f"  {options.pairs} rounds of turns of {options.seconds:g} s or a little more")
    print(f"  {commits} commits in the node's turns, one every {recipe.commit_every} steps")
    print_contestants(setting, warm_up, rounds)
    print_figures(figures)
    optimizer = optimizer_figures(preset, suffix, rounds, options)
    print_figures(optimizer)
    return figures | optimizer


def speed_figures(rounds: Rounds, options: Options) -> Figures:
    """By wall time, over all turns together, and on a CPU by the trainer's processor time."""
    figures: Figures = {}
    best = min(options.attentions, key=lambda name: median_with_interval(ratios(rounds, "node", name))["median"])
    for name, other in (("bare", "bare"), ("transformers", best)):
        figures[f"node_vs_{name}"] = median_with_interval(ratios(rounds, "node", other))
        figures[f"node_vs_{name}"]["overall"] = overall(rounds, "node", other)
        if options.profile.device == "cpu":
            figures[f"node_vs_{name}_cpu"] = median_with_interval(ratios(rounds, "node", other, clock="cpu_seconds"))
    if len(options.attentions) == len(ATTENTIONS):
        figures["sdpa_vs_eager"] = median_with_interval(ratios(rounds, *ATTENTIONS))
    return figures


def optimizer_figures(preset: str, suffix: str, rounds: Rounds, options: Options) -> Figures:
    """The optimizer's share of the bare loop, and what AdEMAMix makes of it."""
    from benchmarks import optimizer_step

    if options.profile.device != "cpu":
        return {}  # The clocks are those of a processor.
    shares = [each["bare"].optimizer_seconds / each["bare"].seconds for each in rounds]
    figures = {f"optimizer_share{suffix}": median_with_interval(shares)}
    if not options.ademamix:
        return figures
    found, _ = optimizer_step.ratios(preset, options.seconds * 3)
    for name, values in found.items():
        figures[name + suffix] = optimizer_step.median_with_interval(values)
    share, ratio = (figures[name + suffix]["median"] for name in ("optimizer_share", "ademamix_vs_adamw"))
    print(f"  a step with AdEMAMix takes {1 + share * (ratio - 1):.3f} of one with AdamW")
    return figures


def print_contestants(setting: Setting, warm_up: Mapping[str, Turn], rounds: Rounds) -> None:
    """Tokens/s of wall and of processor time, FLOP/s over the peak, resident memory."""
    from potluck.lm.peak import peak_flops_per_second, training_speed
    from potluck.lm.train import apply_profile

    apply_profile(setting.profile)
    peak = peak_flops_per_second(setting.profile)
    recipe = setting.recipe
    print(f"  {'':8s} {'tokens/s':>9s} {'per CPU s':>9s} {'MFU':>6s} {'6N':>6s} {'peak MiB':>9s} {'at start':>9s}")
    for name in warm_up:
        turns = [each[name] for each in rounds]
        wall = median_with_interval([t.steps * setting.tokens_per_step / t.seconds for t in turns])["median"]
        cpu = median_with_interval([t.steps * setting.tokens_per_step / t.cpu_seconds for t in turns])["median"]
        # On a processor by its own time, of which a busy machine's other programs take none.
        used = cpu if setting.profile.device == "cpu" else wall
        mfu = training_speed(recipe, used, peak)["mfu"]
        six_n = 6 * recipe.model.num_parameters * used / peak if peak else 0.0
        memory = f"{turns[-1].peak_mib:9,.0f} {turns[-1].base_mib or math.nan:9,.0f}"
        print(f"  {name:8s} {wall:9,.0f} {cpu:9,.0f} {mfu:6.1%} {six_n:6.1%} {memory}")
    print(f"  peak of products of this dtype: {peak / 1e9:,.0f} GFLOP/s")


def print_figures(figures: Figures) -> None:
    for name, f in figures.items():
        whole = f"  overall {f['overall']:.3f}" if "overall" in f else ""
        print(f"  {name:32s} {f['median']:6.3f}  [{f['low']:.3f}, {f['high']:.3f}]{whole}", flush=True)


def run_variants(preset: str, sequence: int, options: Options) -> Figures:
    """The product's step under other profiles, over plain float32: by processor time on a CPU, else by wall time."""
    device = options.profile.device
    profiles = {
        "float32": Profile(device=device),
        "bfloat16": Profile(device=device, dtype="bfloat16"),
        "compile": Profile(device=device, compile=True),
        "bfloat16_compile": Profile(device=device, dtype="bfloat16", compile=True),
    }
    figures: Figures = {}
    with ExitStack() as stack:
        contestants: dict[str, Contestant] = {}
        for name, profile in profiles.items():
            folder = stack.enter_context(tempfile.TemporaryDirectory(prefix="potluck-engine-"))
            make_setting(Path(folder), preset, sequence, profile)
            contestant = Contestant("benchmarks.engine_loops", folder, "trainer")
            contestants[name] = stack.enter_context(closing(contestant))
        warm_up, rounds = contest(contestants, options.pairs, options.seconds)
    print(f"{preset}, rows of {sequence}: profiles over float32, {options.pairs} rounds")
    clock = "cpu_seconds" if device == "cpu" else "seconds"
    for name in profiles:
        figure = figures[f"{name}_vs_float32"] = median_with_interval(ratios(rounds, name, "float32", clock=clock))
        figure["first_step_seconds"] = warm_up[name].first_step_seconds
        spread = f"{figure['median']:6.3f}  [{figure['low']:.3f}, {figure['high']:.3f}]"
        print(f"  {name:18s} {spread}  first step {figure['first_step_seconds']:6.1f} s", flush=True)
    del figures["float32_vs_float32"]
    return figures


def write_figures(path: Path, about: Mapping[str, str], figures: Figures) -> None:
    rounded = {name: {key: round(value, 4) for key, value in figure.items()} for name, figure in figures.items()}
    path.write_text(json.dumps(rounded, indent=2) + "\n", encoding="utf-8")


def machine() -> dict[str, str]:
    return {
        "cpu": _cpu_model(),
        "cores": str(len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()),
        "load": ", ".join(f"{x:.1f}" for x in os.getloadavg()),
        "torch": version("torch"),
        "transformers": version("transformers"),
        "python": platform.python_version(),
    }


def _cpu_model() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    except OSError:
        return platform.processor()
    return next((line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")), "unknown")


def parse(arguments: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--preset", default="2.5M", help="the larger of the two sizes")
    parser.add_argument("--pairs", type=int, default=20)
    parser.add_argument("--seconds-per-turn", type=float, default=3.0)
    parser.add_argument("--larger-only", action="store_true", help="spare the smaller size")
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--dtype", choices=("float32", "bfloat16"), help="bfloat16 on an accelerator, else float32")
    parser.add_argument("--compile", action="store_true", help="compile every contestant")
    parser.add_argument("--variants", action="store_true", help="time dtypes and compile instead, at --preset")
    parser.add_argument("--quick", action="store_true", help="a tiny model, two rounds, no eager, no AdEMAMix")
    parser.add_argument("--json", type=Path, metavar="FILE", help="figures; those of the smaller end in its name")
    return parser.parse_args(arguments)


def main(arguments: Sequence[str] | None = None) -> int:
    from expert_node.training import require_device

    told = parse(arguments)
    try:
        half = told.dtype == "bfloat16" if told.dtype else told.device != "cpu"
        profile = Profile(device=told.device, dtype="bfloat16" if half else "float32", compile=told.compile)
        require_device(profile.device)
    except PotluckError as error:
        sys.stderr.write(f"{error.error_id}: {error.message}\n  {error.fix}\n")
        return 2
    options = Options(pairs=told.pairs, seconds=told.seconds_per_turn, profile=profile)
    about = machine()
    print("\n".join(f"{name}: {value}" for name, value in about.items()), flush=True)
    sizes = [(told.preset, SEQUENCE, ""), (*SMALL, f"_{SMALL[0]}")]
    if told.quick:
        options = Options(pairs=2, seconds=0.1, profile=profile, attentions=("sdpa",), ademamix=False)
        sizes = [(*QUICK, "")]
    figures: Figures = {}
    for size in sizes[:1] if told.variants or told.larger_only else sizes:
        figures |= run_variants(*size[:2], options) if told.variants else run_size(*size, options)
        if told.json:  # After each size: a long run that is ended early leaves what it found.
            write_figures(told.json, about, figures)
    return 0


if __name__ == "__main__":
    sys.exit(main())
