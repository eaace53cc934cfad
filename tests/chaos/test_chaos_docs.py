"""docs/faults.md names tests that exist."""

from __future__ import annotations

import re
from pathlib import Path

TESTS = Path(__file__).parents[1]


def test_every_test_that_the_table_of_faults_names_exists() -> None:
    named = set(re.findall(r"`(test_\w+)`", (TESTS.parent / "docs" / "faults.md").read_text(encoding="utf-8")))
    source = "".join(path.read_text(encoding="utf-8") for path in TESTS.rglob("test_*.py"))
    known = set(re.findall(r"^(?:async )?def (test_\w+)\(", source, re.MULTILINE))
    assert named
    assert named <= known, named - known
