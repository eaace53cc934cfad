"""What `accept` promises: honest rounding passes, and averaging that did not happen is refused, however it failed."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable

import numpy as np
import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from potluck.config import from_mapping, to_mapping
from potluck.errors import DataError
from potluck.ids import Digest, canonical_json, digest_bytes
from potluck.jsontext import read_json
from potluck.net.hivemind_acceptance import (
    SIGMAS,
    UNIT_ROUNDOFF,
    Accepted,
    PeerReport,
    Refused,
    accept,
    miss_probability,
    visible_norm,
    visible_share,
)
from potluck.net.hivemind_projections import report_of

Array = NDArray[np.float32]
Fault = Callable[[list[Array], list[Array], np.random.Generator], None]
"""Changes the peers' outputs [peer][element], given their inputs."""

KEY = digest_bytes(b"a round")
CHUNK = 64
"""Elements that hivemind would send in one message, here small."""


def honest(inputs: list[Array], rng: np.random.Generator) -> list[Array]:
    """As hivemind computes it: chunk by chunk, in the order of arrival; each peer adds what differs to its own."""
    outputs = [x.copy() for x in inputs]
    for start in range(0, len(inputs[0]), CHUNK):
        part = slice(start, start + CHUNK)
        total = np.zeros_like(inputs[0][part])
        for peer in rng.permutation(len(inputs)):
            total += inputs[peer][part]
        average = total / np.float32(len(inputs))
        for own, output in zip(inputs, outputs, strict=True):
            output[part] = own[part] + (average - own[part])
    return outputs


def reports(inputs: list[Array], outputs: list[Array]) -> list[PeerReport]:
    return [
        report_of(
            KEY,
            index,
            {"shared": before},
            {"shared": after},
            input_digest=digest_bytes(before.tobytes()),
            output_digest=digest_bytes(after.tobytes()),
        )
        for index, (before, after) in enumerate(zip(inputs, outputs, strict=True))
    ]


def verdict(inputs: list[Array], outputs: list[Array]) -> Accepted | Refused:
    return accept(reports(inputs, outputs), round_key=KEY, num_peers=len(inputs))


def one_peer_keeps_chunks(inputs: list[Array], outputs: list[Array], rng: np.random.Generator) -> None:
    peer = int(rng.integers(len(inputs)))
    num_chunks = math.ceil(len(inputs[0]) / CHUNK)
    for chunk in rng.choice(num_chunks, size=int(rng.integers(1, num_chunks + 1)), replace=False):
        part = slice(chunk * CHUNK, (chunk + 1) * CHUNK)
        outputs[peer][part] = inputs[peer][part]


def all_take_one_peers_chunk(inputs: list[Array], outputs: list[Array], rng: np.random.Generator) -> None:
    """The outputs agree bit by bit there, so equal digests would not show it."""
    chunk = int(rng.integers(math.ceil(len(inputs[0]) / CHUNK)))
    for output in outputs:
        output[chunk * CHUNK : (chunk + 1) * CHUNK] = inputs[0][chunk * CHUNK : (chunk + 1) * CHUNK]


def a_peer_is_missing_from_a_chunk(inputs: list[Array], outputs: list[Array], rng: np.random.Generator) -> None:
    """What a reducer does whose sender died: it averages the rest."""
    chunk = int(rng.integers(math.ceil(len(inputs[0]) / CHUNK)))
    part = slice(chunk * CHUNK, (chunk + 1) * CHUNK)
    for output in outputs:
        output[part] = np.mean([x[part] for x in inputs[1:]], axis=0)


def one_element_is_off(inputs: list[Array], outputs: list[Array], rng: np.random.Generator) -> None:
    output = outputs[int(rng.integers(len(outputs)))]
    output[int(rng.integers(len(output)))] += np.float32(1e-3 * np.linalg.norm(output.astype(np.float64)))


def nothing_is_averaged(inputs: list[Array], outputs: list[Array], rng: np.random.Generator) -> None:
    for own, output in zip(inputs, outputs, strict=True):
        output[:] = own


def one_output_is_scaled(inputs: list[Array], outputs: list[Array], rng: np.random.Generator) -> None:
    outputs[int(rng.integers(len(outputs)))] *= np.float32(1 + 1e-4)


