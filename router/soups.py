"""Which model of a soup a request means. Pure."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from potluck.errors import NotReachable, UsageError
from potluck.soup_names import EXAMPLE, MAX_LISTED, Shares, parse_soup_name
from router.book import Loaded
from router.view import View


@dataclass(frozen=True, kw_only=True)
class SoupModel:
    """One model of a view's soup."""

    slot: str
    """Of the bank it is made of."""
    mixture: Shares
    name: str
    """Its one name."""


def soup_model(loaded: Loaded, name: str, held: Sequence[Loaded]) -> SoupModel:
    """Reads a model's name against a view.

    Args:
        held: all that this router serves, to name a run that is meant.

    Raises:
        UsageError: ``usage.no-soup``: the run has none; ``usage.unknown-domain``; as `parse_soup_name`.
        NotReachable: ``net.no-soup``: the run has published none yet.
    """
    soup_name, view = parse_soup_name(name), loaded.view
    if view.soup is None:
        soups = [other.view.name for other in held if other.view.soup is not None][-MAX_LISTED:]
        fix = f"name a run that is one: {', '.join(soups)}" if soups else 'none is served here: run method = "soup"'
        raise UsageError("usage.no-soup", f"run {view.name} ({view.run[:12]}) is no soup", fix)
    if view.soup.slot not in view.slots:
        what = f"run {view.name} has not published its soup yet"
        raise NotReachable("net.no-soup", what, "try again once it has: see `potluck run status`")
    mixture = soup_name.shares(loaded.scorer.domains)
    return SoupModel(slot=view.soup.slot, mixture=mixture, name=str(soup_name))


def check_slot(view: View, slot: str) -> None:
    """Refuses slots that cannot answer.

    Raises:
        UsageError: ``usage.unknown-slot``; ``usage.slot-is-soup``: it holds a soup, which is many models.
    """
    soup_slot = view.soup.slot if view.soup is not None else ""
    if slot not in view.slots:
        fix = f"slots of run {view.name}: {', '.join(sorted(set(view.slots) - {soup_slot}))}"
        raise UsageError("usage.unknown-slot", f"slot {slot!r} is not served", fix)
    if slot == soup_slot:
        raise UsageError("usage.slot-is-soup", f"slot {slot!r} holds a soup", f"name one of its models, as {EXAMPLE}")
