"""What a visitor of the app gives, and what is shown and said. Nothing here knows of Gradio or torch."""

from __future__ import annotations

import html
import tempfile
import zipfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image, ImageOps

from bbdm.pictures import images
from bbdm.serving.app_model import Model, Progress, Result, Source, read
from bbdm.serving.config import AppConfig

SHOWN = 1600  # pixels along the longer side of what the page shows; the zip has all
MAPS = {"mean": "average", "std": "where they differ"}
BRIGHTEST = 128  # the standard deviation that is shown white, of 255
LEGEND = f"""<div class="legend"><b>Bright:</b> the results differ here. <b>Dark:</b> they agree.
<span class="scale" aria-hidden="true"></span>
<span class="ends"><span>0</span> <span>{BRIGHTEST} or more</span></span>
Standard deviation, in levels of 0 to 255.</div>"""
MISSING = {  # the ways to give pictures, and what is said where there is none
    "Picture": "a picture is missing: upload one, or take an example",
    "Drawing": "the sheet is empty: draw something, or take an example",
    "Files": "pictures are missing: choose files",
}


def archive(results: Sequence[Result], folder: str | None = None) -> str:
    """A zip of results as PNG files, NAME_SEED.png or NAME_MAP.png, in a new folder below ``folder``."""
    path = Path(tempfile.mkdtemp(dir=folder)) / "results.zip"
    with zipfile.ZipFile(path, "w") as file:
        for result in results:
            file.writestr(f"{result.source.name}_{result.map or result.seed}.png", images.to_png(result.picture))
    return str(path)


def check(config: AppConfig, steps: float, count: float, files: int) -> None:
    """Raise ValueError unless a visitor's numbers are whole and within the limits."""
    limits = {"network calls": (steps, config.max_steps), "results": (count, config.max_results)}
    for name, (value, most) in {**limits, "pictures": (files, config.max_files)}.items():
        if value % 1 or not 1 <= value <= most:
            raise ValueError(f"the number of {name} must be a whole number from 1 to {most}, got {value}")


def given_pictures(tab: str, picture: str | None, drawing: dict[str, Any] | None, files: list[str] | None) -> list[Any]:
    """What a visitor gives in a tab.

    Raises:
        ValueError: the visitor gives nothing there.
    """
    drawn: Image.Image | None = drawing["composite"] if drawing else None
    if drawn and not ImageOps.invert(images.convert(drawn)).getbbox():  # all white
        drawn = None
    given = {"Picture": [picture], "Drawing": [drawn], "Files": files or []}[tab]
    given = [each for each in given if each is not None]
    if not given:
        raise ValueError(MISSING[tab])
    return given


def read_all(given: Sequence[Any], model: Model) -> tuple[list[Source], list[str]]:
    """The sources of what a visitor gave, and why others cannot be read.

    Raises:
        ValueError: none can be read.
    """
    sources: list[Source] = []
    bad: list[str] = []
    for each in given:
        try:
            sources.append(read(each, model, model.max_pixels))
        except ValueError as error:
            bad.append(str(error))
    if not sources:
        raise ValueError("; ".join(bad))
    return sources, bad


def caption(result: Result, named: bool) -> str:
    """What the gallery says below a result."""
    what = MAPS.get(result.map, f"seed {result.seed}")
    return f"{result.source.name}, {what}" if named else what


def status(progress: Progress, bad: Sequence[str] = ()) -> str:
    """The progress as HTML, and at the end which files were left out."""
    done, total, results, _ = progress
    if done < total:
        return f'network call {done} of {total}<progress value="{done}" max="{total}"></progress>'
    count = sum(not each.map for each in results)
    first, last = results[0].seed, results[-1].seed
    made = f"{count} results, seeds {first} to {last}" if count > 1 else f"1 result, seed {first}"
    said = html.escape("; left out: ".join([made, "; ".join(bad)] if bad else [made]), quote=False)
    return said + LEGEND if count < len(results) else said


def stopped(text: str) -> str:
    """What the status says once a translation was stopped. One that ended stays as it is."""
    running = text.partition("<progress")
    return f"stopped at {running[0]}" if running[1] else text


def shown(picture: Image.Image) -> Image.Image:
    """A picture as the page shows it, which takes no long time of larger ones."""
    return images.resized(picture, SHOWN, "fit") if max(picture.size) > SHOWN else picture


def displayed(result: Result) -> Image.Image:
    """A result as the page shows it; a standard deviation in grey, as its legend says."""
    if result.map != "std":
        return shown(result.picture)
    levels = np.asarray(result.picture.convert("RGB"), float).mean(-1)
    return shown(Image.fromarray((255 / BRIGHTEST * levels).clip(0, 255).round().astype(np.uint8)))


def pair(result: Result) -> tuple[Image.Image, Image.Image]:
    """What the slider compares."""
    return shown(result.source.picture), displayed(result)
