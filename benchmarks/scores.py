"""Scores of coloured drawings: saturation and flatness. Images are in [-1, 1]."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt
import torch

PAPER = 0.8  # brightness, in [-1, 1], above which a pixel of a drawing is paper and not a line
LEAST = 12  # pixels; an area is larger than this


def saturation(images: torch.Tensor) -> torch.Tensor:
    """Largest less smallest channel, mean over pixels, of (..., 3, H, W); in [0, 1]."""
    return ((images.amax(-3) - images.amin(-3)) / 2).mean((-2, -1))


def closed_areas(drawing: torch.Tensor) -> npt.NDArray[np.int64]:
    """(H, W) numbers of the areas of paper that lines of a (3, H, W) drawing close, 0 elsewhere.

    An area is connected by sides, has more than LEAST pixels and does not reach the border.
    """
    from scipy import ndimage

    numbers: npt.NDArray[np.int64] = ndimage.label((drawing.amin(0) > PAPER).numpy())[0]  # pyright: ignore
    border = np.unique(np.concatenate([numbers[0], numbers[-1], numbers[:, 0], numbers[:, -1]]))
    sizes = np.bincount(numbers.ravel())
    kept = np.flatnonzero((sizes > LEAST) & ~np.isin(np.arange(len(sizes)), border))
    return np.where(np.isin(numbers, kept), numbers, 0)


def flatness(images: torch.Tensor, areas: npt.NDArray[np.int64]) -> npt.NDArray[np.float64]:
    """(N,) spread of colour inside areas of (N, 3, H, W) images, the root mean square over their pixels.

    The spread is the distance of a pixel's colour from the mean of its area; NaN where there is no area.
    """
    inside = areas > 0
    colours = images.permute(0, 2, 3, 1)[:, torch.from_numpy(inside)].double()  # (N, pixels, 3)
    if not inside.any():
        return np.full(len(images), np.nan)
    _, number = np.unique(areas[inside], return_inverse=True)
    members = torch.nn.functional.one_hot(torch.from_numpy(number)).double()
    means = (members.T @ colours) / members.sum(0)[:, None]
    return (colours - members @ means).square().sum(-1).mean(-1).sqrt().numpy()
