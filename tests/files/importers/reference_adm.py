"""Guided diffusion's network as its publications describe it, for comparison: plain modules and operations.

It shares nothing with ``bbdm.networks`` but the tree of names, which published files have.
"""

import math
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn


class Block(nn.Module):
    """Two convolutions around the time, and a way past them; ``size`` is 2, 0.5 or 1 times the old one."""

    def __init__(self, channels: int, out: int, emb: int, shift: bool, size: float = 1.0) -> None:
        super().__init__()
        self.size, self.shift = size, shift
        self.in_layers = nn.Sequential(nn.GroupNorm(32, channels), nn.SiLU(), nn.Conv2d(channels, out, 3, padding=1))
        self.emb_layers = nn.Sequential(nn.SiLU(), nn.Linear(emb, 2 * out if shift else out))
        last = nn.Conv2d(out, out, 3, padding=1)
        self.out_layers = nn.Sequential(nn.GroupNorm(32, out), nn.SiLU(), nn.Dropout(0.1), last)
        self.skip_connection = nn.Identity() if channels == out else nn.Conv2d(channels, out, 1)

    def resized(self, x: Tensor) -> Tensor:
        if self.size > 1:
            return x.repeat_interleave(2, 2).repeat_interleave(2, 3)
        return x.unflatten(3, (-1, 2)).unflatten(2, (-1, 2)).mean((3, 5)) if self.size < 1 else x

    def forward(self, x: Tensor, emb: Tensor) -> Tensor:
        h = self.in_layers[2](self.resized(self.in_layers[:2](x)))
        time = self.emb_layers(emb)[:, :, None, None]
        if self.shift:
            half = time.shape[1] // 2
            h = self.out_layers[1:](self.out_layers[0](h) * (1 + time[:, :half]) + time[:, half:])
        else:
            h = self.out_layers(h + time)
        return self.skip_connection(self.resized(x)) + h


class Attention(nn.Module):
    """``first`` is the order of qkv's channels: ``qkv`` (q of all heads, then k, then v), or ``heads``."""

    def __init__(self, channels: int, heads: int, first: str, dims: int) -> None:
        super().__init__()
        conv = nn.Conv1d if dims == 1 else nn.Conv2d
        self.heads, self.first, self.dims = heads, first, dims
        self.norm = nn.GroupNorm(32, channels)
        self.qkv, self.proj_out = conv(channels, 3 * channels, 1), conv(channels, channels, 1)

    def forward(self, x: Tensor, emb: Tensor) -> Tensor:
        h = self.norm(x)
        channels = self.qkv(h.flatten(2) if self.dims == 1 else h).flatten(2)  # (B, 3 C, N)
        if self.first == "qkv":
            parts = [part.unflatten(1, (self.heads, -1)) for part in channels.chunk(3, 1)]
        else:
            parts = channels.unflatten(1, (self.heads, -1)).chunk(3, 2)
        outputs = []
        for head in range(self.heads):
            q, k, v = (part[:, head] for part in parts)  # (B, D, N)
            weights = torch.softmax(torch.einsum("bdn,bdm->bnm", q, k) / math.sqrt(q.shape[1]), -1)
            outputs.append(torch.einsum("bnm,bdm->bdn", weights, v))
        h = torch.cat(outputs, 1)
        return x + self.proj_out(h if self.dims == 1 else h.unflatten(2, x.shape[2:])).view_as(x)


class Half(nn.Module):
    def __init__(self, channels: int) -> None:
        super().__init__()
        self.op = nn.Conv2d(channels, channels, 3, stride=2, padding=1)

    def forward(self, x: Tensor, emb: Tensor) -> Tensor:
        return self.op(x)


class Double(nn.Module):
    def __init__(self, channels: int) -> None:
        super().__init__()
        self.conv = nn.Conv2d(channels, channels, 3, padding=1)

    def forward(self, x: Tensor, emb: Tensor) -> Tensor:
        return self.conv(F.interpolate(x, scale_factor=2, mode="nearest"))


class ReferenceADM(nn.Module):
    """``attention`` names the levels with attention by their factor; ``seen`` counts the channels shown."""

    def __init__(
        self,
        seen: int,
        width: int = 32,
        mults: tuple[int, ...] = (1, 2),
        blocks: int = 1,
        attention: tuple[int, ...] = (2,),
        head_width: int | None = 16,
        heads: int = 4,
        *,
        first: str = "heads",
        dims: int = 1,
        shift: bool = True,
        updown: bool = True,
    ) -> None:
        super().__init__()
        emb = 4 * width
        self.width = width
        self.time_embed = nn.Sequential(nn.Linear(width, emb), nn.SiLU(), nn.Linear(emb, emb))

        def attend(channels: int) -> Attention:
            return Attention(channels, channels // head_width if head_width else heads, first, dims)

        def stage(channels: int, out: int, level: int) -> nn.ModuleList:
            return nn.ModuleList([Block(channels, out, emb, shift), *([attend(out)] if 2**level in attention else [])])

        self.input_blocks = nn.ModuleList([nn.ModuleList([nn.Conv2d(seen, width, 3, padding=1)])])
        channels, widths = width, [width]
        for level, mult in enumerate(mults):
            for _ in range(blocks):
                self.input_blocks.append(stage(channels, width * mult, level))
                channels = width * mult
                widths.append(channels)
            if level + 1 < len(mults):
                half = Block(channels, channels, emb, shift, 0.5) if updown else Half(channels)
                self.input_blocks.append(nn.ModuleList([half]))
                widths.append(channels)
        self.middle_block = nn.ModuleList(
            [Block(channels, channels, emb, shift), attend(channels), Block(channels, channels, emb, shift)]
        )
        self.output_blocks = nn.ModuleList()
        for level in range(len(mults) - 1, -1, -1):
            for index in range(blocks + 1):
                parts = stage(channels + widths.pop(), width * mults[level], level)
                channels = width * mults[level]
                if level and index == blocks:
                    parts.append(Block(channels, channels, emb, shift, 2.0) if updown else Double(channels))
                self.output_blocks.append(parts)
        self.out = nn.Sequential(nn.GroupNorm(32, channels), nn.SiLU(), nn.Conv2d(channels, 3, 3, padding=1))

    def forward(self, x: Tensor, t: Tensor) -> Tensor:
        speeds = torch.tensor([10000 ** (-i / (self.width // 2)) for i in range(self.width // 2)])
        angles = t[:, None] * speeds
        emb = self.time_embed(torch.cat([torch.cos(angles), torch.sin(angles)], 1))
        skips: list[Tensor] = []
        for stage in self.input_blocks:
            x = _run(stage, x, emb)
            skips.append(x)
        x = _run(self.middle_block, x, emb)
        for stage in self.output_blocks:
            x = _run(stage, torch.cat([x, skips.pop()], 1), emb)
        return self.out(x)


def _run(stage: Any, x: Tensor, emb: Tensor) -> Tensor:
    for layer in stage:
        x = layer(x) if isinstance(layer, nn.Conv2d) else layer(x, emb)
    return x
