"""Several machines on one: network namespaces on a bridge, whose links can be slow, cut and mended. Needs root.

    with Spaces() as spaces:
        spaces.add("hub", "10.77.0.1")
        spaces.add("a", "10.77.0.10", only_dials=True, shape=Shape(mbit=10, rtt_ms=200, loss=0.02))
        spaces.cut("a")

Nothing leads from here to the machine itself or its network, so addresses need not be free there.
"""

from __future__ import annotations

import ctypes
import itertools
import json
import os
import shutil
import subprocess
import sys
import threading
from collections.abc import Callable, Mapping
from concurrent.futures import Future
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Self, TypeVar

T = TypeVar("T")

RUN = Path("/run/netns")
ETC = Path("/etc/netns")
CONGESTION = Path("/proc/sys/net/ipv4/tcp_congestion_control")
RELAY = Path(__file__).with_name("relay.py")
PACKET_BYTES = 1_514
CLONE_NEWNET = 0x40000000
_NUMBERS = itertools.count()

NFT_ONLY_DIALS = """
table inet only_dials {
  chain input {
    type filter hook input priority 0; policy accept;
    iif lo accept
    ct state established,related accept
    meta l4proto tcp reject with tcp reset
    meta l4proto udp drop
  }
}
"""
IPTABLES_ONLY_DIALS = (
    "-i lo -j ACCEPT",
    "-m conntrack --ctstate ESTABLISHED,RELATED -j ACCEPT",
    "-p tcp -j REJECT --reject-with tcp-reset",
    "-p udp -j DROP",
)


@dataclass(frozen=True, kw_only=True)
class Shape:
    """A link's nature; both directions are alike."""

    mbit: float
    """Megabits a second each way."""
    rtt_ms: float
    loss: float
    """Part of the packets lost each way."""
    queue_bytes: int = 375_000
    """What waits for its turn, beyond which packets are dropped: by default 300 ms at 10 Mbit/s."""


def why_none() -> str:
    """Why no namespace can be made here; empty if one can."""
    if os.geteuid() != 0:
        return "network namespaces need root"
    if shutil.which("ip") is None:
        return "there is no `ip` (Debian: apt-get install iproute2)"
    name = f"potluck-{os.getpid()}-try"
    made = subprocess.run(["ip", "netns", "add", name], capture_output=True, text=True, check=False)
    if made.returncode != 0:
        return f"`ip netns add` fails: {made.stderr.strip()}"
    _ip("netns", "del", name)
    return ""