def one_output_is_zero(inputs: list[Array], outputs: list[Array], rng: np.random.Generator) -> None:
    outputs[int(rng.integers(len(outputs)))][:] = 0


FAULTS: tuple[Fault, ...] = (
    one_peer_keeps_chunks,
    all_take_one_peers_chunk,
    a_peer_is_missing_from_a_chunk,
    one_element_is_off,
    nothing_is_averaged,
    one_output_is_scaled,
    one_output_is_zero,
)


@st.composite
def rounds(draw: st.DrawFn) -> tuple[list[Array], np.random.Generator]:
    """Inputs [peer][element] of any scale, from nearly equal to unrelated, with a generator for what follows."""
    rng = np.random.default_rng(draw(st.integers(0, 2**32 - 1)))
    num_peers, size = draw(st.integers(2, 5)), draw(st.integers(1, 20 * CHUNK))
    scale = 10.0 ** draw(st.integers(-20, 20))
    apart = 10.0 ** -draw(st.integers(0, 6))
    common = rng.standard_normal(size)
    return [(scale * (common + apart * rng.standard_normal(size))).astype(np.float32) for _ in range(num_peers)], rng


@given(rounds())
def test_what_was_averaged_is_accepted_whatever_the_order_of_its_sums(
    drawn: tuple[list[Array], np.random.Generator],
) -> None:
    inputs, rng = drawn
    outputs = honest(inputs, rng)
    found = verdict(inputs, outputs)
    assert isinstance(found, Accepted), found
    assert found.residual < 1
    assert found.output_digest == digest_bytes(outputs[0].tobytes())
    assert found.one_digest == (len({output.tobytes() for output in outputs}) == 1)


@settings(max_examples=60)
@pytest.mark.parametrize("fault", FAULTS)
@given(drawn=rounds())
def test_what_was_not_averaged_is_refused(fault: Fault, drawn: tuple[list[Array], np.random.Generator]) -> None:
    inputs, rng = drawn
    outputs = honest(inputs, rng)
    fault(inputs, outputs, rng)
    assume(largest_corruption(inputs, outputs) > 10)
    assert isinstance(verdict(inputs, outputs), Refused)


def largest_corruption(inputs: list[Array], outputs: list[Array]) -> float:
    """The worst output's distance from the mean in float64, in the tolerance's main term."""
    exact = np.mean([x.astype(np.float64) for x in inputs], axis=0)
    norm = float(np.mean([np.linalg.norm(x.astype(np.float64)) for x in inputs]))
    worst = max(float(np.linalg.norm(output - exact)) for output in outputs)
    return worst / (SIGMAS * UNIT_ROUNDOFF * (len(inputs) + 4) * norm)


@pytest.mark.parametrize("fault", FAULTS)
def test_every_planted_fault_is_large_enough_to_count_where_inputs_are_unrelated(fault: Fault) -> None:
    """Else the test above would pass by assuming every example away."""
    rng = np.random.default_rng(5)
    inputs = [rng.standard_normal(1000).astype(np.float32) for _ in range(3)]
    outputs = honest(inputs, rng)
    fault(inputs, outputs, rng)
    assert largest_corruption(inputs, outputs) > 10
    assert isinstance(verdict(inputs, outputs), Refused)


def test_three_elements_of_a_million_left_unaveraged_are_seen_and_rounding_is_not() -> None:
    rng = np.random.default_rng(7)
    inputs = [rng.standard_normal(1_000_000, dtype=np.float32) for _ in range(3)]
    outputs = honest(inputs, rng)
    assert isinstance(verdict(inputs, outputs), Accepted)
    outputs[1][:3] = inputs[1][:3]
    assert isinstance(verdict(inputs, outputs), Refused)


def test_what_is_smaller_than_rounding_is_not_seen() -> None:
    rng = np.random.default_rng(11)
    inputs = [rng.standard_normal(1000).astype(np.float32) for _ in range(3)]
    outputs = honest(inputs, rng)
    outputs[2][4] += np.float32(1e-7 * np.linalg.norm(outputs[2]))
    assert isinstance(verdict(inputs, outputs), Accepted)


