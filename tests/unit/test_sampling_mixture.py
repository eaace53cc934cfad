"""Mixtures: weights by name that sum to one, and everything that is refused."""

from __future__ import annotations

import json
import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from potluck.errors import SpecError
from potluck.ids import Digest
from sampling.mixture import Mixture, combined, natural, normalised, supported

PARTITION, OTHER = Digest("a" * 64), Digest("b" * 64)
WEIGHTS = st.dictionaries(
    st.text(max_size=4), st.floats(0, 1e300, allow_subnormal=False), min_size=1, max_size=8
).filter(lambda weights: any(weights.values()))


@given(weights=WEIGHTS)
def test_normalised_weights_sum_to_one_and_survive_the_blob(weights: dict[str, float]) -> None:
    mixture = normalised(PARTITION, weights, list(weights))
    assert abs(math.fsum(mixture.weights.values()) - 1) < 1e-9
    assert Mixture.from_json(mixture.to_json()) == mixture
    assert json.loads(mixture.to_json()).keys() == {"version", "partition", "weights"}


@given(weights=WEIGHTS)
def test_the_blob_does_not_depend_on_the_order_in_which_domains_are_named(weights: dict[str, float]) -> None:
    backwards = dict(reversed(list(weights.items())))
    one, other = (normalised(PARTITION, each, list(weights)).to_json() for each in (weights, backwards))
    assert one == other


@pytest.mark.parametrize(
    ("weights", "words"),
    [
        ({"a": 0.5, "b": -0.5}, "'b' is -0.5"),
        ({"a": 0.5, "b": math.nan}, "'b' is nan"),
        ({"a": 0.5, "b": math.inf}, "'b' is inf"),
        ({"a": 0.0, "b": 0.0}, "all weights are zero"),
        ({"a": 1.0}, "missing domains: b"),
        ({"a": 1.0, "b": 1.0, "c": 1.0}, "unknown domains: c"),
        ({"a": True, "b": 1.0}, "'a' is True"),
    ],
)
def test_weights_that_make_no_mixture_are_refused_by_name(weights: dict[str, float], words: str) -> None:
    with pytest.raises(SpecError, match=words) as caught:
        normalised(PARTITION, weights, ["a", "b"])
    assert caught.value.error_id == "spec.bad-mixture"
    assert caught.value.fix


@pytest.mark.parametrize(
    "text",
    [
        "no json",
        "[]",
        '{"version":1,"weights":{"a":1}}',
        '{"version":2,"partition":"' + PARTITION + '","weights":{"a":1}}',
        '{"version":1,"partition":"here","weights":{"a":1}}',
        '{"version":1,"partition":"' + PARTITION + '","weights":[1]}',
        '{"version":1,"partition":"' + PARTITION + '","weights":{}}',
        '{"version":1,"partition":"' + PARTITION + '","weights":{"a":"1"}}',
        '{"version":1,"partition":"' + PARTITION + '","weights":{"a":0.99}}',
        '{"version":1,"partition":"' + PARTITION + '","weights":{"a":NaN}}',
    ],
)
def test_a_blob_that_holds_no_mixture_is_refused(text: str) -> None:
    with pytest.raises(SpecError) as caught:
        Mixture.from_json(text)
    assert caught.value.error_id == "spec.bad-mixture"


def test_weights_a_hair_off_one_are_taken_and_no_more() -> None:
    Mixture(partition=PARTITION, weights={"a": 0.5, "b": 0.5 + 5e-10})
    with pytest.raises(SpecError, match="sum to"):
        Mixture(partition=PARTITION, weights={"a": 0.5, "b": 0.5 + 5e-9})


def test_the_natural_mixture_follows_sizes_and_alignment_follows_the_partition() -> None:
    mixture = natural(PARTITION, {"b": 30, "a": 10, "c": 0})
    assert mixture.aligned(["a", "b", "c"]) == [0.25, 0.75, 0.0]
    with pytest.raises(SpecError, match="unknown domains: b"):
        mixture.aligned(["a", "c"])


def test_several_targets_weigh_as_they_are_told() -> None:
    first = normalised(PARTITION, {"a": 1, "b": 3}, ["a", "b"])
    second = normalised(PARTITION, {"b": 0, "a": 1}, ["a", "b"])
    both = combined([first, second], [2, 2])
    assert both.weights == pytest.approx({"a": 0.625, "b": 0.375})
    assert combined([first, second], [1, 0]).weights == pytest.approx(first.weights)
    elsewhere = Mixture(partition=OTHER, weights={"a": 0.5, "b": 0.5})
    for mixtures, weights in (([first, elsewhere], [1, 1]), ([first], [1, 1]), ([], []), ([first, second], [0, 0])):
        with pytest.raises(SpecError, match=r"spec\.bad-mixture"):
            combined(mixtures, weights)


def test_domains_without_rows_are_left_out_and_their_share_is_told() -> None:
    mixture = normalised(PARTITION, {"a": 1, "b": 3, "c": 4}, ["a", "b", "c"])
    kept, lost = supported(mixture, {"a": 5, "b": 9, "c": 0})
    assert lost == 0.5
    assert kept.weights == {"a": 0.25, "b": 0.75, "c": 0.0}
    assert supported(mixture, {"a": 5, "b": 9, "c": 1}) == (mixture, 0.0)
    with pytest.raises(SpecError, match="no domain"):
        supported(normalised(PARTITION, {"a": 0, "b": 0, "c": 1}, ["a", "b", "c"]), {"a": 5, "b": 9, "c": 0})
