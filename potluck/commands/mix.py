"""`potluck mix show|set|propose|history|from-traffic`."""

from __future__ import annotations

import argparse
import textwrap
import uuid
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

from potluck.commands.home import admin_client, home_option, open_home
from potluck.commands.mixtures import (
    AT_THE_GATE,
    MOST_ROWS,
    find_mixture,
    history_json,
    parse_weights,
    show_change,
    show_history,
    show_shares,
    weights_json,
    when,
)
from potluck.commands.options import add_common, add_run
from potluck.commands.output import Output
from potluck.formatting import TABLE_WIDTH
from potluck.ids import short

if TYPE_CHECKING:
    from potluck.client import AdminClient
    from potluck.v1 import mixture_pb2

VERBS = {
    "show": "how much of each domain a run reads",
    "set": "change it from the next step that is not given out yet",
    "propose": "change it if held-out text shows no harm: two forks are trained and compared",
    "history": "the mixtures that held, and what was proposed",
    "from-traffic": "propose the mixture of what routers were asked for",
}
ON_WEIGHTS = "share of what is read; a domain's name may be cut where it stays the only one; domains that are not \
named share the rest by size"


def configure(parser: argparse.ArgumentParser) -> None:
    verbs = parser.add_subparsers(dest="verb", required=True, metavar="VERB")
    for verb, summary in VERBS.items():
        inner = verbs.add_parser(verb, help=summary, description=summary[0].upper() + summary[1:] + ".")
        add_common(inner)
        if verb in ("set", "propose"):
            inner.add_argument("run", metavar="RUN", help="id, start of an id, or name")
            inner.add_argument("weights", nargs="+", metavar="DOMAIN=WEIGHT", help=ON_WEIGHTS)
            inner.add_argument("--only", action="store_true", help="read nothing else; weights are proportions then")
        else:
            add_run(inner)
        if verb == "show":
            inner.add_argument("--all", action="store_true", help=f"all domains, not the {MOST_ROWS} largest")
        elif verb != "history":
            inner.add_argument("--reason", default="", metavar="TEXT", help="for people, at most 256 characters")
        if verb == "from-traffic":
            help_prior = "how many requests the natural mixture counts for (default: one a domain)"
            inner.add_argument("--prior", type=float, default=None, metavar="N", help=help_prior)
            inner.add_argument("--reset", action="store_true", help="count anew from here on")


def run(args: argparse.Namespace) -> int:
    verbs = {
        "show": _show,
        "set": _set,
        "propose": _propose,
        "history": _history,
        "from-traffic": _from_traffic,
    }
    return verbs[args.verb](args, Output(as_json=args.json))


def _show(args: argparse.Namespace, output: Output) -> int:
    home = open_home(args.home)
    with admin_client(home) as client:
        info, mixture = find_mixture(client, args.run)
    output.result(
        {
            "run": mixture.run,
            "name": mixture.name,
            "state": info.state,
            "partition": mixture.partition,
            "to_step": mixture.to_step,
            "total_steps": mixture.total_steps,
            "gate_steps": mixture.gate_steps,
            "domains": weights_json(mixture.current),
            **history_json(mixture),
        }
    )
    version = mixture.versions[-1]
    reason = f": {version.reason}" if version.reason else ""
    output.line(f"run {short(mixture.run)} ({mixture.name}), {mixture.total_steps} steps")
    read = f"mixture {version.version}, from step {version.from_step} ({version.origin}{reason})"
    output.line(textwrap.fill(read, TABLE_WIDTH))
    show_shares(mixture.current, output, every=args.all)
    for proposal in mixture.proposals:
        if proposal.state in AT_THE_GATE:
            output.line(f"proposal {proposal.number} is at the gate ({proposal.state}); nothing else can change now")
            output.next_step(f"potluck mix history {short(mixture.run)}{home_option(home)}")
            return 0
    if info.state != "running":
        output.line(f"the run is {info.state}: its mixture does not change any more")
        output.next_step(f"potluck mix history {short(mixture.run)}{home_option(home)}")
        return 0
    output.line(f"a change now would hold from step {mixture.to_step} of {mixture.total_steps}")
    output.next_step(f"potluck mix propose {short(mixture.run)} DOMAIN=WEIGHT{home_option(home)}")
    return 0


