"""What plans of one model share: its lineage, its view, its table."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from coordinator.core.values import TaskResult
from coordinator.plans.base import Wishes
from coordinator.plans.held_out import EVAL_RANK, bootstrap_params
from coordinator.plans.seeds import derive
from coordinator.plans.text import Text
from coordinator.plans.trainings import FIRST_RANK, Training, cosine, make_training
from potluck.config import to_mapping
from potluck.ids import NO_DIGEST, Digest, Json, canonical_json
from potluck.lm.optim.horizon import optimizer_facts
from potluck.recipe import Origin, Schedule
from potluck.specs.crisp import CrispSpec
from potluck.specs.sections import CommonSpec
from potluck.specs.single import SingleSpec
from potluck.specs.soup import SoupSpec


def model_training(
    spec: SingleSpec | CrispSpec | SoupSpec,
    rule: Mapping[str, Json],
    *,
    label: str,
    rank: int = FIRST_RANK,
    origin: Origin | None = None,
    schedule: Schedule | None = None,
    batch_size: int = 0,
) -> Training:
    """A lineage of the run's model.

    Args:
        rule: what its data follows from, digests of the inputs included.
        origin: a checkpoint to start from.
        schedule: instead of the training's own, with `batch_size`.
    """
    how = spec.training
    own = cosine(
        learning_rate=how.learning_rate,
        warmup_fraction=how.warmup_fraction,
        final_fraction=how.final_fraction,
        total_steps=how.steps,
    )
    return make_training(
        spec,
        role="dense",
        index=0,
        model=spec.full_model(),
        schedule=schedule or own,
        batch_size=batch_size or how.batch_size,
        inputs=spec.text.sequence_length,
        columns=spec.text.sequence_length + 1,
        init_seed=derive(spec.seed, "dense"),
        rule=canonical_json(dict(rule)),
        label=label,
        rank=rank,
        origin=origin,
    )


def serving_json(
    spec: SingleSpec | CrispSpec | SoupSpec,
    text: Text,
    *,
    slot: str,
    partition: Digest = NO_DIGEST,
    soup: Mapping[str, Json] | None = None,
) -> str:
    """A view without routers: its one slot answers everything.

    Args:
        partition: places texts in domains, for counting.
        soup: of what else answers, a model made on request.
    """
    view: dict[str, Json] = {
        "method": spec.method,
        "route_by": "one",
        "default_slot": slot,
        "tokenizer": text.tokenizer,
        "sequence_length": spec.text.sequence_length,
        "prefix_length": spec.text.prefix_length,
        "expert_model": to_mapping(spec.full_model()),
    }
    view |= {"partition": partition} if partition != NO_DIGEST else {}
    return canonical_json(view | ({"soup": dict(soup)} if soup is not None else {}))


def want_contest(
    spec: CommonSpec,
    wishes: Wishes,
    tokens: Digest,
    split: str,
    scored: Mapping[str, TaskResult | None],
    *,
    pairs: Sequence[tuple[str, str]] = (),
    facts: Mapping[str, Json],
    label: str,
) -> TaskResult | None:
    """The table of models on held-out text, once each has its NLL."""
    blobs = {name: result.blobs["nll"] for name, result in scored.items() if result is not None}
    if len(blobs) < len(scored):
        return None
    listed: list[Json] = [list(pair) for pair in pairs]
    return wishes.task(
        "eval",
        {
            "what": "contest",
            "split": split,
            "models": list(blobs),
            "pairs": listed,
            **bootstrap_params(spec, "bootstrap"),
            "facts": dict(facts),
        },
        {"tokens_manifest": tokens, **blobs},
        label=label,
        rank=EVAL_RANK,
    )


def model_facts(spec: SingleSpec | CrispSpec | SoupSpec, text: Text, training: Training) -> dict[str, Json]:
    """What the model was trained on, for how much."""
    recipe = training.recipe
    steps = recipe.schedule.total_steps
    rows = steps * recipe.batch_size
    return {
        "method": spec.method,
        "spec": spec.id,
        "seed": spec.seed,
        "steps": steps,
        "batch_size": recipe.batch_size,
        "learning_rate": recipe.schedule.learning_rate,
        "optimizer": optimizer_facts(recipe.optimizer),
        "parameters": recipe.model.num_parameters,
        "tokens": rows * spec.text.sequence_length,
        "flops": steps * training.flops_per_step,
        "epochs": rows / text.train_rows,
        "rows": {"train": text.train_rows, "valid": text.valid_rows, "test": text.test_rows},
    }
