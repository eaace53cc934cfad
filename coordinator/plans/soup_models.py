"""The lineages of a soup run, and the models that are made of its soup."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property

from coordinator.core.values import TaskResult
from coordinator.plans.base import Wishes
from coordinator.plans.held_out import EVAL_RANK, Examiner, made_models
from coordinator.plans.one_model import model_training
from coordinator.plans.partition import Divider, Domains, Labelled
from coordinator.plans.seeds import derive
from coordinator.plans.soup_rounds import Rounds, StandIn, Walked
from coordinator.plans.trainings import CONTROL_RANK, FIRST_RANK, Bank, Training, cosine, make_training
from potluck.config import to_mapping
from potluck.ids import Digest, Json, canonical_json
from potluck.lm.config import ModelConfig
from potluck.lm.memory import FLOAT_BYTES
from potluck.lm.soup_config import SoupConfig
from potluck.lm.soup_memory import bank_parameters, coefficient_parameters
from potluck.lm.soup_spread import Spread
from potluck.recipe import Clustered, Mixtures, Segment
from potluck.specs.soup import SoupSpec

NATURAL, GENERIC, CONSTANT = "soup", "generic", "constant"
"""In tables: the soup at the corpus' own mixture, the plain model, the soup whose coefficients do not see h."""


def for_source(name: str) -> str:
    return f"soup for {name}"


@dataclass(frozen=True, kw_only=True)
class SourceMixtures:
    """Where the valid text of each source lies: what specialists are made for."""

    by_source: Mapping[str, Digest]
    figures: Mapping[str, Json]


