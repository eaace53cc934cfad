"""What a lineage is: its recipe, its segments, its profile. Digests of these name the work.

Step t is 0-based; a head at t has done t steps; ranges are half-open. A row holds tokens 1..S+1.
"""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import Literal

from potluck.config import added, from_mapping, to_mapping
from potluck.errors import SpecError
from potluck.ids import NO_DIGEST, Digest, LineageId, canonical_json, digest_json
from potluck.jsontext import read_json
from potluck.lm.config import ModelConfig
from potluck.lm.soup_config import SoupConfig


@dataclass(frozen=True, kw_only=True)
class AdamWConfig:
    """AdamW; SmallTalk's betas and decay (2410.03529, section 3) are the defaults."""

    name: Literal["adamw"] = "adamw"
    beta1: float = 0.9
    beta2: float = 0.99
    epsilon: float = 1e-8
    weight_decay: float = 0.1
    grad_clip: float = 1.0

    def __post_init__(self) -> None:
        _check_optimizer(self)


@dataclass(frozen=True, kw_only=True)
class AdEMAMixConfig:
    """AdEMAMix (2409.03137): AdamW with a second, slow average of the gradients.

    It is at work in steps [from_fraction, until_fraction) of the run and is AdamW outside of them, so a
    switch from AdamW and back is a matter of two numbers. Its schedulers count from the first such step.
    """

    name: Literal["ademamix"] = "ademamix"
    beta1: float = 0.9
    """0 keeps no fast average: AdamW's memory."""
    beta2: float = 0.999
    beta3: float = 0.0
    """Of the slow average; 0 in a spec derives it from the run's length, a recipe has the number."""
    alpha: float = 8.0
    warmup_fraction: float = 1.0
    """T_alpha and T_beta3, as a fraction of the steps it is at work; 0 starts at the final values."""
    from_fraction: float = 0.0
    until_fraction: float = 1.0
    slow_dtype: Literal["float32", "bfloat16"] = "float32"
    epsilon: float = 1e-8
    weight_decay: float = 0.1
    grad_clip: float = 1.0

    def __post_init__(self) -> None:
        _check_optimizer(self)
        _check_values(
            self,
            {
                "beta3": (self.beta3 == 0 or self.beta1 <= self.beta3 < 1, "0 (derived), or beta1 or more, below 1"),
                "alpha": (0 <= self.alpha < math.inf, "0 or more, finite"),
                "warmup_fraction": (0 <= self.warmup_fraction <= 1, "[0, 1]"),
                "from_fraction": (0 <= self.from_fraction < 1, "[0, 1)"),
                "until_fraction": (self.from_fraction < self.until_fraction <= 1, "above from_fraction, at most 1"),
            },
        )


OptimizerConfig = AdamWConfig | AdEMAMixConfig


def _check_optimizer(config: OptimizerConfig) -> None:
    _check_values(
        config,
        {
            "beta1": (0 <= config.beta1 < 1, "[0, 1)"),
            "beta2": (0 <= config.beta2 < 1, "[0, 1)"),
            "epsilon": (0 < config.epsilon < math.inf, "above 0, finite"),
            "grad_clip": (0 < config.grad_clip < math.inf, "above 0, finite"),
            "weight_decay": (0 <= config.weight_decay < math.inf, "0 or more, finite"),
        },
    )


def _check_values(config: OptimizerConfig, allowed: Mapping[str, tuple[bool, str]]) -> None:
    for name, (ok, values) in allowed.items():
        if not ok:
            raise SpecError("spec.bad-value", f"optimizer.{name} = {getattr(config, name)}", f"allowed: {values}")


@dataclass(frozen=True, kw_only=True)
class Schedule:
    """Linear warm-up, then constant or cosine down to `final_fraction` of the peak."""

    kind: Literal["constant", "cosine"]
    learning_rate: float
    warmup_steps: int
    total_steps: int
    final_fraction: float = 0.1

    def __post_init__(self) -> None:
        ok = 0 < self.learning_rate < math.inf and 0 <= self.final_fraction <= 1
        if not ok or self.total_steps < 1 or not 0 <= self.warmup_steps <= self.total_steps:
            fix = "finite learning_rate > 0, final_fraction in [0, 1], 0 <= warmup <= total, total >= 1"
            raise SpecError("spec.bad-value", f"schedule {self}", fix)


