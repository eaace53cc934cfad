"""Safetensors files that somebody else wrote: a header that lies is an error of ours, before much is read."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING

from potluck.errors import DataError

if TYPE_CHECKING:
    from torch import Tensor

FLOATS = ("F64", "F32", "F16", "BF16")


def load_tensors(path: Path) -> dict[str, Tensor]:
    """All tensors of a file by name.

    Raises:
        DataError: ``data.bad-tensors``: the header is none, or its sizes are not those of the file.
    """
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    try:
        return load_file(path)
    except (SafetensorError, ValueError, KeyError, TypeError, RuntimeError, OverflowError) as error:
        raise _bad_tensors(path, error) from error


def tensor_shapes(path: Path) -> Mapping[str, tuple[str, tuple[int, ...]]]:
    """Dtype, as safetensors writes it, and shape of each tensor by name. Reads the header alone.

    Raises:
        DataError: ``data.bad-tensors``: as `load_tensors`.
    """
    from safetensors import SafetensorError, safe_open

    try:
        with safe_open(path, framework="pt") as file:
            slices = {name: file.get_slice(name) for name in file.keys()}  # noqa: SIM118 - it is no mapping
            return {name: (one.get_dtype(), tuple(one.get_shape())) for name, one in slices.items()}
    except (SafetensorError, ValueError, KeyError, TypeError, RuntimeError, OverflowError) as error:
        raise _bad_tensors(path, error) from error


def _bad_tensors(path: Path, error: Exception) -> DataError:
    fix = "whoever made this file must make it again"
    return DataError("data.bad-tensors", f"{path.name} holds no tensors: {error}", fix)
