"""From the core's read-only views to the messages of admin.proto, each well below the 1 MiB a message may have."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from coordinator.core import queries
from potluck.config import to_mapping
from potluck.errors import ResourceError
from potluck.ids import NodeId, short
from potluck.net.counters import Plane
from potluck.v1 import admin_pb2

RUNNING = "running"
MAX_BYTES = 900 << 10
"""Of one answer."""


def run_info(info: queries.RunInfo) -> admin_pb2.RunInfo:
    fields = to_mapping(info)
    error_id = fields.pop("error_id")
    if error_id:
        fields["reason"] = f"[{error_id}] {fields['reason']}"
    return admin_pb2.RunInfo(**fields)


def run_list(infos: Sequence[queries.RunInfo]) -> admin_pb2.ListRunsResponse:
    """Without specs, figures, nodes and what slots were made from; if very many, the oldest ended without lineages."""
    runs = [run_info(info) for info in infos]
    for run in runs:
        for name in ("spec_json", "results_json", "nodes"):
            run.ClearField(name)
        for slot in run.published:
            for part in ("lineage", "checkpoint", "tokenizer", "model_json"):
                slot.ClearField(part)
    answer = admin_pb2.ListRunsResponse(runs=runs)
    for run in answer.runs:
        if answer.ByteSize() <= MAX_BYTES:
            break
        if run.state != RUNNING:
            run.ClearField("lineages")
    check_size(answer.ByteSize(), "the list of runs")
    return answer


def node_list(infos: Sequence[queries.NodeInfo], addresses: Mapping[NodeId, str]) -> admin_pb2.ListNodesResponse:
    """`addresses`: where routers can be dialled."""
    answer = admin_pb2.ListNodesResponse(nodes=[admin_pb2.NodeInfo(**to_mapping(info)) for info in infos])
    for node in answer.nodes:
        node.address = addresses.get(NodeId(node.node), "")
    check_size(answer.ByteSize(), "the list of nodes")
    return answer


def ledger(found: queries.Ledger, bytes_by_plane: Mapping[Plane, int]) -> admin_pb2.GetLedgerResponse:
    """The ledger with the hub's bytes; where whole digests would not fit, with their first twelve characters."""
    answer = admin_pb2.GetLedgerResponse(**to_mapping(found))
    for plane, num_bytes in bytes_by_plane.items():
        setattr(answer, f"bytes_{plane}", num_bytes)
    if answer.ByteSize() > MAX_BYTES:
        for line in answer.lineages:
            for link in line.ranges:
                link.parent, link.child = short(link.parent), short(link.child)
    check_size(answer.ByteSize(), "the ledger")
    return answer


def check_size(num_bytes: int, what: str) -> None:
    """Raises:
    ResourceError: ``resource.answer-too-large``.
    """
    if num_bytes > MAX_BYTES:
        raise ResourceError("resource.answer-too-large", f"{what} has {num_bytes} bytes", "ask for a single run")
