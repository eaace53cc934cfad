"""Whether the parts of a round averaged among themselves, by what all of them tell of it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache

from coordinator.core.values import TaskResult
from potluck.config import from_mapping
from potluck.ids import Digest
from potluck.jsontext import read_json
from potluck.net.hivemind_acceptance import PeerReport, Refused, accept

MAX_REMEMBERED = 1 << 12
"""Verdicts, for each evaluation of a plan walks through all rounds that are done."""


@dataclass(frozen=True, kw_only=True)
class Exchanged:
    """The blob of an average that is believed."""

    averaged: Digest


def exchanged(key: Digest, parts: Sequence[TaskResult]) -> Exchanged | Refused:
    """The average that part 0 put, if `accept` believes it and it was made of the very changes that the parts put."""
    for part, result in enumerate(parts):
        if "exchange" not in result.figures:
            return Refused(reason=f"part {part + 1}: {result.figures.get('exchange_failed', 'it did not try')}")
    told = tuple(str(result.figures["exchange"]) for result in parts)
    deltas = tuple(result.blobs["delta"] for result in parts)
    return _verdict(key, told, deltas, parts[0].blobs.get("averaged"))


@lru_cache(maxsize=MAX_REMEMBERED)
def _verdict(
    key: Digest, told: tuple[str, ...], deltas: tuple[Digest, ...], averaged: Digest | None
) -> Exchanged | Refused:
    try:
        reports = [from_mapping(PeerReport, read_json(text)) for text in told]
    except ValueError as error:
        return Refused(reason=f"a report cannot be read: {error}")
    if tuple(report.input_digest for report in reports) != deltas:
        return Refused(reason="a part averaged something else than the change that it put")
    found = accept(reports, round_key=key, num_peers=len(deltas))
    if isinstance(found, Refused):
        return found
    if averaged is None or averaged != found.output_digest:
        return Refused(reason="part 1 put something else than what it averaged")
    return Exchanged(averaged=averaged)
