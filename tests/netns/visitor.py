"""A client on a machine of its own: joins, asks a router for text, and prints the answer as JSON.

python -m tests.netns.visitor JOIN-STRING ROUTER TEXT
"""

from __future__ import annotations

import json
import sys

from potluck.client import RouterClient
from potluck.net.join import enrol
from potluck.net.version import make_hello


def main() -> None:
    join, router, text = sys.argv[1:]
    identity = enrol(join, name="visitor", hello=make_hello(boot_id=""), wanted_role="client")
    with RouterClient(identity, router) as client:
        pieces = list(client.generate(text, max_tokens=8, temperature=0.0))
    answer = {"ids": [i for piece in pieces for i in piece.ids], "finish": pieces[-1].finish}
    sys.stdout.write(json.dumps(answer) + "\n")


if __name__ == "__main__":
    main()
