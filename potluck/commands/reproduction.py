"""Runs a study: its cells as runs on a coordinator's nodes, each remembered once it has ended.

FOLDER/home/             coordinator and nodes, unless others are used
FOLDER/work/cells/       what came of each cell, by the id of its run
FOLDER/work/text/        the demo corpus, where no other text is given
FOLDER/work/texts.json   what is known of the texts
"""

from __future__ import annotations

import json
import math
import resource
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import psutil

from potluck.commands.daemons import running
from potluck.commands.following import Launch, endings, percent, start_all, tell_states
from potluck.commands.home import Home, admin_client
from potluck.commands.machine import machine_facts, num_cores
from potluck.commands.measure import measure
from potluck.commands.output import Output
from potluck.commands.reports import report_of
from potluck.commands.runs import horizons, require_memory
from potluck.commands.study_texts import StudyTexts
from potluck.demo.cluster import start_cluster, stop_cluster
from potluck.durable import write_durably
from potluck.formatting import human_seconds
from potluck.ids import RunId, short
from potluck.lab.cost import core_seconds
from potluck.lab.study import FINISHED, Budget, Cell, Found, Study, run_file
from potluck.sizing import HELD_OUT_SHARE, Rates, training_bytes
from potluck.specs.run import MAX_NAME, UNKNOWN_DIGEST

if TYPE_CHECKING:
    from potluck.client import AdminClient
    from potluck.v1 import admin_pb2

BYTES_PER_TOKEN = 3.0
"""Of a vocabulary of 1,024: for the estimate, before there is a tokenizer."""
KEPT_STATES = ("finished", "failed")


@dataclass(frozen=True, kw_only=True)
class Place:
    folder: Path
    home: Home
    owns_home: bool
    """The coordinator and its nodes are this command's to start and to stop."""
    nodes: int
    data: Path | None
    """None: the demo corpus."""

    @property
    def work(self) -> Path:
        return self.folder / "work"


@dataclass(kw_only=True)
class Spent:
    """What a budget has taken over all calls, and what was expected of it."""

    path: Path
    expected_core_s: float = 0.0
    core_s: float = 0.0
    """CPU time of this command, of what it called, and of its own daemons."""
    wall_s: float = 0.0
    calls: int = 0

    def load(self) -> Spent:
        if self.path.is_file():
            told = json.loads(self.path.read_text(encoding="utf-8"))
            self.expected_core_s, self.core_s = told["expected_core_s"], told["core_s"]
            self.wall_s, self.calls = told["wall_s"], told["calls"]
        return self

    def save(self) -> None:
        self.path.parent.mkdir(parents=True, exist_ok=True)
        write_durably(self.path, json.dumps(self.told()).encode())

    def told(self) -> dict[str, Any]:
        return {key: value for key, value in asdict(self).items() if key != "path"}


