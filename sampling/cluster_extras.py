"""Packages of the extras `cluster` and `cluster-gpu`: imported when used, missed in words."""

from __future__ import annotations

import importlib
from typing import Any

from potluck.errors import ResourceError


def extra(name: str) -> Any:
    """A module of faiss, scikit-learn or scipy.

    Raises:
        ResourceError: ``resource.missing-package``, with the extras that bring it.
    """
    try:
        return importlib.import_module(name)
    except ImportError as error:
        fix = "pip install 'potluck[cluster]', or 'potluck[cluster-gpu]' on a machine with an NVIDIA GPU, never both"
        raise ResourceError("resource.missing-package", f"{name} cannot be imported: {error}", fix) from error
