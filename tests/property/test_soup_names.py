"""Names of soups: what is written is what is read, whatever characters the domains hold."""

from __future__ import annotations

import math
from contextlib import suppress

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from potluck.errors import UsageError
from potluck.soup_names import EXACT_TOLERANCE, MAX_LISTED, SUM_TOLERANCE, SoupName, parse_soup_name
from sampling.mixture import SUM_TOLERANCE as MIXTURE_TOLERANCE
from sampling.mixture import Mixture

DOMAINS = st.text(st.characters(exclude_categories=["Cs"]), min_size=1, max_size=12)
WEIGHTS = st.dictionaries(DOMAINS, st.floats(1e-6, 1.0), min_size=1, max_size=6)


def named(weights: dict[str, float]) -> SoupName:
    total = math.fsum(weights.values())
    return SoupName(weights={name: weight / total for name, weight in sorted(weights.items())})


@given(weights=WEIGHTS)
@example(weights={"a=b,c:d %": 0.5, " both ends ": 0.25, "größte\n": 0.25})
def test_a_name_that_is_written_is_read_as_what_it_was(weights: dict[str, float]) -> None:
    soup = named(weights)
    assert parse_soup_name(str(soup)) == soup
    Mixture(partition="", weights=soup.weights)  # type: ignore[arg-type]  # sums nearly enough


@given(weights=WEIGHTS, spaces=st.lists(st.integers(0, 2), min_size=4, max_size=4), order=st.randoms())
def test_spaces_order_and_needless_escapes_say_nothing(
    weights: dict[str, float], spaces: list[int], order: object
) -> None:
    soup = named(weights)
    before, after, left, right = (" " * count for count in spaces)
    shares = [
        before + "".join(f"%{byte:02x}" for byte in name.encode()) + left + "=" + right + repr(weight) + after
        for name, weight in soup.weights.items()
    ]
    order.shuffle(shares)  # type: ignore[attr-defined]
    assert parse_soup_name("soup:" + ",".join(shares)) == soup


@given(text=st.text(st.sampled_from("soup:ab=,%0123456789.-+eE \x00é\udcff"), max_size=40))
def test_any_text_is_a_soup_that_has_one_name_or_is_refused(text: str) -> None:
    for tried in (text, f"soup:{text}"):
        with suppress(UsageError):
            soup = parse_soup_name(tried)
            assert parse_soup_name(str(soup)) == soup


WRONG = {
    "code=0.6,law=0.4": ("usage.bad-model", "does not begin with 'soup:'"),
    "soup:": ("usage.empty-soup", "names no domain"),
    "soup:code": ("usage.bad-model", "'code' is not one domain"),
    "soup:code=0.6,": ("usage.bad-model", "'' is not one domain"),
    "soup:a=b=1": ("usage.bad-model", "'a=b=1'"),
    "soup:=1": ("usage.bad-model", "no domain"),
    "soup:100%=1": ("usage.bad-model", "two hexadecimal digits"),
    "soup:%ff=1": ("usage.bad-model", "not UTF-8"),
    "soup:a=0.5,a=0.5": ("usage.bad-model", "'a' is named twice"),
    "soup:a=1.5,b=-0.5": ("usage.bad-weight", "the weight of 'b' is '-0.5'"),
    "soup:a=half": ("usage.bad-weight", "'half'"),
    "soup:a=nan": ("usage.bad-weight", "'nan'"),
    "soup:a=1e999": ("usage.bad-weight", "'1e999'"),
    "soup:a=0": ("usage.weights-do-not-sum", "all weights are 0"),
    "soup:a=3,b=1": ("usage.weights-do-not-sum", "the weights sum to 4"),
    "soup:a=0.5,b=0.50001": ("usage.weights-do-not-sum", "sum to 1.00001"),
    "soup:" + "x" * 70_000 + "=1": ("usage.too-long", "70007 bytes"),
}


@pytest.mark.parametrize("text", sorted(WRONG), ids=lambda text: text[:24])
def test_what_is_wrong_with_a_name_is_said(text: str) -> None:
    error_id, what = WRONG[text]
    with pytest.raises(UsageError) as caught:
        parse_soup_name(text)
    assert caught.value.error_id == error_id
    assert what in caught.value.message
    assert caught.value.fix


def test_weights_that_do_not_sum_to_one_are_told_in_the_form_that_does() -> None:
    with pytest.raises(UsageError) as caught:
        parse_soup_name("soup:law=3,c%2C=1")
    written = caught.value.fix.rpartition(": soup")[2]
    assert parse_soup_name(f"soup{written}").weights == {"c,": 0.25, "law": 0.75}


def test_weights_that_nearly_sum_to_one_are_divided_by_their_sum_and_exact_ones_are_kept() -> None:
    assert parse_soup_name("soup:a=0.3333333,b=0.6666666").weights == pytest.approx({"a": 1 / 3, "b": 2 / 3}, abs=1e-15)
    assert parse_soup_name("soup:a=0.1,b=0.2,c=0.7").weights == {"a": 0.1, "b": 0.2, "c": 0.7}
    assert EXACT_TOLERANCE == MIXTURE_TOLERANCE < SUM_TOLERANCE


def test_shares_are_by_the_places_of_the_domains_and_an_unknown_one_is_told_its_nearest() -> None:
    domains = ("law", "code:python", "code:c", "maths", "news", "fiction", "mail")
    assert parse_soup_name("soup:code:c=0.25,law=0.75,mail=0").shares(domains) == ((0, 0.75), (2, 0.25))
    with pytest.raises(UsageError, match="no domain 'code:pyton'") as caught:
        parse_soup_name("soup:code:pyton=1").shares(domains)
    assert caught.value.error_id == "usage.unknown-domain"
    assert "nearest of its 7 domains: code:python" in caught.value.fix
    with pytest.raises(UsageError) as caught:
        parse_soup_name("soup:zzz=1").shares(domains)
    assert caught.value.fix == "the first of its 7 domains: law, code:python, code:c, maths, news"
    assert caught.value.fix.count(",") == MAX_LISTED - 1
