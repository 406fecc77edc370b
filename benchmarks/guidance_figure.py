"""The figure of docs/conditions.md: python -m benchmarks.guidance_figure CHECKPOINT DRAWING OUT.png [flags].

A drawing under some classes, by rows, and guidances, by columns. The first row is told none.
"""

from __future__ import annotations

from pathlib import Path

from PIL import Image, ImageDraw, ImageFont

from bbdm import BridgeSampler
from bbdm.base import scripts

SIDE, LABEL, GAP = 96, 70, 6  # pixels: of a picture, beside a row, between pictures
TOP = 22


def figure(
    sampler: BridgeSampler, drawing: Path, condition: str, classes: list[str], guidances: list[float]
) -> Image.Image:
    """A row for each class, a column for each guidance, beside the drawing."""
    source = Image.open(drawing).convert("RGB")
    wide, high = LABEL + len(guidances) * (SIDE + GAP), TOP + (1 + len(classes)) * (SIDE + GAP)
    sheet = Image.new("RGB", (wide, high), "white")
    pen, font = ImageDraw.Draw(sheet), ImageFont.load_default(13)

    def show(picture: Image.Image, row: int, column: int) -> None:
        place = LABEL + column * (SIDE + GAP), TOP + row * (SIDE + GAP)
        sheet.paste(picture.resize((SIDE, SIDE), Image.Resampling.LANCZOS), place)

    for column, guidance in enumerate(guidances):
        pen.text((LABEL + column * (SIDE + GAP), 4), f"guidance {guidance:g}", "black", font)
    for row, label in enumerate([None, *classes]):
        pen.text((2, TOP + row * (SIDE + GAP) + SIDE // 2), label or "none", "black", font)
        for column, guidance in enumerate(guidances if label else [1.0]):
            show(sampler(source, 0, conditions={condition: label}, guidance=guidance)[0], row, column)
    show(source, 0, len(guidances) - 1)
    return sheet


def main(argv: list[str] | None = None) -> None:
    parser = scripts.Parser(__doc__)
    parser.add_argument("checkpoint", type=Path)
    parser.add_argument("drawing", type=Path)
    parser.add_argument("output", type=Path)
    parser.add_argument("--condition", default="colour")
    parser.add_argument("--classes", nargs="+", default=["red", "orange", "yellow", "green", "blue", "purple"])
    parser.add_argument("--guidances", nargs="+", type=float, default=[1, 2, 3, 4, 5, 6])
    args = parser.parse_args(argv)
    sampler = BridgeSampler.from_checkpoint(args.checkpoint, solver="sde-dpm2m", steps=5)
    figure(sampler, args.drawing, args.condition, args.classes, args.guidances).save(args.output)


if __name__ == "__main__":
    main()
