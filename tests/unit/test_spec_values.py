"""Values that a spec may not have: refused when the file is read, by their dotted key."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch

from expert_node.training import require_device
from potluck.errors import ResourceError, SpecError
from potluck.specs.run import parse_run_file

WRONG: list[tuple[str, Any]] = [
    ("bytes_per_token", math.inf),
    ("bytes_per_token", math.nan),
    ("routers.learning_rate", math.inf),
    ("routers.warmup_fraction", math.nan),
    ("experts.learning_rate", math.inf),
    ("experts.warmup_fraction", 1.0),
    ("experts.final_fraction", 1.5),
    ("dense.learning_rate", math.nan),
    ("dense.warmup_fraction", -0.1),
    ("dense.final_fraction", -0.1),
    ("evaluation.batch_size", 0),
    ("evaluation.probe_rows", 0),
    ("evaluation.confidence", 1.0),
    ("evaluation.bootstrap_samples", 1),
    ("optimizer.weight_decay", math.inf),
    ("optimizer.epsilon", math.nan),
    ("optimizer.grad_clip", math.inf),
    ("profile.threads", 0),
    ("profile.threads", 257),
    ("profile.device", "gpu"),
    ("profile.device", "cuda:"),
    ("profile.processes", 0),
    ("profile.processes", 65),
    ("profile.processes", 3),
    ("profile.micro_batch", 5),
]


def spec_with(key: str, value: Any) -> dict[str, Any]:
    section, _, name = key.rpartition(".")
    return {"data": "text", **({section: {name: value}} if section else {name: value})}


@pytest.mark.parametrize(("key", "value"), WRONG)
def test_an_impossible_value_is_refused_by_its_key(key: str, value: Any) -> None:
    with pytest.raises(SpecError) as caught:
        parse_run_file(spec_with(key, value))
    assert caught.value.error_id == "spec.bad-value"
    assert caught.value.message.startswith(f"{key} = ")
    assert "allowed" in caught.value.fix


@pytest.mark.parametrize("device", ["cpu", "cuda", "cuda:3", "mps"])
def test_known_devices_are_taken(device: str) -> None:
    parse_run_file(spec_with("profile.device", device))


def test_processes_share_the_cpu_or_have_a_device_each() -> None:
    parse_run_file({"data": "text", "profile": {"processes": 2, "device": "cuda"}})
    with pytest.raises(SpecError, match=r"profile\.processes = 2 with profile\.device = 'cuda:1'"):
        parse_run_file({"data": "text", "profile": {"processes": 2, "device": "cuda:1"}})


@pytest.mark.parametrize("unlike", ["routers", "experts", "dense"])
def test_processes_divide_every_batch_of_a_run(unlike: str) -> None:
    batches = {section: {"batch_size": 16} for section in ("routers", "experts", "dense")}
    profile = {"processes": 4}
    parse_run_file({"data": "text", "profile": profile, **batches})
    single = {"data": "text", "method": "single", "profile": profile}
    parse_run_file({**single, "training": {"batch_size": 8}})
    with pytest.raises(SpecError, match=r"profile\.processes = 4 with a batch of 2 rows"):
        parse_run_file({"data": "text", "profile": profile, **batches, unlike: {"batch_size": 2}})
    with pytest.raises(SpecError, match=r"profile\.processes = 4 with a batch of 6 rows"):
        parse_run_file({**single, "training": {"batch_size": 6}})


@pytest.mark.parametrize("section", ["routers", "experts"])
def test_a_model_that_cannot_be_is_named_with_its_section(section: str) -> None:
    model = {"hidden": 10, "layers": 1, "heads": 2, "ffn": 8}
    with pytest.raises(SpecError, match=rf"{section}\.model\.hidden = 10 with {section}\.model\.heads = 2"):
        parse_run_file({"data": "text", section: {"model": model}})
    with pytest.raises(SpecError, match=rf"{section}\.model\.ffn = 0"):
        parse_run_file({"data": "text", section: {"model": {**model, "ffn": 0}}})


def test_a_recorded_search_may_name_any_table() -> None:
    parse_run_file({"data": "text", "search": {"mode": "recorded", "table": "nope.json"}})


def test_a_device_the_machine_lacks_is_a_matter_of_resources() -> None:
    missing = f"cuda:{torch.cuda.device_count()}"
    with pytest.raises(ResourceError, match=missing) as caught:
        require_device(missing)
    assert caught.value.error_id == "resource.device"
    assert "cpu" in caught.value.fix
    require_device("cpu")
