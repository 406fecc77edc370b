"""Drawings with lines of some widths: python -m benchmarks.line_widths PACKAGE [flags].

PACKAGE is OpenMoji's, as examples/demo/drawings.py takes it. Of validation drawings whose picture has some
colour, it counts by width how many results have at least half of the saturation of the artist's picture.
"""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import torch

from bbdm import BridgeSampler, demo
from bbdm.base import scripts
from bbdm.pictures import images
from benchmarks.scores import saturation
from examples.demo import drawings

SIDE = 64  # pixels
WIDTHS = (1.5, 2.0, 3.0, 4.0, 6.0)  # pixels of 64
LEAST = 0.05  # saturation of pictures with some colour
SHARE = 0.5  # of the artist's saturation, that a coloured result has


def drawn(package: Path, name: str, style: drawings.Style) -> tuple[torch.Tensor, torch.Tensor]:
    """A drawing and its picture, (3, H, W) in [-1, 1]."""
    pair = torch.from_numpy(images.to_array(drawings.pair(package, name, SIDE, style, np.random.default_rng(0))))
    source, target = pair.chunk(2, -1)
    return source, target


def main(argv: list[str] | None = None) -> None:
    parser = scripts.Parser(__doc__)
    parser.add_argument("package", type=Path, help="the unpacked npm package openmoji")
    parser.add_argument("--checkpoint", type=Path, default=demo.WEIGHTS)
    parser.add_argument("--split", type=Path, default=Path(drawings.__file__).with_name("split.json"))
    parser.add_argument("--drawings", type=int, default=64)
    args = parser.parse_args(argv)
    sampler = BridgeSampler.from_checkpoint(args.checkpoint, solver="sde-dpm2m", steps=5, dtype="bf16")
    every = json.loads(args.split.read_text())["val"]
    truth = {name: saturation(drawn(args.package, name, drawings.Style())[1]).item() for name in every}
    names = [name for name in every if truth[name] >= LEAST]
    count = min(args.drawings, len(names))
    names = [names[i] for i in np.linspace(0, len(names) - 1, count).round().astype(int)]
    wanted = SHARE * torch.tensor([truth[name] for name in names])
    print(f"| width of lines | coloured, of {count} |\n|---|---|")
    for width in WIDTHS:
        sources = torch.stack([drawn(args.package, name, drawings.Style(width=width))[0] for name in names])
        made = saturation(sampler(sources, seed=0, batch_size=32).clamp(-1, 1))
        print(f"| {width:g} | {int((made >= wanted).sum())} |", flush=True)


if __name__ == "__main__":
    main()
