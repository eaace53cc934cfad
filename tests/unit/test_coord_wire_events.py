"""Rows of the journal: old ones are read, foreign ones are refused."""

from __future__ import annotations

import json

import pytest

from coordinator.core.events import CoordinatorResumed, LeaseRequested, PlanAdvanced
from coordinator.core.values import Failed
from coordinator.wire_events import decode_event, encode_event
from potluck.errors import DataError
from potluck.ids import NodeId, RunId


def test_a_row_names_its_type_and_sorts_its_keys() -> None:
    assert encode_event(CoordinatorResumed(now_ms=5, boot_id="b")) == (
        '{"boot_id":"b","now_ms":5,"type":"CoordinatorResumed"}'
    )


def test_a_field_that_an_old_row_lacks_takes_its_default() -> None:
    row = json.loads(
        encode_event(LeaseRequested(now_ms=1, node=NodeId("n"), request_id=1, boot_id="b", free_memory_bytes=1))
    )
    del row["held"]
    event = decode_event(json.dumps(row))
    assert isinstance(event, LeaseRequested)
    assert event.held == ()


def test_members_of_a_union_are_told_apart_by_their_tag() -> None:
    outcome = Failed(error_id="spec.x", message="no")
    event = PlanAdvanced(now_ms=1, run=RunId("r"), lineages=(), tasks=(), publish=(), stage="", outcome=outcome)
    assert decode_event(encode_event(event)) == event


@pytest.mark.parametrize(
    "row",
    [
        "",
        "not json",
        '{"type":"Tomorrow","now_ms":1}',
        '{"type":"TimePassed","now_ms":1}',
        '{"type":"CoordinatorResumed","now_ms":1}',
        '{"type":"CoordinatorResumed","now_ms":1,"boot_id":"b","colour":"red"}',
        '{"type":"CoordinatorResumed","now_ms":"1","boot_id":"b"}',
        '{"type":"CoordinatorResumed","now_ms":true,"boot_id":"b"}',
    ],
)
def test_a_row_that_todays_code_does_not_know_is_refused(row: str) -> None:
    with pytest.raises(DataError) as caught:
        decode_event(row)
    assert caught.value.error_id == "data.journal-row"
    assert "release" in caught.value.fix
