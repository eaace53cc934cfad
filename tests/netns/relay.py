"""A slow link in user space, for kernels without netem: frames go from one TAP device to another, late, or not at all.

    python relay.py /run/netns/A eth0 /run/netns/B a MBIT DELAY_MS LOSS QUEUE_BYTES

Prints "ready" when both devices are there, and carries on until it is killed; the devices go with it.
"""

from __future__ import annotations

import ctypes
import fcntl
import os
import random
import select
import struct
import sys
import time
from collections import deque

TUNSETIFF = 0x400454CA
IFF_TAP, IFF_NO_PI = 0x0002, 0x1000
CLONE_NEWNET = 0x40000000
FRAME_BYTES = 65_536


class Way:
    """One direction: a queue that empties at the link's rate, then the delay."""

    def __init__(self, sink: int, *, mbit: float, delay_ms: float, loss: float, queue_bytes: float, seed: int) -> None:
        self._sink = sink
        self._bytes_per_s = mbit * 1e6 / 8
        self._delay_s = delay_ms / 1e3
        self._loss = loss
        self._queue_bytes = queue_bytes
        self._random = random.Random(seed)
        self.under_way: deque[tuple[float, bytes]] = deque()
        self._free_at = 0.0

    def offer(self, frame: bytes, now: float) -> None:
        starts = max(now, self._free_at)
        too_long = (starts - now) * self._bytes_per_s > self._queue_bytes
        if too_long or self._random.random() < self._loss:
            return
        self._free_at = starts + len(frame) / self._bytes_per_s
        self.under_way.append((self._free_at + self._delay_s, frame))

    def deliver(self, now: float) -> float:
        """Hands over what is due; when the next will be."""
        while self.under_way and self.under_way[0][0] <= now:
            try:
                os.write(self._sink, self.under_way.popleft()[1])
            except OSError:
                pass  # the device is down
        return self.under_way[0][0] if self.under_way else now + 1.0


def open_tap(namespace: str, name: str) -> int:
    """Makes a TAP device in a namespace; the calling thread stays there."""
    with open(namespace, "rb") as file:
        if ctypes.CDLL(None, use_errno=True).setns(file.fileno(), CLONE_NEWNET) != 0:
            raise OSError(ctypes.get_errno(), f"setns to {namespace}")
    device = os.open("/dev/net/tun", os.O_RDWR | os.O_NONBLOCK)
    fcntl.ioctl(device, TUNSETIFF, struct.pack("16sH22x", name.encode(), IFF_TAP | IFF_NO_PI))
    return device


def main() -> None:
    near_space, near_name, far_space, far_name = sys.argv[1:5]
    names = ("mbit", "delay_ms", "loss", "queue_bytes")
    shape = dict(zip(names, map(float, sys.argv[5:9]), strict=True))
    near, far = open_tap(near_space, near_name), open_tap(far_space, far_name)
    ways = {near: Way(far, **shape, seed=1), far: Way(near, **shape, seed=2)}
    sys.stdout.write("ready\n")
    sys.stdout.flush()
    next_due = time.monotonic()
    while True:
        ready, _, _ = select.select([near, far], [], [], max(0.0, next_due - time.monotonic()))
        now = time.monotonic()
        for device in ready:
            try:
                ways[device].offer(os.read(device, FRAME_BYTES), now)
            except OSError:
                time.sleep(0.01)  # the device is down, and says so at once however often it is asked
        next_due = min(way.deliver(now) for way in ways.values())


if __name__ == "__main__":
    main()
