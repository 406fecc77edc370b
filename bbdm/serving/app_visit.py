"""What a visitor of the app gives, and what is shown and said. Nothing here knows of Gradio or torch."""

from __future__ import annotations

import html
import tempfile
import zipfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from PIL import Image, ImageOps

from bbdm.pictures import images
from bbdm.serving.app_model import Model, Progress, Result, Source, read
from bbdm.serving.config import AppConfig

SHOWN = 1600  # pixels along the longer side of what the page shows; the zip has all
MISSING = {  # the ways to give pictures, and what is said where there is none
    "Picture": "a picture is missing: upload one, or take an example",
    "Drawing": "the sheet is empty: draw something, or take an example",
    "Files": "pictures are missing: choose files",
}


def archive(results: Sequence[Result], folder: str | None = None) -> str:
    """A zip of results as PNG files, NAME_SEED.png, in a new folder below ``folder``."""
    path = Path(tempfile.mkdtemp(dir=folder)) / "results.zip"
    with zipfile.ZipFile(path, "w") as file:
        for result in results:
            file.writestr(f"{result.source.name}_{result.seed}.png", images.to_png(result.picture))
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
    return f"{result.source.name}, seed {result.seed}" if named else f"seed {result.seed}"


def status(progress: Progress, bad: Sequence[str] = ()) -> str:
    """The progress as HTML, and at the end which files were left out."""
    done, total, results, _ = progress
    if done < total:
        return f'network call {done} of {total}<progress value="{done}" max="{total}"></progress>'
    first, last = results[0].seed, results[-1].seed
    made = f"{len(results)} results, seeds {first} to {last}" if len(results) > 1 else f"1 result, seed {first}"
    return html.escape("; left out: ".join([made, "; ".join(bad)] if bad else [made]), quote=False)


def stopped(text: str) -> str:
    """What the status says once a translation was stopped. One that ended stays as it is."""
    running = text.partition("<progress")
    return f"stopped at {running[0]}" if running[1] else text


def shown(picture: Image.Image) -> Image.Image:
    """A picture as the page shows it, which takes no long time of larger ones."""
    return images.resized(picture, SHOWN, "fit") if max(picture.size) > SHOWN else picture


def pair(result: Result) -> tuple[Image.Image, Image.Image]:
    """What the slider compares."""
    return shown(result.source.picture), shown(result.picture)
