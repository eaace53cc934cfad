"""The soup study in worlds whose outcomes are planted."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from typing import Any

import pytest

from potluck.lab.studies.soup import SoupStudy
from potluck.lab.studies.soup_cells import DESIGNS
from potluck.lab.study import BudgetName, Cell, Found
from tests.unit.lab_world import Ended, claim, digest_of, model_of, play, require_sound

STUDY = SoupStudy()
STANDARD = STUDY.budget("standard")
DESIGN = DESIGNS["standard"]
SOURCES = tuple(name for name in DESIGN.targets if name not in DESIGN.left_out)
BEST = {"soup": 1e-2, "single": 2e-2, "crisp": 4e-2}


def jitter(*what: object) -> float:
    return 0.002 * (int(digest_of(*what)[:2], 16) / 255 - 0.5)


def world(gain: float = 0.3, *, price: float = 0.0, crisp: float = 0.31, wrong: float = 0.3, s_best: int = 4) -> Any:
    """Own models are ahead by `gain`, those of other targets behind by `wrong`, the soup's own costs `price`."""

    def base(body: Mapping[str, Any]) -> float:
        rate = body["training"]["learning_rate"]
        return 4.0 + 0.1 * body["seed"] + 0.05 * abs(math.log(rate / BEST[body["method"]]))

    def soup_report(body: Mapping[str, Any]) -> dict[str, Any]:
        n, s, level = body["bank"]["experts"], body["bank"]["support"], base(body) + price
        share = math.log(n) / math.log(16) * (1.0 - 0.1 * abs(math.log2(s / s_best)))
        own = 0.0 if s == 32 else gain * share
        names = {f"soup for {source}": level - own + jitter(body, source) for source in SOURCES}
        models = {name: {"nll": nll} for name, nll in {**names, "soup": level + jitter(body)}.items()}
        return {"by_source": {source: {"models": models} for source in SOURCES}, "facts": {"flops": 2.0}}

    def on_valid(cell: Cell) -> Ended:
        rates = [runs[each["weights"]] for each in cell.body["models"]]
        body = rates[0]
        level = {"specialist": {"nll": base(body)}, **{f"soup for {s}": {"nll": base(body)} for s in SOURCES}}
        return Ended(results={}, report={"by_source": {source: {"models": level} for source in SOURCES}})

    def on_target(cell: Cell) -> Ended:
        target, seed = cell.key.split()[2], cell.body["seed"]
        levels: dict[str, float] = {}
        for name in (each["name"] for each in cell.body["models"]):
            nll = 4.0 + 0.1 * seed + jitter(cell.key, name)
            if name == f"soup for {target}":
                nll -= gain
            elif name.startswith("soup for"):
                nll += wrong - gain
            elif name == "crisp":
                nll -= crisp
            levels[name] = nll
        return Ended(results={}, report={"models": {name: {"nll": nll} for name, nll in levels.items()}})

    runs: dict[str, Mapping[str, Any]] = {}

    def of(cell: Cell) -> Ended:
        body = cell.body
        if body["method"] == "contest":
            return on_valid(cell) if body["split"] == "valid" else on_target(cell)
        if body["method"] == "instantiate":
            model = {"weights": digest_of(cell.key), "model": body["soup"]["model"]}
            tokens = digest_of(cell.data, body["seed"])
            return Ended(results={"made": {"tokens": tokens, "models": {"specialist": model}}})
        soups = [f"soup for {source}" for source in SOURCES] + ["soup", "constant"]
        names = {"soup": soups, "single": ["model"], "crisp": ["specialist", "generalist"]}[body["method"]]
        models = {name: model_of(digest_of(cell.key, name), body) for name in names}
        runs.update({model["weights"]: body for model in models.values()})
        made = {"tokens": digest_of("corpus", body["seed"]), "models": models}
        level = base(body) + jitter(cell.key) + (price if body["method"] == "soup" else 0.0)
        told = {"models": {"soup" if body["method"] == "soup" else "model": {"nll": level}}}
        results: dict[str, Any] = {"made": made, "headline": {"valid": told, "test": told}}
        report: Mapping[str, Any] = {"by_source": dict.fromkeys(SOURCES, told), "facts": {"flops": 1.0}}
        if body["method"] == "soup":
            report = soup_report(body)
            results["soup"] = soup_results(body, models["soup"]["model"])
        return Ended(results=results, report=report)

    return of


