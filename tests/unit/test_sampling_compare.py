"""The report, on numbers small enough to check by hand."""

from __future__ import annotations

import json
import math
from dataclasses import replace
from typing import Any

import numpy as np
import pytest

from potluck.ids import canonical_json
from sampling.compare import Bootstrap, HeldOut, build_report, headline

HELD_OUT = HeldOut(
    source=np.array([0, 0, 1, 1]),
    pack=np.array([0, 0, 1, 2]),
    targets_R2=np.array([[3, 10], [3, 0], [3, 10], [2, 0]]),
    bytes_R2=np.array([[6, 20], [6, 0], [9, 60], [4, 0]]),
    names=("law", "prose"),
)
COLUMNS = np.array([[5, 9], [7, 7], [9, 5], [1, 0]], dtype=np.uint16)
EXPERTS = np.array(
    [
        [[6.0, 20.0], [6.0, 0.0], [9.0, 40.0], [4.0, 0.0]],
        [[9.0, 30.0], [7.0, 0.0], [6.0, 10.0], [2.0, 0.0]],
    ]
)
DENSE = np.array([[6.0, 25.0], [6.0, 0.0], [6.0, 25.0], [2.0, 0.0]])
RANDOM = np.array([[6.0, 30.0], [6.0, 0.0], [6.0, 40.0], [2.0, 0.0]])
BOOTSTRAP = Bootstrap(samples=200, confidence=0.95, seed=0)


def report(**changed: Any) -> dict[str, Any]:
    arguments: dict[str, Any] = {
        "columns": COLUMNS,
        "experts_ER2": EXPERTS,
        "dense_R2": DENSE,
        "random_split_R2": RANDOM,
        "held_out": HELD_OUT,
        "bootstrap": BOOTSTRAP,
        **changed,
    }
    built: dict[str, Any] = json.loads(canonical_json(build_report(**arguments)))
    return built


def test_each_row_goes_to_its_best_router_and_ties_to_the_lower() -> None:
    routing = report()["routing"]
    assert routing["table"] == [[2, 0], [0, 2]]
    assert routing["loads"] == [2, 2]
    assert routing["purity"] == 1.0
    assert routing["nmi"] == pytest.approx(1.0)


def test_levels_are_sums_over_targets() -> None:
    built = report()
    assert built["mixture"]["nll_suffix"] == pytest.approx((20 + 10) / 20)
    assert built["mixture"]["nll_all"] == pytest.approx((26 + 6 + 16 + 2) / 31)
    assert built["mixture"]["perplexity_suffix"] == pytest.approx(math.exp(1.5))
    assert built["dense"]["nll_suffix"] == pytest.approx(2.5)
    assert built["targets"] == {"all": 31, "prefix": 11, "suffix": 20}
    assert built["packs"] == 3
    assert built["rows"] == 4


def test_bits_per_byte_times_bytes_times_ln_2_is_the_sum_of_nll_over_all_and_by_source() -> None:
    built = report()
    assert built["target_bytes"] == {"all": 105, "prefix": 25, "suffix": 80}
    assert built["mixture"]["bits_per_byte_all"] * 105 * math.log(2) == pytest.approx(26 + 6 + 16 + 2)
    assert built["mixture"]["bits_per_byte_suffix"] * 80 * math.log(2) == pytest.approx(20 + 10)
    law = built["by_source"]["law"]
    assert law["target_bytes"] == {"all": 32, "prefix": 12, "suffix": 20}
    assert law["dense"]["bits_per_byte_all"] * 32 * math.log(2) == pytest.approx(6 + 25 + 6)


def test_differences_are_of_the_suffix_alone() -> None:
    built = report()
    assert built["mixture_minus_dense"]["mean"] == pytest.approx(-1.0)
    assert built["random_minus_dense"]["mean"] == pytest.approx(1.0)
    assert built["mixture_minus_random"]["mean"] == pytest.approx(-2.0)
    low, high = (built["mixture_minus_dense"][k] for k in ("low", "high"))
    assert -1.5 <= low <= -1.0 <= high <= -0.5


def test_the_oracle_takes_the_least_suffix_whatever_the_router_says() -> None:
    built = report(columns=COLUMNS[:, ::-1])
    assert built["oracle"]["nll_suffix"] == pytest.approx(1.5)
    assert built["mixture"]["nll_suffix"] == pytest.approx((30 + 40) / 20)


def test_sources_and_experts_have_their_own_rows() -> None:
    built = report()
    assert built["by_source"]["law"]["mixture"]["nll_suffix"] == pytest.approx(2.0)
    assert built["by_source"]["law"]["mixture_minus_dense"] == {"mean": pytest.approx(-0.5), "low": None, "high": None}
    assert built["by_source"]["prose"]["rows"] == 2
    assert [e["rows"] for e in built["by_expert"]] == [2, 2]
    assert built["by_expert"][1]["dense"]["nll_suffix"] == pytest.approx(2.5)
    assert built["experts_by_source"] == [[2.0, 4.0], [3.0, 1.0]]


@pytest.mark.parametrize("absent", ["dense", "random_split"])
def test_a_side_that_is_absent_is_null_and_so_are_its_differences(absent: str) -> None:
    built = report(**{f"{absent}_R2": None})
    assert built[absent] is None
    assert built["by_source"]["law"][absent] is None
    pairs = {"dense": ("mixture_minus_dense", "random_minus_dense")}
    for pair in pairs.get(absent, ("random_minus_dense", "mixture_minus_random")):
        assert built[pair] is None
    assert built["mixture"]["nll_suffix"] == pytest.approx(1.5)


def test_an_expert_that_gets_no_row_has_null_levels() -> None:
    built = report(columns=np.array([[0, 1]] * 4, dtype=np.uint16))
    assert built["by_expert"][1]["rows"] == 0
    assert built["by_expert"][1]["mixture"]["nll_all"] is None
    assert built["by_expert"][1]["mixture_minus_dense"] is None
    assert built["routing"]["loads"] == [4, 0]


def test_rows_without_any_suffix_target_give_nulls_not_errors() -> None:
    bare = replace(HELD_OUT, targets_R2=np.array([[3, 0]] * 4), bytes_R2=np.array([[6, 0]] * 4))
    built = report(held_out=bare)
    assert built["mixture"]["nll_suffix"] is None
    assert built["mixture"]["bits_per_byte_suffix"] is None
    assert built["mixture_minus_dense"] is None
    assert built["mixture"]["nll_all"] is not None


def test_a_model_that_blew_up_is_null_in_json() -> None:
    built = report(dense_R2=np.full((4, 2), np.nan))
    assert built["dense"]["nll_suffix"] is None


def test_the_headline_holds_every_side_and_stays_small() -> None:
    figures = headline(report())
    assert {"mixture", "dense", "random_split", "oracle", "mixture_minus_dense", "loads", "nmi"} <= set(figures)
    assert len(canonical_json(figures)) < 4096