@dataclass(frozen=True, kw_only=True)
class Models:
    """Wants the lineages, and what is made of them, each once."""

    spec: SoupSpec
    examiner: Examiner
    divider: Divider
    domains: Domains
    labelled: Labelled

    @cached_property
    def soup(self) -> Training:
        """A lineage, unless it is spread."""
        training, data = self._soup(NATURAL, FIRST_RANK, self.bank, self.spec.spread)
        if self.spec.spread.parts == 1:
            self._want_lineage(training, data)
        return training

    @cached_property
    def rounds(self) -> Walked | None:
        """How far a spread soup has come; from then on the results have its checkpoints. None if it is a lineage."""
        if self.spec.spread.parts == 1:
            return None
        training, data = self._soup(NATURAL, FIRST_RANK, self.bank, self.spec.spread)
        wishes = self.examiner.wishes
        walked = Rounds(wishes=wishes, training=training, data=data, spread=self.spec.spread).walk()
        wishes.results = StandIn(results=wishes.results, lineage=training.recipe.id, chain=walked.chain)
        return walked

    def loss_curve(self, training: Training) -> list[Json]:
        """[step, loss] of a lineage, or of the spread soup."""
        if self.rounds is not None and training is self.soup:
            return self.rounds.loss_curve()
        return self.examiner.wishes.loss_curve(training.recipe.id)

    @cached_property
    def constant(self) -> Training | None:
        if not self.spec.controls.constant:
            return None
        config = self.spec.bank.config(self.bank.config.domains, coefficients="constant")
        bank = Bank(config=config, cost=self.spec.cost(config.domains, parts=1))
        training, data = self._soup(CONSTANT, CONTROL_RANK, bank, Spread())
        self._want_lineage(training, data)
        return training

    @cached_property
    def generic(self) -> Training | None:
        """The plain model on the corpus as it lies."""
        if not self.spec.controls.generic:
            return None
        key = derive(self.spec.seed, "mixture", 0)
        data = Clustered(
            tokens=self.examiner.text.tokens,
            labels=self.labelled.labels,
            mixture=self.labelled.natural,
            key=key,
            start=0,
        )
        rule: dict[str, Json] = {"rule": "evenly", "labels": data.labels, "mixture": data.mixture, "key": key}
        training = model_training(self.spec, rule, label=GENERIC, rank=CONTROL_RANK)
        segment = Segment(index=0, start_step=0, end_step=training.total_steps, data=data)
        self.examiner.wishes.lineage(training.wanted((segment,)))
        return training

    @cached_property
    def bank(self) -> Bank:
        domains = self.labelled.figures["domains"]
        assert isinstance(domains, int)
        return Bank(config=self.spec.bank.config(domains), cost=self.spec.cost(domains))

    def source_mixtures(self) -> SourceMixtures | None:
        """Taken from valid text, so that test text is seen by nobody."""
        text = self.examiner.text
        placed = self._valid_labels()
        if placed is None:
            return None
        found = self.examiner.wishes.task(
            "fit",
            {"what": "source_mixtures", "split": "valid"},
            {"tokens_manifest": text.tokens, "labels": self.labelled.labels, **placed},
            label="where each source's text lies",
            rank=EVAL_RANK,
        )
        if found is None:
            return None
        sources = found.figures["sources"]
        assert isinstance(sources, list)
        return SourceMixtures(
            by_source={str(name): found.blobs[f"mixture-{number:05d}"] for number, name in enumerate(sources)},
            figures=found.figures,
        )

    def made(self, training: Training, weights: Digest, mixture: Digest, label: str) -> TaskResult | None:
        """theta(h) of a checkpoint, a plain model's weights."""
        recipe = training.recipe
        assert recipe.soup is not None
        return want_model(
            self.examiner.wishes,
            recipe.model,
            recipe.soup,
            weights=weights,
            labels=self.labelled.labels,
            mixture=mixture,
            label=label,
            rank=EVAL_RANK,
        )

    def contestants(self, targets: SourceMixtures) -> dict[str, Json]:
        """What a contest can name: each source's model, the soup's model of the corpus, and the controls."""
        natural, model = self.labelled.natural, self.spec.full_model()
        wanted = {for_source(name): (self.soup, mixture) for name, mixture in targets.by_source.items()}
        wanted[NATURAL] = (self.soup, natural)
        wanted |= {CONSTANT: (self.constant, natural)} if self.constant is not None else {}
        found: dict[str, tuple[Digest, ModelConfig]] = {}
        for name, (training, mixture) in wanted.items():
            weights = self.examiner.final_weights(training)
            made = self.made(training, weights, mixture, f"make the {name}") if weights is not None else None
            found |= {name: (made.blobs["weights"], model)} if made is not None else {}
        generic = self.examiner.final_weights(self.generic) if self.generic is not None else None
        found |= {GENERIC: (generic, model)} if generic is not None else {}
        return made_models(self.examiner.text.tokens, found)

    def nll(self, training: Training, mixture: Digest, name: str) -> TaskResult | None:
        """NLL on test text of a trained soup's theta(h)."""
        weights = self.examiner.final_weights(training)
        made = self.made(training, weights, mixture, f"make the {name}") if weights is not None else None
        if made is None:
            return None
        return self.examiner.nll_of(training, made.blobs["weights"], "test", label=f"test NLL of the {name}")

    def _valid_labels(self) -> dict[str, Digest] | None:
        text = self.examiner.text
        if self.domains.clusters is not None:
            placed = self.divider.place(self.domains, text.tokens, "valid", text.valid_rows, "")
            if placed is None:
                return None
            return {name.replace("labels", "held"): digest for name, digest in placed[0].items()}
        assigned = self.examiner.wishes.task(
            "assign",
            {"rule": "sources", "split": "valid"},
            {"tokens_manifest": text.tokens},
            label="assign valid rows to their sources",
            rank=EVAL_RANK,
        )
        return None if assigned is None else {"held-00000": assigned.blobs["labels"]}

    def _want_lineage(self, training: Training, data: Mixtures) -> None:
        segment = Segment(index=0, start_step=0, end_step=training.total_steps, data=data)
        self.examiner.wishes.lineage(training.wanted((segment,)))

    def _soup(self, name: str, rank: int, bank: Bank, spread: Spread) -> tuple[Training, Mixtures]:
        spec, how = self.spec, self.spec.training
        data = Mixtures(
            tokens=self.examiner.text.tokens,
            labels=self.labelled.labels,
            key=derive(spec.seed, "mixtures"),
            start=0,
            batch_size=how.batch_size,
            per_step=spec.bank.mixtures_per_step,
            support=spec.bank.support,
            natural_share=spec.bank.natural_share,
        )
        divided = {"spread": to_mapping(spread)} if spread.parts > 1 else {}
        training = make_training(
            spec,
            role="soup",
            index=0,
            model=spec.full_model(),
            schedule=cosine(
                learning_rate=how.learning_rate,
                warmup_fraction=how.warmup_fraction,
                final_fraction=how.final_fraction,
                total_steps=how.steps,
            ),
            batch_size=how.batch_size,
            inputs=spec.text.sequence_length,
            columns=spec.text.sequence_length + 1,
            init_seed=derive(spec.seed, "dense"),
            rule=canonical_json({"rule": "mixtures", **to_mapping(data), **divided}),
            label=name,
            rank=rank,
            bank=bank,
        )
        return training, data


def want_model(
    wishes: Wishes,
    model: ModelConfig,
    config: SoupConfig,
    *,
    weights: Digest,
    labels: Digest,
    mixture: Digest,
    label: str,
    rank: int,
) -> TaskResult | None:
    """theta(h) of a soup's weights. Equal mixtures of one soup are one task, whichever run asks.

    Args:
        labels: the manifest whose domains h is over.
    """
    held = bank_parameters(model, config) + coefficient_parameters(config)
    return wishes.task(
        "fit",
        {"what": "instantiate", "model": to_mapping(model), "soup": to_mapping(config)},
        {"weights": weights, "labels": labels, "mixture": mixture},
        label=label,
        rank=rank,
        memory_bytes=FLOAT_BYTES * (2 * held + 3 * model.num_parameters),
    )
