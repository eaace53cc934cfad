"""A pytest plugin that runs any tests with a bug planted.

`python -m pytest -p tests.simulation.planted.plugin --plant NAME tests/unit/test_core_leases.py`: a bug that these
tests find needs no simulator, and does not belong in the table.
"""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from tests.simulation.planted.registry import all_bugs


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--plant", default="", metavar="NAME", help="a bug of tests/simulation/planted")


@pytest.hookimpl(wrapper=True)
def pytest_runtestloop(session: pytest.Session) -> Iterator[None]:
    """The bug is there while tests run, whatever their modules imported before."""
    name = session.config.getoption("--plant")
    bugs = all_bugs()
    if not name:
        return (yield)
    if name not in bugs:
        raise pytest.UsageError(f"no planted bug {name!r}; there are {', '.join(bugs)}")
    with bugs[name].plant():
        return (yield)
