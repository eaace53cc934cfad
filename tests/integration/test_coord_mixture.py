"""A run's mixture, seen and changed through a whole coordinator."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from coordinator.collector import roots_of
from potluck.errors import JoinError, PotluckError, Refused, SpecError, UsageError
from potluck.ids import Digest
from potluck.net.channels import open_channel
from potluck.net.guard import rpc_errors
from potluck.v1 import mixture_pb2, mixture_pb2_grpc
from sampling.mixture import Mixture
from tests.integration.steered_run import (
    DEADLINE_S,
    GATE_STEPS,
    PARTITION,
    TO_STEP,
    TOTAL_STEPS,
    in_loop,
    rest_of,
    session,
    traffic,
    world,
)


def by_domain(weights: Any) -> dict[str, float]:
    return {weight.domain: weight.weight for weight in weights}


@in_loop
async def test_a_run_that_reads_no_mixture_cannot_be_steered(tmp_path: Path) -> None:
    async with world(tmp_path) as w:
        w.plan.steerable = False
        run = await w.start()
        for method, arguments in (
            (w.client.show_mixture, {}),
            (w.client.get_traffic, {}),
            (w.client.set_mixture, {"weights": {"law": 0.5}, "request_id": "1"}),
            (w.client.propose_mixture, {"weights": {"law": 0.5}, "request_id": "1"}),
        ):
            with pytest.raises(Refused) as caught:
                await w.call(method, run, **arguments)
            assert caught.value.error_id == "refused.not-steerable"
            assert "[partition]" in caught.value.fix


@in_loop
async def test_a_mixture_is_shown_with_names_shares_and_where_a_change_would_hold(tmp_path: Path) -> None:
    async with world(tmp_path) as w:
        await w.start()
        shown = await w.call(w.client.show_mixture, "small")
        assert (shown.run, shown.name, shown.partition) == (w.run, "small", PARTITION)
        assert (shown.to_step, shown.total_steps, shown.gate_steps) == (TO_STEP, TOTAL_STEPS, GATE_STEPS)
        assert by_domain(shown.current) == {"code": 0.2, "law": 0.3, "lawful": 0.0, "news": 0.5}
        assert [(v.version, v.origin) for v in shown.versions] == [(0, "natural")]
        assert not shown.proposals


@in_loop
async def test_a_mixture_that_is_set_lies_in_the_store_and_holds_from_the_end_of_what_is_given_out(
    tmp_path: Path,
) -> None:
    async with world(tmp_path) as w:
        await w.start()
        answer = await w.call(w.client.set_mixture, w.run, {"law": 0.5}, request_id="1", reason="more law")
        assert (answer.number, answer.step) == (1, TO_STEP)
        assert by_domain(answer.weights) == pytest.approx({"code": 1 / 7, "law": 0.5, "lawful": 0, "news": 2.5 / 7})
        kept = Mixture.from_json(w.store.path(Digest(answer.mixture)).read_text())
        assert kept.weights == by_domain(answer.weights)
        shown = await w.show()
        assert by_domain(shown.current) == by_domain(answer.weights)
        version = shown.versions[-1]
        assert (version.version, version.from_step, version.origin) == (1, TO_STEP, "person")
        assert (version.reason, version.mixture) == ("more law", answer.mixture)


@in_loop
async def test_the_same_request_gets_the_same_answer_and_changes_nothing_again(tmp_path: Path) -> None:
    async with world(tmp_path) as w:
        await w.start()
        first = await w.propose("1", law=0.5)
        assert await w.propose("1", law=0.5) == first
        assert len((await w.show()).proposals) == 1


@in_loop
async def test_while_a_proposal_is_at_the_gate_nothing_else_changes(tmp_path: Path) -> None:
    async with world(tmp_path) as w:
        await w.start()
        first = await w.propose("1", law=0.5)
        (proposal,) = (await w.show()).proposals
        assert (proposal.number, proposal.at_step, proposal.state) == (1, TO_STEP, "training")
        assert not proposal.HasField("difference")
        for method in (w.client.set_mixture, w.client.propose_mixture):
            with pytest.raises(Refused) as caught:
                await w.call(method, w.run, {"code": 0.5}, request_id="2")
            assert caught.value.error_id == "refused.gate-open"
        await w.decide(1, {"state": "adopted", "difference": -0.02, "low": -0.03, "high": -0.01})
        shown = await w.show()
        assert [version.mixture for version in shown.versions[1:]] == [first.mixture]
        assert shown.proposals[0].high == -0.01
        assert not shown.proposals[0].HasField("smallest_effect")
        assert (await w.propose("2", code=0.5)).number == 2


@in_loop
async def test_near_its_end_and_after_it_a_run_is_not_steered_but_still_shown(tmp_path: Path) -> None:
    async with world(tmp_path) as w:
        w.plan.to_step = TOTAL_STEPS - GATE_STEPS
        await w.start()
        with pytest.raises(Refused) as caught:
            await w.propose("1", law=0.5)
        assert caught.value.error_id == "refused.too-late"
        w.plan.finished = True
        await w.advance()
        with pytest.raises(Refused) as caught:
            await w.propose("2", law=0.5)
        assert caught.value.error_id == "refused.run-ended"
        assert (await w.show()).total_steps == TOTAL_STEPS


@in_loop
async def test_what_makes_no_mixture_is_refused_before_it_is_an_event(tmp_path: Path) -> None:
    async with world(tmp_path) as w:
        await w.start()
        for weights, said in (
            ({"lwa": 0.1}, "near: law"),
            ({"law": 0.8, "news": 0.8}, "sum to 1.6"),
            ({}, "no domain"),
        ):
            with pytest.raises(SpecError, match=said) as refused:
                await w.call(w.client.set_mixture, w.run, weights, request_id="1")
            assert refused.value.error_id == "spec.bad-mixture"
        for method, arguments, error_id in (
            (w.client.set_mixture, {"request_id": "1", "reason": "x" * 257}, "usage.bad-request"),
            (w.client.propose_mixture, {"request_id": "1", "origin": "dream"}, "usage.bad-request"),
            (w.client.set_mixture, {"request_id": ""}, "spec.no-request-id"),
        ):
            with pytest.raises(PotluckError) as caught:
                await w.call(method, w.run, {"law": 0.5}, **arguments)
            assert caught.value.error_id == error_id
        assert len((await w.show()).versions) == 1


@in_loop
async def test_requests_that_a_router_counted_make_a_proposal(tmp_path: Path) -> None:
    async with world(tmp_path) as w:
        await w.start()
        assert not (await w.call(w.client.get_traffic, w.run)).counting
        with pytest.raises(Refused, match="0 requests") as caught:
            await w.call(w.client.propose_mixture, w.run, {}, request_id="0", origin="traffic")
        assert caught.value.error_id == "refused.no-traffic"
        async with session(await w.join("door", "router")) as call:
            await call.write(traffic(w.run, {"law": 30, "elsewhere": 2}))
            await call.write(traffic("f" * 64, {"law": 1}))
            await call.write(traffic(w.run, {"law": 20, "code": 10, "lawful": 40}))
            counted = await w.call(w.client.get_traffic, w.run)
            while sum(count.requests for count in counted.counts) < 100:
                counted = await w.call(w.client.get_traffic, w.run)
        assert [(c.domain, c.requests) for c in counted.counts] == [("law", 50), ("lawful", 40), ("code", 10)]
        assert (counted.counting, counted.unknown) == (True, 2)
        answer = await w.call(w.client.propose_mixture, w.run, {}, request_id="1", origin="traffic", prior_requests=0.0)
        assert by_domain(answer.weights) == pytest.approx({"code": 1 / 6, "law": 5 / 6, "lawful": 0, "news": 0})
        assert (await w.show()).proposals[0].origin == "traffic"
        await w.call(w.client.get_traffic, w.run, reset=True)
        begun = await w.call(w.client.get_traffic, w.run)
        assert (begun.counting, begun.unknown, len(begun.counts)) == (True, 0, 0)
        again = await w.call(w.client.propose_mixture, w.run, {}, request_id="1", origin="traffic")
        assert again == answer


@in_loop
async def test_only_routers_count_and_only_administrators_steer(tmp_path: Path) -> None:
    async with world(tmp_path) as w:
        await w.start()
        async with session(await w.join("box", "node")) as call:
            await call.write(traffic(w.run, {"law": 30}))
            with pytest.raises(UsageError), rpc_errors():
                await rest_of(call)
        async with open_channel(await w.join("reader", "client")) as channel:
            stub: Any = mixture_pb2_grpc.MixtureServiceStub(channel)
            with pytest.raises(JoinError) as caught, rpc_errors():
                await stub.ShowMixture(mixture_pb2.ShowMixtureRequest(run=w.run), timeout=DEADLINE_S)
            assert caught.value.error_id == "join.wrong-role"


@in_loop
async def test_mixtures_and_labels_of_a_run_are_kept_when_room_is_made(tmp_path: Path) -> None:
    async with world(tmp_path) as w:
        await w.start()
        answer = await w.propose("1", law=0.5)
        await w.decide(1, {"state": "refused"})
        w.plan.finished = True
        await w.advance()
        roots = await w.daemon._runtime.read(roots_of)
        assert {w.plan.labels, w.plan.evenly, Digest(answer.mixture)} <= roots
