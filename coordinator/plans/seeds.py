"""Seeds."""

from __future__ import annotations

from potluck.ids import digest_json

SEED_BITS = 31


def derive(seed: int, *what: str | int) -> int:
    """A seed for one purpose, from the run's seed: below 2^31, the same for ever.

    The same in every method, so that runs of different methods share their tokenised text.
    """
    return int(digest_json(["smalltalk", seed, *what])[:16], 16) % (1 << SEED_BITS)
