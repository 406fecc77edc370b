"""How the kernels of GroupNorm cut an image in channels_last memory, (HW, C), into blocks, chunks and tiles.

A program has one block of GROUPS whole groups, in BLOCK_C lanes, and one chunk of SPAN rows, which it reads
in tiles of ROWS rows. Its place in the grid is (block, chunk, image).
"""

from __future__ import annotations

import math
from functools import cache
from typing import Any

from bbdm.kernels.jit import jit, tl, triton

TILE, BACKWARD_TILE = 4096, 2048  # numbers of a tensor that a program holds at a time: 32 or 16 in a thread of 4 warps
WIDTHS = (64, 128, 256)  # of a block, in channels: a row of the narrowest is a cache line, and more blocks fill a GPU
MIN_SPAN, MAX_CHUNKS = 32, 32  # more chunks fill a GPU at batch 1, but each program of the second pass reads them all


@cache
def plan(channels: int, num_groups: int, pixels: int, tile: int, **more: bool) -> tuple[int, int, dict[str, Any]]:
    """The numbers of blocks and chunks of an image, and the kernels' constants, whatever the batch."""
    group = channels // num_groups
    aligned = 8 // math.gcd(8, group)  # groups that are a multiple of 8 channels, 128 bits of bfloat16

    def split(width: int) -> tuple[int, int, int]:
        lanes = max(triton.next_power_of_2(group), min(width, triton.next_power_of_2(channels)))
        groups = min(lanes // group, num_groups)
        groups -= groups % aligned if groups > aligned else 0
        return -(-num_groups // groups) * lanes, lanes, groups

    all_lanes, lanes, groups = min(split(width) for width in WIDTHS)  # few idle lanes, then narrow blocks
    span = triton.next_power_of_2(max(MIN_SPAN, -(-pixels // MAX_CHUNKS)))
    blocks, chunks, rows = all_lanes // lanes, -(-pixels // span), min(span, max(1, tile // lanes))
    block_g, block_k = triton.next_power_of_2(groups), triton.next_power_of_2(chunks)
    constants = {"C": channels, "GROUP": group, "GROUPS": groups, "BLOCK_G": block_g, "BLOCK_C": lanes}
    return blocks, chunks, constants | {"SPAN": span, "ROWS": rows, "BLOCK_K": block_k, **more}


@jit
def channels_of_block(
    C: tl.constexpr, GROUP: tl.constexpr, GROUPS: tl.constexpr, BLOCK_G: tl.constexpr, BLOCK_C: tl.constexpr
):
    """The block's channels and groups, which of them exist, and (BLOCK_G, BLOCK_C) membership of channels."""
    lane, group = tl.arange(0, BLOCK_C), tl.arange(0, BLOCK_G)
    c, g = tl.program_id(0) * (GROUPS * GROUP) + lane, tl.program_id(0) * GROUPS + group
    c_ok, g_ok = (lane < GROUPS * GROUP) & (c < C), (group < GROUPS) & (g < C // GROUP)
    return c, c_ok, g, g_ok, (lane // GROUP)[None, :] == group[:, None]  # one-hot, as GROUP is any number


@jit
def rows_of_tile(row, c, c_ok, HW, C: tl.constexpr, ROWS: tl.constexpr):
    """Offsets and mask of ROWS rows from ``row`` on. Only within an image are 32 bits enough."""
    rows = tl.arange(0, ROWS)[:, None]
    start = (tl.program_id(2).to(tl.int64) * HW + row) * C
    return start + (rows * C + c[None, :]), (row + rows < HW) & c_ok[None, :]
