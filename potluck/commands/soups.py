"""What commands do with soups: find one, ask its run for a specialist, say what came of it."""

from __future__ import annotations

import json
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from potluck.commands.following import Launch, refusal_of, run_to_end
from potluck.commands.home import Home, identity_of
from potluck.commands.output import Output
from potluck.commands.run import raise_unless_finished
from potluck.commands.runs import find_run, published_slot
from potluck.commands.text import gather, ingest
from potluck.config import from_mapping
from potluck.errors import CorpusError, UsageError
from potluck.ids import NO_DIGEST, Digest, digest_json, short
from potluck.lm.card import SoupMixture
from potluck.lm.config import ModelConfig
from potluck.lm.soup_config import SoupConfig
from potluck.soup_names import PREFIX, SoupName, parse_soup_name
from potluck.specs.instantiate import DomainWeight, InstantiateSpec, SoupSource
from potluck.specs.run import MAX_NAME, spec_from_json
from potluck.specs.soup import SoupSpec

if TYPE_CHECKING:
    from potluck.client import AdminClient
    from potluck.v1 import admin_pb2

BANK, NATURAL = "bank", "soup"
"""Slots of a soup run: the soup itself, and its model of the corpus."""
MAX_LABEL = 60


@dataclass(frozen=True, kw_only=True)
class PublishedSoup:
    """The soup that a run published last."""

    info: admin_pb2.RunInfo
    spec: SoupSpec
    bank: admin_pb2.PublishedSlot
    source: SoupSource
    sizes: Mapping[str, int]
    """Rows of the corpus by domain, in the order of h."""

    def shares(self) -> list[tuple[str, float, int]]:
        """Domains with their share of the corpus and their rows, the largest first."""
        total = sum(self.sizes.values())
        lines = [(name, rows / total, rows) for name, rows in self.sizes.items()]
        return sorted(lines, key=lambda line: (-line[2], line[0]))


@dataclass(frozen=True, kw_only=True)
class Specialist:
    """theta(h), at the coordinator."""

    run: str
    """That made it."""
    is_new: bool
    """Made for this call, not found."""
    seconds: float
    report: Mapping[str, Any]
    """Its manifest, as task `specialist` writes it."""

    @property
    def weights(self) -> Digest:
        return Digest(self.report["blobs"]["weights"])

    @property
    def model(self) -> str:
        """What routers call it."""
        return str(SoupName(weights={name: weight for name, weight, _ in self.report["domains"]}))

    @property
    def label(self) -> str:
        """The same for people, who would not read a long one."""
        return self.model if len(self.model) <= MAX_LABEL else f"soup of {len(self.report['domains'])} domains"

    @property
    def mixture(self) -> SoupMixture:
        """As a model card tells it."""
        histogram = self.report["histogram"] or {}
        return SoupMixture(
            domains=tuple((name, weight, share) for name, weight, share in self.report["domains"]),
            coefficients=tuple(self.report["coefficients"]),
            windows=histogram.get("windows"),
            expected_noise=histogram.get("expected_noise"),
            unplaced=histogram.get("unplaced"),
        )


def find_soup(client: AdminClient, home: Home, run: str) -> PublishedSoup:
    """The soup of a run.

    Raises:
        UsageError: ``usage.not-a-soup``; ``usage.no-slot``: the run has ended without one.
        Refused: ``refused.not-published``: the run goes on, and may publish one yet.
    """
    info = find_run(client, run)
    spec = spec_from_json(info.spec_json)
    if not isinstance(spec, SoupSpec):
        what = f"run {short(info.run)} ({info.name}) is of method {spec.method}, not soup"
        raise UsageError("usage.not-a-soup", what, 'name a run of method = "soup"; `potluck run list` lists runs')
    bank, natural = published_slot(info, BANK), published_slot(info, NATURAL)
    shape = json.loads(bank.model_json)
    labels = _json_blob(home, Digest(shape["labels"]))
    partition = _json_blob(home, Digest(labels["partition"]))
    places: dict[str, Any] = {}
    if partition["kind"] == "clusters":
        name = "encoder" if partition["encoder"]["kind"] == "lsi" else "encoder_manifest"
        places = {"encoder": partition["encoder"]["digest"], "encoder_name": name, "tree": partition["tree"]}
    source = SoupSource(
        bank=Digest(bank.weights),
        natural=Digest(natural.weights),
        labels=Digest(shape["labels"]),
        partition=Digest(labels["partition"]),
        tokenizer=Digest(bank.tokenizer),
        model=from_mapping(ModelConfig, shape["model"]),
        config=from_mapping(SoupConfig, shape["soup"]),
        **places,
    )
    sizes = dict(zip(labels["domains"], labels["sizes"], strict=True))
    return PublishedSoup(info=info, spec=spec, bank=bank, source=source, sizes=sizes)


