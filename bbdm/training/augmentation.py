"""Training examples mirrored, moved, turned and scaled: all images of an example alike.

What is drawn is a function of the seed of an example and the optimizer step.
"""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
from torch.nn import functional as F

from bbdm.data.examples import Example
from bbdm.kernels import philox
from bbdm.kernels.elementwise import CHANNELS_LAST
from bbdm.training.config import RunConfig

WHOLE = 1 - 1e-3  # of a mask: a pixel counts where all that it is made of does


def broadcast(values: torch.Tensor, over: torch.Tensor) -> torch.Tensor:
    """Numbers of examples (B,) as (B, 1, ...), with the axes of ``over``."""
    return values.view(-1, *[1] * (over.ndim - 1))


def with_images(batch: Example, change: Callable[[torch.Tensor], torch.Tensor]) -> Example:
    """A batch whose images, tensors of four axes or more, are changed."""
    return batch.map(lambda value: value if value.ndim < 4 else change(value))


def taken_along(images: torch.Tensor, axis: int, index: torch.Tensor) -> torch.Tensor:
    """Images (B, C, *S) whose places along an axis are those of an index (B, N), of each image its own."""
    shape = [1] * images.ndim
    shape[0] = len(images)
    shape[axis] = index.shape[1]
    size = [*images.shape]
    size[axis] = index.shape[1]
    return images.gather(axis, index.view(shape).expand(size))


def augmented(batch: Example, seeds: torch.Tensor, step: int, config: RunConfig) -> Example:
    """A batch whose examples are changed by the settings ``flip``, ``shift``, ``turn`` and ``zoom``.

    Pictures (H, W) and volumes (D, H, W) are mirrored along W, moved by whole pixels along each axis, and
    turned and scaled in planes (H, W). Beyond an edge they go on as at it.

    Args:
        batch: the examples, whose images have values in any range.
        seeds: (B,) int64, one for each example.
        step: the number of the optimizer step.
        config: the settings of the run.
    """
    if config.flip:
        batch = _mirrored(batch, philox.flips(seeds, step))
    if config.shift:
        batch = _moved(batch, seeds, step, config.shift)
    if config.turn or config.zoom:
        batch = _turned(batch, seeds, step, config)
    return batch


def _mirrored(batch: Example, chosen: torch.Tensor) -> Example:
    """A batch with the chosen (B,) examples mirrored."""

    def changed(image: torch.Tensor) -> torch.Tensor:
        return torch.where(broadcast(chosen, image), image.flip(-1), image)

    return with_images(batch, changed)


def _moved(batch: Example, seeds: torch.Tensor, step: int, shift: float) -> Example:
    """A batch with each example moved by up to a share of its sides."""
    sides = batch.source.shape[2:]
    drawn = philox.uniforms(seeds, step, len(sides)) * 2 - 1
    moves: list[torch.Tensor] = []  # in pixels: across, down, of volumes deep
    for axis, side in enumerate(reversed(sides)):
        moves.append(torch.round(drawn[:, axis] * shift * side).long())

    def changed(image: torch.Tensor) -> torch.Tensor:
        for axis, move in enumerate(moves):
            place = image.ndim - 1 - axis
            side = image.shape[place]
            index = torch.arange(side, device=image.device) + move[:, None]
            image = taken_along(image, place, index.clamp(0, side - 1))
        return image.contiguous(memory_format=CHANNELS_LAST[image.ndim])

    return with_images(batch, changed)


def _turned(batch: Example, seeds: torch.Tensor, step: int, config: RunConfig) -> Example:
    """A batch with each example turned about its middle, and scaled, by bilinear interpolation."""
    drawn = philox.uniforms(seeds, step, 2, philox.AFFINE_LANE) * 2 - 1
    angle = torch.deg2rad(drawn[:, 0] * config.turn)
    scale = torch.exp(drawn[:, 1] * math.log1p(config.zoom))  # smaller and larger are as likely

    def changed(image: torch.Tensor) -> torch.Tensor:
        height, width = image.shape[-2:]
        across = torch.stack(
            [angle.cos(), -angle.sin() * height / width, torch.zeros_like(angle)], dim=1
        )
        down = torch.stack(
            [angle.sin() * width / height, angle.cos(), torch.zeros_like(angle)], dim=1
        )
        matrix = torch.stack([across, down], dim=1) / scale.view(-1, 1, 1)
        planes = image.flatten(1, -3).to(matrix.dtype)  # (B, C D, H, W)
        grid = F.affine_grid(matrix, [*planes.shape], align_corners=False)
        outputs = F.grid_sample(planes, grid, padding_mode="border", align_corners=False)
        return (
            outputs.reshape(image.shape)
            .to(image.dtype)
            .contiguous(memory_format=CHANNELS_LAST[image.ndim])
        )

    outputs = with_images(batch, changed)
    if outputs.mask is None:
        return outputs
    return outputs._replace(mask=(outputs.mask > WHOLE).to(outputs.mask.dtype))
