"""A keyed permutation of [0, size) in constant memory: the order in which rows are read.

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
    half_bits = max(1, ((size - 1).bit_length() + 1) // 2)
    keys = _round_keys(key)
    value = _encrypt(flat.astype(np.uint64), half_bits, keys)
    outside = np.flatnonzero(value >= size)
    while outside.size:
        value[outside] = _encrypt(value[outside], half_bits, keys)
        outside = outside[value[outside] >= size]
    return value.astype(np.int64).reshape(np.shape(index))


def _round_keys(key: int) -> np.ndarray:
    state = key & _MASK_64
    keys = []
    for _ in range(ROUNDS):
        state = (state + _GOLDEN) & _MASK_64
        keys.append(int(_mix(np.array([state], dtype=np.uint64))[0]))
    return np.array(keys, dtype=np.uint64)


def _encrypt(value: np.ndarray, half_bits: int, keys: np.ndarray) -> np.ndarray:
    shift = np.uint64(half_bits)
    mask = np.uint64((1 << half_bits) - 1)
    left, right = value >> shift, value & mask
    for key in keys:
        left, right = right, left ^ (_mix(right ^ key) & mask)
    return (left << shift) | right


def _mix(value: np.ndarray) -> np.ndarray:
    """The finaliser of SplitMix64 (Steele, Lea, Flood, 2014); uint64 arithmetic wraps."""
    value = (value ^ (value >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    value = (value ^ (value >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    mixed: np.ndarray = value ^ (value >> np.uint64(31))
    return mixed
