"""`potluck export [RUN/]SLOT FOLDER`: a published model, or a specialist of a soup, as a Hugging Face Llama folder."""

from __future__ import annotations

import argparse
import json
import shlex
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from potluck.commands.home import Home, admin_client, identity_of, open_home
from potluck.commands.options import add_common
from potluck.commands.output import Output, shown
from potluck.commands.runs import find_run, published_slot
from potluck.commands.soups import PublishedSoup, Specialist, by_weights, find_soup
from potluck.config import from_mapping
from potluck.errors import DataError, UsageError
from potluck.formatting import human_bytes
from potluck.ids import short
from potluck.lm.config import ModelConfig

if TYPE_CHECKING:
    from potluck.lm.agreement import Agreement
    from potluck.lm.card import ModelCard
    from potluck.v1 import admin_pb2

FLOAT32_BYTES = 4


def configure(parser: argparse.ArgumentParser) -> None:
    add_common(parser)
    parser.add_argument(
        "model", metavar="[RUN/]SLOT", help="expert-3, dense, ...; RUN: id, start of an id, or name (default: newest)"
    )
    parser.add_argument("folder", type=Path, nargs="?", metavar="FOLDER", help="must not hold anything yet")
    parser.add_argument("--out", type=Path, metavar="FOLDER", help="the same, as an option")
    soup_help = "a specialist of a soup run, such as code=0.6,law=0.4; name RUN alone then"
    parser.add_argument("--soup", default="", metavar="WEIGHTS", help=soup_help)
    add_writing(parser)


def add_writing(parser: argparse.ArgumentParser) -> None:
    """--force and --check, of whatever writes such a folder."""
    parser.add_argument("--force", action="store_true", help="replace an earlier export in FOLDER")
    parser.add_argument("--check", action="store_true", help="load it with transformers and compare logits and tokens")


def run(args: argparse.Namespace) -> int:
    output, home = Output(as_json=args.json), open_home(args.home)
    if (args.folder is None) == (args.out is None):
        fix = "write `potluck export RUN/SLOT FOLDER`"
        raise UsageError("usage.bad-arguments", "FOLDER must be named once, as an argument or with --out", fix)
    target = Target(folder=args.folder or args.out, force=args.force, check=args.check)
    target.require()
    with admin_client(home) as client:
        if args.soup:
            soup = find_soup(client, home, args.model)
            specialist = by_weights(client, home, soup, args.soup, output)
            written = write_specialist(home, soup, specialist, target, output)
        else:
            run_text, _, slot_text = args.model.rpartition("/")
            written = _write_slot(home, find_run(client, run_text), slot_text, target, output)
    output.result(written)
    output.next_step(elsewhere=[try_it(target.folder.resolve())])
    return 0


@dataclass(frozen=True, kw_only=True)
class Target:
    """Where a model is written, and how."""

    folder: Path
    force: bool
    check: bool

    def require(self) -> None:
        """Refuses what can be known before anything is fetched.

        Raises:
            UsageError: ``usage.out-exists``, ``usage.no-transformers``.
        """
        from potluck.lm.agreement import require_transformers
        from potluck.lm.export import require_free

        if self.check:
            require_transformers()
        require_free(self.folder, force=self.force)


def _write_slot(home: Home, info: admin_pb2.RunInfo, text: str, target: Target, output: Output) -> dict[str, Any]:
    """A published slot, and what was written of it.

    Raises:
        UsageError: ``usage.many-models``, the slot is a soup.
    """
    from potluck.commands.cards import card_of

    slot = published_slot(info, text)
    shape = json.loads(slot.model_json)
    if "soup" in shape:
        what = f"slot {text!r} of run {short(info.run)} is a soup: many models, of which a mixture makes one"
        fix = f"add the mixture: `potluck export {short(info.run)} --soup DOMAIN=WEIGHT,... --out FOLDER`"
        raise UsageError("usage.many-models", what, fix)
    return _write(home, from_mapping(ModelConfig, shape), card_of(home, info, slot), target, output)


def write_specialist(
    home: Home, soup: PublishedSoup, specialist: Specialist, target: Target, output: Output
) -> dict[str, Any]:
    """A specialist of a soup, and what was written of it."""
    from potluck.commands.cards import card_of

    card = card_of(home, soup.info, soup.bank)
    card = replace(card, slot=specialist.label, weights=specialist.weights, soup=specialist.mixture)
    return _write(home, soup.source.model, card, target, output)


def _write(home: Home, config: ModelConfig, card: ModelCard, target: Target, output: Output) -> dict[str, Any]:
    """Fetches what a card names, writes the folder, and says so; as JSON for programs."""
    from potluck.commands.transfer import get_blob
    from potluck.lm.agreement import compare_with_transformers
    from potluck.lm.export import export_llama

    size = human_bytes(config.num_parameters * FLOAT32_BYTES)
    with output.timed(f"fetching {card.slot} of run {short(card.run)} ({size})"):
        identity, scratch = identity_of(home), home.scratch("blobs")
        weights = get_blob(identity, scratch, card.weights, "weights")
        tokenizer = get_blob(identity, scratch, card.tokenizer, "corpus")
    with output.timed(f"writing {size}"):
        exported = export_llama(config, weights, tokenizer, card, target.folder, force=target.force)
    agreement: Agreement | None = None
    if target.check:
        with output.timed("comparing with transformers"):
            agreement = compare_with_transformers(config, weights, tokenizer, exported.folder)
        _require_agreement(agreement, exported.folder)
    output.line(
        f"wrote {card.slot} of run {short(card.run)} ({card.name}), step {card.step:,} of {card.total_steps:,}, "
        f"{exported.num_parameters:,} parameters, to {shown(exported.folder)}"
    )
    for name, digest in exported.files.items():
        output.line(f"{digest}  {name}")
    if config.attention == "document":
        output.note("note: trained with document attention; one document at a time, without <eod> inside, agrees")
    if agreement is not None:
        output.line(f"checked with transformers: {_found(agreement)}")
    return {
        "run": card.run,
        "slot": card.slot,
        "step": card.step,
        "lineage": card.lineage,
        "checkpoint": card.checkpoint,
        "weights": card.weights,
        "tokenizer": card.tokenizer,
        "folder": str(exported.folder),
        "parameters": exported.num_parameters,
        "files": dict(exported.files),
        "check": None if agreement is None else asdict(agreement),
    }


def _require_agreement(agreement: Agreement, folder: Path) -> None:
    """Raises:
    DataError: ``data.export-disagrees``.
    """
    if not agreement.holds:
        what = f"transformers computes something else of {shown(folder)}: {_found(agreement)}"
        fix = "the folder stays for a look; say which version of transformers this was when you report it"
        raise DataError("data.export-disagrees", what, fix)


def _found(agreement: Agreement) -> str:
    greedy = "equal" if agreement.greedy_equal else "not equal"
    tokenizers = "equal" if agreement.tokenizer_equal else "not equal"
    return (
        f"logits differ by at most {agreement.max_logit_difference:.1e} (allowed {agreement.allowed_difference:.1e}), "
        f"{agreement.greedy_tokens} greedy tokens {greedy}, tokenizers {tokenizers}"
    )


def try_it(folder: Path) -> str:
    code = (
        "from transformers import pipeline; "
        f"print(pipeline('text-generation', {shown(folder)!r})('The ', max_new_tokens=40)[0]['generated_text'])"
    )
    return f"python -c {shlex.quote(code)}" if set(code) & set('"$`\\!') else f'python -c "{code}"'
