"""A part's side of an averaging without the hub: it asks the others, and tells what went in and what came out.

Whether the average is believed, the plan decides by all parts' accounts; so what fails here is a reason, not an error.
"""

from __future__ import annotations

import os
from pathlib import Path

from potluck.config import to_mapping
from potluck.errors import PotluckError
from potluck.ids import canonical_json
from potluck.lm.soup_spread import Spread, exchange_key
from potluck.net.address import is_loopback, reachable_address
from potluck.net.hivemind_messages import AverageRequest
from potluck.net.hivemind_process import Sidecar, scratch_folder
from potluck.net.hivemind_projections import report
from sampling.taskio import TaskCall, TaskOutput

MEETING = "POTLUCK_MEETING"
"""Where the parts' nodes find each other, as `potluck.net.hivemind_meeting` prints it; a node's own environment."""


def exchange(call: TaskCall, spread: Spread, part: int, delta: Path) -> TaskOutput:
    """The average of all parts' changes by hivemind.

    Returns:
        Figure `exchange`, the JSON of a `PeerReport`, and from part 0 the blob `averaged`; or the figure
        `exchange_failed`, a reason.
    """
    meeting = os.environ.get(MEETING, "")
    if not meeting:
        return TaskOutput(figures={"exchange_failed": f"{MEETING} is not set on its node"})
    key = exchange_key(call.inputs["setting"], int(call.params["round"]), call.inputs["weights-common"])
    output = call.out / "averaged.safetensors"
    request = AverageRequest(
        round_key=key,
        index=part,
        num_peers=spread.parts,
        tensors=str(delta),
        output=str(output),
        scratch=scratch_folder(),
        listen_host=_own_host(meeting),
        initial_peers=tuple(meeting.split(",")),
        deadline_s=spread.exchange_s,
    )
    try:
        with Sidecar(request) as sidecar:
            sidecar.addresses()
            sidecar.averaged()
        told = report(key, part, tensors=delta, output=output)
    except PotluckError as error:
        return TaskOutput(figures={"exchange_failed": f"[{error.error_id}] {error.message}"})
    files = {"averaged": output} if part == 0 else {}
    return TaskOutput(files=files, figures={"exchange": canonical_json(to_mapping(told))})


def _own_host(meeting: str) -> str:
    """This machine's address for the others: loopback if they meet there, as in a multiaddress /ip4/127.0.0.1/..."""
    host = meeting.split("/")[2] if meeting.count("/") > 2 else ""
    return "127.0.0.1" if is_loopback(host) else reachable_address()
