"""Times this machine: as many one-thread steppers as there are cores, each kind of work for a while."""

from __future__ import annotations

import json
import subprocess
import sys

from potluck.errors import ResourceError
from potluck.lm.config import ModelConfig
from potluck.lm.flops import train_flops
from potluck.recipe import Recipe, Schedule
from potluck.sizing import Rates, ladder, spec_of
from potluck.specs.smalltalk import SmallTalkSpec

EXPERT_SECONDS = 3.0
ROUTER_SECONDS = 1.0
MEASURED_RUNG = 9
"""The preset that is timed; larger ones do more FLOPs a second, so the prediction errs on the safe side."""


def measure(cores: int) -> Rates:
    """Rates of one thread while all cores are busy, by 5 s of real steps on random rows.

    Raises:
        ResourceError: ``resource.stepper``: the steppers cannot run here.
    """
    spec = spec_of(ladder()[MEASURED_RUNG])
    expert, router = _recipe(spec, "expert"), _recipe(spec, "router")
    expert_rate = _slowest(expert, "train", EXPERT_SECONDS, cores)
    length = spec.text.sequence_length
    return Rates(
        expert_flops_per_second=expert_rate * train_flops(spec.expert_model(), length) / length,
        router_tokens_per_second=_slowest(router, "train", ROUTER_SECONDS, cores),
        score_tokens_per_second=_slowest(router, "score", ROUTER_SECONDS, cores),
    )


def _slowest(recipe: Recipe, mode: str, seconds: float, cores: int) -> float:
    command = [sys.executable, "-m", "potluck.lm.stepper", "--recipe-json", recipe.to_json()]
    command += ["--mode", mode, "--seconds", str(seconds)]
    steppers = [
        subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) for _ in range(cores)
    ]
    rates = []
    for stepper in steppers:
        answer, said = stepper.communicate()
        if stepper.returncode != 0:
            raise ResourceError("resource.stepper", f"timing steps failed: {said.strip()[-500:]}", "see the message")
        rates.append(float(next(iter(json.loads(answer).values()))))
    return min(rates)


def _recipe(spec: SmallTalkSpec, role: str) -> Recipe:
    schedule = Schedule(kind="constant", learning_rate=1e-3, warmup_steps=0, total_steps=1 << 20)
    model: ModelConfig = spec.router_model() if role == "router" else spec.expert_model()
    return Recipe(
        role="router" if role == "router" else "expert",
        index=0,
        model=model,
        optimizer=spec.optimizer,
        schedule=schedule,
        batch_size=spec.routers.batch_size if role == "router" else spec.experts.batch_size,
        columns=spec.text.prefix_length if role == "router" else spec.text.sequence_length + 1,
        init_seed=0,
        data_rule="",
        commit_every=1 << 20,
    )
