"""Random changes of an example, the same for all its images: mirrored, moved, another size.

They are a function of (seed, optimizer step), like times and noise, and are made on the training device.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
import torch.nn.functional as F

from bbdm.data.collection import Example
from bbdm.kernels import philox
from bbdm.training.config import RunConfig

Pair = tuple[torch.Tensor, torch.Tensor]


def augment(batch: Example, seeds: torch.Tensor, step: int, config: RunConfig) -> Example:
    """A batch whose images (B, C, H, W) are changed as the settings ``flip``, ``shift`` and ``zoom`` say.

    They are sources, targets, masks, and of the conditions those with four axes. Latents of plain and
    mirrored pictures are (B, 2, C, H, W), of which ``flip`` chooses.
    """
    if config.flip:
        mirrored = philox.flips(seeds, step)[:, None, None, None]
        batch = _changed(batch, lambda v, smooth: torch.where(mirrored, *_mirrored_and_plain(v)))
    if config.shift or config.zoom:
        grid = _grid(batch.source, seeds, step, config)
        batch = _changed(batch, lambda v, smooth: _resampled(v, grid, smooth and config.zoom > 0))
    return batch


def _changed(batch: Example, change: Callable[[torch.Tensor, bool], torch.Tensor]) -> Example:
    """A batch whose images are changed, by a function of each and of whether it may have values between."""
    conditions = {name: change(v, True) if v.ndim >= 4 else v for name, v in batch.conditions.items()}
    mask = None if batch.mask is None else change(batch.mask, False)
    source, target = change(batch.source, True), change(batch.target, True)
    return batch._replace(source=source, target=target, conditions=conditions, mask=mask)


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
