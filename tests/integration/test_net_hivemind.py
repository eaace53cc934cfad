"""Averaging by hivemind among real processes on loopback: right, all or nothing, and gone without a trace."""

from __future__ import annotations

import importlib.util
import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

import numpy as np
import psutil
import pytest
from numpy.typing import NDArray
from safetensors.numpy import load_file, save_file

from potluck.crashpoints import CRASH_AT, CRASH_LOG
from potluck.errors import DataError, NotReachable, PotluckError
from potluck.ids import digest_bytes
from potluck.net.hivemind_acceptance import Accepted, PeerReport, Refused, accept
from potluck.net.hivemind_messages import AverageRequest
from potluck.net.hivemind_process import Sidecar, scratch_folder
from potluck.net.hivemind_projections import report
from potluck.telemetry import logger

pytestmark = [
    pytest.mark.skipif(
        importlib.util.find_spec("hivemind") is None, reason="hivemind is not installed: pip install 'potluck[dht]'"
    ),
    pytest.mark.timeout(240),
]

SIZE_MIDWAY = 1_500_000
"""Twelve of hivemind's messages, so that some are under way when a peer dies in its second."""
KEY = digest_bytes(b"the round of this test")
log = logger("tests.hivemind")
Tensors = dict[str, NDArray[np.float32]]


def tensors_of(index: int, size: int) -> Tensors:
    rng = np.random.default_rng(index)
    return {
        "phi.layer": rng.standard_normal((20, 30), dtype=np.float32),
        "shared": rng.standard_normal(size, dtype=np.float32),
    }


def request_of(
    folder: Path, index: int, num_peers: int, *, initial_peers: tuple[str, ...] = (), deadline_s: float = 45
) -> AverageRequest:
    """A request whose tensors lie in `folder` as ``INDEX.in``."""
    return AverageRequest(
        round_key=KEY,
        index=index,
        num_peers=num_peers,
        tensors=str(folder / f"{index}.in"),
        output=str(folder / f"{index}.out"),
        scratch=scratch_folder(),
        listen_host="127.0.0.1",
        initial_peers=initial_peers,
        deadline_s=deadline_s,
    )


@contextmanager
def peers(folder: Path, num_peers: int, size: int, **last_environment: str) -> Iterator[list[Sidecar]]:
    """All of one group; the last has an environment of its own."""
    inputs = [tensors_of(index, size) for index in range(num_peers)]
    for index, tensors in enumerate(inputs):
        save_file(tensors, folder / f"{index}.in")
    with ExitStack() as stack:
        first = stack.enter_context(Sidecar(request_of(folder, 0, num_peers)))
        met_at = first.addresses()
        others = [
            stack.enter_context(
                Sidecar(
                    request_of(folder, index, num_peers, initial_peers=met_at),
                    environment=last_environment if index == num_peers - 1 else None,
                )
            )
            for index in range(1, num_peers)
        ]
        for other in others:
            other.addresses()
        yield [first, *others]


def report_of_files(folder: Path, index: int) -> PeerReport:
    return report(KEY, index, tensors=folder / f"{index}.in", output=folder / f"{index}.out")


def living(groups: list[int]) -> list[psutil.Process]:
    """Processes of these groups that still do something; what is a zombie is dead."""
    found = []
    for process in psutil.process_iter():
        try:
            if os.getpgid(process.pid) in groups and process.status() != psutil.STATUS_ZOMBIE:
                found.append(process)
        except (ProcessLookupError, psutil.NoSuchProcess):
            continue
    return found


def gone(groups: list[int]) -> bool:
    """Whether the groups end within ten seconds; SIGKILL takes a moment to be carried out."""
    psutil.wait_procs(living(groups), timeout=10)
    return not living(groups)


@pytest.mark.parametrize("num_peers", [2, pytest.param(3, marks=pytest.mark.long)])
def test_peers_average_and_leave_no_process_behind(num_peers: int, tmp_path: Path) -> None:
    with peers(tmp_path, num_peers, 200_000) as sidecars:
        groups = [sidecar.pid for sidecar in sidecars]
        for sidecar in sidecars:
            assert sidecar.averaged().seconds > 0
    assert gone(groups)
    told = [report_of_files(tmp_path, index) for index in range(num_peers)]
    found = accept(told, round_key=KEY, num_peers=num_peers)
    log.fact("averaged", verdict=found, digests=[report.output_digest[:12] for report in told])
    assert isinstance(found, Accepted), found
    inputs = [tensors_of(index, 200_000) for index in range(num_peers)]
    for name in inputs[0]:
        mean = np.mean([tensors[name] for tensors in inputs], axis=0)
        np.testing.assert_allclose(load_file(tmp_path / "0.out")[name], mean, atol=1e-5)


