"""`potluck export [RUN/]SLOT FOLDER`: a published model as a Hugging Face Llama folder."""

from __future__ import annotations

import argparse
import json
import shlex
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING

from potluck.commands.home import Home, admin_client, identity_of, open_home
from potluck.commands.options import add_common
from potluck.commands.output import Output, shown
from potluck.commands.runs import find_run
from potluck.config import from_mapping
from potluck.errors import DataError, Refused, UsageError
from potluck.formatting import human_bytes
from potluck.ids import Digest, short
from potluck.lm.config import ModelConfig

if TYPE_CHECKING:
    from potluck.lm.agreement import Agreement
    from potluck.v1 import admin_pb2

FLOAT32_BYTES = 4


def configure(parser: argparse.ArgumentParser) -> None:
    add_common(parser)
    parser.add_argument(
        "model", metavar="[RUN/]SLOT", help="expert-3, dense, ...; RUN: id, start of an id, or name (default: newest)"
    )
    parser.add_argument("out", type=Path, metavar="FOLDER", help="where to write; must not hold anything yet")
    parser.add_argument("--force", action="store_true", help="replace an earlier export in FOLDER")
    parser.add_argument("--check", action="store_true", help="load it with transformers and compare logits and tokens")


def run(args: argparse.Namespace) -> int:
    from potluck.lm.agreement import require_transformers
    from potluck.lm.export import require_free

    output, home = Output(as_json=args.json), open_home(args.home)
    if args.check:
        require_transformers()
    require_free(args.out, force=args.force)
    run_text, _, slot_text = args.model.rpartition("/")
    with admin_client(home) as client:
        info = find_run(client, run_text)
    return _export(home, info, published_slot(info, slot_text), args, output)


def published_slot(info: admin_pb2.RunInfo, text: str) -> admin_pb2.PublishedSlot:
    """The slot of a run.

    Raises:
        Refused: ``refused.not-published``: the run goes on, and may publish it yet.
        UsageError: ``usage.no-slot``: it has ended without.
    """
    for slot in info.published:
        if slot.slot == text:
            return slot
    there = f"it has {', '.join(sorted(slot.slot for slot in info.published)) or 'published nothing'}"
    if info.state == "running":
        what = f"run {short(info.run)} ({info.name}) has not published {text!r}: {there}; {info.stage}"
        fix = f"a slot appears with its first probed checkpoint: follow it with `potluck run watch {short(info.run)}`"
        raise Refused("refused.not-published", what, fix)
    what = f"run {short(info.run)} ({info.name}), {info.state}, has no slot {text!r}: {there}; {info.stage}"
    raise UsageError("usage.no-slot", what, "name one of its slots as RUN/SLOT")


def _export(
    home: Home, info: admin_pb2.RunInfo, slot: admin_pb2.PublishedSlot, args: argparse.Namespace, output: Output
) -> int:
    from potluck.commands.cards import card_of
    from potluck.commands.transfer import get_blob
    from potluck.lm.agreement import compare_with_transformers
    from potluck.lm.export import export_llama

    config = from_mapping(ModelConfig, json.loads(slot.model_json))
    size = human_bytes(config.num_parameters * FLOAT32_BYTES)
    with output.timed(f"fetching {slot.slot} of run {short(info.run)} ({size})"):
        identity, scratch = identity_of(home), home.scratch("blobs")
        weights = get_blob(identity, scratch, Digest(slot.weights), "weights")
        tokenizer = get_blob(identity, scratch, Digest(slot.tokenizer), "corpus")
        card = card_of(home, info, slot)
    with output.timed(f"writing {size}"):
        exported = export_llama(config, weights, tokenizer, card, args.out, force=args.force)
    agreement: Agreement | None = None
    if args.check:
        with output.timed("comparing with transformers"):
            agreement = compare_with_transformers(config, weights, tokenizer, exported.folder)
        _require_agreement(agreement, exported.folder)
    output.result(
        {
            "run": info.run,
            "slot": slot.slot,
            "step": slot.step,
            "lineage": slot.lineage,
            "checkpoint": slot.checkpoint,
            "weights": slot.weights,
            "tokenizer": slot.tokenizer,
            "folder": str(exported.folder),
            "parameters": exported.num_parameters,
            "files": dict(exported.files),
            "check": None if agreement is None else asdict(agreement),
        }
    )
    output.line(
        f"wrote {slot.slot} of run {short(info.run)} ({info.name}), step {slot.step:,} of {card.total_steps:,}, "
        f"{exported.num_parameters:,} parameters, to {shown(exported.folder)}"
    )
    for name, digest in exported.files.items():
        output.line(f"{digest}  {name}")
    if config.attention == "document":
        output.note("note: trained with document attention; one document at a time, without <eod> inside, agrees")
    if agreement is not None:
        output.line(f"checked with transformers: {_found(agreement)}")
    output.next_step(elsewhere=[_try_it(exported.folder)])
    return 0


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


def _try_it(folder: Path) -> str:
    code = (
        "from transformers import pipeline; "
        f"print(pipeline('text-generation', {shown(folder)!r})('The ', max_new_tokens=40)[0]['generated_text'])"
    )
    return f"python -c {shlex.quote(code)}" if set(code) & set('"$`\\!') else f'python -c "{code}"'
