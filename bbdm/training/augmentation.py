"""Random changes of a training pair, the same for source and target: mirrored, moved, another size.

They are a function of (seed, optimizer step), like times and noise, and are made on the training device.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F

from bbdm.kernels import philox
from bbdm.training.config import RunConfig

Pair = tuple[torch.Tensor, torch.Tensor]


def augment(y: torch.Tensor, x0: torch.Tensor, seeds: torch.Tensor, step: int, config: RunConfig) -> Pair:
    """Sources and targets (B, C, H, W), changed as the settings ``flip``, ``shift`` and ``zoom`` say.

    Latents of plain and mirrored pictures are (B, 2, C, H, W), of which ``flip`` chooses.
    """
    if config.flip:
        mirrored = philox.flips(seeds, step)[:, None, None, None]
        y, x0 = (torch.where(mirrored, *_mirrored_and_plain(v)) for v in (y, x0))
    if config.shift or config.zoom:
        grid = _grid(y, seeds, step, config)
        y, x0 = (_resampled(v, grid, smooth=config.zoom > 0) for v in (y, x0))
    return y, x0


def _mirrored_and_plain(v: torch.Tensor) -> Pair:
    return (v[:, 1], v[:, 0]) if v.ndim == 5 else (v.flip(-1), v)


def _grid(v: torch.Tensor, seeds: torch.Tensor, step: int, config: RunConfig) -> torch.Tensor:
    """(B, H, W, 2) places in [-1, 1] where the pixels of moved pictures are read."""
    height, width = v.shape[-2:]
    drawn = philox.uniforms(seeds, step, 3) * 2 - 1  # across, down, size
    across, down = (torch.round(drawn[:, i] * config.shift * n) * 2 / n for i, n in enumerate((width, height)))
    scale = (1 + config.zoom) ** drawn[:, 2]
    theta = torch.zeros(len(v), 2, 3, device=v.device)
    theta[:, 0, 0] = theta[:, 1, 1] = scale
    theta[:, 0, 2], theta[:, 1, 2] = across, down  # by whole pixels
    return F.affine_grid(theta, [len(v), 1, height, width], align_corners=False)


def _resampled(v: torch.Tensor, grid: torch.Tensor, smooth: bool) -> torch.Tensor:
    """Pictures read at the places of a grid; beyond a side they go on as at it."""
    mode = "bicubic" if smooth else "nearest"
    moved = F.grid_sample(v.float(), grid, mode=mode, padding_mode="border", align_corners=False)
    return moved.clamp(-1, 1).to(v.dtype).contiguous(memory_format=torch.channels_last)
