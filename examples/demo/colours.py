"""Classes by colour of pairs side by side: python colours.py PAIRS LABELS.csv.

The class of a pair is the colour that most of its target's pixels have, and grey where fewer than 60 have
one. LABELS.csv has lines of a pair's name and its class, for bbdm train edge2shoes PAIRS,colour=LABELS.csv.
"""

from __future__ import annotations

import argparse
import csv
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from PIL import Image

NAMES = ("grey", "red", "orange", "yellow", "green", "blue", "purple", "pink", "brown")
HUES = {
    "red": (345, 15),
    "orange": (15, 42),
    "yellow": (42, 68),
    "green": (68, 170),
    "blue": (170, 255),
}
HUES |= {"purple": (255, 300), "pink": (300, 345)}
LEAST = 60  # pixels of a colour
Array = npt.NDArray[Any]


def colours(pixels: Array) -> Array:
    """(N,) the number in NAMES of (N, 3) RGB pixels, -1 of white and of black."""
    high, low = pixels.max(1) / 255, pixels.min(1) / 255
    spread = high - low
    saturation = spread / np.maximum(high, 1e-6)
    red, green, blue = (pixels / 255).T
    safe = np.maximum(spread, 1e-6)
    rest = np.where(high == green, (blue - red) / safe + 2, (red - green) / safe + 4)
    hue = 60 * np.where(high == red, ((green - blue) / safe) % 6, rest)
    coloured = (saturation > 0.25) & (high > 0.2)
    made = np.full(len(pixels), -1)
    for name, (first, last) in HUES.items():
        inside = (hue >= first) & (hue < last) if first < last else (hue >= first) | (hue < last)
        made[coloured & inside] = NAMES.index(name)
    made[coloured & (hue >= 5) & (hue < 45) & (high < 0.72)] = NAMES.index("brown")
    pale = ((hue < 15) | (hue >= 330)) & (saturation < 0.5) & (high > 0.8)
    made[coloured & pale] = NAMES.index("pink")
    made[~coloured & (high < 0.93) & (high > 0.25)] = NAMES.index("grey")
    return made


def label(pair: Path) -> str:
    """The class of a pair, whose target is its right half."""
    image = np.asarray(Image.open(pair).convert("RGB"), np.float64)
    found = colours(image[:, image.shape[1] // 2 :].reshape(-1, 3))
    counts = np.bincount(found[found > 0], minlength=len(NAMES))
    return NAMES[len(NAMES) - 1 - int(counts[::-1].argmax())] if counts.max() >= LEAST else "grey"


def main(argv: list[str] | None = None) -> None:
    """The command line."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("pairs", type=Path, help="a folder with train/ and val/")
    parser.add_argument("labels", type=Path)
    args = parser.parse_args(argv)
    pairs = sorted(
        path for split in ("train", "val") for path in (args.pairs / split).glob("*.png")
    )
    with args.labels.open("w", newline="") as file:
        csv.writer(file).writerows((path.stem, label(path)) for path in pairs)


if __name__ == "__main__":
    main()
