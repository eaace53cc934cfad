"""The slow link in user space is as slow, as far and as lossy as it was asked to be."""

from __future__ import annotations

import os
from collections.abc import Iterator

import pytest

from tests.netns.relay import Way

FRAME = bytes(1000)
QUEUE_BYTES = 400_000
MBIT = 8.0
"""A thousand frames a second."""


@pytest.fixture
def sink() -> Iterator[tuple[int, int]]:
    ends = os.pipe2(os.O_NONBLOCK)
    yield ends
    for end in ends:
        os.close(end)


def arrived(reading: int) -> int:
    try:
        return len(os.read(reading, 1 << 16)) // len(FRAME)
    except BlockingIOError:
        return 0


def test_frames_arrive_one_after_another_at_the_rate_and_after_the_delay(sink: tuple[int, int]) -> None:
    reading, writing = sink
    way = Way(writing, mbit=MBIT, delay_ms=100, loss=0.0, queue_bytes=QUEUE_BYTES, seed=1)
    for _ in range(10):
        way.offer(FRAME, 5.0)
    assert way.deliver(5.1005) == pytest.approx(5.101)
    assert arrived(reading) == 0
    way.deliver(5.1035)
    assert arrived(reading) == 3
    way.deliver(5.1105)
    assert arrived(reading) == 7


def test_what_the_queue_does_not_hold_is_dropped(sink: tuple[int, int]) -> None:
    way = Way(sink[1], mbit=MBIT, delay_ms=0, loss=0.0, queue_bytes=QUEUE_BYTES, seed=1)
    for _ in range(1000):
        way.offer(FRAME, 5.0)
    assert len(way.under_way) == pytest.approx(QUEUE_BYTES / len(FRAME), abs=1)


def test_one_frame_in_fifty_is_lost(sink: tuple[int, int]) -> None:
    way = Way(sink[1], mbit=MBIT, delay_ms=0, loss=0.02, queue_bytes=QUEUE_BYTES, seed=1)
    for number in range(10_000):
        way.offer(FRAME, float(number))
    assert 9_750 < len(way.under_way) < 9_850
