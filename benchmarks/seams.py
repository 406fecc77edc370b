"""Seams of pictures that are translated by windows: python -m benchmarks.seams CHECKPOINT PICTURES [FOLDER].

Each picture is translated by windows, and as independent tiles, which are translated alone and blended. The
mean step between neighbouring pixels across those edges of windows that are multiples of 8 is divided by that
at the other multiples of 8, since a JPEG has steps of its own there. The ratio is that of the source where
windows leave no seam. In the same way, the mean step in the middle of what neighbouring windows share is
divided by that in the middle of windows: it falls where blending takes variance.
"""

from __future__ import annotations

from itertools import pairwise, product
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from bbdm import BridgeSampler
from bbdm.base import scripts
from bbdm.networks.windows import WindowGrid, blend
from bbdm.sampling.options import WindowOptions

AT_ONCE = 16
GRID = 8


def independent(sampler: BridgeSampler, source: Tensor, grid: WindowGrid) -> Tensor:
    """Each window translated alone, with its own seed, then blended."""
    sides = grid.sides(source.shape[2:])
    places = list(product(*(range(len(each.starts)) for each in sides)))
    cut = torch.cat([source[(..., *(s.span(i) for i, s in zip(place, sides, strict=True)))] for place in places])
    made = iter(sampler(cut, seed=0, batch_size=AT_ONCE, window=None))
    weights = [torch.from_numpy(each).float() for each in grid.weights(source.shape[2:])]
    return blend(lambda spans: torch.stack([next(made) for _ in spans]), sides, weights)


def seam(image: Tensor, grid: WindowGrid) -> tuple[float, float, float, float]:
    """Mean steps between neighbours.

    Returns:
        Those across edges of windows at multiples of 8, across the other multiples of 8, in the middle
        of what neighbouring windows share, and in the middle of windows.
    """
    found: list[list[float]] = [[], [], [], []]
    for axis, side in enumerate(grid.sides(image.shape[2:])):
        steps = image.diff(dim=2 + axis).abs().mean((0, 1, 3 - axis)).numpy()  # steps[i]: from i to i + 1
        blocks = set(range(GRID, side.size, GRID))
        edges = {edge for start in side.starts for edge in (start, start + side.length)} & blocks
        shared = [(start + before + side.length) // 2 for before, start in pairwise(side.starts)]
        middles = [start + side.length // 2 for start in side.starts]
        found[0] += [float(steps[edge - 1]) for edge in edges]
        found[1] += [float(steps[edge - 1]) for edge in blocks - edges]
        found[2] += [float(steps[at - GRID // 2 : at + GRID // 2].mean()) for at in shared]
        found[3] += [float(steps[at - GRID // 2 : at + GRID // 2].mean()) for at in middles]
    at, elsewhere, shared, middle = (float(np.mean(each)) for each in found)
    return at, elsewhere, shared, middle


def seams(args: Any) -> None:
    """Prints the table, and writes results where a folder is given."""
    sampler = BridgeSampler.from_checkpoint(args.checkpoint, solver=args.solver, steps=args.steps, dtype="bf16")
    crop: Any = sampler.pictures.crop or sampler.image_size
    ratios: dict[str, list[tuple[float, ...]]] = {}
    for path in sorted(args.pictures.iterdir()):
        with Image.open(path) as opened:
            pixels = np.asarray(opened.convert("RGB")).transpose(2, 0, 1).copy()
        source = torch.from_numpy(pixels).float()[None] / 127.5 - 1
        grid = sampler.window_grid(WindowOptions(window=crop, overlap=args.overlap), source.shape[2:], AT_ONCE)
        assert grid is not None
        made = {
            "source": source,
            "windows": sampler(source, seed=0, window=crop, overlap=args.overlap, batch_size=AT_ONCE),
            "independent tiles": independent(sampler, source, grid),
        }
        for name, image in made.items():
            ratios.setdefault(name, []).append(seam(image, grid))
            if args.folder is not None:
                args.folder.mkdir(exist_ok=True, parents=True)
                array = ((image[0].clamp(-1, 1) + 1) * 127.5).round().byte().numpy().transpose(1, 2, 0)
                Image.fromarray(array).save(args.folder / f"{path.stem}_{name.replace(' ', '_')}.png")
    print(f"{'':18} edges  shared")
    for name, each in ratios.items():
        at, elsewhere, shared, middle = np.array(each).sum(0)
        print(f"{name:18} {at / elsewhere:.3f}  {shared / middle:.3f}")


def main(argv: list[str] | None = None) -> None:
    parser = scripts.Parser(__doc__)
    parser.add_argument("checkpoint", type=Path)
    parser.add_argument("pictures", type=Path, help="sources, a folder")
    parser.add_argument("folder", type=Path, nargs="?", help="for the results")
    parser.add_argument("--solver", default="sde-dpm2m")
    parser.add_argument("--steps", type=int, default=5)
    parser.add_argument("--overlap", type=float, default=0.25, help="of neighbouring windows, as a share of one")
    seams(parser.parse_args(argv))


if __name__ == "__main__":
    main()
