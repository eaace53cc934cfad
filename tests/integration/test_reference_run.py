"""A run by daemons is the plain loop, bit by bit: rows, scores, assignments, checkpoints, comparison."""

from __future__ import annotations

import ast
import json
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from potluck.ids import digest_file
from potluck.lm.train import apply_profile
from sampling.ingest import Ingested
from sampling.tasks import run_task
from tests.integration.smalltalk_runs import Ran, in_two_shards, read_json, run_by_daemons, small_corpus, small_spec
from tests.reference import smalltalk_loop
from tests.reference.rules import array_digest
from tests.reference.smalltalk_loop import Outcome

CLOSE = 1e-12
"""Sums of the same doubles in another order."""


@dataclass(frozen=True, kw_only=True)
class World:
    corpus: Ingested
    loop: Outcome
    ran: Ran


def hold_report_to_loop(ran: Ran, loop: Outcome) -> None:
    report: Mapping[str, Any] = read_json(ran.blobs, ran.report)
    comparison = dict(loop.comparison)
    assert report["routing"]["table"] == comparison.pop("table")
    by_source = comparison.pop("by_source")
    assert report["by_source"].keys() == by_source.keys()
    for name, sides in by_source.items():
        for side, levels in sides.items():
            assert report["by_source"][name][side] == pytest.approx(levels, rel=CLOSE, abs=0), (name, side)
    assert comparison.keys() >= {"mixture", "dense", "random_split", "oracle", "mixture_minus_dense"}
    for name, numbers in comparison.items():
        assert report[name] == pytest.approx(numbers, rel=1e-9, abs=CLOSE), name


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> World:
    folder = tmp_path_factory.mktemp("reference")
    corpus = small_corpus(folder)
    spec = small_spec(corpus.digest)
    ran = run_by_daemons(folder / "daemons", spec, corpus, nodes=2)
    (folder / "loop").mkdir()
    return World(corpus=corpus, loop=smalltalk_loop.run(spec, corpus, folder / "loop"), ran=ran)


def test_the_loop_knows_nothing_of_daemons_and_plans() -> None:
    allowed = ("potluck.ids", "potluck.lm", "potluck.recipe", "potluck.spec", "sampling", "tests.reference")
    ours = ("potluck", "sampling", "coordinator", "expert_node", "router", "tests")
    for path in Path(smalltalk_loop.__file__).parent.glob("*.py"):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            names = [alias.name for alias in node.names] if isinstance(node, ast.Import) else []
            names += [node.module or ""] if isinstance(node, ast.ImportFrom) else []
            for name in names:
                assert name.split(".")[0] not in ours or name.startswith(allowed), f"{path.name} imports {name}"


def test_both_nodes_took_part(world: World) -> None:
    assert len(world.ran.nodes) == 2


def test_the_tokens_are_the_loops(world: World) -> None:
    assert world.ran.blobs.has(world.loop.tokens)


def test_every_score_column_is_the_loops(world: World) -> None:
    wanted = {
        f"{name} with router {e}": array_digest(column)
        for name, columns in world.loop.columns.items()
        for e, column in enumerate(columns)
    }
    scored = {
        task.wanted.label.removeprefix("score ").replace("the test rows", "test"): task.blobs["column"]
        for task in world.ran.tasks
        if task.wanted.kind == "score"
    }
    assert scored == wanted


def test_every_assignment_is_that_of_the_naive_rule(world: World) -> None:
    wanted = {name: array_digest(assignment) for name, assignment in world.loop.assignments.items()}
    assigned = {
        task.wanted.label.removeprefix("assign "): task.blobs["assignment"]
        for task in world.ran.tasks
        if task.wanted.kind == "assign"
    }
    assert assigned == wanted
    assert list(wanted) == ["round 1", "round 2", "chunk 0", "chunk 1"]
    for assignment in world.loop.assignments.values():
        assert len(set(np.bincount(assignment).tolist())) == 1


