"""A soup on two nodes by real daemons: the bits of one node, and the bytes that its rounds move."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest

from potluck.ids import Digest, digest_file
from potluck.lm.soup_spread import Spread
from potluck.specs.soup import SoupSpec
from potluck.v1 import admin_pb2
from sampling.tasks import run_task
from tests.integration.harness import Cluster
from tests.integration.mixture_runs import corpus_of
from tests.integration.smalltalk_runs import tasks_done
from tests.integration.soup_runs import soup_spec
from tests.integration.test_crisp_run import Kept

PARTS = 2
STEPS = 8
LOCAL = Spread(parts=PARTS, local_steps=4, outer_rate=0.7, outer_momentum=0.9)


@pytest.fixture(scope="module")
def ran(tmp_path_factory: pytest.TempPathFactory) -> Mapping[str, Any]:
    """One soup after the other on the same two nodes: as a lineage, in single steps, with local steps."""
    folder = tmp_path_factory.mktemp("soup")
    corpus = corpus_of(folder / "corpus", documents=30)
    specs = {
        "one node": soup_spec(corpus.digest, steps=STEPS),
        "spread": soup_spec(corpus.digest, steps=STEPS, spread=Spread(parts=PARTS)),
        "local steps": soup_spec(corpus.digest, steps=STEPS, spread=LOCAL),
    }
    with Cluster(folder / "cluster") as cluster:
        cluster.start_coordinator()
        cluster.put_corpus(corpus.files)
        for name in ("a", "b"):
            cluster.start_node(name)
        infos = {name: _to_the_end(cluster, spec, name) for name, spec in specs.items()}
        blobs = cluster.blobs()
    return {"infos": infos, "blobs": blobs, "tasks": tasks_done(cluster.home / "journal.db")}


def _to_the_end(cluster: Cluster, spec: SoupSpec, name: str) -> admin_pb2.RunInfo:
    info = cluster.wait_ended(cluster.start_run(spec, name=name.replace(" ", "-")))
    assert info.state == "finished", f"{info.reason}{cluster.tails()}"
    return info


def soup_of(info: admin_pb2.RunInfo) -> Digest:
    return Digest(next(slot.weights for slot in info.published if slot.slot == "bank"))


def test_two_nodes_make_the_soup_that_one_makes_bit_by_bit(ran: Mapping[str, Any]) -> None:
    infos = ran["infos"]
    assert soup_of(infos["spread"]) == soup_of(infos["one node"]) != soup_of(infos["local steps"])
    assert {slot.slot for slot in infos["spread"].published} == {"soup", "bank"}


def test_every_round_gives_the_same_bytes_without_a_daemon(ran: Mapping[str, Any], tmp_path: Path) -> None:
    kinds = []
    for number, task in enumerate(ran["tasks"]):
        if task.wanted.kind not in ("train", "outer_step"):
            continue
        params, out = json.loads(task.wanted.params_json), tmp_path / str(number)
        out.mkdir()
        made = run_task(task.wanted.kind, params, dict(task.wanted.inputs), Kept(ran["blobs"]), out, lambda _: None)
        assert {name: digest_file(path) for name, path in made.files.items()} == task.blobs, task.wanted.label
        kinds.append(params["what"])
    assert kinds.count("gradients") == kinds.count("bank") == PARTS * STEPS
    assert (kinds.count("common"), kinds.count("local_steps"), kinds.count("average")) == (STEPS, PARTS * 2, 2)
