"""The texts of a study on this machine: the data folder, parts of it, and what of it the coordinator has.

A text is known again by the names, sizes and times of its files, so that a study that has all its cells reads nothing.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

from potluck.commands.home import Home
from potluck.commands.output import Output
from potluck.commands.runs import send_corpus
from potluck.commands.text import gather
from potluck.durable import write_durably
from potluck.errors import CorpusError
from potluck.ids import NO_DIGEST, Digest, digest_json, short
from potluck.lab.study import WHOLE, Cell, TextWish, tenth_of

SPLIT_SEED = 0
"""All cells of a study are judged on the same held-out text, whatever their seed."""


@dataclass(kw_only=True)
class StudyTexts:
    folder: Path
    """Gets links to parts of the data, and what is known of them."""
    data: Path
    wishes: Mapping[str, TextWish]
    _known: dict[str, str] = field(default_factory=dict)
    _sent: set[str] = field(default_factory=set)

    def __post_init__(self) -> None:
        try:
            self._known = dict(json.loads(self._memo.read_text(encoding="utf-8")))
        except FileNotFoundError:
            self._known = {}

    def digests(self, cell: Cell) -> dict[str, Digest] | None:
        """What `RunFile.canonical` needs of a cell's texts; None while one has not been read since it changed."""
        if not self.data.exists():
            return None
        if not cell.data:
            return {"corpus": NO_DIGEST}
        found = {what: self._known.get(self._key(names, what)) for what, names in _texts_of(cell).items()}
        known = {what: Digest(digest) for what, digest in found.items() if digest is not None}
        return known if len(known) == len(found) else None

    def send(self, cell: Cell, home: Home, output: Output) -> dict[str, Digest]:
        """The same once all of them are in the coordinator's store; each is read once a call.

        Raises:
            CorpusError: ``corpus.missing``.
        """
        for what, names in _texts_of(cell).items():
            key = self._key(names, what)
            if key not in self._sent:
                self._known[key] = self._send(names, what, home, output)
                self._sent.add(key)
                self.folder.mkdir(parents=True, exist_ok=True)
                write_durably(self._memo, json.dumps(self._known, indent=1).encode())
        digests = self.digests(cell)
        assert digests is not None, "all were sent"
        return digests

    @property
    def num_bytes(self) -> int:
        """Of the largest of the texts."""
        return max(sum(_size(path) for path in self._paths(name)) for name in self.wishes)

    @property
    def _memo(self) -> Path:
        return self.folder / "texts.json"

    def _send(self, names: tuple[str, ...], what: str, home: Home, output: Output) -> Digest:
        paths = [self._part(path, name) for name in names for path in self._paths(name)]
        folder = self.folder / "-".join(names)
        folder.mkdir(parents=True, exist_ok=True)
        data = self.data if paths == [self.data] else gather(paths, folder)
        scratch = home.scratch(f"ingest-study-{short(digest_json([str(self.data), *names, what]))}")
        return send_corpus(home, data, scratch, seed=SPLIT_SEED, output=output, is_target=what == "target")

    def _paths(self, name: str) -> list[Path]:
        wish = self.wishes[name]
        if wish == TextWish() or self.data.is_file():
            return [self.data]
        entries = {path.stem: path for path in sorted(self.data.iterdir()) if not path.name.startswith(".")}
        absent = [stem for stem in (*wish.sources, *wish.without) if stem not in entries]
        if absent:
            fix = "give the demo corpus, or a folder whose first-level entries are called so"
            raise CorpusError("corpus.missing", f"{self.data} has no {', '.join(absent)}", fix)
        paths = [entries[stem] for stem in wish.sources or entries if stem not in wish.without]
        return sorted(paths, key=_size)[: wish.smallest] if wish.smallest else paths

    def _part(self, path: Path, name: str) -> Path:
        """The file itself, or a copy of the tenths of it that the text wants."""
        begin, end = self.wishes[name].part_of(path.stem)
        if (begin, end) == WHOLE:
            return path
        if path.suffix != ".jsonl":
            what = f"{path} cannot be divided by documents"
            raise CorpusError(
                "corpus.not-divisible", what, "give JSON lines with a `source`, as the demo corpus has them"
            )
        part = (self.folder / "parts" / name / path.name).resolve()
        part.parent.mkdir(parents=True, exist_ok=True)
        with path.open(encoding="utf-8") as lines, part.open("w", encoding="utf-8") as kept:
            kept.writelines(line for line in lines if begin <= tenth_of(_document(line)) < end)
        return part

    def _key(self, names: tuple[str, ...], what: str) -> str:
        read = [(path, self.wishes[name].part_of(path.stem)) for name in names for path in self._paths(name)]
        parts = [list(part) for _, part in read if part != WHOLE]
        return digest_json([what, list(names), [_mark(path) for path, _ in read], *([parts] if parts else [])])


def _texts_of(cell: Cell) -> dict[str, tuple[str, ...]]:
    if not cell.data:  # a specialist of a soup by weights
        return {}
    return {"corpus": (cell.data,)} | ({"target": cell.target} if cell.target else {})


def _document(line: str) -> str:
    """The original document of a record; one without a source is a document of its own."""
    record = json.loads(line)
    return str(record.get("source") or record.get("id") or line)


def _size(path: Path) -> int:
    return sum(file.stat().st_size for file in _files(path))


def _files(path: Path) -> list[Path]:
    return sorted(found for found in path.rglob("*") if found.is_file()) if path.is_dir() else [path]


def _mark(path: Path) -> list[list[str | int]]:
    marks: list[list[str | int]] = []
    for file in _files(path):
        stat = file.stat()
        marks.append([str(file.relative_to(path.parent)), stat.st_size, stat.st_mtime_ns])
    return marks