MAX_THREADS = 256
MAX_PROCESSES = 64
_DEVICE = re.compile(r"cpu|cuda|cuda:[0-9]{1,2}|mps")


@dataclass(frozen=True, kw_only=True)
class Profile:
    """How the arithmetic is done: fixed at a lineage's first step. Equal profile, equal bits."""

    device: str = "cpu"
    dtype: Literal["float32", "bfloat16"] = "float32"
    threads: int = 1
    """Of each process."""
    compile: bool = False
    micro_batch: int = added(0)
    """Rows of a batch whose gradients are taken at once; 0 takes them all. Must divide the batch."""
    activation_checkpointing: bool = added(False)
    """Blocks are computed again in the backward pass instead of being kept; the bits stay."""
    processes: int = added(1)
    """Data-parallel processes on the node, each with an equal share of the rows."""

    def __post_init__(self) -> None:
        if not 1 <= self.threads <= MAX_THREADS:
            raise SpecError("spec.bad-value", f"profile.threads = {self.threads}", f"allowed: 1 to {MAX_THREADS}")
        if self.micro_batch < 0:
            raise SpecError("spec.bad-value", f"profile.micro_batch = {self.micro_batch}", "allowed: 0 (all) or more")
        if not 1 <= self.processes <= MAX_PROCESSES:
            raise SpecError("spec.bad-value", f"profile.processes = {self.processes}", f"allowed: 1 to {MAX_PROCESSES}")
        if not _DEVICE.fullmatch(self.device):
            allowed = "allowed: cpu, cuda, cuda:N, mps"
            raise SpecError("spec.bad-value", f"profile.device = {self.device!r}", allowed)
        if self.processes > 1 and self.device not in ("cpu", "cuda"):
            what = f"profile.processes = {self.processes} with profile.device = {self.device!r}"
            raise SpecError("spec.bad-value", what, "allowed: 1, or the device cpu, or cuda: one device a process")


def require_shares(batch_size: int, profile: Profile) -> None:
    """Refuses a profile whose processes and micro-batches do not divide a batch of so many rows.

    Raises:
        SpecError: ``spec.bad-value``.
    """
    if batch_size % profile.processes:
        what = f"profile.processes = {profile.processes} with a batch of {batch_size} rows"
        raise SpecError("spec.bad-value", what, f"allowed: a divisor of {batch_size}")
    share = batch_size // profile.processes
    if profile.micro_batch and share % profile.micro_batch:
        each = "" if profile.processes == 1 else f", {share} a process"
        what = f"profile.micro_batch = {profile.micro_batch} with a batch of {batch_size} rows{each}"
        raise SpecError("spec.bad-value", what, f"allowed: 0 (all at once), or a divisor of {share}")


@dataclass(frozen=True, kw_only=True)
class Origin:
    """A checkpoint of another lineage that this one starts from."""

    weights: Digest
    optimizer: Digest
    """`NO_DIGEST`: a fresh optimizer."""
    step: int
    """Steps of the schedule that lie behind: this lineage's step t uses the rate of step + t."""


