"""What the commands about mixtures take and say."""

from __future__ import annotations

import textwrap

import pytest

from potluck.commands.mixtures import changes, parse_weights, show_change, show_history, show_shares
from potluck.commands.output import Output
from potluck.commands.why import explained
from potluck.errors import UsageError
from potluck.formatting import TABLE_WIDTH
from potluck.v1 import mixture_pb2

DOMAINS = ["code", "law", "lawful", "news", "a=b"]
CHANGED = [("law", 0.3, 0.5), ("news", 0.5, 0.36), ("code", 0.2, 0.14)]


def proposal(state: str, **known: float) -> mixture_pb2.MixtureProposal:
    return mixture_pb2.MixtureProposal(
        number=2,
        at_step=100,
        gate_steps=50,
        state=state,
        origin="person",
        reason="more law",
        gate_flops=1.5e12,
        **known,
    )


def words(said: mixture_pb2.MixtureProposal) -> str:
    return " ".join(explained(said, CHANGED))


def test_weights_are_named_by_a_domain_or_by_the_start_of_one() -> None:
    assert parse_weights(["cod=0.2", "law=0.5", "a=b=0.1"], DOMAINS) == {"code": 0.2, "law": 0.5, "a=b": 0.1}


def test_a_name_that_is_no_domain_is_left_to_the_coordinator_who_knows_what_is_near() -> None:
    assert parse_weights(["lwa=1"], DOMAINS) == {"lwa": 1.0}


@pytest.mark.parametrize(
    ("given", "error_id", "said"),
    [
        (["law"], "usage.bad-weight", "'law'"),
        (["law=much"], "usage.bad-weight", "law=much"),
        (["=0.5"], "usage.bad-weight", "=0.5"),
        (["law=0.1", "law=0.2"], "usage.bad-weight", "twice"),
        (["la=0.5"], "usage.ambiguous-domain", "law, lawful"),
    ],
)
def test_weights_that_are_not_clear_are_refused(given: list[str], error_id: str, said: str) -> None:
    with pytest.raises(UsageError) as caught:
        parse_weights(given, DOMAINS)
    assert caught.value.error_id == error_id
    assert said in caught.value.message


def test_changes_tell_the_largest_first_and_nothing_that_stays() -> None:
    assert changes({"a": 0.5, "b": 0.4, "c": 0.1}, {"a": 0.5, "b": 0.2, "c": 0.3, "d": 0.0}) == [
        ("b", 0.4, 0.2),
        ("c", 0.1, 0.3),
    ]


def test_an_adopted_proposal_tells_forks_difference_rule_and_compute() -> None:
    said = words(proposal("adopted", difference=-0.021, low=-0.03, high=-0.011, smallest_effect=0.0095))
    for part in (
        "more of law (30.0% to 50.0%); less of news (50.0% to 36.0%), code",
        "checkpoint at step 100 trained for 50 steps each",
        "by -0.0210 nats a token",
        "from -0.0300 to -0.0110",
        "below about 0.0095",
        "only if the upper end of the interval is at most 0",
        "adopted, from step 100",
        "1.5T FLOP",
    ):
        assert part in said


def test_a_refused_proposal_is_not_said_to_be_worse_where_the_interval_holds_0() -> None:
    unsure = words(proposal("refused", difference=0.001, low=-0.008, high=0.01, smallest_effect=0.009))
    assert "does not say that it is worse" in unsure
    worse = words(proposal("refused", difference=0.02, low=0.01, high=0.03, smallest_effect=0.01))
    assert "does not say that it is worse" not in worse
    assert "+0.0300 is not: refused" in worse


def test_without_an_interval_the_running_mixture_stays() -> None:
    said = words(proposal("refused"))
    assert "There is no interval" in said
    assert "went on with the running mixture" in said


def test_an_open_proposal_has_no_verdict_yet() -> None:
    for state, part in (("training", "are to train"), ("evaluating", "being measured")):
        said = words(proposal(state))
        assert part in said
        assert "will be adopted only if" in said
        assert "nats" not in said


def test_a_mixture_that_is_gone_is_told_as_such() -> None:
    assert "not in the coordinator's store" in " ".join(explained(proposal("training"), None))


def test_every_table_keeps_to_80_columns(capsys: pytest.CaptureFixture[str]) -> None:
    lines = [
        mixture_pb2.DomainWeight(domain=f"domain-{n}-" + "x" * 80, weight=1 / 60, natural=1 / 60, rows=10**9)
        for n in range(60)
    ]
    reason = "because " * 30
    info = mixture_pb2.MixtureInfo(
        versions=[mixture_pb2.MixtureVersion(version=1, from_step=10**7, origin="traffic", reason=reason, unix_ms=1)],
        proposals=[proposal("evaluating", difference=-0.021, low=-0.03, high=-0.011)] * 2,
    )
    info.proposals[0].reason = reason
    output = Output(as_json=False)
    show_shares(lines, output, every=False)
    show_change(lines, lines, output)
    show_history(info, output)
    said = capsys.readouterr().out
    assert max(map(len, said.splitlines())) <= TABLE_WIDTH
    assert "and 40 more domains with 66.7% together" in said
    show_shares(lines, output, every=True)
    assert len(capsys.readouterr().out.splitlines()) == len(lines) + 2


def test_long_words_in_an_explanation_can_be_wrapped() -> None:
    for paragraph in explained(proposal("training"), [("x" * 200, 0.1, 0.2)]):
        assert max(map(len, textwrap.wrap(paragraph, TABLE_WIDTH))) <= TABLE_WIDTH