def test_the_stated_power_is_what_draws_of_the_key_show() -> None:
    """One tolerance escapes 16 projections with probability 0.0022, a tenth of one surely, three never here."""
    assert miss_probability(1) == pytest.approx(math.erf(1 / math.sqrt(2)) ** 16)
    assert miss_probability(0.1) == pytest.approx(1)
    assert miss_probability(visible_norm(miss=1e-9)) == pytest.approx(1e-9, rel=1e-6)
    assert visible_norm(miss=1e-9) == pytest.approx(2.855, abs=1e-3)
    # Differences of unrelated peers, and weights that differ by a thousandth: the share of elements seen.
    assert visible_share(num_peers=3, disagreement=1, miss=1e-9) < 1 / 5_000_000
    assert 5e-5 < visible_share(num_peers=3, disagreement=1e-3, miss=1e-9) < 2e-4


def test_projections_of_a_vector_are_draws_of_its_norm() -> None:
    """The power and the tolerance rest on it: sixteen squares of standard draws, here of 40 rounds."""
    vector = np.arange(1, 1001, dtype=np.float32)
    squares = []
    for number in range(40):
        key = digest_bytes(f"round {number}".encode())
        figures = report_of(key, 0, {"x": vector}, {"x": vector}, input_digest=key, output_digest=key).tensors[0]
        squares += [(value / figures.input_norm) ** 2 for value in figures.input_projections]
    assert float(np.mean(squares)) == pytest.approx(1, abs=0.25)  # 640 draws: four standard errors


def test_a_small_tensor_is_judged_by_its_own_size_beside_a_large_one() -> None:
    rng = np.random.default_rng(3)
    large = [1e4 * rng.standard_normal(5000).astype(np.float32) for _ in range(2)]
    small = [1e-4 * rng.standard_normal(20).astype(np.float32) for _ in range(2)]
    outputs = list(zip(honest(large, rng), small, strict=True))  # the small one stays as it was
    told = [
        report_of(KEY, i, {"phi": small[i], "s": large[i]}, {"phi": b, "s": a}, input_digest=KEY, output_digest=KEY)
        for i, (a, b) in enumerate(outputs)
    ]
    found = accept(told, round_key=KEY, num_peers=2)
    assert isinstance(found, Refused)
    assert "phi" in found.reason


@pytest.fixture(scope="module")
def told() -> list[PeerReport]:
    rng = np.random.default_rng(1)
    inputs = [rng.standard_normal(100).astype(np.float32) for _ in range(3)]
    return reports(inputs, honest(inputs, rng))


def test_reports_in_any_order_and_through_json_mean_the_same(told: list[PeerReport]) -> None:
    through = [from_mapping(PeerReport, read_json(canonical_json(to_mapping(report)))) for report in reversed(told)]
    assert accept(through, round_key=KEY, num_peers=3) == accept(told, round_key=KEY, num_peers=3)


def changed(told: list[PeerReport], index: int, **values: object) -> list[PeerReport]:
    return [dataclasses.replace(r, **values) if r.index == index else r for r in told]  # type: ignore[arg-type]


def test_reports_that_are_not_those_of_one_rounds_peers_are_refused(told: list[PeerReport]) -> None:
    tensor = told[1].tensors[0]
    not_finite = dataclasses.replace(tensor, output_projections=(math.nan, *tensor.output_projections[1:]))
    fewer = dataclasses.replace(tensor, input_projections=tensor.input_projections[1:])
    other = dataclasses.replace(tensor, name="other")
    for wrong, why in [
        ([], "of the peers []"),
        (told[:2], "of the peers [0, 1]"),
        ([*told, told[0]], "of the peers [0, 0, 1, 2]"),
        (changed(told, 1, round_key=Digest("f" * 64)), "another round"),
        (changed(told, 1, canary=told[1].canary + 1), "other vectors"),
        (changed(told, 1, tensors=(other,)), "other tensors"),
        (changed(told, 1, tensors=()), "other tensors"),
        (changed(told, 1, tensors=(not_finite,)), "not finite"),
        (changed(told, 1, tensors=(fewer,)), "not 16 projections"),
    ]:
        found = accept(wrong, round_key=KEY, num_peers=3)
        assert isinstance(found, Refused), why
        assert why in found.reason


def test_tensors_that_are_not_finite_are_refused_before_anybody_is_told() -> None:
    broken = np.array([1, np.inf], dtype=np.float32)
    with pytest.raises(DataError, match="NaN or an infinity"):
        reports([broken], [broken])
