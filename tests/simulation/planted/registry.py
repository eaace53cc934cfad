"""All planted bugs by name: the author's own, and those of somebody who had not seen the checkers."""

from __future__ import annotations

from importlib.util import find_spec

from tests.simulation.planted.bug import Bug
from tests.simulation.planted.known import BUGS


def all_bugs() -> dict[str, Bug]:
    return {**BUGS, **blind_bugs()}


def blind_bugs() -> dict[str, Bug]:
    if find_spec("tests.simulation.planted.blind_bugs") is None:
        return {}
    from tests.simulation.planted import blind_bugs as blind

    return dict(blind.BUGS)
