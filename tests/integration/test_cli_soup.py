"""`potluck soup` through real daemons: specialists by weights and by text, made once, exported, or refused."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch

from potluck.commands.home import admin_client, open_home
from potluck.formatting import TABLE_WIDTH
from potluck.ids import Digest, digest_file
from potluck.net.blobs.store import BlobStore
from potluck.specs.instantiate import InstantiateSpec
from potluck.specs.run import spec_from_json
from potluck.v1 import admin_pb2
from tests.integration.command_home import CommandHome
from tests.reference.languages import write_languages

LANGUAGES = 4
FOREIGN = "\n\n".join(f"{n * n * 7919} {n * 104729 % 9973} {n * 31 % 977} ####### {n} {n + 1}" for n in range(300))
"""Of which part lies beyond all domains."""
OUTSIDE = "\n\n".join("qx vw " * (20 + number) for number in range(60))
"""Of which all does."""
SPEC = """
method = "soup"
data = "corpus.jsonl"
name = "{name}"
[text]
vocab_size = 300
sequence_length = 32
prefix_length = 8
[model]
hidden = 16
layers = 2
heads = 2
ffn = 40
[training]
steps = {steps}
batch_size = 16
learning_rate = 0.01
[partition]
{partition}
[bank]
experts = 4
hidden = 16
support = 2
natural_share = 0.0
expert_rate = 1.0
[controls]
generic = false
constant = false
[evaluation]
bootstrap_samples = 200
"""


@dataclass(frozen=True, kw_only=True)
class World(CommandHome):
    """Two soups of one corpus, by clusters and by source; and text in one of its languages."""

    @property
    def clustered(self) -> str:
        return "clustered"

    @property
    def by_source(self) -> str:
        return "by-source"

    @property
    def like(self) -> Path:
        return self.folder / "like.jsonl"

    def spec(self, name: str, partition: str, steps: int) -> Path:
        path = self.folder / f"{name}.toml"
        path.write_text(SPEC.format(name=name, partition=partition, steps=steps))
        return path

    @property
    def tasks_done(self) -> int:
        return sum(
            int(self.answer("run", "status", run["run"])["tasks"]["done"]) for run in self.answer("run", "list")["runs"]
        )

    def domains(self, run: str) -> list[str]:
        return [line["domain"] for line in self.answer("soup", run)["domains"]]

    def run(self, run: str) -> admin_pb2.RunInfo:
        with admin_client(open_home(str(self.folder))) as client:
            return client.get_run(run)

    def made_by(self, run: str) -> InstantiateSpec:
        spec = spec_from_json(self.run(run).spec_json)
        assert isinstance(spec, InstantiateSpec)
        return spec

    def blobs(self) -> BlobStore:
        return BlobStore(self.folder / "coordinator" / "blobs")


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> Iterator[World]:
    made = World(folder=tmp_path_factory.mktemp("home"))
    write_languages(made.folder / "corpus.jsonl", documents=40, seed=0, languages=LANGUAGES)
    more = write_languages(made.folder / "all.jsonl", documents=120, seed=0).read_text().splitlines()
    mine = [line for line in more if json.loads(line)["domain"] == "language-1"]
    made.like.write_text("\n".join(mine[40:]) + "\n")
    clusters = made.spec(made.clustered, f'by = "clusters"\nk = {LANGUAGES}\ndim = 16\nfeatures = 4096', 60)
    sources = made.spec(made.by_source, 'by = "source"', 8)
    try:
        made.daemons("up", "--host", "127.0.0.1", "--port", "0", "--detach")
        made.answer("run", "start", clusters)
        assert made.refusal("soup", made.clustered)["id"] == "refused.not-published"  # no node has joined yet
        made.daemons("join", "--name", "first", "--detach")
        for spec in (clusters, sources):
            made.daemons("run", "start", str(spec), "--watch")
        yield made
    finally:
        made.daemons("down", "--now")


@pytest.fixture(scope="module")
def made(world: World) -> dict[str, Any]:
    """A specialist of two domains, and where it was written."""
    first, second, *_ = world.domains(world.clustered)
    weights = f"{first}=0.75,{second}=0.25"
    out = world.folder / "specialist"
    return {**world.answer("soup", world.clustered, "--weights", weights, "--out", out, "--check"), "asked": weights}


@pytest.fixture(scope="module")
def liked(world: World) -> dict[str, Any]:
    return world.answer("soup", world.clustered, "--like", world.like)


def test_a_soup_alone_lists_its_domains_with_their_shares_and_how_to_ask(world: World) -> None:
    told = world.answer("soup", world.clustered)
    assert len(told["domains"]) == LANGUAGES
    assert sum(line["natural"] for line in told["domains"]) == pytest.approx(1)
    code, shown, said = world.potluck("soup", world.clustered)
    assert code == 0
    assert all(name in shown for name in world.domains(world.clustered))
    assert "--weights" in said
    assert "--like" in said
    assert "--like" not in world.potluck("soup", world.by_source)[2]
    assert max(map(len, shown.splitlines())) <= TABLE_WIDTH


def test_weights_make_the_weighted_sum_of_the_bank(world: World, made: dict[str, Any]) -> None:
    from potluck.lm.soup import load_soup
    from potluck.lm.tensors import load_tensors

    assert made["run"] in {run["run"] for run in world.answer("run", "list")["runs"]}
    assert [(line["domain"], line["weight"]) for line in made["domains"]] == [
        (name, float(weight)) for name, weight in (share.split("=") for share in made["asked"].split(","))
    ]
    spec = world.made_by(made["run"])
    labels = json.loads(world.blobs().path(spec.soup.labels).read_text())["domains"]
    weights = {each.name: each.weight for each in spec.weights}
    soup = load_soup(spec.soup.model, spec.soup.config, world.blobs().path(spec.soup.bank))
    wanted = soup.instantiate(torch.tensor([weights.get(name, 0.0) for name in labels]))
    found = load_tensors(world.blobs().path(made["weights"]))
    assert all(torch.equal(found[name], tensor) for name, tensor in wanted.items())
    assert len(made["coefficients"]) == spec.soup.config.experts


def test_the_same_wish_again_does_no_work_and_says_so(
    world: World, made: dict[str, Any], liked: dict[str, Any]
) -> None:
    before = world.tasks_done
    runs = len(world.answer("run", "list")["runs"])
    other_way_round = ",".join(reversed(made["asked"].split(",")))
    again = world.answer("soup", world.clustered, "--weights", other_way_round)
    assert (again["state"], again["weights"], again["run"]) == ("found", made["weights"], made["run"])
    liked_again = world.answer("soup", world.clustered, "--like", world.like)
    assert (liked_again["state"], liked_again["weights"]) == ("found", liked["weights"])
    assert (made["state"], liked["state"]) == ("made", "made")
    assert world.tasks_done == before
    assert len(world.answer("run", "list")["runs"]) == runs
    assert "made before, found again" in world.potluck("soup", world.clustered, "--weights", made["asked"])[1]


def test_text_gets_the_weights_of_where_it_lies_their_noise_and_a_comparison(
    world: World, liked: dict[str, Any]
) -> None:
    assert liked["domains"][0]["weight"] > 0.8, "new text in one language lies in the domain of that language"
    histogram = liked["histogram"]
    assert histogram["windows"] > 10
    assert 0 <= histogram["expected_noise"] < 2
    assert histogram["unplaced"] < 0.2
    contest = liked["contest"]
    assert set(contest["models"]) == {"specialist", "soup"}
    pair = contest["pairs"]["specialist - soup"]
    assert pair["low"] <= pair["mean"] <= pair["high"]
    assert pair["mean"] < 0
    shown = world.potluck("soup", world.clustered, "--like", world.like)[1]
    assert f"weights from {histogram['windows']} windows of text, expected to be off by" in shown
    assert "held-out rows of the text, specialist" in " ".join(shown.split())
    assert max(map(len, shown.splitlines())) <= TABLE_WIDTH


def test_what_a_specialist_is_made_of_stays_in_the_store(world: World, made: dict[str, Any]) -> None:
    from coordinator.collector import closure

    report = world.run(made["run"]).report
    assert {made[name] for name in ("weights", "mixture", "tokenizer")} <= closure(world.blobs(), [Digest(report)])


def test_the_table_and_the_page_of_a_specialists_run_tell_the_same(
    world: World, liked: dict[str, Any], tmp_path: Path
) -> None:
    shown = world.potluck("soup", world.clustered, "--like", world.like)[1]
    code, table, _ = world.potluck("eval", liked["run"])
    assert code == 0
    assert table.strip() in shown
    html = Path(world.answer("report", liked["run"], "--out", tmp_path)["html"]).read_text()
    assert liked["weights"] in html
    assert "held-out rows of the text, specialist" in html


def test_few_examples_are_said_to_be_few_and_nothing_is_compared_on_them(world: World) -> None:
    lines = world.like.read_text().splitlines()[:6]
    (world.folder / "few").mkdir()
    for number, line in enumerate(lines):
        (world.folder / "few" / f"{number}.txt").write_text(json.loads(line)["text"][:150])
    code, shown, said = world.potluck("soup", world.clustered, "--like", world.folder / "few")
    assert code == 0, said
    assert "not compared" in shown
    assert "too few to tell a difference" in shown


def log_probs(folder: Path, ids: list[int]) -> torch.Tensor:
    from transformers import AutoModelForCausalLM

    model = AutoModelForCausalLM.from_pretrained(folder).eval()
    with torch.no_grad():
        logits: torch.Tensor = model(torch.tensor([ids])).logits[0]
    return logits.log_softmax(-1)


def test_an_exported_specialist_is_the_one_that_was_made(world: World, made: dict[str, Any]) -> None:
    from transformers import AutoTokenizer

    from potluck.lm.model import load_decoder

    out, written = world.folder / "specialist", made["export"]
    assert written["weights"] == made["weights"]
    assert written["check"]["greedy_equal"] is True
    assert written["check"]["max_logit_difference"] <= 1e-4
    assert written["files"] == {path.name: digest_file(path) for path in out.iterdir()}
    ids = AutoTokenizer.from_pretrained(out).encode("ta pika; no mita\n")
    model = world.made_by(made["run"]).soup.model
    decoder = load_decoder(model, world.blobs().path(made["weights"]))
    with torch.no_grad():
        ours = (decoder(torch.tensor([ids]))[0] @ decoder.embedding.weight.t()).log_softmax(-1)
    assert torch.allclose(log_probs(out, ids), ours, atol=1e-4)


def test_export_with_soup_writes_the_same_bytes(world: World, made: dict[str, Any]) -> None:
    out = world.folder / "exported"
    written = world.answer("export", world.clustered, "--soup", made["asked"], "--out", out)
    assert written["files"] == made["export"]["files"]


def test_the_card_says_that_it_is_of_a_soup_with_its_mixture_and_coefficients(
    world: World, made: dict[str, Any]
) -> None:
    card = (world.folder / "specialist" / "README.md").read_text()
    assert "arXiv 2502.01804" in card
    for line in made["domains"]:
        assert f"| {line['domain']} | {line['weight']:g} |" in card
    assert "Coefficients of the 4 experts: " in card
    assert f"`{made['weights']}`" in card
    assert "Held-out text" not in card, "the run's report is about other mixtures"


def test_a_slot_that_is_a_soup_is_not_exported_without_a_mixture(world: World) -> None:
    error = world.refusal("export", f"{world.clustered}/bank", world.folder / "bank")
    assert error["id"] == "usage.many-models"
    assert "--soup" in error["fix"]
    assert world.answer("export", f"{world.clustered}/soup", world.folder / "natural")["slot"] == "soup"


BAD: list[tuple[str, tuple[str, ...], str]] = [
    ("usage.unknown-domain", ("--weights", "langauge-1=1"), "langauge-1"),
    ("usage.weights-do-not-sum", ("--weights", "language-0=0.5,language-1=0.2"), "0.7"),
    ("usage.bad-model", ("--weights", "language-0"), "language-0"),
    ("usage.cannot-place", ("--like", "."), "sources"),
    ("usage.bad-arguments", ("--out", "nowhere"), "--out"),
    ("usage.bad-arguments", ("--weights", "language-0=1", "--check"), "--check"),
]


@pytest.mark.parametrize(("error_id", "options", "said"), BAD, ids=[f"{bad[0]}-{i}" for i, bad in enumerate(BAD)])
def test_bad_wishes_are_refused_before_anything_is_started(
    world: World, error_id: str, options: tuple[str, ...], said: str
) -> None:
    before = len(world.answer("run", "list")["runs"])
    error = world.refusal("soup", world.by_source, *options)
    assert error["id"] == error_id
    assert said in error["message"]
    assert error["fix"]
    assert len(world.answer("run", "list")["runs"]) == before


def test_an_unknown_domain_is_told_with_the_nearest(world: World) -> None:
    assert "language-1" in world.refusal("soup", world.by_source, "--weights", "langauge-1=1")["fix"]


def test_a_soup_by_source_makes_specialists_by_weights(world: World) -> None:
    told = world.answer("soup", world.by_source, "--weights", "language-0=0.5,language-3=0.5")
    assert told["model"] == "soup:language-0=0.5,language-3=0.5"
    assert told["contest"] is told["histogram"] is None


TEXTS: list[tuple[str, str, str]] = [
    ("corpus.empty", " \n", "no text"),
    ("corpus.too-small", "word", "4 bytes"),
    ("corpus.outside-soup", OUTSIDE, "no domain of the soup holds this text"),
]


@pytest.mark.parametrize(("error_id", "text", "said"), TEXTS, ids=[text[0] for text in TEXTS])
def test_text_that_makes_no_specialist_is_refused(
    world: World, tmp_path: Path, error_id: str, text: str, said: str
) -> None:
    (tmp_path / "text.txt").write_text(text)
    error = world.refusal("soup", world.clustered, "--like", tmp_path / "text.txt")
    assert error["id"] == error_id
    assert said in error["message"]
    assert error["fix"]


def test_text_that_lies_partly_outside_makes_a_specialist_with_a_warning(world: World, tmp_path: Path) -> None:
    (tmp_path / "text.txt").write_text(FOREIGN)
    code, shown, said = world.potluck("soup", world.clustered, "--like", tmp_path / "text.txt")
    assert code == 0, said
    (share,) = [line.split("%")[0] for line in shown.splitlines() if "lies in no domain" in line]
    assert 20 < int(share) < 100
    assert f"mind: {share}% of the target lies further out" in " ".join(said.split())


def test_an_empty_folder_is_no_text(world: World, tmp_path: Path) -> None:
    assert world.refusal("soup", world.clustered, "--like", tmp_path)["id"].startswith("corpus.")


def test_a_run_that_is_no_soup_is_refused_with_its_method(world: World, made: dict[str, Any]) -> None:
    error = world.refusal("soup", made["run"], "--weights", "a=1")
    assert error["id"] == "usage.not-a-soup"
    assert "instantiate" in error["message"]
