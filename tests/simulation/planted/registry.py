"""All planted bugs by section of the table, and by name."""

from __future__ import annotations

from collections.abc import Mapping

from tests.simulation.planted import blind_bugs, known, recent_bugs
from tests.simulation.planted.bug import Bug

SECTIONS: Mapping[str, Mapping[str, Bug]] = {
    "Planted by the author of the checkers": known.BUGS,
    "Planted blind": blind_bugs.BUGS,
    "Planted before they were tried": recent_bugs.BUGS,
}


def all_bugs() -> dict[str, Bug]:
    return {name: bug for bugs in SECTIONS.values() for name, bug in bugs.items()}
