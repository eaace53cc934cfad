"""Namespaces where they can be made: with `ip` and as root, what fails here is a failure, never a skip."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.chaos.conftest import job, undisturbed
from tests.netns.fleet import Fleet
from tests.netns.spaces import Spaces, why_none

__all__ = ["job", "undisturbed"]


@pytest.fixture(scope="session")
def namespaces() -> None:
    reason = why_none()
    if reason:
        pytest.skip(reason)


@pytest.fixture
def fleet(namespaces: None, tmp_path: Path) -> Iterator[Fleet]:
    with Spaces() as spaces, Fleet(tmp_path, spaces) as fleet:
        yield fleet
