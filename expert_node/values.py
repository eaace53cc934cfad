"""What a node holds: leases it was given, and finished work that waits for the coordinator's answer."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from potluck.config import from_mapping
from potluck.errors import SpecError
from potluck.ids import Digest, Fence, Json, LineageId, TaskId
from potluck.jsontext import read_json
from potluck.net.counters import Plane
from potluck.recipe import Profile, Recipe, Segment, json_table, segment_from


@dataclass(frozen=True, kw_only=True)
class TrainLease:
    fence: Fence
    term_ms: int
    lineage: LineageId
    recipe_json: str
    segments_json: str
    """JSON list of all segments so far, in order."""
    profile_json: str
    head_step: int
    head: Digest
    """The checkpoint manifest to continue from; `NO_DIGEST` at step 0."""
    weights: Digest
    optimizer: Digest
    target_step: int
    label: str

    @property
    def recipe(self) -> Recipe:
        return Recipe.from_json(self.recipe_json)

    @property
    def segments(self) -> tuple[Segment, ...]:
        return parse_segments(self.segments_json)

    @property
    def profile(self) -> Profile:
        return parse_profile(self.profile_json)


@dataclass(frozen=True, kw_only=True)
class TaskLease:
    fence: Fence
    term_ms: int
    task: TaskId
    kind: str
    params_json: str
    inputs: tuple[tuple[str, Digest], ...]
    label: str


Lease = TrainLease | TaskLease


@dataclass(frozen=True, kw_only=True)
class FinishedCommit:
    """A checkpoint on this node's disk: steps [start_step, end_step) on top of `parent`."""

    entry: int
    """Names it in the outbox; grows."""
    fence: Fence
    lineage: LineageId
    parent: Digest
    start_step: int
    end_step: int
    child: Digest
    weights: Digest
    optimizer: Digest
    figures: Mapping[str, Json]
    files: tuple[tuple[Digest, str], ...]
    """Digest and file name inside the entry's folder, of all three blobs."""
    label: str = ""


@dataclass(frozen=True, kw_only=True)
class FinishedTask:
    entry: int
    fence: Fence
    task: TaskId
    blobs: tuple[tuple[str, Digest], ...]
    """Output name and digest."""
    figures: Mapping[str, Json]
    files: tuple[tuple[Digest, str], ...]
    plane: Plane = "scores"
    label: str = ""


Finished = FinishedCommit | FinishedTask


def parse_segments(text: str) -> tuple[Segment, ...]:
    """Segments of a lease: a JSON list of objects.

    Raises:
        SpecError: it is something else.
    """
    try:
        listed = read_json(text)
    except ValueError as error:
        raise SpecError("spec.not-json", f"segments are no JSON: {error}", "use equal versions of potluck") from None
    if not isinstance(listed, list):
        raise SpecError("spec.not-json", "segments are no JSON list", "use equal versions of potluck")
    return tuple(segment_from(raw) for raw in listed)


def parse_profile(text: str) -> Profile:
    """Raises:
    SpecError: it is no profile.
    """
    return from_mapping(Profile, json_table(text, "profile"))