@dataclass(frozen=True, kw_only=True)
class Recipe:
    """One model being trained. Its id is the digest of all this; equal recipes are one lineage."""

    role: Literal["router", "expert", "dense", "random_split", "soup"]
    index: int
    model: ModelConfig
    optimizer: OptimizerConfig
    schedule: Schedule
    batch_size: int
    """Rows a step."""
    columns: int
    """Tokens of a row that are read: M for a router (targets 2..M), S+1 for an expert."""
    init_seed: int
    data_rule: str
    """Canonical JSON of the rule that makes the segments, digests of its inputs included."""
    commit_every: int
    """Steps between commits, segment ends aside."""
    profile: Profile = added(Profile())  # noqa: RUF009 - a frozen value
    """How the arithmetic is done. Part of what is trained: two profiles round otherwise and are two lineages."""
    origin: Origin | None = added(None)  # noqa: RUF009 - a field's declaration, made once
    soup: SoupConfig | None = added(None)  # noqa: RUF009
    """Makes the lineage a soup of models; its segments are `Mixtures`, and theirs are no others'."""

    @property
    def num_steps(self) -> int:
        """Steps of this lineage: what its origin leaves of the schedule."""
        return self.schedule.total_steps - (self.origin.step if self.origin is not None else 0)

    def schedule_step(self, step: int) -> int:
        """Step of the schedule at step `step` of this lineage."""
        return step + (self.origin.step if self.origin is not None else 0)

    def optimizer_step(self, step: int) -> int:
        """Updates that the optimizer's state has seen after `step` steps of this lineage."""
        inherited = self.origin is not None and self.origin.optimizer != NO_DIGEST
        return self.schedule_step(step) if inherited else step

    @cached_property
    def id(self) -> LineageId:
        return LineageId(digest_json({"recipe": to_mapping(self)}))

    def to_json(self) -> str:
        return canonical_json(to_mapping(self))

    @staticmethod
    def from_json(text: str) -> Recipe:
        """Raises:
        SpecError: it is no JSON, or no recipe.
        """
        return from_mapping(Recipe, json_table(text, "recipe"))


@dataclass(frozen=True, kw_only=True)
class Stream:
    """Rows at positions [start, ...) of the keyed permutation, in order."""

    kind: Literal["stream"] = "stream"
    tokens: Digest
    """Digest of the tokens manifest."""
    key: int
    start: int


@dataclass(frozen=True, kw_only=True)
class RandomShare:
    """Share `share` of a random equal split of positions [start, start+count), in stream order."""

    kind: Literal["random_share"] = "random_share"
    tokens: Digest
    key: int
    start: int
    count: int
    shares: int
    share: int
    seed: int


@dataclass(frozen=True, kw_only=True)
class Assigned:
    """The rows of positions [start, start+count) that an assignment gives to `share`, in stream order.

    The assignment blob holds one little-endian uint16 per position: the expert's index.
    """

    kind: Literal["assigned"] = "assigned"
    tokens: Digest
    key: int
    start: int
    count: int
    assignment: Digest
    share: int


@dataclass(frozen=True, kw_only=True)
class Clustered:
    """Draws start, start + 1, ... of a mixture over the domains of a partition (CRISP, 2410.03735, algorithm 1).

    Mode `cluster` draws a domain by the mixture's weights, then that domain's next row; mode `importance`
    takes rows evenly, each weighted by mixture over natural share: equal in expectation, the control.
    """

    kind: Literal["clustered"] = "clustered"
    tokens: Digest
    labels: Digest
    """Digest of the labels manifest."""
    mixture: Digest
    key: int
    """A new mixture in a lineage wants a new key, or it reads the first rows of each domain again."""
    start: int
    mode: Literal["cluster", "importance"] = "cluster"

    def __post_init__(self) -> None:
        if self.start < 0:
            raise SpecError("spec.bad-value", f"segment start = {self.start}", "allowed: 0 or more")


@dataclass(frozen=True, kw_only=True)
class Mixtures:
    """Draws of random mixtures over the domains of a partition, some in each step (2502.01804, algorithm 2).

    Of a step's B rows the first B / per_step are drawn from its first mixture, and so on. A mixture has
    weight on `support` domains without repeats, uniform numbers made to sum to one.
    """

    kind: Literal["mixtures"] = "mixtures"
    tokens: Digest
    labels: Digest
    """Digest of the labels manifest."""
    key: int
    start: int
    """The first row drawn; a multiple of the batch size."""
    batch_size: int
    per_step: int
    support: int
    """Domains without rows take no part; where fewer than this have any, all of these do."""
    natural_share: float = 0.0
    """Chance of a mixture to be the corpus' own proportions instead."""

    def __post_init__(self) -> None:
        table: dict[str, tuple[int | float, bool, str]] = {
            "per_step": (self.per_step, self.per_step >= 1, "1 or more"),
            "batch_size": (self.batch_size, self.batch_size % max(1, self.per_step) == 0, "a multiple of per_step"),
            "start": (self.start, self.start >= 0 and self.start % max(1, self.batch_size) == 0, "steps of batch_size"),
            "support": (self.support, self.support >= 1, "1 or more"),
            "natural_share": (self.natural_share, 0 <= self.natural_share <= 1, "[0, 1]"),
        }
        for name, (value, ok, allowed) in table.items():
            if not ok:
                raise SpecError("spec.bad-value", f"segment {name} = {value}", f"allowed: {allowed}")


