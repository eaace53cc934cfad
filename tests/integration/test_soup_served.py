"""A soup run by real daemons: any of its models by name, and still when the coordinator is gone."""

from __future__ import annotations

import contextlib
import io
import json
import signal
from pathlib import Path

from potluck.cli import main
from potluck.client import RouterClient
from potluck.ids import Digest
from potluck.soup_names import SoupName
from sampling.mixture import Mixture
from tests.integration.harness import Cluster
from tests.integration.mixture_runs import corpus_of
from tests.integration.soup_runs import soup_spec

TEXT = "the quick brown fox jumps over the lazy dog"


def test_a_soup_s_models_are_those_its_tasks_make_and_are_served_without_a_coordinator(tmp_path: Path) -> None:
    corpus = corpus_of(tmp_path / "corpus", documents=20)
    with Cluster(tmp_path / "cluster") as cluster:
        coordinator = cluster.start_coordinator()
        cluster.put_corpus(corpus.files)
        cluster.start_node("node")
        router = cluster.start_router("router", "--patience", "60")
        run = cluster.start_run(soup_spec(corpus.digest, steps=4))
        info = cluster.wait_ended(run)
        assert info.state == "finished", f"{info.reason}{cluster.tails()}"
        weights = {slot.slot: slot.weights for slot in info.published}
        natural = json.loads(info.results_json)["soup"]["natural"]
        mixture = Mixture.from_json(cluster.blobs().path(Digest(natural)).read_bytes())
        whole = str(SoupName(weights={name: weight for name, weight in sorted(mixture.weights.items()) if weight}))
        domain = max(mixture.weights, key=lambda name: mixture.weights[name])
        single = str(SoupName(weights={domain: 1.0}))
        with RouterClient(cluster.admin, router.ready["address"]) as client:
            made = client.instantiate(whole, run=run)
            before = client.instantiate(single)
            tokens = [i for piece in client.generate(TEXT, model=single, max_tokens=8) for i in piece.ids]
        told = generated_by_command(cluster.folder, single, router.ready["address"])
        coordinator.signal(signal.SIGKILL)
        coordinator.wait_ended()
        router.stop()
        port = router.ready["address"].rpartition(":")[2]
        again = cluster.start_router("router", "--patience", "60", "--port", port)
        with RouterClient(cluster.admin, again.ready["address"]) as client:
            after = client.instantiate(single)
            pieces = list(client.generate(TEXT, model=single, max_tokens=8))
    assert made.digest == weights["soup"]
    assert made.weights == weights["bank"]
    assert (before.cached, after.cached, after.digest) == (False, True, before.digest)
    assert [i for piece in pieces for i in piece.ids] == tokens
    assert {piece.model for piece in pieces} == {single}
    assert told["model"] == single
    assert told["ids"] == tokens


def generated_by_command(home: Path, model: str, router: str) -> dict[str, object]:
    out = io.StringIO()
    with contextlib.redirect_stdout(out):
        arguments = ["--model", model, "--tokens", "8", "--temperature", "0", "--router", router]
        assert main(["generate", TEXT, *arguments, "--home", str(home), "--json"]) == 0
    return dict(json.loads(out.getvalue()))
