"""Runs from submission to collapse, what is published of them, and who may take part."""

from __future__ import annotations

import json
from dataclasses import replace
from typing import Any

import pytest

from coordinator.core.effects import (
    AdvancePlan,
    Denied,
    Done,
    Effect,
    Reply,
    RunAccepted,
    SendRouters,
    SendServe,
    SendView,
)
from coordinator.core.events import (
    CheckpointCommitted,
    CoordinatorResumed,
    InviteIssued,
    LeaseRequested,
    NodeDrained,
    PeerEnrolled,
    PeerRevoked,
    PlanAdvanced,
    RunCancelled,
    RunSubmitted,
    ServingReported,
    SessionClosed,
    SessionOpened,
)
from coordinator.core.invariants import check
from coordinator.core.machine import Machine
from coordinator.core.queries import find_run, ledger, node_infos, pinned_digests, run_info
from coordinator.core.state import durable_json
from coordinator.core.values import Finished, LineageWanted, Outcome, Publication, Running, ServingReport, TaskWanted
from potluck.config import to_mapping
from potluck.errors import InvariantViolation
from potluck.ids import NO_DIGEST, Digest, LineageId, NodeId, RunId, TaskId, canonical_json
from potluck.lm.config import ModelConfig
from potluck.lm.soup_config import SoupConfig
from potluck.lm.soup_memory import soup_serving_bytes
from router.view import View

RUN, OTHER = RunId("a" * 64), RunId("b" * 64)
SHARED = LineageId("shared")
DIGESTS = {name: Digest(f"{index:064x}") for index, name in enumerate(("w0", "w1", "dense", "tok", "r0", "r1"))}
SERVING: dict[str, Any] = {
    "method": "smalltalk",
    "tokenizer": DIGESTS["tok"],
    "sequence_length": 16,
    "prefix_length": 8,
    "router_model": {"vocab": 300, "hidden": 24, "layers": 2, "heads": 2, "ffn": 64, "context": 8},
    "routers": [DIGESTS["r0"], DIGESTS["r1"]],
    "expert_model": {"vocab": 300, "hidden": 32, "layers": 2, "heads": 2, "ffn": 88, "context": 17},
}


def lineage(*segments: str) -> LineageWanted:
    return LineageWanted(
        id=SHARED,
        recipe_json="recipe",
        segments_json=segments,
        profile_json="{}",
        total_steps=12,
        known_steps=4 * len(segments),
        commit_every=4,
        flops_per_step=1.0,
        memory_bytes=0,
        role="expert",
        label="expert 0",
    )


def task(name: str) -> TaskWanted:
    return TaskWanted(id=TaskId(name), kind="eval", params_json="{}", inputs=(), label=name)


def slot(name: str, weights: str) -> Publication:
    return Publication(
        slot=name, lineage=SHARED, step=4, weights=DIGESTS[weights], tokenizer=DIGESTS["tok"], model_json="{}"
    )


class House:
    def __init__(self) -> None:
        self.machine = Machine()
        self.feed(CoordinatorResumed(now_ms=0, boot_id="c"))

    def feed(self, event: Any) -> list[Effect]:
        effects = self.machine.handle(event)
        assert check(self.machine.state) == []
        return effects

    def submit(self, run: RunId = RUN, request_id: str = "r1", name: str = "demo") -> list[Effect]:
        facts = {"spec_json": "{}", "corpus_json": "{}", "name": name, "priority": 0}
        return self.feed(RunSubmitted(now_ms=0, unix_ms=7, request_id=request_id, run=run, **facts))  # type: ignore[arg-type]

    def advanced(
        self,
        *works: LineageWanted | TaskWanted,
        run: RunId = RUN,
        publish: tuple[Publication, ...] = (),
        outcome: Outcome | None = None,
    ) -> PlanAdvanced:
        return PlanAdvanced(
            now_ms=0,
            run=run,
            lineages=tuple(one for one in works if isinstance(one, LineageWanted)),
            tasks=tuple(one for one in works if isinstance(one, TaskWanted)),
            publish=publish,
            stage="testing",
            outcome=outcome or Running(),
            serving_json=json.dumps(SERVING) if publish else "",
        )

    def train(self, end: int) -> None:
        """One node takes the lineage and commits up to `end`."""
        chain = self.machine.durable.lineages[SHARED]
        ask = LeaseRequested(now_ms=0, node=NodeId("n"), request_id=end, boot_id="b", free_memory_bytes=1)
        reply = self.feed(ask)[0]
        assert isinstance(reply, Reply)
        self.feed(
            CheckpointCommitted(
                now_ms=0,
                node=NodeId("n"),
                request_id=end,
                fence=getattr(reply.answer, "fence"),  # noqa: B009 - the answer is a grant
                lineage=SHARED,
                parent=chain.head,
                start_step=chain.head_step,
                end_step=end,
                child=Digest(f"c{end}"),
                weights=Digest(f"w{end}"),
                optimizer=Digest(f"o{end}"),
                figures={"loss": 2.5},
            )
        )

    def open(self, node: str, role: str = "node", address: str = "", memory_bytes: int = 1) -> list[Effect]:
        facts = {"version": "0", "hostname": "h", "cores": 1, "memory_bytes": memory_bytes, "router_address": address}
        return self.feed(SessionOpened(now_ms=0, node=NodeId(node), role=role, boot_id="b", **facts))  # type: ignore[arg-type]

    def close(self, node: str) -> list[Effect]:
        return self.feed(SessionClosed(now_ms=0, node=NodeId(node), boot_id="b", orderly=False))

    def serves(self) -> dict[str, list[str]]:
        return {node: [name for _, name in slots] for node, slots in self.machine.ephemeral.assigned.items()}


