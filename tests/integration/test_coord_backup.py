"""Backups of a coordinator's home: what they hold, who may read them, and when they are refused."""

from __future__ import annotations

import json
import shutil
import stat
from pathlib import Path

import pytest

from coordinator.backup import back_up_closed, blob_name
from coordinator.home import CoordinatorHome
from coordinator.journal import read_closed
from coordinator.restore import restore
from potluck import cli
from potluck.errors import DataError, PotluckError, ResourceError, UsageError
from potluck.ids import Digest
from tests.chaos.world import begin, tiny_job
from tests.integration.harness import Cluster

MADE_UNIX_MS = 1_700_000_000_000


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A `--home` whose coordinator knows a run and its text, and has ended."""
    folder = tmp_path_factory.mktemp("root")
    with Cluster(folder) as cluster:
        daemon = cluster.start_coordinator()
        begin(cluster, tiny_job(tmp_path_factory.mktemp("job")))
        assert daemon.stop() == 0
    return folder


@pytest.fixture
def home(root: Path, tmp_path: Path) -> CoordinatorHome:
    """A copy of it, to be damaged at will."""
    shutil.copytree(root / "coordinator", tmp_path / "old" / "coordinator")
    return CoordinatorHome(tmp_path / "old" / "coordinator")


@pytest.fixture
def backup(home: CoordinatorHome, tmp_path: Path) -> Path:
    back_up_closed(home, tmp_path / "backup", unix_ms=MADE_UNIX_MS)
    return tmp_path / "backup"


def refusal(source: Path, target: Path) -> PotluckError:
    with pytest.raises(PotluckError) as refused:
        restore(source, target)
    assert not target.exists() or target.is_dir()
    assert not list(target.parent.glob("*.partial")) + list(target.parent.glob(".*.partial"))
    return refused.value


def a_blob(backup: Path) -> Path:
    manifest = json.loads((backup / "backup.json").read_text())
    return backup / blob_name(Digest(min(manifest["blobs"])))


def change(path: Path) -> None:
    """Alters a byte in a copy of its own: the file may be a hard link to the home's."""
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 1
    path.unlink()
    path.write_bytes(data)


@pytest.mark.parametrize("name", ["backup", "backup.tar"])
def test_what_is_restored_is_what_was_there(home: CoordinatorHome, tmp_path: Path, name: str) -> None:
    made = back_up_closed(home, tmp_path / name, unix_ms=MADE_UNIX_MS)
    assert restore(tmp_path / name, tmp_path / "new") == made
    assert made.blobs
    assert (made.missing, made.damaged, made.made_unix_ms) == ((), (), MADE_UNIX_MS)
    assert list(read_closed(tmp_path / "new" / "journal.db")) == list(read_closed(home.journal))
    for part in (*made.files.keys() - {"journal.db"}, *map(blob_name, made.blobs)):
        assert (tmp_path / "new" / part).read_bytes() == (home.folder / part).read_bytes()


@pytest.mark.parametrize("name", ["backup", "backup.tar"])
def test_keys_are_readable_by_their_owner_alone_in_the_backup_and_where_it_is_restored(
    home: CoordinatorHome, tmp_path: Path, name: str
) -> None:
    back_up_closed(home, tmp_path / name, unix_ms=MADE_UNIX_MS)
    restore(tmp_path / name, tmp_path / "new")
    keys = ["ca/ca.key", "ca/enrol.key", "ca/curve.json", "admin/identity/identity.json", "journal.db"]
    places = [tmp_path / "new" / key for key in keys]
    places += [tmp_path / "backup" / key for key in keys] if name == "backup" else [tmp_path / name]
    assert {stat.S_IMODE(place.stat().st_mode) for place in places} == {0o600}
    assert stat.S_IMODE((tmp_path / "new").stat().st_mode) == 0o700


def test_a_backup_does_not_go_where_something_is(home: CoordinatorHome, tmp_path: Path) -> None:
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "mine").write_text("mine")
    for place in (tmp_path / "full", tmp_path / "full" / "mine"):
        with pytest.raises(UsageError) as refused:
            back_up_closed(home, place, unix_ms=MADE_UNIX_MS)
        assert refused.value.error_id == "usage.backup-exists"
    assert [path.name for path in (tmp_path / "full").iterdir()] == ["mine"]
    (tmp_path / "empty").mkdir()
    back_up_closed(home, tmp_path / "empty", unix_ms=MADE_UNIX_MS)


