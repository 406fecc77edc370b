"""Counter-based noise: every number is a pure function of (seed, stream, step, element).

Philox4x32-10 with key = (low, high) words of the 64-bit seed and counter = (element // 4, step, stream,
lane), where ``element`` is the logical C, H, W index whatever the memory format, and lane is 0 for noise;
training draws its times, flips and moves from other lanes. Words become u = ((word >> 9) + 0.5) 2^-23, exact
in float32, and pairs of u become normals by Box-Muller. So a seed gives the same image on every device, at
every batch size and place in the batch. ``philox_numpy.py`` is the same definition without torch, and the
``draw_*`` functions at the end are the same definition for kernels.
"""

from __future__ import annotations

import math

import torch

from bbdm.kernels.elementwise import constexpr, jit, tl
from bbdm.kernels.philox_numpy import AT_ONCE, MASK, MULTIPLIERS, ROUNDS, SAMPLING, WEYL
from bbdm.kernels.philox_numpy import CORRUPTION as CORRUPTION
from bbdm.kernels.philox_numpy import TRAINING as TRAINING

# The last word of the counter.
(
    NOISE_LANE,
    TIMESTEP_LANE,
    FLIP_LANE,
    MOVE_LANE,
    DROP_LANE,
    DIRECTION_LANE,
    CROP_LANE,
    AFFINE_LANE,
) = range(8)


