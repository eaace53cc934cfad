"""What the averaging sidecar is told and tells goes through its lines unchanged; what cannot be meant is refused."""

from __future__ import annotations

import json

import pytest

from potluck.errors import NotReachable, PotluckError, SpecError, UsageError
from potluck.ids import digest_bytes
from potluck.net.hivemind_messages import (
    Averaged,
    AverageRequest,
    Event,
    Failed,
    Listening,
    event_from_line,
    event_line,
)

REQUEST = AverageRequest(
    round_key=digest_bytes(b"round"),
    index=1,
    num_peers=3,
    tensors="/in",
    output="/out",
    scratch="/scratch",
    listen_host="127.0.0.1",
    initial_peers=("/ip4/127.0.0.1/tcp/1/p2p/x",),
)


def test_a_request_goes_through_its_line() -> None:
    assert AverageRequest.from_line(REQUEST.to_line()) == REQUEST


@pytest.mark.parametrize(
    "event",
    [
        Listening(addresses=("/ip4/127.0.0.1/tcp/1/p2p/x",)),
        Averaged(seconds=1.5),
        Failed(error_id="net.averaging-incomplete", message="what", fix="do"),
    ],
)
def test_an_event_goes_through_its_line(event: Event) -> None:
    assert event_from_line(event_line(event)) == event


@pytest.mark.parametrize(
    "wrong",
    [{"round_key": "short"}, {"num_peers": 1}, {"num_peers": 65}, {"index": 3}, {"index": -1}, {"deadline_s": 0.0}],
)
def test_a_request_that_cannot_be_meant_is_refused(wrong: dict[str, object]) -> None:
    line = json.dumps({**json.loads(REQUEST.to_line()), **wrong}).encode()
    with pytest.raises(UsageError, match=next(iter(wrong))) as refused:
        AverageRequest.from_line(line)
    assert refused.value.error_id == "usage.bad-averaging"


def test_a_key_that_no_request_has_is_refused() -> None:
    with pytest.raises(SpecError, match="compression"):
        AverageRequest.from_line(json.dumps({**json.loads(REQUEST.to_line()), "compression": "8bit"}).encode())


@pytest.mark.parametrize("line", [b"", b"[]", b"{}", b'{"event": "done"}', b'{"event": "averaged"}', b"\xff\n"])
def test_a_line_that_is_no_event_is_a_value_error(line: bytes) -> None:
    with pytest.raises(ValueError):
        event_from_line(line)


def test_a_failure_becomes_the_error_it_was() -> None:
    error = NotReachable("net.averaging-incomplete", "what", "do")
    again = Failed.of(error).as_error()
    assert isinstance(again, NotReachable)
    assert (again.error_id, again.message, again.fix) == (error.error_id, error.message, error.fix)
    assert type(Failed(error_id="bug.averaging", message="", fix="").as_error()) is PotluckError