def soup_results(body: Mapping[str, Any], model: Mapping[str, Any]) -> dict[str, Any]:
    names = ("weights", "labels", "partition", "tokenizer", "encoder", "tree", "natural")
    config = {"domains": body["partition"]["k"], "experts": body["bank"]["experts"]}
    return {**{name: digest_of(name) for name in names}, "encoder_name": "encoder", "model": model, "config": config}


def verdicts(outcome: Callable[[Cell], Ended]) -> Mapping[str, str]:
    return {each.claim: each.verdict for each in STUDY.claims(STANDARD, play(STUDY, STANDARD, outcome))}


def test_where_the_soup_specialises_as_in_the_paper_its_claims_hold() -> None:
    found = verdicts(world())
    assert {number for number, verdict in found.items() if verdict == "not decidable"} == {"4", "8"}
    assert set(found.values()) == {"held", "not decidable"}


def test_where_specialists_are_behind_the_claims_of_a_gain_do_not_hold() -> None:
    found = verdicts(world(-0.3, wrong=-0.3))
    assert {found[number] for number in ("1", "3", "3b", "5", "6a", "7a")} == {"not held"}


def test_a_soup_that_pays_for_its_flexibility_is_not_within_two_percent() -> None:
    assert verdicts(world(price=0.5))["2"] == "not held"


def test_a_soup_far_behind_crisp_is_not_near_it() -> None:
    assert verdicts(world(crisp=0.6))["5"] == "not held"


def test_a_best_support_at_an_end_is_none_between_them() -> None:
    assert verdicts(world(s_best=1))["7a"] == "not held"


def test_one_seed_decides_nothing() -> None:
    quick = STUDY.budget("quick")
    judgements = STUDY.claims(quick, play(STUDY, quick, world()))
    assert {each.verdict for each in judgements} == {"not decidable"}


@pytest.mark.parametrize("budget", ["quick", "standard", "full"])
def test_every_cell_is_a_valid_spec_and_no_two_keys_are_one_run(budget: BudgetName) -> None:
    require_sound(STUDY, STUDY.budget(budget), world())


def test_soup_plain_model_and_crisp_search_the_same_rates_and_each_takes_its_own_best() -> None:
    found: dict[str, Found] = play(STUDY, STANDARD, world())
    for side, rate in zip(DESIGN.searches, BEST.values(), strict=True):
        assert side.values == DESIGN.rates
        assert side.best(found) == rate
    assert len(STUDY.tables(STANDARD, found)) == len(DESIGN.searches)


def test_every_target_has_all_models_on_its_own_rows() -> None:
    found = play(STUDY, STANDARD, world())
    for target in DESIGN.targets:
        models = {each["name"] for each in found[f"contest on {target} seed=0"].cell.body["models"]}
        others = {f"soup for {name}" for name in DESIGN.targets}
        crisp = {"crisp"} if target in DESIGN.crisp_targets else set()
        assert models == others | {"soup", "generic", "constant"} | crisp


def test_six_targets_or_more_are_no_part_of_the_corpus() -> None:
    corpus = STUDY.texts(STANDARD)["corpus"]
    assert len(DESIGN.targets) >= 6
    for target in DESIGN.targets:
        taken = STUDY.texts(STANDARD)[target].part_of(target)
        assert target in corpus.without or taken[1] <= corpus.part_of(target)[0]


def test_a_price_is_told_for_once_and_for_each_target() -> None:
    told = claim(STUDY.claims(STANDARD, play(STUDY, STANDARD, world())), "5").numbers
    assert {(row["soup FLOPs"], row["CRISP FLOPs"]) for row in told} == {(2.0, 1.0)}
