"""A generated text ends before its first stop string, and nothing of one is ever told."""

from __future__ import annotations

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from potluck.errors import UsageError
from potluck.lm.stopping import StopScanner, checked_stops
from router.detokenise import StoppedText, TextStream

few = st.text("ab", max_size=5)
stops = st.lists(st.text("ab", min_size=1, max_size=4), max_size=4)


def until_first(text: str, wanted: list[str]) -> tuple[str, bool]:
    """Character by character: whatever stop string is complete first ends the text."""
    for end in range(len(text) + 1):
        if lengths := [len(stop) for stop in wanted if text[:end].endswith(stop)]:
            return text[: end - max(lengths)], True
    return text, False


@given(st.lists(few, max_size=8), stops)
@example(["ab", "ba", "b"], ["bba", "bab"])
@example(["abab"], ["abab", "ba"])
def test_generate_ends_before_the_first_stop_string_however_the_text_is_cut(
    pieces: list[str], wanted: list[str]
) -> None:
    scanner = StopScanner(wanted)
    expected, stopped = until_first("".join(pieces), wanted)
    told = ""
    for piece in pieces:
        told += scanner.feed(piece)
        assert expected.startswith(told)
    assert scanner.stopped == stopped
    assert told + scanner.flush() == expected


@given(few, few, stops)
def test_generate_holds_back_no_more_than_may_start_a_stop_string(before: str, after: str, wanted: list[str]) -> None:
    scanner = StopScanner(wanted)
    told = scanner.feed(before) + scanner.feed(after)
    if not scanner.stopped and (held := (before + after)[len(told) :]):
        assert any(stop.startswith(held) for stop in wanted)


@given(
    st.lists(st.sampled_from([b"", b"a", b"ab", b"bba", "ä".encode()[:1], "ä".encode()[1:], b"x"]), max_size=12),
    st.data(),
)
def test_generate_returns_the_tokens_up_to_the_one_that_completed_the_stop_string(
    table: list[bytes], data: st.DataObject
) -> None:
    wanted = data.draw(st.lists(st.sampled_from(["ab", "bb", "aä", "ba", "x"]), min_size=1, max_size=2))
    step = data.draw(st.integers(1, 5))
    stream, ids, text = StoppedText(TextStream(table), StopScanner(wanted)), list(range(len(table))), ""
    told: list[int] = []
    for start in range(0, len(ids), step):
        part = ids[start : start + step]
        used, more = stream.feed(part, is_last=start + step >= len(ids))
        told += used
        text += more
        if stream.stopped:
            break
    whole = TextStream(table)
    texts = [whole.feed([i]) for i in ids]
    expected, stopped = until_first("".join(texts), wanted)
    assert (text, stream.stopped) == (expected, stopped)
    if stopped:
        assert until_first("".join(texts[: len(told)]), wanted)[1]
        assert not until_first("".join(texts[: len(told) - 1]), wanted)[1]
    else:
        assert told == ids


@pytest.mark.parametrize(
    ("wanted", "told"),
    [([""], "stop[0] has 0"), (["a", "b" * 65], "stop[1] has 65"), (["a"] * 9, "9 stop strings"), ("ab", "one string")],
)
def test_generate_refuses_bad_stop_strings(wanted: list[str], told: str) -> None:
    with pytest.raises(UsageError) as caught:
        StopScanner(wanted)
    assert caught.value.error_id == "usage.bad-stop"
    assert told in caught.value.message


def test_generate_takes_as_many_stop_strings_as_it_says() -> None:
    assert checked_stops(["ß" * 64] * 8) == ("ß" * 64,) * 8
