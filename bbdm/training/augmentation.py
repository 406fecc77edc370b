"""Random changes of an example, the same for all its images: mirrored, moved, another size.

They are a function of (seed, optimizer step), like times and noise, and drawn on the training device.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
import torch.nn.functional as F

from bbdm.data.examples import Example
from bbdm.kernels import philox
from bbdm.kernels.elementwise import CHANNELS_LAST
from bbdm.networks.base import Network
from bbdm.networks.conditions import DIRECTION
from bbdm.training.config import RunConfig

Pair = tuple[torch.Tensor, torch.Tensor]


def augment(batch: Example, seeds: torch.Tensor, step: int, config: RunConfig, latents: bool = False) -> Example:
    """A batch whose images (B, C, *S) are changed as the settings ``flip``, ``shift`` and ``zoom`` say.

    They are sources, targets, masks, and of the conditions those with four axes or more. Pictures (H, W) and
    volumes (D, H, W) are mirrored along W. Latents of plain and mirrored pictures are (B, 2, C, H, W), of
    which ``flip`` chooses.
    """
    if config.flip:
        mirrored = philox.flips(seeds, step)

        def flipped(v: torch.Tensor, _: bool) -> torch.Tensor:
            pair = (v[:, 1], v[:, 0]) if latents else (v.flip(-1), v)
            return torch.where(mirrored[(..., *[None] * (pair[0].ndim - 1))], *pair)

        batch = _changed(batch, flipped)
    if config.shift or config.zoom:
        grid = _grid(batch.source, seeds, step, config)
        batch = _changed(batch, lambda v, smooth: _resampled(v, grid, smooth and config.zoom > 0))
    return batch


def drawn_back(seeds: torch.Tensor, step: int) -> torch.Tensor:
    """(B,) whether examples of a run of both directions go back: of two neighbours in a batch one, drawn."""
    odd = seeds >> 32 & 1  # of the index in the batch
    return (philox.uniforms(seeds - (odd << 32), step, 1, philox.TURN_LANE)[:, 0] < 0.5) ^ (odd == 1)


def turned(batch: Example, back: torch.Tensor) -> Example:
    """A batch of AtoB in which source and target change places where ``back`` (B,) says so."""
    where = back[(..., *[None] * (batch.source.ndim - 1))]
    source, target = (
        torch.where(where, *pair) for pair in ((batch.target, batch.source), (batch.source, batch.target))
    )
    return batch._replace(source=source, target=target, conditions={**batch.conditions, DIRECTION: back.long()})


def dropped(batch: Example, seeds: torch.Tensor, step: int, network: Network) -> Example:
    """A batch in which each condition is "none" for the share of examples that ``network.drop`` says."""
    if not network.drop:
        return batch
    drawn = philox.uniforms(seeds, step, len(network.drop), philox.DROP_LANE)
    conditions = dict(batch.conditions)
    for column, (name, share) in enumerate(network.drop.items()):
        value = conditions[name]
        without = (drawn[:, column] < share)[(..., *[None] * (value.ndim - 1))]
        conditions[name] = torch.where(without, network.without({name: value}, [name])[name], value)
    return batch._replace(conditions=conditions)


def _changed(batch: Example, change: Callable[[torch.Tensor, bool], torch.Tensor]) -> Example:
    """A batch whose images are changed, by a function of each and of whether it may have values between."""
    conditions = {name: change(v, True) if v.ndim >= 4 else v for name, v in batch.conditions.items()}
    mask = None if batch.mask is None else change(batch.mask, False)
    source, target = change(batch.source, True), change(batch.target, True)
    return batch._replace(source=source, target=target, conditions=conditions, mask=mask)


def _grid(v: torch.Tensor, seeds: torch.Tensor, step: int, config: RunConfig) -> torch.Tensor:
    """(B, *S, axes) positions in [-1, 1] where the pixels of moved pictures are read, the last side first."""
    sides = v.shape[2:]
    axes = len(sides)
    drawn = philox.uniforms(seeds, step, axes + 1) * 2 - 1  # across, down, of volumes deep, size
    scale = (1 + config.zoom) ** drawn[:, axes]
    theta = torch.zeros(len(v), axes, axes + 1, device=v.device)
    for axis, side in enumerate(reversed(sides)):
        theta[:, axis, axis] = scale
        theta[:, axis, axes] = torch.round(drawn[:, axis] * config.shift * side) * 2 / side  # by whole pixels
    return F.affine_grid(theta, [len(v), 1, *sides], align_corners=False)


def _resampled(v: torch.Tensor, grid: torch.Tensor, smooth: bool) -> torch.Tensor:
    """Pictures read at the positions of a grid; beyond a side they go on as at it."""
    mode = ("bicubic" if v.ndim == 4 else "bilinear") if smooth else "nearest"  # of volumes there is no bicubic
    moved = F.grid_sample(v.float(), grid, mode=mode, padding_mode="border", align_corners=False)
    return moved.clamp(-1, 1).to(v.dtype).contiguous(memory_format=CHANNELS_LAST[v.ndim])
