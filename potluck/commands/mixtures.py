"""What commands do with mixtures: read weights, name domains, put shares and history into rows and JSON."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from datetime import datetime
from typing import TYPE_CHECKING, Any

from potluck.commands.output import Output
from potluck.commands.runs import find_run
from potluck.errors import UsageError

if TYPE_CHECKING:
    from potluck.client import AdminClient
    from potluck.v1 import admin_pb2, mixture_pb2

MOST_ROWS = 20
"""Domains that a table shows unless all are asked for."""
MAX_LISTED = 5
AT_THE_GATE = ("training", "evaluating")


def find_mixture(client: AdminClient, run: str) -> tuple[admin_pb2.RunInfo, mixture_pb2.MixtureInfo]:
    """A run, the newest for an empty text, and what it reads."""
    info = find_run(client, run)
    return info, client.show_mixture(info.run)


def parse_weights(words: Sequence[str], domains: Sequence[str]) -> dict[str, float]:
    """Weights by domain from words such as ``law=0.5``.

    A name that is no domain but begins exactly one stands for that one. A name that begins none stays as it is:
    the coordinator refuses it and says what is near.

    Raises:
        UsageError: ``usage.bad-weight``, ``usage.ambiguous-domain``.
    """
    weights: dict[str, float] = {}
    for word in words:
        # The last sign: a domain's name may have others.
        name, sign, number = word.rpartition("=")
        try:
            weight = float(number)
        except ValueError:
            sign, weight = "", 0.0
        if not sign or not name:
            raise UsageError("usage.bad-weight", f"{word!r} is not DOMAIN=WEIGHT", "write it as in law=0.5")
        domain = _domain(name, domains)
        if domain in weights:
            raise UsageError("usage.bad-weight", f"domain {domain!r} is named twice", "give each domain one weight")
        weights[domain] = weight
    return weights


def _domain(name: str, domains: Sequence[str]) -> str:
    if name in domains:
        return name
    found = [domain for domain in domains if domain.startswith(name)]
    if len(found) > 1:
        listed = ", ".join(found[:MAX_LISTED]) + (", ..." if len(found) > MAX_LISTED else "")
        what = f"{name!r} begins {len(found)} domains: {listed}"
        raise UsageError("usage.ambiguous-domain", what, "write more of the name")
    return found[0] if found else name


def show_shares(weights: Iterable[mixture_pb2.DomainWeight], output: Output, *, every: bool) -> None:
    """A table of the largest shares."""
    largest = sorted(weights, key=lambda line: -line.weight)
    shown = largest if every else largest[:MOST_ROWS]
    rows = [
        [line.domain, _share(line.weight), _share(line.natural), _ratio(line.weight, line.natural), str(line.rows)]
        for line in shown
    ]
    output.table(["domain", "weight", "natural", "ratio", "rows"], rows)
    _tell_rest(largest[len(shown) :], output)


def show_change(
    before: Iterable[mixture_pb2.DomainWeight], after: Iterable[mixture_pb2.DomainWeight], output: Output
) -> None:
    """A table of what changes most."""
    old = {line.domain: line.weight for line in before}
    lines = sorted(after, key=lambda line: -abs(line.weight - old.get(line.domain, 0.0)))
    rows = [
        [line.domain, _share(old.get(line.domain, 0.0)), _share(line.weight), _share(line.natural)]
        for line in lines[:MOST_ROWS]
    ]
    output.table(["domain", "now", "then", "natural"], rows)
    if len(lines) > MOST_ROWS:
        output.line(f"and {len(lines) - MOST_ROWS} more domains, which change less")


def _tell_rest(rest: Sequence[mixture_pb2.DomainWeight], output: Output) -> None:
    if rest:
        together = _share(sum(line.weight for line in rest))
        output.line(f"and {len(rest)} more domains with {together} together (--all lists them)")


def weights_json(weights: Iterable[mixture_pb2.DomainWeight]) -> list[dict[str, Any]]:
    return [
        {"domain": line.domain, "weight": line.weight, "natural": line.natural, "rows": line.rows} for line in weights
    ]


def history_json(info: mixture_pb2.MixtureInfo) -> dict[str, Any]:
    """Versions and proposals; null is what is not known yet."""
    versions = ("version", "from_step", "mixture", "origin", "reason", "unix_ms")
    return {
        "versions": [{name: getattr(version, name) for name in versions} for version in info.versions],
        "proposals": [proposal_json(proposal) for proposal in info.proposals],
    }


def proposal_json(proposal: mixture_pb2.MixtureProposal) -> dict[str, Any]:
    plain = ("number", "at_step", "gate_steps", "state", "mixture", "origin", "reason", "gate_flops", "unix_ms")
    return {name: getattr(proposal, name) for name in plain} | {
        name: getattr(proposal, name) if proposal.HasField(name) else None
        for name in ("difference", "low", "high", "smallest_effect")
    }


def show_history(info: mixture_pb2.MixtureInfo, output: Output) -> None:
    """Two tables: the mixtures that held, and what was proposed."""
    rows = [[str(v.version), str(v.from_step), v.origin, when(v.unix_ms), v.reason] for v in info.versions]
    output.table(["version", "from step", "origin", "when", "reason"], rows, left=5)
    if not info.proposals:
        return
    output.line()
    rows = [
        [
            str(p.number),
            str(p.at_step),
            p.state,
            f"{p.difference:+.4f}" if p.HasField("difference") else "-",
            f"{p.low:+.4f} {p.high:+.4f}" if p.HasField("low") and p.HasField("high") else "-",
            p.origin,
            p.reason,
        ]
        for p in info.proposals
    ]
    output.table(["proposal", "at step", "state", "nats/token", "interval", "origin", "reason"], rows, left=7)


def when(unix_ms: int) -> str:
    """A time on this machine's clock."""
    return datetime.fromtimestamp(unix_ms / 1000).strftime("%Y-%m-%d %H:%M") if unix_ms else "-"


def changes(before: Mapping[str, float], after: Mapping[str, float]) -> list[tuple[str, float, float]]:
    """(domain, from, to) of what differs, the largest difference first."""
    pairs = ((name, before.get(name, 0.0), weight) for name, weight in after.items())
    return sorted((line for line in pairs if line[1] != line[2]), key=lambda line: -abs(line[2] - line[1]))


def _share(weight: float) -> str:
    return f"{weight:.1%}"


def _ratio(weight: float, natural: float) -> str:
    return f"{weight / natural:.2f}" if natural else "-"