@pytest.fixture
def house() -> House:
    house = House()
    house.submit()
    return house


# --- submission and plan ----------------------------------------------------------------------


def test_the_same_spec_resumes_its_run_and_a_retry_hears_the_first_answer(house: House) -> None:
    assert house.submit()[0] == Reply(answer=RunAccepted(run=RUN, state="started"))
    assert house.submit(request_id="r2") == [
        Reply(answer=RunAccepted(run=RUN, state="resumed")),
        AdvancePlan(run=RUN),
    ]
    assert len(house.machine.durable.runs) == 1


def test_a_restart_redoes_the_duty_of_every_running_run(house: House) -> None:
    house.submit(OTHER)
    house.feed(RunCancelled(now_ms=0, run=OTHER))
    assert house.feed(CoordinatorResumed(now_ms=1, boot_id="c2")) == [AdvancePlan(run=RUN)]


def test_a_plan_that_changes_a_segment_is_our_mistake_and_changes_nothing(house: House) -> None:
    house.feed(house.advanced(lineage("s0", "s1")))
    before = durable_json(house.machine.durable)
    with pytest.raises(InvariantViolation) as caught:
        house.feed(house.advanced(lineage("s0", "other"), task("t")))
    assert caught.value.error_id == "bug.segment-changed"
    assert durable_json(house.machine.durable) == before


def test_two_runs_share_a_lineage_and_the_one_that_knows_less_takes_nothing_away(house: House) -> None:
    house.submit(OTHER)
    house.feed(house.advanced(lineage("s0", "s1")))
    house.feed(house.advanced(lineage("s0"), run=OTHER))
    assert house.machine.durable.lineages[SHARED].wanted.known_steps == 8
    house.feed(RunCancelled(now_ms=0, run=RUN))
    assert list(house.machine.durable.lineages[SHARED].runs) == [OTHER]


def test_a_run_that_finds_its_work_done_for_another_one_is_advanced_at_once(house: House) -> None:
    house.feed(house.advanced(lineage("s0")))
    house.train(4)
    house.submit(OTHER)
    assert AdvancePlan(run=OTHER) in house.feed(house.advanced(lineage("s0"), run=OTHER))
    assert AdvancePlan(run=OTHER) not in house.feed(house.advanced(lineage("s0"), run=OTHER))


def test_a_plan_that_wants_the_same_again_is_no_news(house: House) -> None:
    assert house.machine.is_news(house.advanced(lineage("s0")))
    house.feed(house.advanced(lineage("s0")))
    assert not house.machine.is_news(house.advanced(lineage("s0")))
    assert house.machine.is_news(house.advanced(lineage("s0"), outcome=Finished(report=Digest("r"), figures={})))


def test_a_finished_run_collapses_to_figures_ledger_and_publications(house: House) -> None:
    house.feed(house.advanced(lineage("s0"), task("t")))
    house.train(4)
    outcome = Finished(report=Digest("report"), figures={"headline": 1})
    house.feed(house.advanced(lineage("s0"), publish=(slot("expert-0", "w0"),), outcome=outcome))
    durable = house.machine.durable
    assert (durable.lineages, durable.tasks, durable.leases) == ({}, {}, {})
    info = run_info(house.machine.state, RUN)
    assert (info.state, info.report, info.fraction, info.results_json) == ("finished", "report", 1.0, '{"headline":1}')
    assert [(line.label, line.head_step) for line in info.lineages] == [("expert 0", 4)]
    assert [(part.start_step, part.end_step) for part in ledger(house.machine.state, RUN).lineages[0].ranges] == [
        (0, 4)
    ]
    assert {DIGESTS["w0"], DIGESTS["tok"], "report"} <= pinned_digests(house.machine.state)
    assert house.submit(request_id="r3") == [Reply(answer=RunAccepted(run=RUN, state="already-finished"))]


