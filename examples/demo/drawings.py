"""Pairs of drawings and colour pictures from OpenMoji's SVG: python drawings.py PACKAGE OUT [flags].

PACKAGE is the unpacked npm package: npm pack openmoji@17.0.0, then tar xzf openmoji-17.0.0.tgz. It needs
pip install numpy pillow resvg-py scipy.

OUT/train and OUT/val get the layout of edge2shoes: the drawing left, the picture in colour right. split.json
says which emoji train. Those of val are drawn once, as OpenMoji has them. Those of train are drawn so too,
and then with lines of random width, gaps, wobble, strokes that do not meet, and dots. Half of these pairs are
bent, the drawing together with its picture.
"""

from __future__ import annotations

import argparse
import io
import json
import zlib
from dataclasses import dataclass
from pathlib import Path
from xml.etree import ElementTree

import numpy as np
import numpy.typing as npt
import resvg_py
from PIL import Image
from scipy import ndimage

SIDE = 72  # of OpenMoji's view box
LINE = 2 * 64 / SIDE  # width of OpenMoji's lines, in pixels of 64
Field = npt.NDArray[np.float32]  # (2, N, N) displacements down and across, in shares of the side


@dataclass(frozen=True)
class Style:
    """How a drawing is made; the defaults are OpenMoji's. Lengths are in pixels of 64."""

    width: float = LINE  # of lines
    gaps: float = 0.0  # share of strokes with short pieces left out
    jitter: float = 0.0  # spread of the moves of whole strokes
    wobble: float = 0.0  # spread of the moves of points along lines
    bend: float = 0.0  # spread of the moves of large parts, of the picture too
    dots: int = 0  # further dots, in the picture too


def random_style(random: np.random.Generator) -> Style:
    """Lines of 1 to 5 pixels of 64, as many from 1 to 2 as from 2 to 4."""
    return Style(
        width=float(np.exp(random.uniform(0, np.log(5)))),
        gaps=float(random.uniform(0, 0.7) * (random.random() < 0.5)),
        jitter=float(random.uniform(0, 0.6) * (random.random() < 0.5)),
        wobble=float(random.uniform(0, 0.8)),
        bend=float(random.uniform(0, 2.5) * (random.random() < 0.5)),
        dots=int(random.integers(1, 5) * (random.random() < 0.3)),
    )


def restyle(drawing: ElementTree.Element, style: Style, random: np.random.Generator) -> None:
    """Change the strokes of a drawing in black: width, round ends, gaps and places."""
    scale = style.width / LINE
    drawing.set("stroke-width", "1")  # SVG's own, which the loop scales
    widths = {drawing: 1.0}  # of the strokes in each element, as OpenMoji has them
    for parent in drawing.iter():
        widths.update((child, float(child.get("stroke-width", widths[parent]))) for child in parent)
    for element, width in widths.items():
        element.set("stroke-width", f"{width * scale:.4f}")
        element.set("stroke-linecap", "round")
        element.set("stroke-linejoin", "round")
        if len(element):
            continue
        unit = width / 2 * SIDE / 64  # a pixel of 64, in the coordinates of the element
        if random.random() < style.gaps:
            lines = random.uniform(6, 40, 4) * unit
            gaps = random.uniform(0.5, 3, 4) * unit + width * scale
            element.set(
                "stroke-dasharray", " ".join(f"{v:.3f}" for v in np.stack([lines, gaps], 1).ravel())
            )
            element.set("stroke-dashoffset", f"{random.uniform(0, 40) * unit:.3f}")
        across, down = random.normal(0, style.jitter * SIDE / 64, 2)
        element.set(
            "transform", f"translate({across:.3f} {down:.3f}) {element.get('transform', '')}"
        )


