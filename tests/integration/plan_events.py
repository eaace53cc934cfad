"""What a coordinator's journal says that its plans wanted."""

from __future__ import annotations

from pathlib import Path

from coordinator.core.events import PlanAdvanced
from coordinator.core.values import LineageWanted
from coordinator.journal import SqliteJournal
from coordinator.wire_events import decode_event


def lineages_of(path: Path) -> list[LineageWanted]:
    """Every lineage as it was wanted last; its coordinator must have ended."""
    wanted: dict[str, LineageWanted] = {}
    journal = SqliteJournal(path)
    try:
        for event in map(decode_event, journal.read_all()):
            if isinstance(event, PlanAdvanced):
                wanted.update((lineage.id, lineage) for lineage in event.lineages)
    finally:
        journal.close()
    return list(wanted.values())
