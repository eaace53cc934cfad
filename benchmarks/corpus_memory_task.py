"""One task in a process of its own: `python -m benchmarks.corpus_memory_task CALL.json` prints its files and its peak.

CALL.json has the task's kind, params, inputs (name to digest), files (digest to path) and `out`, a folder that exists.
The kind `ingest` takes `data` in params. One JSON line comes back: files by name, peak_mib.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from potluck.ids import Digest


class Files:
    """Blobs by the digests that the caller knows them by."""

    def __init__(self, paths: Mapping[str, str]) -> None:
        self._paths = paths

    def path(self, digest: Digest) -> Path:
        return Path(self._paths[digest])


def run(call: Mapping[str, Any]) -> dict[str, Path]:
    """The task's result files by name."""
    out = Path(call["out"])
    if call["kind"] == "ingest":
        from sampling.ingest import ingest

        done = ingest(Path(call["params"]["data"]), out / "corpus")
        return {path.stem: path for path in done.files.values()}
    from sampling.tasks import run_task

    files = run_task(call["kind"], call["params"], call["inputs"], Files(call["files"]), out, lambda _: None).files
    return dict(files)


def peak_mib() -> float:
    """The highest resident size of this process so far."""
    line = next(line for line in Path("/proc/self/status").read_text().splitlines() if line.startswith("VmHWM"))
    return int(line.split()[1]) / 1024


if __name__ == "__main__":
    files = run(json.loads(Path(sys.argv[1]).read_text()))
    print(json.dumps({"files": {name: str(path) for name, path in files.items()}, "peak_mib": peak_mib()}))