def random_dots(style: Style, random: np.random.Generator) -> list[ElementTree.Element]:
    """Black dots, about as wide as the lines."""
    places = random.uniform(0.2, 0.8, (style.dots, 2)) * SIDE
    radii = style.width * random.uniform(0.5, 0.9, style.dots) * SIDE / 64
    given = [
        {"cx": f"{x:.3f}", "cy": f"{y:.3f}", "r": f"{r:.3f}"}
        for (x, y), r in zip(places, radii, strict=True)
    ]
    return [ElementTree.Element("{http://www.w3.org/2000/svg}circle", v) for v in given]


def render(svg: ElementTree.Element, size: int) -> Image.Image:
    """A picture of ``size`` pixels a side, on white."""
    text = ElementTree.tostring(svg, encoding="unicode")
    png = resvg_py.svg_to_bytes(
        svg_string=text, width=size, height=size, background="#ffffff", skip_system_fonts=True
    )
    return Image.open(io.BytesIO(png)).convert("RGB")


def random_field(points: int, spread: float, size: int, random: np.random.Generator) -> Field:
    """A smooth (2, size, size) field of points x points normal values, whose spread is in pixels of 64."""
    values = random.normal(0, spread / 64, (2, points, points)).astype(np.float32)
    smooth = [Image.fromarray(v).resize((size, size), Image.Resampling.BICUBIC) for v in values]
    return np.stack([np.asarray(v) for v in smooth])


def render_moved(svg: ElementTree.Element, size: int, field: Field) -> Image.Image:
    """A picture whose pixels are read at places that the field, of four times the size, moves.

    It is rendered at twice the size, or at four times if the field moves it, and reduced by Lanczos' filter.
    """
    if not field.any():
        image = render(svg, 2 * size)
    else:
        pixels = np.asarray(render(svg, 4 * size), dtype=np.float32)
        places = np.indices(pixels.shape[:2]) + field * len(pixels)
        channels = [
            ndimage.map_coordinates(v, places, order=1, mode="nearest")
            for v in np.moveaxis(pixels, -1, 0)
        ]
        image = Image.fromarray(np.rint(np.stack(channels, -1)).astype(np.uint8)).reduce(2)
    return image.resize((size, size), Image.Resampling.LANCZOS)


def pair(
    package: Path, name: str, size: int, style: Style, random: np.random.Generator
) -> Image.Image:
    """The drawing and the picture of an emoji side by side, each ``size`` pixels a side."""
    files = (package / kind / "svg" / f"{name}.svg" for kind in ("black", "color"))
    source, target = (ElementTree.parse(file).getroot() for file in files)
    if style != Style():
        restyle(source, style, random)
    dots = random_dots(style, random)
    bend = random_field(4, style.bend, 4 * size, random)
    wobble = random_field(12, style.wobble, 4 * size, random)
    both = Image.new("RGB", (2 * size, size))
    for i, (svg, field) in enumerate(((source, bend + wobble), (target, bend))):
        svg.extend(dots)
        both.paste(render_moved(svg, size, field), (i * size, 0))
    return both


def main(argv: list[str] | None = None) -> None:
    kind = argparse.RawDescriptionHelpFormatter
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=kind, allow_abbrev=False)
    parser.add_argument("package", type=Path)
    parser.add_argument("output", type=Path)
    parser.add_argument("--size", type=int, default=64, help="side of each picture")
    parser.add_argument(
        "--drawings",
        type=int,
        default=8,
        help="of an emoji in training, the first as OpenMoji has it",
    )
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args(argv)
    split = json.loads(Path(__file__).with_name("split.json").read_text())
    for part, names in split.items():
        folder = args.output / part
        folder.mkdir(parents=True, exist_ok=True)
        for name in names:
            for i in range(args.drawings if part == "train" else 1):
                random = np.random.default_rng([args.seed, i, zlib.crc32(name.encode())])
                style = random_style(random) if i else Style()
                file = folder / (f"{name}.{i}.png" if i else f"{name}.png")
                pair(args.package, name, args.size, style, random).save(file)


if __name__ == "__main__":
    main()
