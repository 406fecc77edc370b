"""The picture at the top of the README: python -m benchmarks.readme_figure OUT.png.

Each row has a drawing of the bundled validation pairs, the mean of its answers, three results, and the
artist's colours. The mean is the estimate of the first network call, which sees no noise: what a regression
network learns. It takes every second of the 16 pairs; result k of drawing i has the seed 3 i + k.
"""

from __future__ import annotations

import argparse
from pathlib import Path

from PIL import Image, ImageDraw

from bbdm import BridgeSampler, demo
from bbdm.pictures import images

SIDE, GAP, TITLE = 64, 4, 14
TITLES = ("drawing", "mean", "result", "result", "result", "artist")
GROUPS, ROWS = 2, 4  # rows of drawings side by side, and below each other


def row(sampler: BridgeSampler, pair: Image.Image, seed: int) -> list[Image.Image]:
    """The pictures of one drawing, one for each title."""
    source, target = (pair.crop((x, 0, x + SIDE, SIDE)) for x in (0, SIDE))
    first = next(iter(sampler.stream(source, seed=0)))
    return [source, first.preview()[0], *sampler([source] * 3, seed=seed), target]


def main(arguments: list[str] | None = None) -> None:
    """Draws the picture."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("out", type=Path)
    out: Path = parser.parse_args(arguments).out
    sampler = BridgeSampler.from_checkpoint(demo.WEIGHTS, solver="sde-dpm2m", steps=5)
    pairs = sorted((demo.FOLDER / "val").glob("*.png"))[::2]
    rows = [row(sampler, images.open_image(pair), 3 * i) for i, pair in enumerate(pairs)]
    step = SIDE + GAP
    width = len(TITLES) * step + 4 * GAP
    sheet = Image.new("RGB", (GROUPS * width - 5 * GAP, TITLE + ROWS * step), "white")
    draw = ImageDraw.Draw(sheet)
    for group in range(GROUPS):
        for column, title in enumerate(TITLES):
            draw.text((group * width + column * step + SIDE // 2, 0), title, "black", anchor="ma")
    for place, pictures in enumerate(rows):
        for column, picture in enumerate(pictures):
            left = place // ROWS * width + column * step
            sheet.paste(picture, (left, TITLE + place % ROWS * step))
    sheet.save(out, optimize=True)


if __name__ == "__main__":
    main()
