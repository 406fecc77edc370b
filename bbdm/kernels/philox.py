"""Counter-based noise: every number is a pure function of (seed, stream, step, element).

Philox4x32-10 with key = (low, high) words of the 64-bit seed and counter = (element // 4, step, stream, lane), where
``element`` is the logical C, H, W index whatever the memory format, and lane is 0 for noise; training draws its times
and flips from lanes of their own.
Words become u = ((word >> 9) + 0.5) 2^-23, exact in float32, and pairs of u become normals by Box-Muller.
So one seed means one image on every device, at every batch size and place in the batch.
``philox_numpy.py`` is the same definition without torch.
"""

from __future__ import annotations

import math

import torch

from bbdm.kernels.philox_numpy import MASK, MULTIPLIERS, ROUNDS, WEYL

SAMPLING, TRAINING = 0, 1  # streams
NOISE_LANE, TIMESTEP_LANE, FLIP_LANE = 0, 1, 2  # last word of the counter


def random_words(
    seeds: torch.Tensor, step: int, count: int, stream: int = SAMPLING, lane: int = NOISE_LANE
) -> torch.Tensor:
    """(B, 4 * ceil(count / 4)) random 32-bit words, held in int64.

    Args:
        seeds: (B,) int64 tensor, on the device where the words are wanted.
        step: row of the step table when sampling, optimizer step when training; in [0, 2^32).
        count: how many words an image needs.
        stream: ``SAMPLING`` or ``TRAINING``.
        lane: ``NOISE_LANE``, ``TIMESTEP_LANE`` or ``FLIP_LANE``.
    """
    # A product of two 32-bit words wraps in int64, but its bits are right: mask after each shift.
    k0, k1 = seeds[:, None] & MASK, (seeds[:, None] >> 32) & MASK
    c0 = torch.arange(-(-count // 4), device=seeds.device)[None]
    c1, c2, c3 = (torch.full_like(c0, value) for value in (step, stream, lane))
    for _ in range(ROUNDS):
        p0, p1 = MULTIPLIERS[0] * c0, MULTIPLIERS[1] * c2
        c0, c1 = ((p1 >> 32) & MASK) ^ c1 ^ k0, p1 & MASK
        c2, c3 = ((p0 >> 32) & MASK) ^ c3 ^ k1, p0 & MASK
        k0, k1 = (k0 + WEYL[0]) & MASK, (k1 + WEYL[1]) & MASK
    return torch.stack([c0, c1, c2, c3], dim=-1).flatten(1)


def normal(seeds: torch.Tensor, step: int, shape: tuple[int, ...], stream: int = SAMPLING) -> torch.Tensor:
    """Standard normals for a batch of images.

    Args:
        seeds: (B,) int64, one for each image.
        step: row of the step table when sampling, optimizer step when training.
        shape: logical shape (C, H, W) of one image.
        stream: ``SAMPLING`` or ``TRAINING``.

    Returns:
        (B, *shape) float32, contiguous.
    """
    count = math.prod(shape)
    words = random_words(seeds, step, count, stream)
    u = ((words >> 9).float() + 0.5) * 2.0**-23
    radius = torch.sqrt(-2.0 * torch.log(u[:, 0::2]))
    angle = (2.0 * math.pi) * u[:, 1::2]
    pairs = torch.stack([radius * torch.cos(angle), radius * torch.sin(angle)], dim=-1)
    return pairs.flatten(1)[:, :count].reshape(-1, *shape)


def timesteps(seeds: torch.Tensor, step: int, low: int, high: int) -> torch.Tensor:
    """(B,) training timesteps, uniform on the integers low..high (both included), int64."""
    words = random_words(seeds, step, 1, TRAINING, TIMESTEP_LANE)[:, 0]
    return low + ((words * (high - low + 1)) >> 32)


def flips(seeds: torch.Tensor, step: int) -> torch.Tensor:
    """(B,) booleans, true for half of the training images."""
    return random_words(seeds, step, 1, TRAINING, FLIP_LANE)[:, 0] % 2 == 1
