"""Philox4x32-10 and Box-Muller normals in NumPy: the noise of ``philox.py`` for programs without torch.

This file defines the noise contract in its plainest form and must not import torch.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

ROUNDS = 10
# Salmon et al. 2011, "Parallel random numbers: as easy as 1, 2, 3"
MULTIPLIERS = (0xD2511F53, 0xCD9E8D57)
WEYL = (0x9E3779B9, 0xBB67AE85)  # golden ratio, sqrt(3) - 1
MASK = 0xFFFFFFFF
SAMPLING, TRAINING, CORRUPTION = 0, 1, 2  # streams
AT_ONCE = 2**17  # normals of an image: what is computed of them fits into a processor's caches


def philox4x32(counter: npt.ArrayLike, key: npt.ArrayLike) -> npt.NDArray[np.uint32]:
    """(..., 4) uint32 words of (..., 4) counters and (..., 2) keys, integers in [0, 2^32), broadcast."""
    c = np.asarray(counter, dtype=np.uint64)
    k = np.asarray(key, dtype=np.uint64)
    c0, c1, c2, c3 = np.moveaxis(c, -1, 0)
    k0, k1 = np.moveaxis(k, -1, 0)
    mask = np.uint64(MASK)
    shift = np.uint64(32)
    for _ in range(ROUNDS):
        p0 = np.uint64(MULTIPLIERS[0]) * c0
        p1 = np.uint64(MULTIPLIERS[1]) * c2
        c0 = (p1 >> shift) ^ c1 ^ k0
        c1 = p1 & mask
        c2 = (p0 >> shift) ^ c3 ^ k1
        c3 = p0 & mask
        k0 = (k0 + np.uint64(WEYL[0])) & mask
        k1 = (k1 + np.uint64(WEYL[1])) & mask
    return np.stack(np.broadcast_arrays(c0, c1, c2, c3), axis=-1).astype(np.uint32)


def random_words(
    seeds: npt.ArrayLike, step: int, count: int, stream: int = 0, lane: int = 0, first: int = 0
) -> npt.NDArray[np.uint32]:
    """(B, 4 * ceil(count / 4)) random 32-bit words, those of :func:`bbdm.kernels.philox.random_words`."""
    unsigned = np.atleast_1d(np.asarray(seeds, dtype=np.int64)).astype(np.uint64)
    key = np.stack([unsigned & np.uint64(MASK), unsigned >> np.uint64(32)], axis=-1)[:, None, :]
    counter = np.zeros((-(-count // 4), 4), dtype=np.uint64)
    counter[:, 0] = np.arange(first // 4, first // 4 + len(counter), dtype=np.uint64)
    counter[:, 1:] = (step, stream, lane)
    return philox4x32(counter, key).reshape(len(unsigned), -1)


def normal(
    seeds: npt.ArrayLike, step: int, shape: tuple[int, ...], stream: int = 0
) -> npt.NDArray[np.float32]:
    """(B, *shape) standard normals, float32; see :func:`bbdm.kernels.philox.normal`."""
    count = int(np.prod(shape))
    normals = np.empty((np.size(seeds), count), np.float32)
    for first in range(0, count, AT_ONCE):
        part = normals[:, first : first + AT_ONCE]
        words = random_words(seeds, step, part.shape[1], stream, first=first)
        u = ((words >> np.uint32(9)).astype(np.float32) + np.float32(0.5)) * np.float32(2.0**-23)
        radius = np.sqrt(np.float32(-2.0) * np.log(u[:, 0::2]))
        angle = np.float32(2.0 * np.pi) * u[:, 1::2]
        pairs = np.stack([radius * np.cos(angle), radius * np.sin(angle)], axis=-1)
        part[:] = pairs.reshape(len(words), -1)[:, : part.shape[1]]
    return normals.reshape(-1, *shape)
