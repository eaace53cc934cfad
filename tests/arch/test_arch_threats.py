"""docs/security.md: every threat is held by tests, and they exist."""

from __future__ import annotations

import re
from pathlib import Path

TESTS = Path(__file__).parents[1]
PAGE = (TESTS.parent / "docs" / "security.md").read_text(encoding="utf-8")


def threats() -> list[list[str]]:
    """The cells of each row of the table under `What holds`."""
    table = PAGE.partition("## What holds")[2].partition("\n## ")[0]
    rows = [[cell.strip() for cell in line.strip("|").split("|")] for line in table.splitlines() if line[:1] == "|"]
    return rows[2:]


def test_every_threat_of_the_table_names_what_holds_and_a_test() -> None:
    assert len(threats()) > 20
    for row in threats():
        assert len(row) == 3, row
        assert row[1], row
        assert re.search(r"`test_\w+`", row[2]), row


def test_every_test_that_the_table_of_threats_names_exists() -> None:
    named = set(re.findall(r"`(test_\w+)`", PAGE))
    source = "".join(path.read_text(encoding="utf-8") for path in TESTS.rglob("test_*.py"))
    known = set(re.findall(r"^(?:async )?def (test_\w+)\(", source, re.MULTILINE))
    assert named
    assert named <= known, named - known


def test_every_file_that_the_page_names_exists() -> None:
    for names in re.findall(r"`((?:potluck|coordinator|router|tests)/[\w/{},.*]+)`", PAGE):
        folder, _, inner = names.partition("{")
        for name in inner.rstrip(".py").rstrip("}").split(",") if inner else [""]:
            path = f"{folder}{name}.py" if inner else names
            assert list(TESTS.parent.glob(path)), path
