"""A large transfer broken off in its middle goes on from the bytes that had arrived: counted on the wire."""

from __future__ import annotations

import contextlib
import subprocess
import sys
from pathlib import Path

import pytest

from potluck.ids import Digest, digest_bytes, digest_file
from potluck.net.blobs.curve import new_curve_keys
from potluck.net.blobs.store import BlobStore
from potluck.net.blobs.window import LARGE_CHUNK
from tests.integration.test_net_blob_faults import WAIT_S, Relay, pattern, server_process

SIZE = 8_000_000
HALF = SIZE // 2
MOST_AGAIN = 4 * LARGE_CHUNK
"""What was asked for and had not been written when the end came, and the messages around the chunks."""

NODE = """
import sys
from pathlib import Path
from potluck.net.blobs.client import BlobClient
from potluck.net.blobs.curve import CurveKeys
from potluck.net.blobs.store import BlobStore
from tests.integration.test_net_blob_faults import identity_for
way, digest, folder, port, server_public, public, secret = sys.argv[1:]
identity = identity_for(CurveKeys(public=server_public, secret=""), int(port), CurveKeys(public=public, secret=secret))
with BlobClient(identity, BlobStore(Path(folder) / "node")) as client:
    transfer = client.get(digest, "weights") if way == "down" else client.put(digest, Path(folder) / "file", "weights")
    transfer.result(30)
"""


class Wire:
    """A hub and a node, each a process of its own, and a relay between them that counts."""

    def __init__(self, folder: Path, way: str, stack: contextlib.ExitStack) -> None:
        self._folder, self._way, self._stack = folder, way, stack
        self._keys, self._own = new_curve_keys(), new_curve_keys()
        data = pattern(SIZE)
        self.digest: Digest = digest_bytes(data)
        (folder / "file").write_bytes(data)
        if way == "down":
            BlobStore(folder / "hub").put_file(folder / "file")
        self._port = 0
        self.start_hub()
        self.relay = Relay(self._port)
        stack.callback(self.relay.close)

    def start_hub(self) -> None:
        self._hub_life = self._stack.enter_context(contextlib.ExitStack())
        self._hub, self._port = self._hub_life.enter_context(
            server_process(self._folder / "hub", self._port, self._keys)
        )

    def kill_hub(self) -> None:
        self._hub.kill()
        self._hub_life.close()

    def start_node(self) -> subprocess.Popen[bytes]:
        keys: list[str] = [self._keys.public, self._own.public, self._own.secret]
        arguments = [self._way, self.digest, str(self._folder), str(self.relay.port), *keys]
        node = subprocess.Popen([sys.executable, "-c", NODE, *arguments])
        self._stack.callback(node.wait)
        self._stack.callback(node.kill)
        return node

    def arrived(self) -> bool:
        store = BlobStore(self._folder / ("node" if self._way == "down" else "hub"))
        return digest_file(store.path(self.digest)) == self.digest


@pytest.mark.parametrize("breaks", ["node", "hub", "link"])
@pytest.mark.parametrize("way", ["down", "up"])
def test_a_transfer_broken_off_in_its_middle_goes_on_from_the_bytes_that_arrived(
    tmp_path: Path, way: str, breaks: str
) -> None:
    with contextlib.ExitStack() as stack:
        wire = Wire(tmp_path, way, stack)
        wire.relay.hold(way, HALF)
        node = wire.start_node()
        wire.relay.wait_held(way)
        if breaks == "node":
            node.kill()
            node.wait()
        elif breaks == "hub":
            wire.kill_hub()
        wire.relay.cut()
        wire.relay.release()
        if breaks == "node":
            node = wire.start_node()
        elif breaks == "hub":
            wire.start_hub()
        assert node.wait(WAIT_S) == 0
        assert wire.arrived()
        assert SIZE < wire.relay.passed(way) < SIZE + MOST_AGAIN
