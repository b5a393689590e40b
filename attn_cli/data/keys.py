"""Random numbers that are a pure function of what they are for.

A draw is named by its key, for example ("scene", seed, epoch, step): nothing depends on how many numbers were drawn
before, so a resumed run, another batch order or a second process sees the same scenes. The raw words of NumPy's
Philox are used, whose stream is fixed by NumPy's compatibility policy (`torch.randint` and `numpy.random.Generator`
methods may change between releases), so validation and test scenes are the same on every machine.
"""

from __future__ import annotations

import hashlib

import numpy as np


def key(*parts: int | str) -> int:
    """A well-mixed integer in [0, 2^63) for the parts, in their order; fits `torch.Generator.manual_seed`."""
    text = "\x1f".join(f"{'s' if isinstance(part, str) else 'i'}{part}" for part in parts)
    return int.from_bytes(hashlib.blake2b(text.encode(), digest_size=8).digest(), "little") >> 1


def draws(shape: tuple[int, ...], *parts: int | str) -> np.ndarray:
    """int64 array of the shape with independent uniform integers in [0, 2^31), keyed by the parts."""
    words = np.random.Philox(key=key(*parts)).random_raw(int(np.prod(shape, dtype=np.int64)))
    return (words >> np.uint64(33)).astype(np.int64).reshape(shape)


def below(bound: int | np.ndarray, shape: tuple[int, ...], *parts: int | str) -> np.ndarray:
    """int64 array with uniform integers in [0, bound); `bound` broadcasts over the shape. Bias: under bound/2^31."""
    return (draws(shape, *parts) * bound) >> 31


def noise(shape: tuple[int, ...], *parts: int | str) -> np.ndarray:
    """uint8 array of the shape with independent uniform bytes, keyed by the parts."""
    count = int(np.prod(shape, dtype=np.int64))
    words = np.random.Philox(key=key(*parts)).random_raw(-(-count // 8))
    return words.astype("<u8").view(np.uint8)[:count].reshape(shape)


def permutation(count: int, *parts: int | str) -> np.ndarray:
    """A random order of range(count), int64, keyed by the parts."""
    return np.argsort(np.random.Philox(key=key(*parts)).random_raw(count), kind="stable")
