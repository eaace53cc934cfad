"""`potluck export` against daemons: a run that goes on, the same run at its end, and what the service says of both."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pytest
import torch

from potluck.cli import main
from potluck.client import RouterClient
from potluck.ids import digest_file
from potluck.v1 import admin_pb2
from tests.chaos.world import tiny_job
from tests.integration.harness import Cluster

TEXT = "ta pika; no mita\n"


@dataclass(frozen=True, kw_only=True)
class World:
    cluster: Cluster
    address: str
    paused: admin_pb2.RunInfo
    """The run with its only node gone, right after its first publication."""
    early: Path
    """What was exported then."""
    info: admin_pb2.RunInfo
    """Finished."""

    @property
    def home(self) -> str:
        return str(self.cluster.folder)


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> Iterator[World]:
    folder = tmp_path_factory.mktemp("export")
    job = tiny_job(folder, documents=120)
    spec = replace(
        job.spec,
        routers=replace(job.spec.routers, chunk_sequences=256, learning_rate=1e-2),
        experts=replace(job.spec.experts, chunk_sequences=256, learning_rate=1e-2),
    )
    with Cluster(folder / "cluster") as cluster:
        cluster.start_coordinator()
        cluster.put_corpus(job.files)
        node = cluster.start_node("a")
        run = cluster.start_run(spec, name="two/tongues")
        cluster.wait_until(run, lambda info: bool(info.published))
        node.stop()
        with cluster.client() as client:
            paused = client.get_run(run)
        early = folder / "early"
        slot = paused.published[0].slot
        assert main(["export", f"{run[:8]}/{slot}", str(early), "--home", str(cluster.folder)]) == 0
        assert_not_published(cluster, run, folder / "later")
        router = cluster.start_router("r")
        cluster.start_node("a")
        assert cluster.wait_ended(run).state == "finished"
        with cluster.client() as client:
            info = client.get_run(run)
        yield World(cluster=cluster, address=str(router.ready["address"]), paused=paused, early=early, info=info)


def assert_not_published(cluster: Cluster, run: str, out: Path) -> None:
    assert main(["export", f"{run}/expert-7", str(out), "--home", str(cluster.folder)]) == 4
    assert not out.exists()


def answer(capsys: pytest.CaptureFixture[str], *words: str) -> tuple[int, dict[str, Any]]:
    capsys.readouterr()
    code = main([*words, "--json"])
    value = json.loads(capsys.readouterr().out)
    assert isinstance(value, dict)
    return code, value


def log_probs(folder: Path, ids: tuple[int, ...]) -> list[float]:
    """Of tokens 2..n, by transformers alone."""
    from transformers import AutoModelForCausalLM

    model = AutoModelForCausalLM.from_pretrained(folder).eval()
    with torch.no_grad():
        rows = model(torch.tensor([ids[:-1]])).logits[0].log_softmax(-1)
    return [float(row[token]) for row, token in zip(rows, ids[1:], strict=True)]


@pytest.mark.parametrize("slot", ["expert-1", "dense"])
def test_an_export_scores_text_as_the_service_does(
    world: World, slot: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    from transformers import AutoTokenizer

    out = tmp_path / "out"
    code, told = answer(capsys, "export", f"two/tongues/{slot}", str(out), "--check", "--home", world.home)
    assert code == 0
    with RouterClient(world.cluster.admin, world.address) as client:
        scored = client.score(TEXT, slot=slot)
    assert scored.weights == told["weights"]
    assert AutoTokenizer.from_pretrained(out).encode(TEXT) == list(scored.ids)
    assert log_probs(out, scored.ids) == pytest.approx(scored.log_probs, abs=1e-4)
    assert told["check"]["greedy_equal"] is True
    assert told["check"]["max_logit_difference"] <= 1e-4
    assert told["files"] == {path.name: digest_file(path) for path in out.iterdir()}


def test_an_export_names_the_commit_and_the_blobs_it_was_made_from(
    world: World, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    _, told = answer(capsys, "export", "expert-0", str(tmp_path / "out"), "--home", world.home)
    (line,) = [line for line in world.info.lineages if line.label == "expert 0"]
    assert (told["run"], told["lineage"], told["checkpoint"]) == (world.info.run, line.lineage, line.head)
    assert told["step"] == line.total_steps
    assert all(world.cluster.blobs().has(told[blob]) for blob in ("weights", "tokenizer"))
    assert told["files"]["tokenizer.json"] == told["tokenizer"]


def test_an_exports_card_tells_of_tokens_text_routing_and_held_out_loss(world: World, tmp_path: Path) -> None:
    home = ["--home", world.home]
    assert main(["export", f"{world.info.run}/expert-0", str(tmp_path / "e"), *home]) == 0
    assert main(["export", f"{world.info.run}/dense", str(tmp_path / "d"), *home]) == 0
    expert, dense = ((tmp_path / name / "README.md").read_text() for name in "ed")
    spec = json.loads(world.info.spec_json)
    science = json.loads(world.cluster.blobs().path(world.info.report).read_text())
    for text in (expert, dense):
        for digest in (world.info.run, spec["corpus"]):
            assert f"`{digest}`" in text
        assert "| unknown |" in text  # the made-up languages have no licence
    steps = spec["experts"]["chunks"] * spec["experts"]["chunk_sequences"] // (2 * spec["experts"]["batch_size"])
    assert f"| {steps * spec['experts']['batch_size'] * 32:,} |" in expert
    assert f"| {science['facts']['dense']['tokens']:,} |" in dense
    rows = sum(science["routing"]["table"][0])
    assert f"the routers send to it ({rows:,})" in expert
    assert "## Mixture" in expert
    assert "## Mixture" not in dense
    assert f"{science['dense']['nll_suffix']:.4f} over those after the prefix" in dense


def test_a_run_that_goes_on_exports_what_it_has_published(world: World) -> None:
    assert world.paused.state == "running"
    card = (world.early / "README.md").read_text()
    slot = world.paused.published[0]
    for words in (slot.weights, slot.checkpoint, slot.lineage, f"| steps | {slot.step:,} of "):
        assert words in card
    assert "Held-out" not in card


def test_an_export_of_what_is_not_there_says_what_is(
    world: World, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out, home = str(tmp_path / "out"), ["--home", world.home]
    for model, code, error_id in (
        ("two/tongues/expert-7", 2, "usage.no-slot"),
        ("tongues", 2, "usage.no-slot"),
        ("three/tongues/dense", 4, "refused.no-such-run"),
    ):
        assert answer(capsys, "export", model, out, *home)[0] == code, model
        assert answer(capsys, "export", model, out, *home)[1]["error"]["id"] == error_id
    _, told = answer(capsys, "export", "expert-7", out, *home)
    assert "it has dense, expert-0, expert-1" in told["error"]["message"]
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "mine.txt").write_text("mine")
    assert answer(capsys, "export", "dense", out, "--force", *home)[1]["error"]["id"] == "usage.out-exists"


def test_a_check_of_an_export_without_transformers_names_the_package(
    world: World, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    from potluck.lm import agreement

    monkeypatch.setattr(agreement, "find_spec", lambda name: None)
    code, told = answer(capsys, "export", "dense", str(tmp_path / "out"), "--check", "--home", world.home)
    assert (code, told["error"]["id"]) == (2, "usage.no-transformers")
    assert "pip install 'transformers" in told["error"]["fix"]
    assert not (tmp_path / "out").exists()