def test_a_peer_that_dies_midway_leaves_nothing_that_is_accepted_and_wrong(tmp_path: Path) -> None:
    """hivemind calls it a success, or hangs until the deadline; which of both, a race decides.

    Nor does it help if somebody speaks for the dead one, with a report made of another's output.
    """
    deaths = tmp_path / "deaths"
    crash = {CRASH_AT: "hivemind.mid-average:2", CRASH_LOG: str(deaths)}
    with peers(tmp_path, 3, SIZE_MIDWAY, **crash) as sidecars:
        groups = [sidecar.pid for sidecar in sidecars]
        with pytest.raises(NotReachable) as lost:
            sidecars[2].averaged()
        assert lost.value.error_id == "net.averaging-lost"
        assert deaths.read_text() == "hivemind.mid-average\n"
        claims = {index for index in (0, 1) if claims_success(sidecars[index])}
    assert gone(groups)
    assert not (tmp_path / "2.out").exists()
    told = [report_of_files(tmp_path, index) for index in sorted(claims)]
    assert isinstance(accept(told, round_key=KEY, num_peers=3), Refused)
    for index in claims:
        (tmp_path / "2.out").write_bytes((tmp_path / f"{index}.out").read_bytes())
        found = accept([*told, report_of_files(tmp_path, 2)], round_key=KEY, num_peers=3)
        log.fact("claimed", peer=index, verdict=found)
        assert isinstance(found, Refused)
    # The hub goes on with what the living parts hold: their inputs are untouched.
    for index in (0, 1):
        for name, tensor in tensors_of(index, SIZE_MIDWAY).items():
            assert np.array_equal(load_file(tmp_path / f"{index}.in")[name], tensor)


def claims_success(sidecar: Sidecar) -> bool:
    try:
        sidecar.averaged()
    except PotluckError:
        return False
    return True


@pytest.mark.long
def test_a_peer_whose_group_does_not_come_fails_at_its_deadline(tmp_path: Path) -> None:
    save_file(tensors_of(0, 100), tmp_path / "0.in")
    with Sidecar(request_of(tmp_path, 0, 2, deadline_s=5)) as sidecar:
        sidecar.addresses()
        with pytest.raises(NotReachable) as lonely:
            sidecar.averaged()
    assert lonely.value.error_id == "net.averaging-incomplete"
    assert not (tmp_path / "0.out").exists()
    assert gone([sidecar.pid])


def test_a_tensor_that_is_not_float32_is_refused_before_anybody_is_met(tmp_path: Path) -> None:
    save_file({"x": np.zeros(3, dtype=np.float16)}, tmp_path / "0.in")
    with Sidecar(request_of(tmp_path, 0, 2)) as sidecar, pytest.raises(DataError, match="float32"):
        sidecar.addresses()


def test_a_sidecar_ends_with_all_its_group_when_its_caller_is_killed(tmp_path: Path) -> None:
    save_file(tensors_of(0, 100), tmp_path / "0.in")
    request = request_of(tmp_path, 0, 2)
    code = (
        "import sys, signal\n"
        "from potluck.net.hivemind_messages import AverageRequest\n"
        "from potluck.net.hivemind_process import Sidecar\n"
        "sidecar = Sidecar(AverageRequest.from_line(sys.stdin.buffer.readline()))\n"
        "sidecar.addresses()\n"
        "print(sidecar.pid, flush=True)\n"
        "signal.pause()\n"
    )
    caller = subprocess.Popen([sys.executable, "-c", code], stdin=subprocess.PIPE, stdout=subprocess.PIPE)
    with caller:
        assert caller.stdin is not None
        assert caller.stdout is not None
        caller.stdin.write(request.to_line())
        caller.stdin.flush()
        group = int(caller.stdout.readline())
        names = {process.name() for process in living([group])}
        assert "p2pd" in names
        caller.send_signal(signal.SIGKILL)
        caller.wait()
        assert gone([group])


@pytest.mark.long
def test_a_meeting_place_keeps_its_name_and_ends_with_all_its_group(tmp_path: Path) -> None:
    command = [sys.executable, "-m", "potluck.net.hivemind_meeting", "127.0.0.1", "0", str(tmp_path / "identity")]
    names = []
    for _ in range(2):
        with subprocess.Popen(command, stdout=subprocess.PIPE, text=True, start_new_session=True) as place:
            assert place.stdout is not None
            names.append(place.stdout.readline().strip().rpartition("/")[2])
            assert "p2pd" in {process.name() for process in living([place.pid])}
            place.terminate()
        assert gone([place.pid])
    assert names[0] == names[1] != ""