@dataclass(kw_only=True)
class Reproduction:
    study: Study
    budget: Budget
    place: Place
    retry: bool
    output: Output
    found: dict[str, Found] = field(default_factory=dict)
    worked: bool = False
    """Something was started or waited for in this call."""

    def __post_init__(self) -> None:
        data = self.place.data or self.place.work / "text"
        wishes = self.study.texts(self.budget)
        self.texts = StudyTexts(folder=self.place.work / "texts", data=data, wishes=wishes)
        self.spent = Spent(path=self.place.work / f"spent-{self.budget.name}.json").load()
        self._since_s, self._used_s = time.monotonic(), self._core_s()

    def run(self) -> None:
        """Until every cell that the study wants has ended.

        Raises:
            PotluckError: of whatever step failed; the same call goes on from there.
        """
        with ExitStack() as stack:
            client: AdminClient | None = None
            while missing := self._missing():
                if client is None:
                    client = stack.enter_context(self._coordinator())
                self._advance(client, missing)
            if client is not None and self.place.owns_home:
                self.output.note("stopping the coordinator and its nodes")
                stop_cluster(self.place.home)

    def _missing(self) -> list[Cell]:
        """Cells wanted of which nothing is known yet; recalls what ended in earlier calls."""
        while True:
            cells = self.study.cells(self.budget, self.found)
            assert len({cell.key for cell in cells}) == len(cells), "keys are unique in a study"
            missing = [cell for cell in cells if cell.key not in self.found]
            recalled = {cell.key: known for cell in missing if (known := self._recall(cell)) is not None}
            if not recalled:
                return missing
            self.found |= recalled

    def _advance(self, client: AdminClient, cells: Sequence[Cell]) -> None:
        """Starts what is new, and waits until one more has ended."""
        launches: dict[str, Launch] = {}
        by_run: dict[str, Cell] = {}
        for cell in cells:
            file = run_file(cell)
            spec = file.canonical(**self.texts.send(cell, self.place.home, self.output))
            launches[spec.id], by_run[spec.id] = Launch(spec=spec, name=self._name(cell)), cell
        require_memory(max((each.spec for each in launches.values()), key=training_bytes), client, self.output)
        states = start_all(client, launches, retry=self.retry)
        if not self.worked or "started" in states.values():
            tell_states("cell", states.values(), self.output)
        self.worked = True
        known = len(self.found)

        def told(ended: Mapping[str, admin_pb2.RunInfo], share: float) -> str:
            return f"{known + len(ended)} cells have ended; of those wanted now {percent(share)} of the work is done"

        for run, info in endings(client, launches, told, self.output):
            self._keep(client, by_run[run], info)
            break
        self._account()

    def _keep(self, client: AdminClient, cell: Cell, info: admin_pb2.RunInfo) -> None:
        report = report_of(client, self.place.home, info) if info.state == FINISHED else None
        told = Found(
            cell=cell,
            run=RunId(info.run),
            state=info.state,
            reason=info.reason,
            report=report,
            results=json.loads(info.results_json or "{}"),
            seconds=max(0.0, time.time() - info.created_unix_ms / 1000),
        )
        self.found[cell.key] = told
        if info.state != FINISHED:
            self.output.note(f"{cell.key}: run {short(info.run)} {info.state}: {info.reason}")
        if info.state in KEPT_STATES:
            path = self._memo(told.run)
            path.parent.mkdir(parents=True, exist_ok=True)
            body = {key: getattr(told, key) for key in ("state", "reason", "report", "results", "seconds")}
            write_durably(path, json.dumps(body, ensure_ascii=False).encode())

    def _recall(self, cell: Cell) -> Found | None:
        digests = self.texts.digests(cell)
        if digests is None:
            return None
        run = run_file(cell).canonical(**digests).id
        path = self._memo(run)
        if not path.is_file():
            return None
        told = json.loads(path.read_text(encoding="utf-8"))
        if told["state"] != FINISHED and self.retry:
            return None
        return Found(cell=cell, run=run, **told)

    def _memo(self, run: RunId) -> Path:
        return self.place.work / "cells" / f"{run}.json"

    def _name(self, cell: Cell) -> str:
        name = f"{self.study.name}/{cell.key}"
        return name if len(name) <= MAX_NAME else f"{name[: MAX_NAME - 1]}…"

    # --- the cluster, and what it takes ------------------------------------------------------------

    @contextmanager
    def _coordinator(self) -> Iterator[AdminClient]:
        place = self.place
        place.work.mkdir(parents=True, exist_ok=True)
        if place.data is None:
            self._fetch()
        self._tell_cost()
        if place.owns_home:
            start_cluster(place.home, self.output, nodes=place.nodes, with_router=False)
        self.spent.calls += 1
        with admin_client(place.home) as client:
            facts = machine_facts(client.list_nodes().nodes)
            write_durably(place.work / "machine.json", json.dumps(facts).encode())
            try:
                yield client
            except KeyboardInterrupt:
                self.output.end_progress()
                self.output.note("the runs go on without this command; the same call comes back to them")
                if place.owns_home:
                    self.output.next_step(f"potluck down --home {place.home.root}   # stops them, nothing is lost")
                raise

    def _fetch(self) -> None:
        from potluck.demo.session import Demo, fetch_corpus

        fetch_corpus(Demo(folder=self.place.work, data=None, minutes=0.0, corpus_set="quick"), self.output)

    def _tell_cost(self) -> None:
        """What is left to do should take, by a measure of this machine that is kept."""
        left = [cell for cell in self.study.expected(self.budget) if cell.key not in self.found]
        specs = [run_file(cell).canonical(UNKNOWN_DIGEST) for cell in left]
        for spec in specs:
            horizons(spec)
        cores = num_cores()
        held_out = HELD_OUT_SHARE * self.texts.num_bytes / BYTES_PER_TOKEN
        seconds = core_seconds(specs, self._rates(cores), held_out_tokens=int(held_out))
        if not self.spent.calls:
            self.spent.expected_core_s = seconds
        workers = min(cores, self.place.nodes) if self.place.owns_home else 0
        wall = f", about {human_seconds(seconds / workers)} on {workers} core(s)" if workers else ""
        self.output.note(
            f"{self.study.name}, {self.budget.name}: {len(specs)} cells to do, {human_seconds(seconds)} of one core"
            f"{wall}; promised on two cores: at most {self.budget.minutes:g} min in all"
        )

    def _rates(self, cores: int) -> Rates:
        path = self.place.work / f"rates-{cores}.json"
        if path.is_file():
            return Rates(**json.loads(path.read_text(encoding="utf-8")))
        with self.output.timed(f"timing steps on {cores} core(s)"):
            rates = measure(cores)
        write_durably(path, json.dumps(asdict(rates)).encode())
        return rates

    def machine(self) -> dict[str, Any]:
        """What the cells ran on, as the last call that did anything found it."""
        path = self.place.work / "machine.json"
        return dict(json.loads(path.read_text(encoding="utf-8"))) if path.is_file() else {}

    def _account(self) -> None:
        """Adds what was spent since the last time."""
        now_s, core_s = time.monotonic(), self._core_s()
        self.spent.wall_s += now_s - self._since_s
        self.spent.core_s += max(0.0, core_s - self._used_s)
        self._since_s, self._used_s = now_s, core_s
        self.spent.save()

    def _core_s(self) -> float:
        """CPU seconds so far of this process, of children it waited for, and of its own daemons and theirs."""
        called = [resource.getrusage(who) for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)]
        own = math.fsum(each.ru_utime + each.ru_stime for each in called)
        records = [running(folder) for folder in self.place.home.daemon_folders()] if self.place.owns_home else []
        return own + sum(_cpu_seconds(record.pid) for record in records if record is not None)


def _cpu_seconds(pid: int) -> float:
    try:
        process = psutil.Process(pid)
        times: list[Any] = [each.cpu_times() for each in (process, *process.children(recursive=True))]
    except psutil.NoSuchProcess:
        return 0.0
    return math.fsum(each.user + each.system for each in times)