SegmentData = Stream | RandomShare | Assigned | Clustered | Mixtures
_SEGMENT_KINDS: dict[str, type[Stream] | type[RandomShare] | type[Assigned] | type[Clustered] | type[Mixtures]] = {
    "stream": Stream,
    "random_share": RandomShare,
    "assigned": Assigned,
    "clustered": Clustered,
    "mixtures": Mixtures,
}


@dataclass(frozen=True, kw_only=True)
class Segment:
    """Steps [start_step, end_step) of a lineage, and the rows they read.

    Step t of the segment reads rows [(t - start_step) * B, (t - start_step + 1) * B) of its data.
    """

    index: int
    start_step: int
    end_step: int
    data: SegmentData
    mixture_version: int = 0

    def __post_init__(self) -> None:
        if not 0 <= self.start_step < self.end_step:
            raise SpecError("spec.bad-value", f"segment [{self.start_step}, {self.end_step})", "give start < end")

    @property
    def digest(self) -> Digest:
        return digest_json(to_mapping(self))

    def to_json(self) -> str:
        return canonical_json(to_mapping(self))

    @staticmethod
    def from_json(text: str) -> Segment:
        """Raises:
        SpecError: it is no JSON, or no segment.
        """
        return segment_from(json_table(text, "segment"))


def segment_from(raw: object) -> Segment:
    """The segment of a plain mapping.

    Raises:
        SpecError: it is none.
    """
    data = raw.get("data") if isinstance(raw, Mapping) else None
    if not isinstance(raw, Mapping) or not isinstance(data, Mapping):
        raise SpecError("spec.wrong-type", f"segment {str(raw)[:80]!r}", "give it as a table with data")
    kind = data.get("kind")
    if not isinstance(kind, str) or kind not in _SEGMENT_KINDS:
        raise SpecError("spec.bad-value", f"segment.data.kind = {kind!r}", f"allowed: {', '.join(_SEGMENT_KINDS)}")
    head = from_mapping(_SegmentHead, {name: item for name, item in raw.items() if name != "data"}, "segment.")
    numbers = {name: getattr(head, name) for name in ("index", "start_step", "end_step", "mixture_version")}
    return Segment(data=from_mapping(_SEGMENT_KINDS[kind], data, "segment.data."), **numbers)


def json_table(text: str, what: str) -> Mapping[str, object]:
    """Raises:
    SpecError: ``spec.not-json``, it is no JSON object.
    """
    try:
        raw = read_json(text)
    except ValueError as error:
        raise SpecError("spec.not-json", f"the {what} is no JSON: {error}", "use equal versions of potluck") from None
    if not isinstance(raw, dict):
        raise SpecError("spec.not-json", f"the {what} is no JSON object", "use equal versions of potluck")
    return raw


@dataclass(frozen=True, kw_only=True)
class _SegmentHead:
    """A segment without its data, for the checked reader of dataclasses."""

    index: int
    start_step: int
    end_step: int
    mixture_version: int


def commit_interval(
    *, num_parameters: int, batch_size: int, targets_per_row: int, total_steps: int, bytes_per_token: float
) -> int:
    """Steps between commits: weights and two moments are 12 bytes a parameter.

    ceil(12 P / (bytes_per_token * B * S)), clamped to T/32 .. T/4.
    """
    exact = -(-12 * num_parameters // max(1, int(bytes_per_token * batch_size * targets_per_row)))
    low, high = max(1, total_steps // 32), max(1, total_steps // 4)
    return min(max(exact, low), high)


def next_commit(*, step: int, commit_every: int, segments: tuple[Segment, ...]) -> int:
    """The next step after `step` on the commit grid: multiples of `commit_every` and segment ends.

    Raises:
        ValueError: no segment reaches beyond `step`.
    """
    ends = [s.end_step for s in segments if s.end_step > step]
    if not ends:
        raise ValueError(f"no segment beyond step {step}")
    return min(min(ends), (step // commit_every + 1) * commit_every)