def test_an_export_finds_the_commit_of_a_slot_while_its_run_goes_on_and_once_it_has_collapsed(house: House) -> None:
    house.feed(house.advanced(lineage("s0")))
    house.train(4)
    state = house.machine.state
    ended = Finished(report=Digest("report"), figures={})
    for outcome in (Running(), ended):
        house.feed(house.advanced(lineage("s0"), publish=(slot("expert-0", "w0"),), outcome=outcome))
        (found,) = run_info(state, RUN).published
        assert found.checkpoint == ledger(state, RUN).lineages[0].ranges[-1].child != ""
        assert (found.lineage, found.tokenizer, found.model_json) == (SHARED, DIGESTS["tok"], "{}")


def test_a_finished_run_leaves_what_another_run_still_wants(house: House) -> None:
    house.submit(OTHER)
    for run in (RUN, OTHER):
        house.feed(house.advanced(lineage("s0"), task("t"), run=run))
    house.feed(house.advanced(outcome=Finished(report=Digest("r"), figures={})))
    assert list(house.machine.durable.lineages) == [SHARED]
    assert list(house.machine.durable.tasks) == ["t"]


def test_a_run_is_found_by_id_prefix_or_name(house: House) -> None:
    house.submit(OTHER, name="other")
    state = house.machine.state
    assert [find_run(state, text) for text in (RUN, "aaaa", "other", "zz", "")] == [RUN, RUN, OTHER, None, None]


# --- serving ----------------------------------------------------------------------------------


def all_slots(serves: dict[str, list[str]]) -> list[str]:
    return sorted(name for names in serves.values() for name in names)


def published(house: House, *slots: Publication) -> list[Effect]:
    return house.feed(house.advanced(lineage("s0"), publish=slots))


def test_published_slots_are_spread_with_two_replicas_and_moved_only_when_needed(house: House) -> None:
    for node in "abc":
        house.open(node)
    published(house, slot("expert-0", "w0"), slot("expert-1", "w1"), slot("dense", "dense"))
    before = house.serves()
    assert all_slots(before) == [name for name in ("dense", "expert-0", "expert-1") for _ in range(2)]
    assert {len(names) for names in before.values()} == {2}
    house.open("d")
    assert sum(len(set(before[node]) - set(house.serves()[node])) for node in "abc") <= 1
    house.close("a")
    assert all_slots(house.serves()) == all_slots(before)


def test_a_soup_is_served_by_nodes_whose_memory_holds_it_beside_their_other_soups(house: House) -> None:
    model, soup = ModelConfig(**SERVING["expert_model"]), SoupConfig(domains=4, experts=100)
    bytes_needed = soup_serving_bytes(model, soup)
    shape = canonical_json({"model": to_mapping(model), "soup": to_mapping(soup)})
    bank, second = (replace(slot(name, "w1"), model_json=shape) for name in ("bank", "second-bank"))
    house.open("small", memory_bytes=bytes_needed - 1)
    published(house, slot("soup", "w0"), bank)
    assert house.serves() == {"small": ["soup"]}
    house.open("large", memory_bytes=2 * bytes_needed - 1)
    published(house, slot("soup", "w0"), bank, second)
    assert house.serves() == {"small": ["soup"], "large": ["soup", "bank"]}
    house.open("other", memory_bytes=bytes_needed)
    assert house.serves() == {"small": ["soup"], "large": ["soup", "bank"], "other": ["bank"]}


def test_a_node_hears_what_to_serve_once_and_again_when_it_comes_back(house: House) -> None:
    house.open("a")
    effects = published(house, slot("expert-0", "w0"))
    assert [one.slot for effect in effects if isinstance(effect, SendServe) for one in effect.slots] == ["expert-0"]
    assert not any(isinstance(effect, SendServe) for effect in published(house, slot("expert-0", "w0")))
    assert any(isinstance(effect, SendServe) for effect in house.open("a"))


def test_nodes_hear_of_routers_and_keep_them_until_they_say_goodbye(house: House) -> None:
    house.open("a")
    effects = house.open("r", "router", "host:7473")
    assert SendRouters(node=NodeId("a"), addresses=("host:7473",)) in effects
    assert not any(isinstance(effect, SendRouters) for effect in house.close("r"))
    house.open("r", "router", "host:7473")
    effects = house.feed(SessionClosed(now_ms=0, node=NodeId("r"), boot_id="b", orderly=True))
    assert SendRouters(node=NodeId("a"), addresses=()) in effects