def _ask(
    args: argparse.Namespace, client: AdminClient, change: Callable[..., mixture_pb2.SteerResponse]
) -> tuple[mixture_pb2.MixtureInfo, mixture_pb2.SteerResponse]:
    """Asks for the weights that were given; the mixture as it was, and the answer."""
    _, mixture = find_mixture(client, args.run)
    weights = parse_weights(args.weights, [line.domain for line in mixture.current])
    told = {"request_id": uuid.uuid4().hex, "others_zero": args.only, "reason": args.reason}
    return mixture, change(mixture.run, weights, **told)


def _set(args: argparse.Namespace, output: Output) -> int:
    home = open_home(args.home)
    with admin_client(home) as client:
        mixture, answer = _ask(args, client, client.set_mixture)
    output.result(_steered(mixture, answer))
    show_change(mixture.current, answer.weights, output)
    output.line(f"mixture {answer.number} of run {short(mixture.run)} holds from step {answer.step}")
    output.next_step(f"potluck mix show {short(mixture.run)}{home_option(home)}")
    return 0


def _propose(args: argparse.Namespace, output: Output) -> int:
    home = open_home(args.home)
    with admin_client(home) as client:
        mixture, answer = _ask(args, client, client.propose_mixture)
    output.result(_steered(mixture, answer))
    _tell_proposal(mixture, answer, output)
    output.next_step(f"potluck why mixture {short(mixture.run)}{home_option(home)}")
    return 0


def _history(args: argparse.Namespace, output: Output) -> int:
    home = open_home(args.home)
    with admin_client(home) as client:
        _, mixture = find_mixture(client, args.run)
    output.result({"run": mixture.run, "name": mixture.name, **history_json(mixture)})
    show_history(mixture, output)
    step = "why mixture" if mixture.proposals else "mix show"
    output.next_step(f"potluck {step} {short(mixture.run)}{home_option(home)}")
    return 0


def _from_traffic(args: argparse.Namespace, output: Output) -> int:
    home = open_home(args.home)
    with admin_client(home) as client:
        _, mixture = find_mixture(client, args.run)
        traffic = client.get_traffic(mixture.run)
        _show_traffic(traffic, output)
        answer = client.propose_mixture(
            mixture.run,
            {},
            request_id=uuid.uuid4().hex,
            origin="traffic",
            reason=args.reason or f"{sum(count.requests for count in traffic.counts)} requests",
            prior_requests=args.prior,
        )
        if args.reset:
            client.get_traffic(mixture.run, reset=True)
    counted = {
        "since_unix_ms": traffic.since_unix_ms,
        "unknown": traffic.unknown,
        "requests": {count.domain: count.requests for count in traffic.counts},
    }
    output.result({**_steered(mixture, answer), "traffic": counted})
    output.line()
    _tell_proposal(mixture, answer, output)
    output.next_step(f"potluck why mixture {short(mixture.run)}{home_option(home)}")
    return 0


def _show_traffic(traffic: mixture_pb2.TrafficInfo, output: Output) -> None:
    if not traffic.counting:
        output.line("no router has counted requests of this run since the coordinator started")
        return
    counts: Sequence[mixture_pb2.DomainCount] = traffic.counts
    total = sum(count.requests for count in counts)
    rows = [[count.domain, str(count.requests), f"{count.requests / total:.1%}"] for count in counts[:MOST_ROWS]]
    output.table(["domain", "requests", "share"], rows)
    if len(counts) > MOST_ROWS:
        output.line(f"and {len(counts) - MOST_ROWS} more domains")
    unknown = f"; {traffic.unknown} more fell into no domain of the run" if traffic.unknown else ""
    output.line(f"{total} requests since {when(traffic.since_unix_ms)}{unknown}")


def _tell_proposal(mixture: mixture_pb2.MixtureInfo, answer: mixture_pb2.SteerResponse, output: Output) -> None:
    show_change(mixture.current, answer.weights, output)
    told = (
        f"proposal {answer.number} of run {short(mixture.run)}: two forks of {mixture.gate_steps} steps begin at step "
        f"{answer.step}, one with each mixture; it is kept only if held-out text shows no harm"
    )
    output.line(textwrap.fill(told, TABLE_WIDTH))


def _steered(mixture: mixture_pb2.MixtureInfo, answer: mixture_pb2.SteerResponse) -> dict[str, Any]:
    return {
        "run": mixture.run,
        "number": answer.number,
        "step": answer.step,
        "mixture": answer.mixture,
        "domains": weights_json(answer.weights),
    }
