"""Finished work on disk."""

from __future__ import annotations

from pathlib import Path

import pytest

from expert_node.outbox import ENTRY_FILE, Outbox, entry_from_json, entry_to_json, next_epoch
from expert_node.values import FinishedCommit, FinishedTask
from potluck.errors import DataError
from potluck.ids import Digest, Fence, LineageId, TaskId, digest_bytes

DIGEST = digest_bytes(b"weights")


def commit(number: int) -> FinishedCommit:
    return FinishedCommit(
        entry=number,
        fence=Fence(3),
        lineage=LineageId("L"),
        parent=Digest(""),
        start_step=0,
        end_step=5,
        child=DIGEST,
        weights=DIGEST,
        optimizer=DIGEST,
        figures={"loss": 2.5, "loss_curve": [[0, 2.5]]},
        files=((DIGEST, "weights.safetensors"),),
        label="expert 0",
    )


def put(outbox: Outbox, folder: Path) -> FinishedCommit:
    entry = commit(outbox.next_number())
    folder.mkdir()
    (folder / "weights.safetensors").write_bytes(b"weights")
    outbox.add(entry, folder)
    return entry


def test_entries_survive_a_restart_in_order(tmp_path: Path) -> None:
    outbox = Outbox(tmp_path / "outbox")
    entries = [put(outbox, tmp_path / name) for name in ("a", "b")]
    again = Outbox(tmp_path / "outbox")
    assert again.entries() == entries
    assert again.next_number() > entries[-1].entry
    assert again.path_of(entries[0], DIGEST).read_bytes() == b"weights"


def test_a_removed_entry_is_gone_for_good_and_its_files_may_be_adopted(tmp_path: Path) -> None:
    outbox = Outbox(tmp_path / "outbox")
    entry = put(outbox, tmp_path / "a")
    adopted: list[bytes] = []
    outbox.remove(entry.entry, lambda path: adopted.append(path.read_bytes()))
    outbox.remove(entry.entry)
    assert adopted == [b"weights"]
    assert Outbox(tmp_path / "outbox").entries() == []


def test_an_entry_without_its_file_is_set_aside_with_the_reason(tmp_path: Path) -> None:
    outbox = Outbox(tmp_path / "outbox")
    entry = put(outbox, tmp_path / "a")
    outbox.path_of(entry, DIGEST).unlink()
    again = Outbox(tmp_path / "outbox")
    assert again.entries() == []
    assert "weights.safetensors" in again.damaged[0]
    with pytest.raises(DataError, match=r"data\.outbox-damaged"):
        outbox.path_of(entry, DIGEST)


@pytest.mark.parametrize("text", ["", "{}", '{"kind":"other","fence":1,"files":[]}', "[1]"])
def test_an_entry_that_cannot_be_read_is_set_aside(tmp_path: Path, text: str) -> None:
    outbox = Outbox(tmp_path / "outbox")
    entry = put(outbox, tmp_path / "a")
    (outbox.path_of(entry, DIGEST).parent / ENTRY_FILE).write_text(text)
    again = Outbox(tmp_path / "outbox")
    assert (again.entries(), len(again.damaged)) == ([], 1)


def test_a_folder_that_was_being_removed_is_removed_at_the_next_start(tmp_path: Path) -> None:
    (tmp_path / "outbox" / "000000000001.gone").mkdir(parents=True)
    assert Outbox(tmp_path / "outbox").entries() == []
    assert not list((tmp_path / "outbox").iterdir())


@pytest.mark.parametrize(
    "entry",
    [
        commit(4),
        FinishedTask(
            entry=5,
            fence=Fence(9),
            task=TaskId("T"),
            blobs=(("column", DIGEST),),
            figures={"saturated": 0},
            files=((DIGEST, "column.npy"),),
            plane="corpus",
        ),
    ],
)
def test_an_entry_reads_back_as_it_was_written(entry: FinishedCommit | FinishedTask) -> None:
    read = entry_from_json(entry_to_json(entry))
    assert type(read) is type(entry)
    assert entry_to_json(read) == entry_to_json(entry)


def test_request_ids_of_a_new_process_are_above_all_earlier_ones(tmp_path: Path) -> None:
    first, second = next_epoch(tmp_path), next_epoch(tmp_path)
    assert second - first >= 1 << 32
