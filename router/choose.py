"""The routing decision: least mean prefix NLL, quantised as the offline scores are. Pure."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from sampling.scoring import to_fixed_point


@dataclass(frozen=True, kw_only=True)
class Decision:
    expert: int
    prefix_nll: tuple[float, ...] = ()
    """Mean NLL of the prefix under each router, nats per target; empty where no router models decide."""


def choose(mean_nll_E: npt.NDArray[np.floating]) -> int:
    """The expert with the least quantised score; ties go to the lower index.

    The quantisation is that of the offline score columns, so a tie there is a tie here. A score that
    is not a number saturates: a broken router wins against none but its like.

    Args:
        mean_nll_E: `[experts]`, nats per target token of the prefix; finite or not.
    """
    assert mean_nll_E.ndim == 1
    with np.errstate(over="ignore"):  # what is infinite saturates like the rest
        column_E, _ = to_fixed_point(mean_nll_E)
    return int(np.argmin(column_E))
