"""Random-looking numbers that are a pure function of their key, on every machine and for ever.

They are computed with integers alone and by no library's random generator, because a generator may
draw other numbers in its next version.
"""

from __future__ import annotations

import hashlib
import json

import numpy as np
from numpy.typing import NDArray


def splitmix64(x: NDArray[np.uint64]) -> NDArray[np.uint64]:
    """Finalizer of SplitMix64 (Steele et al., 2014) of each number: a bijection on 64 bits."""
    x = (x ^ (x >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    x = (x ^ (x >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return x ^ (x >> np.uint64(31))


def hash_permutation(count: int, *key: int | str) -> NDArray[np.int64]:
    """Permutation of 0..count-1 that belongs to `key`.

    The hashes that are sorted are distinct, because SplitMix64 is a bijection. So every sorting
    algorithm gives the same order.
    """
    return np.argsort(_keyed(np.arange(count), key))


def hash_uniform(numbers: NDArray[np.integer], *key: int | str) -> NDArray[np.float64]:
    """One number in [0, 1) for each of `numbers [n]`; it depends on that number and `key` alone."""
    return np.asarray((_keyed(numbers, key) >> np.uint64(11)) * 2.0**-53, np.float64)


def _keyed(numbers: NDArray[np.integer], key: tuple[int | str, ...]) -> NDArray[np.uint64]:
    """Outputs of SplitMix64, seeded by `key`, at the positions `numbers` of its sequence."""
    start = int.from_bytes(hashlib.sha256(json.dumps(key).encode()).digest()[:8], "big")
    return splitmix64(numbers.astype(np.uint64) * np.uint64(0x9E3779B97F4A7C15) + np.uint64(start))
