"""Files and folders that are there whole, or not at all, whatever happens."""

from __future__ import annotations

import errno
import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

FULL = frozenset({errno.ENOSPC, errno.EDQUOT, errno.EFBIG})


def is_full_disk(error: BaseException) -> bool:
    """Whether a write failed for want of room; safetensors and numpy say so in words alone."""
    text = str(error)
    by_number = isinstance(error, OSError) and error.errno in FULL
    short_write = isinstance(error, OSError) and " requested and " in text and text.endswith(" written")
    return by_number or short_write or f"(os error {errno.ENOSPC})" in text


def write_durably(path: Path, data: bytes) -> None:
    """Writes a small file by one rename."""
    temporary = path.with_suffix(path.suffix + ".tmp")
    with temporary.open("wb") as file:
        file.write(data)
        file.flush()
        os.fsync(file.fileno())
    os.replace(temporary, path)


@contextmanager
def new_folder(final: Path) -> Iterator[Path]:
    """An empty folder to write files into; it appears as `final` by one rename, once they are all on disk.

    What bore the name before is removed first. If the body fails, nothing bears it and nothing is left.
    """
    temporary = final.with_name(f"{final.name}.tmp")
    for stale in (final, temporary):
        shutil.rmtree(stale, ignore_errors=True)
    temporary.mkdir(parents=True)
    try:
        yield temporary
        for path in temporary.iterdir():
            sync_file(path)
        sync_folder(temporary)
        os.rename(temporary, final)
    except BaseException:
        shutil.rmtree(temporary, ignore_errors=True)  # Most of all on a full disk.
        raise


def sync_folder(folder: Path) -> None:
    handle = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def sync_file(path: Path) -> None:
    with path.open("rb") as file:
        os.fsync(file.fileno())
