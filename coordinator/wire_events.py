"""Durable events to and from the JSON rows of the journal, generic over the closed union.

A row is `{"type": "RunSubmitted", ...fields}`; so is every member of a union inside an event, such
as an `Outcome`. A field that a row lacks takes its default, so that rows written before the field
existed can be read for ever; a field or type that today's code does not know is refused, for it
was written by a newer release.
"""

from __future__ import annotations

import json

from coordinator.core.events import DurableEvent
from coordinator.plain_json import reader_of, to_plain
from potluck.errors import DataError
from potluck.ids import canonical_json


def encode_event(event: DurableEvent) -> str:
    """The row of an event: canonical JSON, so that equal events are equal rows."""
    return canonical_json(to_plain(event))


def decode_event(row: str) -> DurableEvent:
    """The event of a row.

    Raises:
        DataError: ``data.journal-row``: not JSON, or not an event that this release knows.
    """
    try:
        event: DurableEvent = reader_of(DurableEvent)(json.loads(row))
    except json.JSONDecodeError as error:
        raise _unreadable(f"not JSON: {error}") from None
    except ValueError as error:
        raise _unreadable(str(error)) from None
    return event


def _unreadable(what: str) -> DataError:
    return DataError(
        "data.journal-row",
        f"a row of the journal cannot be read: {what}",
        "run the release that wrote this journal, or a newer one",
    )
