"""How every command speaks: plain lines and tables for people, one JSON object for programs.

Results go to stdout, progress and next steps to stderr, so that a pipe carries results only.
Colour and motion appear only where a terminal is.
"""

from __future__ import annotations

import json
import os
import shutil
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from potluck.errors import PotluckError
from potluck.formatting import TABLE_WIDTH, format_table

if TYPE_CHECKING:
    from rich.console import Console

PROGRESS_INTERVAL_S = 2.0


def command_name() -> str:
    """`potluck` if the shell would find this very program under that name, else how to call it."""
    here = Path(sys.executable).with_name("potluck")
    found = shutil.which("potluck")
    if found is not None and Path(found).resolve() == here.resolve():
        return "potluck"
    return shown(here) if here.is_file() else f"{shown(Path(sys.executable))} -m potluck.cli"


def shown(path: Path) -> str:
    """A path as it is shortest to type from here."""
    relative = os.path.relpath(path)
    return str(path) if relative.startswith("..") else relative


class Output:
    def __init__(self, *, as_json: bool) -> None:
        self.as_json = as_json
        self._said = ""

    def line(self, text: str = "") -> None:
        """A line of the result; silent with --json."""
        if not self.as_json:
            sys.stdout.write(text + "\n")
            sys.stdout.flush()

    def raw(self, text: str) -> None:
        """Text without a line end, as it is generated; silent with --json."""
        if not self.as_json:
            sys.stdout.write(text)
            sys.stdout.flush()

    def result(self, value: Mapping[str, Any]) -> None:
        """The whole result for programs: one line of JSON, only with --json."""
        if self.as_json:
            sys.stdout.write(json.dumps(value, ensure_ascii=False) + "\n")
            sys.stdout.flush()

    def note(self, text: str) -> None:
        """A remark for the person, on stderr."""
        sys.stderr.write(text + "\n")
        sys.stderr.flush()

    def next_step(self, *commands: str, elsewhere: Sequence[str] = ()) -> None:
        """What to try next, on stderr; silent with --json.

        Args:
            commands: each starts with `potluck`, which is printed as what the shell here knows it by.
            elsewhere: the same for other machines, printed as it is.
        """
        if self.as_json:
            return
        self.note("\nnext:")
        for command in [*elsewhere, *(command_name() + command.removeprefix("potluck") for command in commands)]:
            self.note(f"  {command}")

    def error(self, error: PotluckError) -> None:
        if self.as_json:
            body = {"error": {"id": error.error_id, "message": error.message, "fix": error.fix}}
            sys.stdout.write(json.dumps(body, ensure_ascii=False) + "\n")
        self.note(f"error: {error}")

    def table(self, columns: Sequence[str], rows: Sequence[Sequence[str]], *, left: int = 1, title: str = "") -> None:
        """A table of at most 80 columns; the first `left` columns are text, the others numbers."""
        if not self.as_json:
            self.line(format_table(columns, rows, left=left, title=title))

    def progress(self, text: str) -> None:
        """One line on stderr that a terminal overwrites; elsewhere only changes are printed."""
        if self.as_json or text == self._said:
            return
        if sys.stderr.isatty():
            sys.stderr.write("\r\x1b[2K" + text[: TABLE_WIDTH - 1])
            sys.stderr.flush()
        else:
            self.note(text)
        self._said = text

    def end_progress(self) -> None:
        if self._said and sys.stderr.isatty() and not self.as_json:
            sys.stderr.write("\r\x1b[2K")
            sys.stderr.flush()
        self._said = ""

    def terminal(self) -> Console | None:
        """A rich console on stdout if a person watches, else None."""
        if self.as_json or not sys.stdout.isatty():
            return None
        from rich.console import Console

        return Console()

    @contextmanager
    def timed(self, what: str) -> Iterator[None]:
        """Says what is being done, and afterwards how long it took if that was noticeable."""
        started = time.monotonic()
        self.progress(f"{what} ...")
        yield
        self.end_progress()
        took = time.monotonic() - started
        if took > PROGRESS_INTERVAL_S and not self.as_json:
            self.note(f"{what}: {took:.0f} s")