def test_a_place_that_cannot_be_written_and_a_name_that_promises_more_are_refused(
    home: CoordinatorHome, backup: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(ResourceError) as refused:
        back_up_closed(home, home.journal / "inside a file", unix_ms=MADE_UNIX_MS)
    assert refused.value.error_id == "resource.backup"
    with pytest.raises(UsageError) as misnamed:
        back_up_closed(home, tmp_path / "b.tar.gz", unix_ms=MADE_UNIX_MS)
    assert misnamed.value.error_id == "usage.bad-backup-name"
    assert cli.main(["restore", str(backup), "--home", str(home.journal), "--json"]) == 5
    assert json.loads(capsys.readouterr().out)["error"]["id"] == "resource.io"


def test_a_backup_is_not_restored_over_a_home(home: CoordinatorHome, backup: Path) -> None:
    assert refusal(backup, home.folder).error_id == "usage.home-exists"


@pytest.mark.parametrize("part", ["journal.db", "ca/ca.key", "a blob"])
def test_a_part_that_is_damaged_or_missing_is_named(backup: Path, tmp_path: Path, part: str) -> None:
    place = a_blob(backup) if part == "a blob" else backup / part
    change(place)
    error = refusal(backup, tmp_path / "new")
    assert isinstance(error, DataError)
    assert error.error_id == "data.backup-damaged"
    assert str(place.relative_to(backup)) in error.message
    place.unlink()
    error = refusal(backup, tmp_path / "new")
    assert error.error_id == "data.backup-damaged"
    assert f"{place.relative_to(backup)} is missing" in error.message


def test_a_tar_file_that_was_cut_off_is_damaged_and_a_text_is_no_backup(home: CoordinatorHome, tmp_path: Path) -> None:
    back_up_closed(home, tmp_path / "backup.tar", unix_ms=MADE_UNIX_MS)
    whole = (tmp_path / "backup.tar").read_bytes()
    (tmp_path / "cut.tar").write_bytes(whole[: len(whole) // 2])
    assert refusal(tmp_path / "cut.tar", tmp_path / "new").error_id == "data.backup-damaged"
    (tmp_path / "text.tar").write_text("no tar file at all")
    assert refusal(tmp_path / "text.tar", tmp_path / "new").error_id == "data.not-a-backup"


def test_a_folder_without_a_manifest_and_one_of_a_newer_format_are_refused(backup: Path, tmp_path: Path) -> None:
    manifest = json.loads((backup / "backup.json").read_text())
    (backup / "backup.json").write_text(json.dumps({**manifest, "format": 2}))
    assert refusal(backup, tmp_path / "new").error_id == "data.backup-format"
    (backup / "backup.json").write_text(json.dumps({**manifest, "files": {**manifest["files"], "../../x": {}}}))
    assert refusal(backup, tmp_path / "new").error_id == "data.not-a-backup"
    for text in ("", "[]", "null", "{", '{"format": 1}', "[" * 10_000, json.dumps({**manifest, "blobs": {"x": 1e300}})):
        (backup / "backup.json").write_text(text)
        assert refusal(backup, tmp_path / "new").error_id == "data.not-a-backup"
    (backup / "backup.json").unlink()
    assert refusal(backup, tmp_path / "new").error_id == "data.not-a-backup"
    assert refusal(tmp_path / "nowhere", tmp_path / "new").error_id == "usage.no-backup"


def test_a_blob_gone_bad_in_the_home_is_named_and_the_rest_is_saved(
    home: CoordinatorHome, backup: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    bad = a_blob(backup)
    change(home.folder / bad.relative_to(backup))
    target = tmp_path / "second"
    assert cli.main(["backup", "--home", str(home.folder.parent), str(target), "--json"]) == 1
    said = json.loads(capsys.readouterr().out)
    assert said["damaged"] == [bad.name]
    assert not (target / bad.relative_to(backup)).exists()
    assert restore(target, tmp_path / "new").damaged == (bad.name,)


def test_the_commands_refuse_with_ids_and_say_what_comes_next(
    home: CoordinatorHome, backup: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert cli.main(["restore", str(backup), "--home", str(tmp_path / "new")]) == 0
    said = capsys.readouterr()
    assert "every digest checked" in said.out
    assert "potluck join --coordinator HOST:PORT" in said.err
    assert cli.main(["restore", str(backup), "--home", str(tmp_path / "new"), "--json"]) == 2
    assert json.loads(capsys.readouterr().out)["error"]["id"] == "usage.home-exists"
    assert cli.main(["backup", "--home", str(tmp_path / "new"), str(backup), "--json"]) == 2
    assert json.loads(capsys.readouterr().out)["error"]["id"] == "usage.backup-exists"
    assert cli.main(["backup", "--home", str(tmp_path / "none"), str(tmp_path / "b"), "--json"]) == 2
    assert json.loads(capsys.readouterr().out)["error"]["id"] == "usage.no-coordinator"


def test_a_home_that_a_coordinator_works_on_is_not_copied_behind_its_back(tmp_path: Path) -> None:
    with Cluster(tmp_path / "cluster") as cluster:
        cluster.start_coordinator()
        with pytest.raises(ResourceError) as refused:
            back_up_closed(CoordinatorHome(cluster.home), tmp_path / "b", unix_ms=MADE_UNIX_MS)
        assert refused.value.error_id == "resource.locked"
        assert cli.main(["backup", "--home", str(cluster.folder), str(tmp_path / "b.tar")]) == 0
    assert restore(tmp_path / "b.tar", tmp_path / "new").events > 0