def by_weights(client: AdminClient, home: Home, soup: PublishedSoup, weights: str, output: Output) -> Specialist:
    """The specialist of weights such as ``code=0.6,law=0.4``.

    Raises:
        UsageError: as `parse_soup_name`; ``usage.unknown-domain``.
    """
    name = parse_soup_name(PREFIX + weights.removeprefix(PREFIX))
    name.shares(list(soup.sizes))
    named = tuple(DomainWeight(name=domain, weight=weight) for domain, weight in sorted(name.weights.items()))
    return _made(client, home, soup, f"{soup.info.name} {str(name).removeprefix(PREFIX)}", output, weights=named)


def by_text(client: AdminClient, home: Home, soup: PublishedSoup, like: Sequence[Path], output: Output) -> Specialist:
    """The specialist for text like this.

    Raises:
        UsageError: ``usage.cannot-place``, nothing places text in this soup's domains.
        CorpusError: as the reader says, or what the run refused: ``corpus.target-too-small``, ``corpus.outside-soup``.
    """
    if not soup.source.tree:
        what = f"the domains of run {short(soup.info.run)} are sources: it knows their names and places no text"
        fix = 'say --weights, or train a soup with partition.by = "clusters"'
        raise UsageError("usage.cannot-place", what, fix)
    from potluck.commands.transfer import put_corpus

    key = short(digest_json([str(path.resolve()) for path in like]))
    data = like[0] if len(like) == 1 else gather(like, home.scratch(f"like-{key}"))
    told = ingest(data, home.scratch(f"ingest-like-{key}"), seed=soup.spec.seed, output=output, is_target=True)
    files = {Digest(digest): Path(path) for digest, path in told["files"].items()}
    put_corpus(identity_of(home), home.scratch("blobs"), files, output)
    name = f"{soup.info.name} like {like[0].name}"
    return _made(client, home, soup, name, output, corpus=Digest(told["manifest"]))


def _made(
    client: AdminClient,
    home: Home,
    soup: PublishedSoup,
    name: str,
    output: Output,
    *,
    weights: tuple[DomainWeight, ...] = (),
    corpus: Digest = NO_DIGEST,
) -> Specialist:
    """Starts the run of this wish, or finds it, and waits for its end."""
    started = time.monotonic()
    spec = InstantiateSpec(
        method="instantiate",
        corpus=corpus,
        seed=soup.spec.seed,
        text=soup.spec.text,
        profile=soup.spec.profile,
        evaluation=soup.spec.evaluation,
        soup=soup.source,
        weights=weights,
    )
    info, is_new = run_to_end(client, home, Launch(spec=spec, name=name[:MAX_NAME]), output)
    error_id, message = refusal_of(info)
    if error_id.startswith("corpus."):  # as if the text had been read here
        raise CorpusError(error_id, message, "give other text or more of it, or say --weights")
    raise_unless_finished(info)
    return Specialist(
        run=info.run,
        is_new=is_new,
        seconds=time.monotonic() - started,
        report=_json_blob(home, Digest(info.report)),
    )


def _json_blob(home: Home, digest: Digest) -> dict[str, Any]:
    from potluck.commands.transfer import get_blob

    path = get_blob(identity_of(home), home.scratch("blobs"), digest, "scores")
    value: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
    return value
