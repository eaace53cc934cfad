"""Chance as a function of a key: permutations of [0, size), the order in which rows are read, and numbers.

A balanced Feistel network over the next even number of bits, walked until it lands inside the range
(Black and Rogaway, "Ciphers with arbitrary finite domains", 2002). Every index is computed alone, so
any chunk of the order can be had on any machine without the rest.
"""

from __future__ import annotations

import numpy as np

ROUNDS = 6
_GOLDEN = 0x9E3779B97F4A7C15
_MASK_64 = (1 << 64) - 1


def permute(index: np.ndarray, size: int, key: int) -> np.ndarray:
    """Where the permutation `key` sends each index.

    Args:
        index: integers in [0, size), any shape.
        size: number of elements that are permuted, at least 1.
        key: any integer; its low 64 bits count.

    Returns:
        int64 array of index's shape: distinct indices give distinct values in [0, size).

    Raises:
        ValueError: size < 1, or an index outside [0, size).
    """
    if size < 1:
        raise ValueError(f"size = {size}; give at least 1")
    flat = np.asarray(index, dtype=np.int64).ravel()
    if flat.size and (int(flat.min()) < 0 or int(flat.max()) >= size):
        raise ValueError(f"index outside [0, {size})")
    half_bits = np.uint64(max(1, ((size - 1).bit_length() + 1) // 2))
    keys = _round_keys(np.array([key & _MASK_64], dtype=np.uint64))
    value = _encrypt(flat.astype(np.uint64), half_bits, keys)
    outside = np.flatnonzero(value >= size)
    while outside.size:
        value[outside] = _encrypt(value[outside], half_bits, keys)
        outside = outside[value[outside] >= size]
    return value.astype(np.int64).reshape(np.shape(index))


def permute_each(index: np.ndarray, sizes: np.ndarray, keys: np.ndarray) -> np.ndarray:
    """`permute`, each index with a size and a key of its own.

    Args:
        index: integers [n], each in [0, its size).
        sizes: integers [n], 1 to 2^53.
        keys: uint64 [n].

    Returns:
        int64 [n].
    """
    assert not index.size or (int(index.min()) >= 0 and bool((index < sizes).all())), "index outside its size"
    _, bits = np.frexp((sizes - 1).astype(np.float64))  # the exponent is the bit length: exact below 2^53
    half_bits = np.maximum(1, (bits + 1) // 2).astype(np.uint64)
    round_keys = _round_keys(keys)
    value = _encrypt(index.astype(np.uint64), half_bits, round_keys)
    limit = sizes.astype(np.uint64)
    outside = np.flatnonzero(value >= limit)
    while outside.size:
        value[outside] = _encrypt(value[outside], half_bits[outside], round_keys[:, outside])
        outside = outside[value[outside] >= limit[outside]]
    return value.astype(np.int64)


def uniform(key: int, index: np.ndarray) -> np.ndarray:
    """float64 in [0, 1), one for each index: SplitMix64 with a counter, 53 bits of it."""
    seed = mix(np.array([key & _MASK_64], dtype=np.uint64) + np.uint64(_GOLDEN))
    state = seed + (index.astype(np.uint64) + np.uint64(1)) * np.uint64(_GOLDEN)
    number: np.ndarray = (mix(state) >> np.uint64(11)).astype(np.float64) * 2.0**-53
    return number


def _round_keys(keys: np.ndarray) -> np.ndarray:
    """uint64 [ROUNDS, n] of uint64 [n]."""
    steps = np.arange(1, ROUNDS + 1, dtype=np.uint64)[:, None] * np.uint64(_GOLDEN)
    return mix(keys[None, :] + steps)


def _encrypt(value: np.ndarray, half_bits: np.ndarray | np.uint64, keys: np.ndarray) -> np.ndarray:
    mask = (np.uint64(1) << half_bits) - np.uint64(1)
    left, right = value >> half_bits, value & mask
    for key in keys:
        left, right = right, left ^ (mix(right ^ key) & mask)
    joined: np.ndarray = (left << half_bits) | right
    return joined


def mix(value: np.ndarray) -> np.ndarray:
    """The finaliser of SplitMix64 (Steele, Lea, Flood, 2014); uint64 arithmetic wraps."""
    value = (value ^ (value >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    value = (value ^ (value >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    mixed: np.ndarray = value ^ (value >> np.uint64(31))
    return mixed