@pytest.mark.parametrize("role", ["routers", "experts", "random_split", "dense"])
def test_every_checkpoint_is_the_loops(world: World, role: str) -> None:
    """Routers after every round, experts after every chunk, and all commits between."""
    lineages = getattr(world.loop, role)
    committed = world.ran.checkpoints()
    assert lineages
    for lineage in lineages:
        assert committed[lineage.recipe.id] == lineage.checkpoints, f"{lineage.recipe.role} {lineage.recipe.index}"


def test_there_are_no_other_lineages(world: World) -> None:
    assert world.ran.checkpoints().keys() == {lineage.recipe.id for lineage in world.loop.lineages}
    assert world.ran.ledger.ok, list(world.ran.ledger.problems)


def test_the_checkpoints_that_the_ledger_names_hold_the_loops_weights(world: World) -> None:
    for lineage in world.loop.lineages:
        last = lineage.manifests[max(lineage.manifests)]
        assert read_json(world.ran.blobs, last.digest) == json.loads(last.to_json())
        assert world.ran.blobs.has(last.weights)
        assert world.ran.blobs.has(last.optimizer)


def test_the_comparison_has_the_loops_numbers(world: World) -> None:
    hold_report_to_loop(world.ran, world.loop)


def test_the_facts_beside_the_tables_are_the_loops(world: World) -> None:
    facts: Any = read_json(world.ran.blobs, world.ran.report)["facts"]
    dense = world.loop.dense[0].recipe
    assert facts["flops"]["mixture"]["total"] == world.loop.mixture_flops
    assert facts["dense"]["steps"] == dense.schedule.total_steps
    assert (
        0 <= world.loop.mixture_flops - facts["flops"]["dense"] < facts["flops"]["dense"] / dense.schedule.total_steps
    )
    assert [entry["purity"] for entry in facts["purity"]] == pytest.approx(world.loop.purity, rel=CLOSE, abs=0)


def test_every_task_gives_the_same_blobs_and_figures_without_daemons(world: World, tmp_path: Path) -> None:
    apply_profile(small_spec(world.corpus.digest).profile)
    kinds: Counter[str] = Counter()
    for number, task in enumerate(world.ran.tasks):
        out = tmp_path / str(number)
        out.mkdir()
        params = json.loads(task.wanted.params_json)
        done = run_task(task.wanted.kind, params, dict(task.wanted.inputs), world.ran.blobs, out, lambda _: None)
        blobs = {name: digest_file(path) for name, path in done.files.items()}
        assert blobs == task.blobs, task.wanted.label
        assert json.loads(json.dumps(done.figures)) == task.figures, task.wanted.label
        kinds[f"{task.wanted.kind} {params.get('what', '')}".strip()] += 1
    assert kinds.keys() == {
        "fit bpe",
        "tokenise part",
        "tokenise collect",
        "score",
        "assign",
        "eval nll",
        "eval probe",
        "eval purity",
        "eval compare",
    }


@pytest.mark.long
@pytest.mark.parametrize("nodes", [1, 5])
def test_the_number_of_nodes_changes_nothing(world: World, nodes: int, tmp_path: Path) -> None:
    """Not a checkpoint, and not a byte of the report."""
    ran = run_by_daemons(tmp_path / "daemons", small_spec(world.corpus.digest), world.corpus, nodes=nodes)
    assert ran.checkpoints() == world.ran.checkpoints()
    assert ran.report == world.ran.report


@pytest.mark.long
def test_a_run_with_other_choices_is_the_loops_too(world: World, tmp_path: Path) -> None:
    """Two experts, shuffled packing, a corpus of two shards, every random-split expert."""
    (tmp_path / "loop").mkdir()
    corpus = in_two_shards(world.corpus, tmp_path)
    spec = small_spec(corpus.digest)
    spec = replace(
        spec,
        seed=6,
        text=replace(spec.text, packing="shuffled"),
        experts=replace(spec.experts, num=2, chunks=1),
        controls=replace(spec.controls, random_split="all"),
    )
    ran = run_by_daemons(tmp_path / "daemons", spec, corpus, nodes=2)
    loop = smalltalk_loop.run(spec, corpus, tmp_path / "loop")
    assert ran.blobs.has(loop.tokens)
    assert ran.checkpoints() == {lineage.recipe.id: lineage.checkpoints for lineage in loop.lineages}
    hold_report_to_loop(ran, loop)
