"""A port of this process's own loopback that leads to a port in another namespace.

gRPC opens its sockets on threads that it made long ago, in the namespace where it was first used; so a test reaches
the coordinator of another namespace through here, and the links that are tested carry none of it.
"""

from __future__ import annotations

import selectors
import socket
import socketserver
import threading
from collections.abc import Callable

PIECE_BYTES = 1 << 16


class Doorway(socketserver.ThreadingTCPServer):
    """Passes each connection on to one that `dial` opens; `port` is where to come in."""

    daemon_threads = True
    block_on_close = False

    def __init__(self, dial: Callable[[], socket.socket]) -> None:
        super().__init__(("127.0.0.1", 0), _Passing)
        self.dial = dial
        self.port = int(self.server_address[1])
        self._thread = threading.Thread(target=self.serve_forever, kwargs={"poll_interval": 0.05}, name="doorway")
        self._thread.start()

    def close(self) -> None:
        self.shutdown()
        self._thread.join()
        self.server_close()


class _Passing(socketserver.BaseRequestHandler):
    server: Doorway

    def handle(self) -> None:
        try:
            with self.server.dial() as there:
                _pass_on(self.request, there)
        except OSError:
            pass  # either end broke off; closing both says so to the other


def _pass_on(here: socket.socket, there: socket.socket) -> None:
    other = {here: there, there: here}
    with selectors.DefaultSelector() as ready:
        for end in other:
            ready.register(end, selectors.EVENT_READ)
        while True:
            for key, _ in ready.select():
                at = key.fileobj
                assert isinstance(at, socket.socket)
                piece = at.recv(PIECE_BYTES)
                if not piece:
                    return
                other[at].sendall(piece)
