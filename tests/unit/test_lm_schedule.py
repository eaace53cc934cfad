import pytest

from potluck.lm.schedule import learning_rate
from potluck.recipe import Schedule

COSINE = Schedule(kind="cosine", learning_rate=1.0, warmup_steps=10, total_steps=110, final_fraction=0.1)
CONSTANT = Schedule(kind="constant", learning_rate=2.0, warmup_steps=4, total_steps=20)


def test_warm_up_is_linear_and_its_first_step_already_learns() -> None:
    assert [learning_rate(CONSTANT, t) for t in range(4)] == [0.5, 1.0, 1.5, 2.0]


def test_a_constant_schedule_stays_at_its_peak_after_warm_up() -> None:
    assert {learning_rate(CONSTANT, t) for t in range(4, 30)} == {2.0}


def test_cosine_goes_from_the_peak_through_the_middle_to_the_final_fraction_and_stays() -> None:
    assert learning_rate(COSINE, 10) == 1.0
    assert learning_rate(COSINE, 60) == pytest.approx(0.55)
    assert learning_rate(COSINE, 110) == pytest.approx(0.1)
    assert learning_rate(COSINE, 500) == pytest.approx(0.1)


def test_cosine_never_rises_after_warm_up() -> None:
    rates = [learning_rate(COSINE, t) for t in range(10, 120)]
    assert rates == sorted(rates, reverse=True)


def test_no_warm_up_starts_at_the_peak() -> None:
    schedule = Schedule(kind="cosine", learning_rate=3.0, warmup_steps=0, total_steps=1)
    assert learning_rate(schedule, 0) == 3.0
