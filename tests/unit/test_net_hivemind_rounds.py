"""A spread soup whose parts average by hivemind: what the plan believes, and how it goes on where it does not."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import save_file

from coordinator.core.values import Finished, TaskResult, TaskWanted
from coordinator.plans.soup_exchange import Exchanged, exchanged
from potluck.config import to_mapping
from potluck.errors import SpecError
from potluck.ids import Digest, Json, canonical_json, digest_bytes, digest_file
from potluck.lm.soup_spread import Spread, exchange_key
from potluck.net.hivemind_acceptance import Refused
from potluck.net.hivemind_projections import report, report_of
from potluck.specs.soup import SoupControls
from sampling.soup_exchange import MEETING
from tests.integration.mixture_runs import corpus_of
from tests.integration.soup_runs import soup_spec
from tests.unit.soup_fold import SoupFold, soup
from tests.unit.soup_worlds import RealFold
from tests.unit.test_soup_rounds_blobs import pinned

KEY = exchange_key(digest_bytes(b"setting"), 0, digest_bytes(b"common"))
FAR = Spread(parts=2, local_steps=6, outer_rate=0.7, outer_momentum=0.9)


@pytest.fixture
def parts(tmp_path: Path) -> list[TaskResult]:
    """What two parts put that averaged rightly."""
    rng = np.random.default_rng(0)
    deltas = [{"shared": rng.standard_normal(50).astype(np.float32)} for _ in range(2)]
    results = []
    for index, delta in enumerate(deltas):
        before, after = tmp_path / f"{index}.delta", tmp_path / f"{index}.averaged"
        save_file(delta, before)
        save_file(
            {"shared": delta["shared"] + ((deltas[0]["shared"] + deltas[1]["shared"]) / 2 - delta["shared"])}, after
        )
        told = canonical_json(to_mapping(report(KEY, index, tensors=before, output=after)))
        blobs = {"delta": digest_file(before), **({"averaged": digest_file(after)} if index == 0 else {})}
        results.append(TaskResult(blobs=blobs, figures={"exchange": told}))
    return results


def test_an_average_that_all_parts_made_is_believed(parts: list[TaskResult]) -> None:
    assert exchanged(KEY, parts) == Exchanged(averaged=parts[0].blobs["averaged"])


def with_second(parts: list[TaskResult], **figures: Json) -> list[TaskResult]:
    return [parts[0], dataclasses.replace(parts[1], figures=figures)]


def test_what_a_part_did_not_do_or_cannot_show_is_refused(parts: list[TaskResult], tmp_path: Path) -> None:
    own = tmp_path / "1.delta"
    alone = canonical_json(to_mapping(report(KEY, 1, tensors=own, output=own)))
    other = dataclasses.replace(parts[1], blobs={"delta": Digest("0" * 64)})
    silent = dataclasses.replace(parts[0], blobs={"delta": parts[0].blobs["delta"]})
    for wrong, why in [
        (with_second(parts), "part 2: it did not try"),
        (with_second(parts, exchange_failed="[net.averaging-incomplete] alone"), "[net.averaging-incomplete] alone"),
        (with_second(parts, exchange="{}"), "cannot be read"),
        (with_second(parts, exchange="["), "cannot be read"),
        (with_second(parts, exchange=alone), "off the mean"),
        (with_second(parts, exchange=parts[0].figures["exchange"]), "something else than the change"),
        ([parts[0], other], "something else than the change"),
        ([silent, parts[1]], "something else than what it averaged"),
    ]:
        found = exchanged(KEY, wrong)
        assert isinstance(found, Refused), why
        assert why in found.reason


def test_the_average_of_another_round_is_refused(parts: list[TaskResult]) -> None:
    other = exchange_key(digest_bytes(b"setting"), 1, digest_bytes(b"common"))
    assert isinstance(exchanged(other, parts), Refused)


def test_parts_that_cannot_meet_make_the_soup_of_the_hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv(MEETING, raising=False)
    corpus = corpus_of(tmp_path / "corpus", documents=30)
    weights = {}
    for transport in ("hub", "hivemind"):
        spread = dataclasses.replace(FAR, transport=transport)
        fold = RealFold(soup_spec(corpus.digest, spread=spread), corpus, tmp_path / transport)
        outcome = fold.run(1).outcome
        assert isinstance(outcome, Finished)
        soup = outcome.figures["soup"]
        assert isinstance(soup, dict)
        weights[transport] = soup["weights"]
    assert weights["hub"] == weights["hivemind"]
    assert soup["exchange"] == {
        "rounds": 2,
        "by_hivemind": 0,
        "hub_instead": [
            [1, f"part 1: {MEETING} is not set on its node"],
            [2, f"part 1: {MEETING} is not set on its node"],
        ],
    }
    assert len(fold.tasks_named("by the hub: part 1: POTLUCK_MEETING is not set")) == 2


class Averaging(SoupFold):
    """A world in which every exchange succeeds: all changes are zero, and so is their average."""

    def _result(self, task: TaskWanted) -> TaskResult:
        result, params, inputs = super()._result(task), json.loads(task.params_json), dict(task.inputs)
        if params.get("what") != "local_steps":
            return result
        key = exchange_key(inputs["setting"], params["round"], inputs["weights-common"])
        averaged, zero = digest_bytes(key.encode()), {"shared": np.zeros(1, dtype=np.float32)}
        delta = result.blobs["delta"]
        told = report_of(key, params["part"], zero, zero, input_digest=delta, output_digest=averaged)
        blobs = {**result.blobs, **({"averaged": averaged} if params["part"] == 0 else {})}
        return TaskResult(blobs=blobs, figures={**result.figures, "exchange": canonical_json(to_mapping(told))})


def test_however_many_rounds_were_averaged_so_the_blobs_of_two_are_kept() -> None:
    """The changes too, which no task reads where the parts' own average is believed."""
    spec = soup(
        controls=SoupControls(generic=False, constant=False), spread=dataclasses.replace(FAR, transport="hivemind")
    )
    fold = Averaging(spec)
    made: dict[Digest, int] = {}
    while work := fold.open_work(fold.advance()):
        for task in _named(fold, "round "):
            made |= {d: json.loads(task.params_json)["round"] for d in _blobs(fold, task)}
        news = {digest for task in work if isinstance(task, TaskWanted) for _, digest in task.inputs}
        kept = pinned(fold)
        assert news & made.keys() <= kept
        assert len(made.keys() & kept) <= 2 * 9
        fold.do(work[0])
    assert max(made.values()) == 6
    assert all(task.label.endswith("by hivemind") for task in _named(fold, "average of the parts"))


def _named(fold: SoupFold, word: str) -> list[TaskWanted]:
    return [task for task in fold.seen_tasks.values() if word in task.label and "together" not in task.label]


def _blobs(fold: SoupFold, task: TaskWanted) -> list[Digest]:
    return list(fold.done[task.id].blobs.values()) if task.id in fold.done else []


def test_an_exchange_without_local_steps_is_refused() -> None:
    with pytest.raises(SpecError, match="transport = hivemind"):
        Spread(parts=2, transport="hivemind")
    with pytest.raises(SpecError, match="exchange_s"):
        Spread(parts=2, local_steps=2, transport="hivemind", exchange_s=0)
