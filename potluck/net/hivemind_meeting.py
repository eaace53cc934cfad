"""``python -m potluck.net.hivemind_meeting HOST PORT IDENTITY``: an address where peers of averagings find each other.

Prints the address and stays until SIGTERM or SIGINT, then ends with its whole group. The file IDENTITY holds its key
and is made if it is not there: with the same file and port the address stays the same. No tensor passes here.
"""

from __future__ import annotations

import os
import shutil
import signal
import sys
import threading

from potluck.errors import PotluckError
from potluck.net.hivemind_process import scratch_folder
from potluck.net.hivemind_sidecar import load_averager

USAGE = "usage: python -m potluck.net.hivemind_meeting HOST PORT IDENTITY"


def main(arguments: list[str]) -> None:
    if len(arguments) != 3 or not arguments[1].isdigit():
        sys.exit(USAGE)
    host, port, identity = arguments
    if os.getpgrp() != os.getpid():
        os.setpgid(0, 0)
    scratch = scratch_folder()
    try:
        _, addresses = load_averager().join(
            listen_host=host, listen_port=int(port), initial_peers=(), scratch=scratch, identity=identity
        )
    except PotluckError as error:
        shutil.rmtree(scratch, ignore_errors=True)
        sys.stderr.write(f"{error}\n")
        sys.exit(error.exit_code)
    ended = threading.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, lambda _number, _frame: ended.set())
    sys.stdout.write(f"{','.join(addresses)}\n")
    sys.stdout.flush()
    ended.wait()
    shutil.rmtree(scratch, ignore_errors=True)
    os.killpg(0, signal.SIGKILL)


if __name__ == "__main__":
    main(sys.argv[1:])
