"""What a check says, and how people read it."""

from __future__ import annotations

import textwrap
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

from potluck.formatting import TABLE_WIDTH

State = Literal["ok", "warn", "fail"]


@dataclass(frozen=True, kw_only=True)
class Check:
    name: str
    state: State
    found: str
    """With the values that were compared."""
    fix: str = ""
    """Empty only if all is well."""

    def __post_init__(self) -> None:
        assert bool(self.fix) == (self.state != "ok"), self


def ok(name: str, found: str) -> Check:
    return Check(name=name, state="ok", found=found)


def warn(name: str, found: str, fix: str) -> Check:
    return Check(name=name, state="warn", found=found, fix=fix)


def fail(name: str, found: str, fix: str) -> Check:
    return Check(name=name, state="fail", found=found, fix=fix)


def format_checks(checks: Sequence[Check]) -> str:
    """A table of at most `TABLE_WIDTH` columns: state, name, what was found; below it the fix, where one is needed."""
    width = max((len(check.name) for check in checks), default=0)
    lines: list[str] = []
    for check in checks:
        head = f"{check.state:<4}  {check.name:<{width}}  "
        lines += textwrap.wrap(check.found, TABLE_WIDTH, initial_indent=head, subsequent_indent=" " * len(head))
        if check.fix:
            indent = " " * len(head)
            lines += textwrap.wrap(f"fix: {check.fix}", TABLE_WIDTH, initial_indent=indent, subsequent_indent=indent)
    return "\n".join(lines)
