"""Make films whose truth is known: drawings that are moved, turned and scaled along smooth paths.

    python examples/films.py edge2shoes DATA FILMS --split val
    bbdm eval frames FILMS/A,FILMS/B MODEL SCORES --metrics psnr energy --num_samples 2

FILMS/A has a folder of frames for each source, and FILMS/B for each target, moved in the same way. Scores
say how much the results flicker, see docs/films.md.
"""

from __future__ import annotations

import argparse
from pathlib import Path

import numpy as np
from PIL import Image

from bbdm.data import read_rows
from bbdm.pictures import images

TURN = 12.0  # degrees, the largest
ZOOM = 0.12  # of the size, the largest change
SHIFT = 0.1  # of the side, the longest way


def path_of(name: str, count: int) -> np.ndarray:
    """(count, 4) of a smooth path: degrees, scale, and shifts in x and y as shares of the side."""
    random = np.random.default_rng([*name.encode()])
    phases = random.uniform(0, 2 * np.pi, 4)
    times = np.linspace(0, 2 * np.pi, count, endpoint=False)
    waves = np.sin(times[:, None] + phases)
    return waves * [TURN, ZOOM, SHIFT, SHIFT] + [0, 1, 0, 0]


def moved(
    picture: Image.Image, degrees: float, scale: float, right: float, down: float
) -> Image.Image:
    """A picture turned around its middle, scaled and shifted, on white."""
    width, height = picture.size
    angle = np.deg2rad(degrees)
    turn = np.array([[np.cos(angle), np.sin(angle)], [-np.sin(angle), np.cos(angle)]]) / scale
    middle = np.array([width - 1, height - 1]) / 2
    shift = np.array([right * width, down * height])
    start = middle - turn @ (middle + shift)
    numbers = (turn[0, 0], turn[0, 1], start[0], turn[1, 0], turn[1, 1], start[1])
    return picture.transform(
        picture.size, Image.Transform.AFFINE, numbers, Image.Resampling.BICUBIC, fillcolor="white"
    )


def main() -> None:
    """Write the frames."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("dataset", help="layout of the pairs, such as edge2shoes or paired")
    parser.add_argument("data_dir", help="their folder")
    parser.add_argument("films", type=Path, help="the folder that A and B are written to")
    parser.add_argument("--split", default="val", help="the part of the data set")
    parser.add_argument(
        "--sequences", type=int, default=100, help="the first pairs, one sequence each"
    )
    parser.add_argument("--frames", type=int, default=16, help="of each sequence")
    options = parser.parse_args()
    rows = read_rows(options.dataset, options.data_dir, options.split)[: options.sequences]
    for row in rows:
        path = path_of(row["name"], options.frames)
        for role, side in (("source", "A"), ("target", "B")):
            picture = images.convert(row[role].image(), 3)
            folder = options.films / side / row["name"]
            folder.mkdir(parents=True, exist_ok=True)
            for number, movement in enumerate(path):
                moved(picture, *movement).save(folder / f"{number:02d}.png")
    print(f"{len(rows)} sequences of {options.frames} frames: {options.films}")


if __name__ == "__main__":
    main()
