"""The soup that a demo leaves to be tried: a spec that `run start` takes, and a person's to change."""

from __future__ import annotations

from pathlib import Path

from potluck.commands.runs import read_run_file
from potluck.demo.session import SOUP_NAME, Demo, write_soup
from potluck.specs.run import UNKNOWN_DIGEST
from potluck.specs.soup import SoupSpec


def test_a_demo_leaves_the_spec_of_a_soup_that_places_text_and_keeps_one_that_was_changed(tmp_path: Path) -> None:
    demo = Demo(folder=tmp_path / "demo", data=None, minutes=3.0, corpus_set="quick")
    write_soup(demo)
    file, data = read_run_file(demo.soup)
    spec = file.canonical(UNKNOWN_DIGEST)
    assert isinstance(spec, SoupSpec)
    assert spec.partition.by == "clusters"
    assert (file.name, data) == (SOUP_NAME, (tmp_path / "demo" / "text").resolve())
    demo.soup.write_text("# mine\n")
    write_soup(demo)
    assert demo.soup.read_text() == "# mine\n"
