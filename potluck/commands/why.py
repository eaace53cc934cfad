"""`potluck why mixture`: what was proposed, how it was compared, and what the verdict rests on, in words."""

from __future__ import annotations

import argparse
import json
import textwrap
from collections.abc import Iterable, Mapping, Sequence
from typing import TYPE_CHECKING

from potluck.commands.home import Home, admin_client, home_option, identity_of, open_home
from potluck.commands.mixtures import changes, find_mixture, proposal_json, when
from potluck.commands.options import add_common, add_run
from potluck.commands.output import Output
from potluck.errors import DataError
from potluck.formatting import TABLE_WIDTH, human_count
from potluck.ids import Digest, short

if TYPE_CHECKING:
    from potluck.v1 import mixture_pb2

RULE = "adopted only if the upper end of the interval is at most 0"
MOST_NAMED = 3
Changes = Sequence[tuple[str, float, float]]


def configure(parser: argparse.ArgumentParser) -> None:
    add_common(parser)
    parser.add_argument("what", choices=["mixture"], help="why a run's mixture is what it is")
    add_run(parser)


def run(args: argparse.Namespace) -> int:
    output, home = Output(as_json=args.json), open_home(args.home)
    with admin_client(home) as client:
        _, mixture = find_mixture(client, args.run)
    changed = _changed(home, mixture)
    output.result(
        {
            "run": mixture.run,
            "name": mixture.name,
            "rule": RULE,
            "proposals": [
                proposal_json(proposal)
                | {"changes": [{"domain": n, "from": a, "to": b} for n, a, b in changed[proposal.number] or ()]}
                for proposal in mixture.proposals
            ],
        }
    )
    blocks = [explained(proposal, changed[proposal.number]) for proposal in mixture.proposals]
    for number, block in enumerate([*blocks, _without_gate(mixture)]):
        if number and block:
            output.line()
        for paragraph in block:
            output.line(textwrap.fill(paragraph, TABLE_WIDTH))
    step = "mix history" if mixture.proposals else "mix show"
    output.next_step(f"potluck {step} {short(mixture.run)}{home_option(home)}")
    return 0


def explained(proposal: mixture_pb2.MixtureProposal, changed: Changes | None) -> list[str]:
    """One proposal in a few paragraphs; `changed` is None where its mixture is not to be had any more."""
    reason = f": {proposal.reason}" if proposal.reason else ""
    told = [f"Proposal {proposal.number} ({proposal.origin}, {when(proposal.unix_ms)}){reason}"]
    told.append(_what(changed))
    told.append(_forks(proposal))
    if proposal.state in ("adopted", "refused"):
        told += [_measured(proposal), _verdict(proposal)]
    else:
        told.append(f"It will be {RULE}: where the held-out text shows no harm.")
    told.append(
        f"Compute of the gate, apart from the run's own training: {human_count(proposal.gate_flops)} FLOP, of the fork "
        "that is not kept."
    )
    return told


def _what(changed: Changes | None) -> str:
    if changed is None:
        return "Its mixture is not in the coordinator's store any more."
    if not changed:
        return "Proposed: the mixture that was running."
    more, less = ([line for line in changed if (line[2] > line[1]) == up] for up in (True, False))
    parts = [f"{word} of {_named(lines)}" for word, lines in (("more", more), ("less", less)) if lines]
    return f"Proposed: {'; '.join(parts)}."


def _named(lines: Changes) -> str:
    listed = [f"{name} ({before:.1%} to {after:.1%})" for name, before, after in lines[:MOST_NAMED]]
    return ", ".join(listed) + (f" and {len(lines) - MOST_NAMED} others" if len(lines) > MOST_NAMED else "")


def _forks(proposal: mixture_pb2.MixtureProposal) -> str:
    doing = "are to train" if proposal.state == "training" else "trained"
    measured = " Both are being measured on held-out text now." if proposal.state == "evaluating" else ""
    return (
        f"Two forks of the checkpoint at step {proposal.at_step} {doing} for {proposal.gate_steps} steps each, one by "
        f"the running mixture, one by the proposed one.{measured}"
    )


def _measured(proposal: mixture_pb2.MixtureProposal) -> str:
    if not proposal.HasField("high"):
        return (
            "There is no interval: a fork's loss was not finite, or there were fewer than two packs of held-out text."
        )
    visible = f"; differences below about {proposal.smallest_effect:.4f} so much text cannot show"
    return (
        f"On held-out text the proposal's loss differs from the running mixture's by {proposal.difference:+.4f} nats a "
        f"token (less is better), with an interval from {proposal.low:+.4f} to {proposal.high:+.4f}"
        f"{visible if proposal.HasField('smallest_effect') else ''}."
    )


def _verdict(proposal: mixture_pb2.MixtureProposal) -> str:
    if proposal.state == "adopted":
        return f"It is {RULE}. {proposal.high:+.4f} is: adopted, from step {proposal.at_step}."
    if not proposal.HasField("high"):
        return f"It is {RULE}: refused, and the run went on with the running mixture."
    unsure = " That does not say that it is worse: the interval holds 0." if proposal.low <= 0 else ""
    return f"It is {RULE}. {proposal.high:+.4f} is not: refused, and the run went on as before.{unsure}"


def _without_gate(mixture: mixture_pb2.MixtureInfo) -> list[str]:
    proposed = {proposal.number for proposal in mixture.proposals}
    placed = [v for v in mixture.versions if v.version and v.version not in proposed]
    if not placed:
        return [] if proposed else [f"Nobody changed the mixture of run {short(mixture.run)}, or proposed to."]
    listed = ", ".join(f"{version.version} (from step {version.from_step})" for version in placed)
    return [f"Set by hand, without a comparison: mixture {listed}."]


def _changed(home: Home, mixture: mixture_pb2.MixtureInfo) -> dict[int, Changes | None]:
    """By proposal, what it changed of the mixture that was running; None where one of the two is gone."""
    versions = {proposal.number: _running_before(mixture, proposal.number) for proposal in mixture.proposals}
    weights = _weights(home, [*versions.values(), *(proposal.mixture for proposal in mixture.proposals)])
    found: dict[int, Changes | None] = {}
    for proposal in mixture.proposals:
        before, after = weights[versions[proposal.number]], weights[proposal.mixture]
        found[proposal.number] = None if before is None or after is None else changes(before, after)
    return found


def _running_before(mixture: mixture_pb2.MixtureInfo, number: int) -> str:
    return [version.mixture for version in mixture.versions if version.version < number][-1]


def _weights(home: Home, mixtures: Iterable[str]) -> dict[str, Mapping[str, float] | None]:
    """Weights by domain of each mixture; None for one that the coordinator has let go."""
    from potluck.net.blobs.client import BlobClient
    from potluck.net.blobs.store import BlobStore

    found: dict[str, Mapping[str, float] | None] = {}
    with BlobClient(identity_of(home), BlobStore(home.scratch("blobs"))) as client:
        for mixture in dict.fromkeys(mixtures):
            try:
                path = client.get(Digest(mixture), "scores").result()
            except DataError as error:
                if error.error_id != "data.missing-blob":
                    raise
                found[mixture] = None
                continue
            found[mixture] = json.loads(path.read_text(encoding="utf-8"))["weights"]
    return found