def random_words(
    seeds: torch.Tensor,
    step: int | torch.Tensor,
    count: int,
    stream: int = SAMPLING,
    lane: int = NOISE_LANE,
    first: int = 0,
    blocks: torch.Tensor | None = None,
) -> torch.Tensor:
    """(B, 4 * ceil(count / 4)) random 32-bit words, held in int64.

    Args:
        seeds: (B,) int64 tensor, on the device that the words are for.
        step: row of the step table when sampling, optimizer step when training; in [0, 2^32). A tensor of one
            integer where it is known only on the device.
        count: number of words for an image.
        stream: one of ``SAMPLING``, ``TRAINING`` and ``CORRUPTION``.
        lane: ``NOISE_LANE``, or one of those of training.
        first: where to begin, a multiple of 4.
        blocks: (N,) the numbers of 4 words each that are drawn, in place of ``first`` and ``count``; None for
            those that follow each other.
    """
    # A product of two 32-bit words wraps in int64, but its bits are correct: mask after each shift.
    k0 = seeds[:, None] & MASK
    k1 = (seeds[:, None] >> 32) & MASK
    if blocks is None:
        blocks = torch.arange(first // 4, first // 4 + -(-count // 4), device=seeds.device)
    c0 = blocks[None]
    zeros = torch.zeros_like(c0)
    c1 = zeros + step
    c2 = zeros + stream
    c3 = zeros + lane
    for _ in range(ROUNDS):
        p0 = MULTIPLIERS[0] * c0
        p1 = MULTIPLIERS[1] * c2
        c0 = ((p1 >> 32) & MASK) ^ c1 ^ k0
        c1 = p1 & MASK
        c2 = ((p0 >> 32) & MASK) ^ c3 ^ k1
        c3 = p0 & MASK
        k0 = (k0 + WEYL[0]) & MASK
        k1 = (k1 + WEYL[1]) & MASK
    return torch.stack([c0, c1, c2, c3], dim=-1).flatten(1)


def normal(
    seeds: torch.Tensor,
    step: int | torch.Tensor,
    shape: tuple[int, ...],
    stream: int = SAMPLING,
    first: int = 0,
) -> torch.Tensor:
    """(B, *shape) standard normals, float32, for images of a logical ``shape`` (C, H, W), by Box-Muller.

    They are of the elements from ``first`` on, in parts that fit into caches. Seeds, step and stream are
    those of :func:`random_words`.
    """
    begin = first - first % 4
    end = first + math.prod(shape)
    parts: list[torch.Tensor] = []
    for start in range(begin, end, AT_ONCE):
        words = random_words(seeds, step, min(AT_ONCE, end - start), stream, first=start)
        parts.append(_normals(words))
    normals = parts[0] if len(parts) == 1 else torch.cat(parts, dim=1)
    return normals[:, first - begin : end - begin].reshape(-1, *shape)


def _normals(words: torch.Tensor) -> torch.Tensor:
    """(B, N) standard normals of as many words, by Box-Muller."""
    u = ((words >> 9).float() + 0.5) * 2.0**-23
    radius = torch.sqrt(-2.0 * torch.log(u[:, 0::2]))
    angle = (2.0 * math.pi) * u[:, 1::2]
    return torch.stack([radius * torch.cos(angle), radius * torch.sin(angle)], dim=-1).flatten(1)


def normal_box(
    seeds: torch.Tensor,
    step: int,
    shape: tuple[int, int, int],
    rows: slice,
    columns: slice,
    stream: int = SAMPLING,
) -> torch.Tensor:
    """(B, C, rows, columns) of :func:`normal` for images of a logical ``shape`` (C, H, W)."""
    channels, height, width = shape
    wide = columns.stop - columns.start
    device = seeds.device
    starts = torch.arange(rows.start, rows.stop, device=device) * width + columns.start  # elements
    blocks = (wide + 6) // 4  # of 4 elements, that hold a row of the box wherever it begins
    parts: list[torch.Tensor] = []
    for channel in range(channels):
        firsts = starts + channel * height * width
        numbers = firsts[:, None] // 4 + torch.arange(blocks, device=device)
        normals = _normals(random_words(seeds, step, 0, stream, blocks=numbers.flatten()))
        normals = normals.reshape(len(seeds), len(firsts), 4 * blocks)
        places = firsts[:, None] % 4 + torch.arange(wide, device=device)
        parts.append(normals.gather(2, places.expand(len(seeds), -1, -1)))
    return torch.stack(parts, dim=1)


def normal_rows(
    seeds: torch.Tensor, step: int, shape: tuple[int, ...], rows: slice, stream: int = SAMPLING
) -> torch.Tensor:
    """(B, C, rows, *S) of :func:`normal` for images of a logical ``shape`` (C, H, *S)."""
    channel = math.prod(shape[1:])  # elements
    row = math.prod(shape[2:])
    part = (rows.stop - rows.start, *shape[2:])
    firsts = range(rows.start * row, rows.start * row + shape[0] * channel, channel)
    return torch.stack([normal(seeds, step, part, stream, first) for first in firsts], dim=1)


def timesteps(seeds: torch.Tensor, step: int, low: int, high: int) -> torch.Tensor:
    """(B,) training timesteps, uniform on the integers low..high (both included), int64."""
    words = random_words(seeds, step, 1, TRAINING, TIMESTEP_LANE)[:, 0]
    return low + ((words * (high - low + 1)) >> 32)


def flips(seeds: torch.Tensor, step: int) -> torch.Tensor:
    """(B,) booleans, true for half of the training images."""
    return random_words(seeds, step, 1, TRAINING, FLIP_LANE)[:, 0] % 2 == 1


def uniforms(seeds: torch.Tensor, step: int, count: int, lane: int = MOVE_LANE) -> torch.Tensor:
    """(B, count) numbers in (0, 1) that move the training images, or of another lane, float32."""
    words = random_words(seeds, step, count, TRAINING, lane)[:, :count]
    return ((words >> 9).float() + 0.5) * 2.0**-23


# The same for kernels. Cosine, sine and logarithm are polynomials of our own instead of tl.cos, tl.sin and
# tl.log: the reduction of the argument is exact, since it starts from the integer behind u; no value goes
# through local memory; and every backend computes the same. Coefficients are minimax fits, with errors below
# half a unit of float32.

_M0 = constexpr(MULTIPLIERS[0])
_M1 = constexpr(MULTIPLIERS[1])
_W0 = constexpr(WEYL[0])
_W1 = constexpr(WEYL[1])
_ROUNDS = constexpr(ROUNDS)
_NOISE_LANE = constexpr(NOISE_LANE)
_SQRT_HALF = constexpr(0x3F3504F3)  # the bits of sqrt(1/2) as a float32


@jit
def draw_words(seed, block, step, STREAM: tl.constexpr):
    """The four words of elements 4 block .. 4 block + 3, each uint32 in the shape of ``block``.

    ``seed`` is an int64 scalar, ``step`` an integer scalar, ``STREAM`` one of ``SAMPLING`` and ``TRAINING``.
    """
    k0 = seed.to(tl.uint32)
    k1 = (seed >> 32).to(tl.uint32)
    c0 = block.to(tl.uint32)
    c1 = step.to(tl.uint32)
    c2 = tl.full((), STREAM, tl.uint32)
    c3 = tl.full((), _NOISE_LANE, tl.uint32)
    for _ in tl.static_range(_ROUNDS):  # pyright: ignore[reportGeneralTypeIssues]  (an iterator of Triton's compiler)
        p0 = c0.to(tl.uint64) * _M0
        p1 = c2.to(tl.uint64) * _M1
        c0 = (p1 >> 32).to(tl.uint32) ^ c1 ^ k0
        c1 = p1.to(tl.uint32)
        c2 = (p0 >> 32).to(tl.uint32) ^ c3 ^ k1
        c3 = p0.to(tl.uint32)
        k0 = (k0.to(tl.uint64) + _W0).to(tl.uint32)
        k1 = (k1.to(tl.uint64) + _W1).to(tl.uint32)
    return c0, c1, c2, c3


@jit
def _radius(word):
    """sqrt(-2 log(u)) in float32; u = 2^e (1 + s), 1 + s in [sqrt(1/2), sqrt(2)): s is exact near u = 1."""
    # 2^-24; the same u as ((word >> 9) + 0.5) 2^-23
    u = ((word >> 8) | 1).to(tl.float32) * 5.9604644775390625e-08
    bits = u.to(tl.int32, bitcast=True)
    e = (bits - _SQRT_HALF) >> 23
    s = (bits - (e << 23)).to(tl.float32, bitcast=True) - 1.0
    p = tl.fma(s, 0.0870043486, -0.142674863)
    p = tl.fma(s, p, 0.149147689)
    p = tl.fma(s, p, -0.165775836)
    p = tl.fma(s, p, 0.199630633)
    p = tl.fma(s, p, -0.250013381)
    p = tl.fma(s, p, 0.333339095)
    p = tl.fma(s, p, -0.5)
    log_u = tl.fma(e.to(tl.float32), 0.693147182, tl.fma(s * s, p, s))
    return tl.sqrt(-2.0 * log_u)


@jit
def _direction(word):
    """cos(2 pi u) and sin(2 pi u) in float32: 4 u = k + r with k an integer and r in (-1/2, 1/2), exactly."""
    v = ((word >> 8) | 1).to(tl.int32)  # 4 u = v 2^-22
    k = (v + (1 << 21)) >> 22
    r = (v - (k << 22)).to(tl.float32) * 2.384185791015625e-07  # 2^-22
    q = r * r
    s = tl.fma(q, -0.00460217707, 0.0796802267)  # sin(pi r / 2)
    s = tl.fma(q, s, -0.645963490)
    s = tl.fma(q, s, 1.57079637) * r
    c = tl.fma(q, 0.000904021668, -0.0208602883)  # cos(pi r / 2)
    c = tl.fma(q, c, 0.253669232)
    c = tl.fma(q, c, -1.23370051)
    c = tl.fma(q, c, 1.0)
    odd = (k & 1) != 0
    cos = tl.where(odd, s, c)
    sin = tl.where(odd, c, s)
    return tl.where(((k + 1) & 2) != 0, -cos, cos), tl.where((k & 2) != 0, -sin, sin)


@jit
def draw_normals(
    seed, start, step, pixels, STREAM: tl.constexpr, CHANNELS: tl.constexpr, BLOCK: tl.constexpr
):
    """(BLOCK,) float32 normals for the places start .. start + BLOCK - 1 of one image's memory.

    ``start`` is a multiple of 4, ``pixels`` is H W, and ``CHANNELS`` is C where memory is channels_last, 0
    where it is contiguous: there a place is an element, and 4 neighbours share one Philox call.
    """
    if CHANNELS == 0:
        w0, w1, w2, w3 = draw_words(seed, start // 4 + tl.arange(0, BLOCK // 4), step, STREAM)
        radius = _radius(tl.join(w0, w2))  # (BLOCK / 4, 2)
        cos, sin = _direction(tl.join(w1, w3))
        normals = tl.join(radius * cos, radius * sin).reshape(BLOCK)
    else:
        offset = start + tl.arange(0, BLOCK)
        element = offset % CHANNELS * pixels + offset // CHANNELS
        w0, w1, w2, w3 = draw_words(seed, element // 4, step, STREAM)
        second = (element & 2) != 0
        cos, sin = _direction(tl.where(second, w3, w1))
        normals = _radius(tl.where(second, w2, w0)) * tl.where((element & 1) != 0, sin, cos)
    return normals