def test_a_router_gets_whole_views_whose_version_counts_publications(house: House) -> None:
    house.open("r", "router", "host:7473")
    first = [effect for effect in published(house, slot("expert-0", "w0")) if isinstance(effect, SendView)]
    second = [effect for effect in published(house, slot("expert-0", "w1")) if isinstance(effect, SendView)]
    assert [(effect.version, effect.run) for effect in (*first, *second)] == [(1, RUN), (2, RUN)]
    view = View.from_json(second[0].view_json)
    assert (view.name, view.run, view.slots) == ("demo", RUN, {"expert-0": DIGESTS["w1"]})
    again = [effect for effect in house.open("r2", "router") if isinstance(effect, SendView)]
    assert [effect.version for effect in again] == [2]


def test_a_replica_counts_once_it_says_that_it_is_ready_with_these_weights(house: House) -> None:
    house.open("a")
    published(house, slot("expert-0", "w0"))
    for weights, replicas in (("w1", ()), ("w0", ("a",))):
        report = ServingReport(run=RUN, slot="expert-0", weights=DIGESTS[weights], state="ready")
        house.feed(ServingReported(now_ms=0, node=NodeId("a"), slots=(report,)))
        assert run_info(house.machine.state, RUN).published[0].replicas == replicas


# --- peers ------------------------------------------------------------------------------------


def enrolled(house: House, node: str, token: str, role: str = "node") -> Any:
    event = PeerEnrolled(
        now_ms=0, node=NodeId(node), role=role, name=node, curve_public_key="k", token_digest=Digest(token)
    )
    reply = house.feed(event)[0]
    assert isinstance(reply, Reply)
    return reply.answer


def test_a_token_is_spent_once_for_the_role_it_names_and_a_retry_is_fine(house: House) -> None:
    house.feed(InviteIssued(now_ms=0, token_digest=Digest("t"), role="node", expires_unix_ms=1))
    assert enrolled(house, "a", "other").error_id == "join.unknown-token"
    assert enrolled(house, "a", "t", "admin").error_id == "join.wrong-role"
    assert enrolled(house, "a", "t") == enrolled(house, "a", "t") == Done()
    assert enrolled(house, "b", "t").error_id == "join.token-spent"


def test_an_enrolment_said_again_neither_gives_a_drained_node_work_nor_lets_a_revoked_one_in(house: House) -> None:
    invite = InviteIssued(now_ms=0, token_digest=Digest("t"), role="node", expires_unix_ms=1)
    house.feed(invite)
    enrolled(house, "n", "t")
    house.feed(NodeDrained(now_ms=0, node=NodeId("n")))
    house.feed(invite)
    assert enrolled(house, "b", "t").error_id == "join.token-spent"
    assert enrolled(house, "n", "t") == Done()
    assert house.machine.durable.is_drained(NodeId("n"))
    house.feed(PeerRevoked(now_ms=0, node=NodeId("n")))
    assert enrolled(house, "n", "t").error_id == "refused.revoked"
    assert house.machine.durable.is_revoked(NodeId("n"))


def test_a_revoked_node_loses_its_lease_and_gets_no_other(house: House) -> None:
    house.feed(InviteIssued(now_ms=0, token_digest=Digest("t"), role="node", expires_unix_ms=1))
    enrolled(house, "n", "t")
    house.feed(house.advanced(lineage("s0", "s1")))
    house.train(4)
    house.feed(PeerRevoked(now_ms=0, node=NodeId("n")))
    reply = house.feed(LeaseRequested(now_ms=0, node=NodeId("n"), request_id=9, boot_id="b", free_memory_bytes=1))[0]
    assert isinstance(reply, Reply)
    assert isinstance(reply.answer, Denied)
    assert (house.machine.durable.leases, node_infos(house.machine.state)) == ({}, ())


def test_a_ledger_that_does_not_tile_says_where(house: House) -> None:
    house.feed(house.advanced(lineage("s0", "s1")))
    house.train(4)
    house.train(8)
    assert ledger(house.machine.state, RUN).ok
    commits = house.machine.durable.lineages[SHARED].commits
    assert commits[0].parent == NO_DIGEST
    del commits[0]
    broken = ledger(house.machine.state, RUN)
    assert not broken.ok
    assert "expert 0: steps [4, 8) follow a head at 0" in broken.problems[0]
