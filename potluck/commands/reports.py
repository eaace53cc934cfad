"""Fetches what a report is made of and puts it together."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

from potluck.commands.home import Home, identity_of
from potluck.errors import Refused
from potluck.ids import Digest, short
from potluck.live import read_speeds
from potluck.specs.choices import ChoicesSpec
from potluck.specs.cluster import ClusterSpec
from potluck.specs.instantiate import InstantiateSpec
from potluck.specs.run import spec_from_json
from potluck.specs.smalltalk import SmallTalkSpec

if TYPE_CHECKING:
    from potluck.client import AdminClient
    from potluck.v1 import admin_pb2


def report_of(client: AdminClient, home: Home, info: admin_pb2.RunInfo) -> dict[str, Any]:
    """The whole report of a finished run.

    Raises:
        Refused: ``refused.not-finished``.
    """
    from potluck.commands.transfer import get_blob
    from potluck.report.build import RunFacts, build_report
    from potluck.report.cards import cards_report
    from potluck.report.contest import contest_report

    if info.state != "finished":
        message = f"run {short(info.run)} is {info.state} ({info.stage}, {info.fraction:.0%}); it has no report yet"
        raise Refused("refused.not-finished", message, f"follow it with `potluck run watch {short(info.run)}`")
    path = get_blob(identity_of(home), home.scratch("blobs"), Digest(info.report), "scores")
    science = json.loads(path.read_text(encoding="utf-8"))
    spec, curves = spec_from_json(info.spec_json), json.loads(info.results_json or "{}")
    told = {"run": info.run, "name": info.name, "spec": json.loads(info.spec_json)}
    if isinstance(spec, InstantiateSpec | ChoicesSpec):
        return {**science, **told, "method": spec.method}
    if isinstance(spec, ClusterSpec):
        return cards_report(science, **told)
    if not isinstance(spec, SmallTalkSpec):
        return dict(contest_report(science, curves=curves.get("lineages", {}), **told))
    ledger = client.get_ledger(info.run)
    facts = RunFacts(
        run=info.run,
        name=info.name,
        spec=spec,
        curves=curves,
        bytes_by_plane={
            "control": ledger.bytes_control,
            "corpus": ledger.bytes_corpus,
            "scores": ledger.bytes_scores,
            "weights": ledger.bytes_weights,
        },
        tokens_per_second=read_speeds(home, info.run),
        ledger_ok=ledger.ok,
        ledger_problems=tuple(ledger.problems),
    )
    return build_report(science, facts)


def render_text(report: dict[str, Any]) -> str:
    """The tables of a report, at most 80 columns wide."""
    from potluck.report.cards import render_cards
    from potluck.report.choices import render_choices
    from potluck.report.contest import render_contest
    from potluck.report.instantiated import render_instantiated
    from potluck.report.soup import render_soup
    from potluck.report.specialist import render_specialist
    from potluck.report.table import render

    by_method = {
        "cluster": render_cards,
        "crisp": render_specialist,
        "single": render_contest,
        "contest": render_contest,
        "choices": render_choices,
        "soup": render_soup,
        "instantiate": render_instantiated,
    }
    return by_method.get(report.get("method", ""), render)(report)


def render_html(report: dict[str, Any]) -> str:
    """The page of a report."""
    from potluck.report.cards import cards_page
    from potluck.report.choices import choices_page
    from potluck.report.contest import contest_page
    from potluck.report.html import render_page
    from potluck.report.instantiated import instantiated_page
    from potluck.report.soup import soup_page
    from potluck.report.specialist import specialist_page

    by_method = {
        "cluster": cards_page,
        "crisp": specialist_page,
        "single": contest_page,
        "contest": contest_page,
        "choices": choices_page,
        "soup": soup_page,
        "instantiate": instantiated_page,
    }
    return by_method.get(report.get("method", ""), render_page)(report)


def file_stem(report: dict[str, Any]) -> str:
    """What a report's files are called."""
    return "cards" if report.get("method") == "cluster" else "report"
