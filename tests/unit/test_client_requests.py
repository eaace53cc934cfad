"""What a message cannot carry is refused before it is sent, by the argument's name."""

from __future__ import annotations

from typing import Any

import pytest

from potluck.client_requests import checked_integer, checked_target, generate_request, route_request, score_request
from potluck.errors import UsageError

SOUND: dict[str, Any] = {
    "prompt": "a", "run": "", "slot": "", "max_tokens": 1, "temperature": 0.0, "top_k": 0, "top_p": 1.0, "seed": 0
}  # fmt: skip


@pytest.mark.parametrize("target", ["bogus", ":1", "a:b", "a:0", "a:65536", "a:-1", ""])
def test_what_is_no_address_of_a_router_is_refused(target: str) -> None:
    with pytest.raises(UsageError, match=r"usage\.bad-address"):
        checked_target(target)


@pytest.mark.parametrize("target", ["router:7473", "127.0.0.1:1", "[::1]:65535"])
def test_an_address_is_taken_as_it_is(target: str) -> None:
    assert checked_target(target) == target


@pytest.mark.parametrize(
    ("argument", "value"),
    [
        ("seed", -1),
        ("seed", 1 << 64),
        ("max_tokens", 99_999_999_999),
        ("top_k", 1 << 31),
        ("run", "\udcff"),
        ("slot", "\udcff"),
    ],
)
def test_a_value_that_does_not_fit_is_named(argument: str, value: object) -> None:
    with pytest.raises(UsageError, match=argument) as refused:
        generate_request(**{**SOUND, argument: value})
    assert refused.value.error_id == "usage.bad-value"


def test_the_largest_seed_fits() -> None:
    assert generate_request(**{**SOUND, "seed": (1 << 64) - 1}).seed == (1 << 64) - 1


def test_stop_strings_to_generate_with_are_checked_before_they_are_sent() -> None:
    assert list(generate_request(**SOUND, stop=["\n\n", "ß"]).stop) == ["\n\n", "ß"]
    with pytest.raises(UsageError, match=r"usage\.bad-stop"):
        generate_request(**SOUND, stop=[""])
    with pytest.raises(UsageError, match=r"stop\[1\] is not text"):
        generate_request(**SOUND, stop=["a", "\udcff"])


def test_text_that_is_not_unicode_and_ids_below_zero_are_refused() -> None:
    with pytest.raises(UsageError, match="text is not text"):
        route_request("\udcff", "")
    with pytest.raises(UsageError, match=r"ids\[1\] = -1"):
        score_request([0, -1], "", "")
    with pytest.raises(UsageError, match="priority"):
        checked_integer("priority", 1 << 31, bits=32)
