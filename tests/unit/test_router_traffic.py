"""Requests counted by domain: what is sent, when, and how it is blurred."""

from __future__ import annotations

import math
from collections import Counter
from itertools import count

import numpy as np
import pytest

from potluck.errors import UsageError
from potluck.ids import Digest, RunId
from router.traffic import MAX_NAMES, MAX_TALLIES, NOISY_INTERVAL_S, DomainCounts, Noise
from sampling.traffic import laplace

RUN, OTHER = RunId("1" * 64), RunId("2" * 64)
PARTITION = Digest("a" * 64)
DOMAINS = ("birds", "bread", "ships")


def noise(epsilon: float = 1.0) -> Noise:
    return Noise(epsilon=epsilon, seed=count().__next__)


def test_what_was_counted_is_told_once() -> None:
    counts = DomainCounts()
    assert list(counts.sending(0.0)) == []
    for domain in (2, 0, 2):
        counts.add(RUN, PARTITION, DOMAINS, domain)
    counts.add(OTHER, PARTITION, DOMAINS, 1)
    first, second = counts.sending(0.0)
    assert (first.run, first.requests) == (RUN, {"birds": 1, "ships": 2})
    assert (second.run, second.requests) == (OTHER, {"bread": 1})
    assert list(counts.sending(1.0)) == []


@pytest.mark.parametrize("blur", [None, Noise(epsilon=0.1, seed=lambda: 3)])
def test_what_was_not_sent_comes_first_the_next_time_and_as_it_was(blur: Noise | None) -> None:
    counts = DomainCounts(blur)
    counts.add(RUN, PARTITION, DOMAINS, 0)
    counts.add(OTHER, PARTITION, DOMAINS, 0)
    first = next(counts.sending(math.inf))  # The stream broke: nobody asked for the next.
    counts.add(RUN, PARTITION, DOMAINS, 0)
    again, second, later = counts.sending(math.inf)
    assert again is first
    assert (first.run, second.run, later.run) == (RUN, OTHER, RUN)
    assert list(counts.sending(math.inf)) == []


def test_one_message_has_only_so_many_names() -> None:
    counts = DomainCounts()
    domains = tuple(f"domain-{i}" for i in range(MAX_NAMES + 1))
    for domain in range(len(domains)):
        counts.add(RUN, PARTITION, domains, domain)
    taken = list(counts.sending(0.0))
    assert [len(each.requests) for each in taken] == [MAX_NAMES, 1]
    assert sum((Counter(each.requests) for each in taken), Counter()) == Counter(domains)


def test_only_so_many_runs_wait_to_be_told_of() -> None:
    counts = DomainCounts()
    runs = [RunId(f"{i:064x}") for i in range(MAX_TALLIES + 2)]
    for run in runs:
        counts.add(run, PARTITION, DOMAINS, 0)
    assert [each.run for each in counts.sending(0.0)] == runs[2:]


def test_noise_is_added_to_every_domain_once_and_cut_to_whole_numbers() -> None:
    counts = DomainCounts(Noise(epsilon=0.01, seed=lambda: 7))
    counts.add(RUN, PARTITION, DOMAINS, 0)
    (taken,) = counts.sending(math.inf)
    expected = laplace(list(DOMAINS), 2 / 0.01, 7) + np.array([1, 0, 0])
    assert taken.requests == {name: round(x) for name, x in zip(DOMAINS, expected.tolist(), strict=True) if x >= 0.5}
    assert set(taken.requests) != {"birds"}


def test_blurred_counts_keep_to_a_grid_of_times() -> None:
    counts = DomainCounts(noise(epsilon=1e6))
    counts.add(RUN, PARTITION, DOMAINS, 0)
    assert list(counts.sending(100.0)) == []
    assert list(counts.sending(100.0 + NOISY_INTERVAL_S / 2)) == []
    counts.add(RUN, PARTITION, DOMAINS, 0)
    assert [each.requests for each in counts.sending(100.0 + NOISY_INTERVAL_S)] == [{"birds": 2}]
    counts.add(RUN, PARTITION, DOMAINS, 1)
    assert list(counts.sending(101.0 + NOISY_INTERVAL_S)) == []
    assert [each.requests for each in counts.sending(math.inf)] == [{"bread": 1}]


def test_blurred_counts_add_up_to_the_exact_ones() -> None:
    counts = DomainCounts(noise(epsilon=1.0))
    total: Counter[str] = Counter()
    for message in range(100):
        for _ in range(40):
            counts.add(RUN, PARTITION, DOMAINS, 0)
        for taken in counts.sending(NOISY_INTERVAL_S * message):
            assert all(requests > 0 for requests in taken.requests.values())
            total.update(taken.requests)
    total.update(*(taken.requests for taken in counts.sending(math.inf)))
    # The deviation of 100 Laplace numbers of scale 2 is 28; the cut at 0 makes it the furthest they ever were.
    assert abs(total["birds"] - 4000) < 100
    assert total["bread"] < 100
    assert total["ships"] < 100


def test_nothing_is_told_when_nothing_was_counted_however_much_noise() -> None:
    counts = DomainCounts(noise(epsilon=0.001))
    counts.add(RUN, PARTITION, DOMAINS, 0)
    list(counts.sending(math.inf))
    assert list(counts.sending(math.inf)) == []


@pytest.mark.parametrize("epsilon", [0.0, -1.0, math.inf, math.nan])
def test_noise_that_says_nothing_is_refused(epsilon: float) -> None:
    with pytest.raises(UsageError) as caught:
        noise(epsilon)
    assert caught.value.error_id == "usage.bad-noise"
