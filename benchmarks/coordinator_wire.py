"""Heartbeats over the real wire: a coordinator process, and a client process with one mTLS Session stream a node.

    python -m benchmarks.coordinator_wire --home HOME --port PORT --streams N

is the client: it issues itself certificates with the home's authority, opens the streams, says `up`, and beats once a
second on each until its input closes; then it says how many beats a second all of them took.
"""

from __future__ import annotations

import argparse
import asyncio
import os
import subprocess
import sys
import time
from collections import Counter
from collections.abc import AsyncIterator
from pathlib import Path

import psutil

from benchmarks.coordinator_processes import Coordinator
from benchmarks.coordinator_scenes import enrolments, node_name
from coordinator.home import CoordinatorHome
from coordinator.journal import SqliteJournal
from coordinator.wire_events import encode_event
from potluck.net.channels import open_channel
from potluck.net.identity import Identity
from potluck.net.tls import CertificateAuthority, new_key_and_csr
from potluck.net.version import package_version
from potluck.v1 import common_pb2, node_pb2, node_pb2_grpc

BEAT_S = 1.0
OPEN_AT_ONCE = 50
SETTLE_S = 3.0
"""After the last stream is open, before the first window."""
WINDOW_S = 5.0


def heartbeat_share(home: Path, num_streams: int, windows: int) -> tuple[list[float], float]:
    """CPU share of one core that the coordinator takes, in each of so many windows; beats a second that were sent."""
    asyncio.run(_enrol(home, num_streams))
    with Coordinator(home) as coordinator:
        command = [sys.executable, "-m", "benchmarks.coordinator_wire", "--home", str(home)]
        command += ["--port", str(coordinator.ready["control"]), "--streams", str(num_streams)]
        with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as client:
            assert client.stdin is not None
            assert client.stdout is not None
            try:
                assert client.stdout.readline() == b"up\n", "the client did not open its streams"
                time.sleep(SETTLE_S)
                process = psutil.Process(coordinator.popen.pid)
                shares = [_share(process) for _ in range(windows)]
            finally:
                client.stdin.close()
            return shares, float(client.stdout.readline())


def _share(process: psutil.Process) -> float:
    before, then = process.cpu_times(), time.monotonic()
    time.sleep(WINDOW_S)
    after = process.cpu_times()
    return (after.user + after.system - before.user - before.system) / (time.monotonic() - then)


async def _enrol(home: Path, num_nodes: int) -> None:
    made = CoordinatorHome(home)
    made.keys()
    journal = SqliteJournal(made.journal)
    await journal.append([encode_event(event) for event in enrolments(range(num_nodes), 0)])
    journal.close()


# --- the client --------------------------------------------------------------------------------


async def beat_until_told(home: Path, port: int, num_streams: int) -> None:
    authority, opening, over = CertificateAuthority.load(home / "ca"), asyncio.Semaphore(OPEN_AT_ONCE), asyncio.Event()
    up, beats = [asyncio.Event() for _ in range(num_streams)], Counter[int]()
    streams = [
        asyncio.create_task(_stream(_identity(authority, number, port), opening, up[number], _ups(number, beats, over)))
        for number in range(num_streams)
    ]
    await asyncio.gather(*(one.wait() for one in up))
    sys.stdout.write("up\n")
    sys.stdout.flush()
    before, then = beats.total(), time.monotonic()
    await asyncio.to_thread(sys.stdin.read)
    sys.stdout.write(f"{(beats.total() - before) / (time.monotonic() - then)}\n")
    sys.stdout.flush()
    over.set()
    await asyncio.gather(*streams)


async def _stream(
    identity: Identity, opening: asyncio.Semaphore, up: asyncio.Event, ups: AsyncIterator[node_pb2.SessionUp]
) -> None:
    async with open_channel(identity) as channel:
        stub = node_pb2_grpc.NodeServiceStub(channel)
        await opening.acquire()
        async for _ in stub.Session(ups):
            if not up.is_set():
                opening.release()
                up.set()


async def _ups(number: int, beats: Counter[int], over: asyncio.Event) -> AsyncIterator[node_pb2.SessionUp]:
    said = common_pb2.Hello(
        version=package_version(), boot_id=f"boot-{number}", hostname=f"host-{number}", cores=8, memory_bytes=1 << 34
    )
    hello = node_pb2.SessionHello(hello=said)
    yield node_pb2.SessionUp(items=[node_pb2.UpItem(hello=hello)])
    beat = node_pb2.Heartbeat(activity="training", step=1000, tokens_per_second=5e4, loss=2.5, rss_bytes=1 << 30)
    while not over.is_set():
        yield node_pb2.SessionUp(items=[node_pb2.UpItem(heartbeat=beat)])
        beats[number] += 1
        try:
            await asyncio.wait_for(over.wait(), BEAT_S)
        except TimeoutError:
            continue
    yield node_pb2.SessionUp(items=[node_pb2.UpItem(bye=node_pb2.Bye(reason="done"))])


def _identity(authority: CertificateAuthority, number: int, port: int) -> Identity:
    key, request = new_key_and_csr(f"bench-{number}")
    return Identity(
        node_id=node_name(number),
        role="node",
        key_pem=key,
        certificate_pem=authority.issue(request, node_id=node_name(number), role="node"),
        ca_pem=authority.ca_pem,
        curve_public="",
        curve_secret="",
        curve_server_key="",
        host="127.0.0.1",
        control_port=port,
        data_port=0,
    )


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.coordinator_wire")
    parser.add_argument("--home", type=Path, required=True)
    parser.add_argument("--port", type=int, required=True)
    parser.add_argument("--streams", type=int, required=True)
    options = parser.parse_args()
    os.environ.setdefault("GRPC_VERBOSITY", "ERROR")
    asyncio.run(beat_until_told(options.home, options.port, options.streams))


if __name__ == "__main__":
    main()