class Spaces:
    """The namespaces of one test; all of them, and nothing else, are removed at its end."""

    def __init__(self) -> None:
        self._prefix = f"potluck-{os.getpid()}-{next(_NUMBERS)}"
        self._made: list[str] = []
        self._relays: list[subprocess.Popen[str]] = []
        self._bridge = self.namespace("bridge")

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        for relay in self._relays:
            relay.kill()
            relay.communicate()
        for namespace in reversed(self._made):
            _ip("netns", "del", namespace)
            shutil.rmtree(ETC / namespace, ignore_errors=True)

    def namespace(self, name: str) -> str:
        return f"{self._prefix}-{name}"

    def add(self, name: str, address: str, *, only_dials: bool = False, shape: Shape | None = None) -> str:
        """Makes a machine with one link, `eth0`, to the bridge that all share.

        Returns:
            By what means it was made so: the firewall's and the shaper's names.
        """
        if not self._made:
            self._make_bridge()
        inside = self._make(name)
        _ip("-n", inside, "link", "set", "lo", "up")
        by = self._link(name, inside, shape)
        self.give_address(name, address)
        _ip("-n", inside, "link", "set", "eth0", "up")
        _ip("-n", self._bridge, "link", "set", _port(name), "master", "br0", "up")
        return f"{_let_only_dial(inside) if only_dials else 'open'}, {by}"

    def give_address(self, name: str, address: str) -> None:
        """Its one address, in place of the one before."""
        _ip("-n", self.namespace(name), "addr", "flush", "dev", "eth0", "scope", "global")
        _ip("-n", self.namespace(name), "addr", "add", f"{address}/24", "dev", "eth0")

    def name_hosts(self, addresses: Mapping[str, str]) -> None:
        """What host names mean in every namespace, from now on; first to be called before anything starts there."""
        text = "127.0.0.1 localhost\n" + "".join(f"{address} {host}\n" for host, address in addresses.items())
        for namespace in self._made:
            # `ip netns exec` mounts this very file over /etc/hosts: it is written in place.
            (ETC / namespace).mkdir(parents=True, exist_ok=True)
            (ETC / namespace / "hosts").write_text(text)

    def cut(self, name: str, *, silently: bool = False) -> None:
        """Takes its link down; silently: somewhere in the middle, so that its own end still looks well."""
        if silently:
            _ip("-n", self._bridge, "link", "set", _port(name), "nomaster")
        else:
            _ip("-n", self._bridge, "link", "set", _port(name), "down")

    def mend(self, name: str) -> None:
        _ip("-n", self._bridge, "link", "set", _port(name), "master", "br0", "up")

    def control_by_loss(self, name: str) -> None:
        """TCP there slows down at each loss, as on most machines; bbr, where it is the default, does not.

        Of those rules a namespace may always choose reno.
        """
        self.inside(name, lambda: CONGESTION.write_text("reno"))

    def congestion_control(self, name: str) -> str:
        """By which rule TCP answers loss there; what a slow link carries hangs on it."""
        return self.inside(name, lambda: CONGESTION.read_text().strip())

    def bytes_on(self, name: str) -> tuple[int, int]:
        """Bytes that came in and went out on its link, every header included."""
        (link,) = json.loads(_ip("-n", self.namespace(name), "-j", "-s", "link", "show", "eth0"))
        return link["stats64"]["rx"]["bytes"], link["stats64"]["tx"]["bytes"]

    def inside(self, name: str, call: Callable[[], T]) -> T:
        """Calls something on a thread that lives in the namespace, and whose threads and sockets do too."""
        outcome: Future[T] = Future()

        def run() -> None:
            try:
                _enter(self.namespace(name))
                outcome.set_result(call())
            except BaseException as error:
                outcome.set_exception(error)

        thread = threading.Thread(target=run, name=f"inside {name}")
        thread.start()
        thread.join()
        return outcome.result()

    def _make_bridge(self) -> None:
        self._make("bridge")
        _ip("-n", self._bridge, "link", "add", "br0", "type", "bridge")
        _ip("-n", self._bridge, "link", "set", "br0", "up")

    def _make(self, name: str) -> str:
        namespace = self.namespace(name)
        _ip("netns", "add", namespace)
        self._made.append(namespace)
        return namespace

    def _link(self, name: str, inside: str, shape: Shape | None) -> str:
        if shape is not None and not _has_netem(self._bridge):
            return self._relayed(name, inside, shape)
        _ip("-n", self._bridge, "link", "add", _port(name), "type", "veth", "peer", "name", "eth0", "netns", inside)
        if shape is None:
            return "plain"
        for namespace, device in ((self._bridge, _port(name)), (inside, "eth0")):
            # Segments as a network card sends them: else what is lost is 64 KiB at a time.
            _ip("-n", namespace, "link", "set", device, "gso_max_segs", "1")
            _netem(namespace, device, shape)
        return "netem"

    def _relayed(self, name: str, inside: str, shape: Shape) -> str:
        figures = [str(shape.mbit), str(shape.rtt_ms / 2), str(shape.loss), str(shape.queue_bytes)]
        command = [
            sys.executable,
            str(RELAY),
            str(RUN / inside),
            "eth0",
            str(RUN / self._bridge),
            _port(name),
            *figures,
        ]
        relay = subprocess.Popen(
            command, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
        )
        self._relays.append(relay)
        assert relay.stdout is not None
        assert relay.stderr is not None
        assert relay.stdout.readline() == "ready\n", relay.stderr.read()
        return "relay"


def _port(name: str) -> str:
    """The bridge's end of a machine's link; `ip` takes short names for words of its own."""
    return f"to-{name}"


def _has_netem(namespace: str) -> bool:
    command = ["tc", "-n", namespace, "qdisc", "add", "dev", "lo", "root", "netem", "delay", "1ms"]
    if shutil.which("tc") is None or subprocess.run(command, capture_output=True, check=False).returncode != 0:
        return False
    _run("tc", "-n", namespace, "qdisc", "del", "dev", "lo", "root")
    return True


def _netem(namespace: str, device: str, shape: Shape) -> None:
    on_the_way = shape.mbit * shape.rtt_ms / 2 * 1000 / 8
    limit = ["limit", str(int((shape.queue_bytes + on_the_way) / PACKET_BYTES))]
    how = ["rate", f"{shape.mbit}mbit", "delay", f"{shape.rtt_ms / 2}ms", "loss", f"{100 * shape.loss}%"]
    _run("tc", "-n", namespace, "qdisc", "add", "dev", device, "root", "netem", *how, *limit)


def _let_only_dial(namespace: str) -> str:
    """Refuses whatever comes in unasked; says by which means, of which none is the last."""
    if shutil.which("nft") is not None:
        command = ["ip", "netns", "exec", namespace, "nft", "-f", "-"]
        if subprocess.run(command, input=NFT_ONLY_DIALS, text=True, capture_output=True, check=False).returncode == 0:
            return "nft"
    if shutil.which("iptables") is not None:
        rules = [["ip", "netns", "exec", namespace, "iptables", "-A", "INPUT", *r.split()] for r in IPTABLES_ONLY_DIALS]
        if all(subprocess.run(rule, capture_output=True, check=False).returncode == 0 for rule in rules):
            return "iptables"
    return "no firewall"


def _enter(namespace: str) -> None:
    """Moves the calling thread; Python has no setns before 3.12."""
    with (RUN / namespace).open("rb") as file:
        if ctypes.CDLL(None, use_errno=True).setns(file.fileno(), CLONE_NEWNET) != 0:
            raise OSError(ctypes.get_errno(), f"setns to {namespace}")


def _ip(*arguments: str) -> str:
    return _run("ip", *arguments)


def _run(*command: str) -> str:
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, f"{' '.join(command)}: {done.stderr}"
    return done.stdout
