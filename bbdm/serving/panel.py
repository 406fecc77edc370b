"""The panel of the app for one network: what goes in, the choices, and the gallery of results."""

from __future__ import annotations

import html
import os
import tempfile
import threading
import zipfile
from collections.abc import Collection, Iterator, Sequence
from itertools import starmap
from pathlib import Path
from typing import Any

import gradio as gr
import numpy as np
import torch
from gradio.data_classes import FileData
from PIL import Image, ImageOps

from bbdm import solvers
from bbdm.base.seeds import resolve_seeds
from bbdm.data.names import RowName
from bbdm.networks.conditions import DIRECTION
from bbdm.pictures import images
from bbdm.serving import uploads
from bbdm.serving.config import App

EXPECTED = "<br>expected: the mean of all results, which is nearest to the true one on average, without their grain"
LEGEND = "<br>mean: their average; spread: white is a standard deviation of 128 levels of 255 or more, black none"
SHOWN = 1600  # pixels along the longer side of what the page shows; the zip has all
CANVAS = 512  # pixels along a side of a drawing
MAX_DRAWING = (2 * CANVAS) ** 2  # pixels: a screen may have two along a side for each of a drawing
LINE = CANVAS // 64  # radius of the brush: the bundled network knows lines of about 2 pixels of 64
RESULTS = 8  # of a source, at most
FILES = 50  # sources at a time, at most
VISITORS = 2  # who translate at once; others wait
MEAN = {"solver": "mean", "steps": 1}  # options of a call that gives the expected picture
# by name: of a source, or of a result with its seed, expected, mean or spread
Pictures = dict[str, Image.Image]
ended = threading.Event()  # of the app: translations that run end at their next step


class Panel:
    """A network on the page.

    Args:
        config: the settings of the app, with the network's file.
        name: what the page calls the network.
        about: what the page says of the network.
        drawn: whether there is a sheet to draw on.
        examples: a folder of PNG files to click; None for none.
        expected: whether the expected picture stands before random results, as `bbdm restore` gives it.

    Raises:
        ValueError: the model cannot be read, or a setting is not for it.
    """

    def __init__(
        self,
        config: App,
        name: str,
        about: str = "",
        drawn: bool = True,
        examples: Path | None = None,
        expected: bool = False,
    ) -> None:
        self.config = config
        self.name = name
        self.about = about
        self.drawn = drawn
        self.expected = expected
        self.examples = sorted(examples.glob("*.png")) if examples else []
        self.sampler = config.open(
            config.device or ("cuda" if torch.cuda.is_available() else "cpu")
        )
        self.windowed = config.window_of(self.sampler.pictures.crop) is not None

    def sources(self, drawing: Any, files: Sequence[tuple[str, Any]] | None) -> Pictures:
        """What was drawn, and uploaded files, by name.

        All headers are read before pixels of a file are decoded.

        Raises:
            ValueError: there is none, or one is bad.
        """
        paths = [Path(file) for file, _ in files or []]
        if len(paths) > FILES:
            raise ValueError(f"there may be at most {FILES} pictures, got {len(paths)}")
        names = [RowName.of(path.name) for path in paths]
        for path in paths:  # by name, since an error shows no folder
            uploads.check_header(path, path.name, self.config.max_pixels)
        sources = Pictures()
        if drawing and drawing["composite"]:
            sheet = images.convert(drawing["composite"])
            is_drawn = ImageOps.invert(sheet).getbbox() is not None  # not all white
            if is_drawn:
                sources["drawing"] = self._fitted("drawing", sheet)
        for path, name in zip(paths, names, strict=True):
            picture = images.convert(uploads.read(path, path.name, self.config.max_pixels))
            if not self.windowed:
                picture = self._fitted(path.name, picture)
            sources[free_name(name, sources)] = picture
        if not sources:
            raise ValueError("choose a picture first, or draw one")
        return sources

    def _fitted(self, name: str, picture: Image.Image) -> Image.Image:
        """A picture inside the size of the training pictures; ValueError if that has too many pixels."""
        if self.sampler.image_size is not None:
            picture = images.resized(picture, self.sampler.image_size, "fit")
        uploads.check_pixels(name, *picture.size, self.config.max_pixels)
        return picture

    def run(self, progress: gr.Progress = gr.Progress(), *inputs: Any) -> Iterator[Any]:  # noqa: B008  (Gradio looks for this default)
        """Translate what a visitor chose, in the order of :meth:`build`: status, gallery, and zip.

        It yields after each step, where Gradio may stop it.
        """
        drawing, files, count, maps, direction, solver, steps, seed = inputs
        # nothing of before stays beside an error
        yield "", [], gr.DownloadButton(interactive=False)
        try:
            sources = self.sources(drawing, files)
            self._warn(sources)
            if maps:
                count = max(count, 2)
            options = self._options(direction, solver, steps)
            seeds = resolve_seeds(seed, count * len(sources))
            batch_size = 1 if self.windowed else count
            total = len(seeds) // batch_size * steps
            if self.expected:
                total += len(sources)
            calls = 0  # of the network, for all sources
            results = Pictures()
            gallery: list[tuple[Image.Image, str]] = []
            for index, (name, source) in enumerate(sources.items()):
                of_source = seeds[index * count : (index + 1) * count]
                runs: list[tuple[list[str], list[int], dict[str, Any]]] = []
                if self.expected:
                    runs.append(([f"{name}_expected"], of_source[:1], options | MEAN))
                for start in range(0, count, batch_size):
                    batch = of_source[start : start + batch_size]
                    runs.append(([f"{name}_{number}" for number in batch], batch, options))
                outputs = Pictures()
                for names, batch, chosen in runs:
                    last: Any = None
                    for step in self.sampler.stream([source] * len(batch), batch, **chosen):
                        if ended.is_set():
                            raise ValueError("the app ends")
                        calls += 1
                        progress((calls, total), unit="network calls")
                        yield gr.skip()
                        last = step
                    outputs |= zip(names, last.preview(), strict=True)
                if maps:
                    outputs = with_averages(name, outputs, count)
                results |= outputs
                gallery += [captioned(name, source), *starmap(captioned, outputs.items())]
                yield "", gallery, gr.skip()
            status = f"done, seeds {seeds[0]} to {seeds[-1]}"
            if self.expected:
                status += EXPECTED
            if maps:
                status += LEGEND
            yield status, gallery, gr.DownloadButton(value=zipped(results), interactive=True)
        except (ValueError, OSError) as error:
            raise shown(error) from error

    def _options(self, direction: Any, solver: str, steps: int) -> dict[str, Any]:
        """The options of a call, where a visitor chose others than the sampler has."""
        options = dict(self.config.call)
        if direction:
            options[DIRECTION] = direction
        if solver != self.sampler.solver or steps != len(self.sampler.table):
            options |= {"solver": solver, "steps": steps}
        return options

    def _warn(self, sources: Pictures) -> None:
        """Show where pictures are far from the size of the training pictures."""
        trained = self.sampler.image_size
        if trained is None or self.windowed or self.sampler.pictures.crop is not None:
            return
        for name, picture in sources.items():
            warning = images.warning_of_scale(trained, picture.height, picture.width)
            if warning is not None:
                gr.Warning(html.escape(f"{name}: {warning}", quote=False))

    def _examples(self) -> gr.Dataset | None:
        """Pictures to click, which are translated then; None where there are none."""
        if not self.examples:
            return None
        shown = gr.Image(type="filepath", visible=False)
        samples = [[str(path)] for path in self.examples]
        return gr.Dataset(components=[shown], samples=samples, label="Examples", type="index")

    def build(self) -> None:
        """Put the panel on the page that is being built."""
        sampler = self.sampler
        with gr.Row():
            with gr.Column():
                # which Gradio does not open: its errors show the server's path
                with gr.Tab("Pictures"):
                    suffixes = [
                        suffix for of_format in uploads.SUFFIXES.values() for suffix in of_format
                    ]
                    files = gr.Gallery(
                        file_types=suffixes,
                        sources=["upload", "webcam", "clipboard"],
                        show_label=False,
                        height=260,
                        columns=3,
                        fit_columns=False,
                        object_fit="contain",
                    )
                with gr.Tab("Drawing", visible=self.drawn):
                    drawing = gr.ImageEditor(
                        {
                            "background": Image.new("RGB", (CANVAS, CANVAS), "white"),
                            "layers": [],
                            "composite": None,
                        },
                        type="pil",
                        sources=(),
                        canvas_size=(CANVAS, CANVAS),
                        fixed_canvas=True,
                        layers=False,
                        brush=gr.Brush(default_size=LINE, default_color="black"),
                        show_label=False,
                    )
                    # Gradio's own takes any format and size
                    drawing.convert_and_format_image = read_drawing
                with gr.Row():  # above what may stay as it is, so that small screens show it
                    start = gr.Button("Translate", variant="primary", min_width=120)
                    stop = gr.Button("Stop", min_width=80)
                examples = self._examples()
                count = gr.Number(
                    1 if self.windowed else 4,
                    label="Results",
                    precision=0,
                    minimum=1,
                    maximum=RESULTS,
                )
                maps = gr.Checkbox(
                    label="Where it is uncertain", info="Mean and spread of results, of 2 at least."
                )
                ways = ["AtoB", "BtoA"] if sampler.direction else []
                direction = gr.Radio(
                    ways, value=sampler.direction, label="Direction", visible=bool(ways)
                )
                with gr.Accordion("Advanced", open=False):
                    offered = solvers.choices(sampler.bridge, sampler.calls, len(sampler.table))
                    solver = gr.Dropdown(
                        [*dict.fromkeys([sampler.solver, *offered])], label="Solver"
                    )
                    most = self.config.max_steps
                    calls = len(sampler.table)
                    steps = gr.Number(
                        calls, label="Network calls", precision=0, minimum=1, maximum=most
                    )
                    about = "One number, one picture. Empty: another each time."
                    seed = gr.Number(0, label="Seed", info=about, precision=0, minimum=0)
                    gr.Markdown(f"`{sampler.bridge!r}`")
            with gr.Column():
                status = gr.Markdown()
                columns = 2 if self.windowed else 5  # a source, and its results
                if self.expected:
                    columns += 1
                gallery = gr.Gallery(
                    show_label=False,
                    format="png",
                    columns=columns,
                    object_fit="contain",
                    elem_classes="results",
                )
                download = gr.DownloadButton("Download as zip", interactive=False)
        run: dict[str, Any] = {
            "fn": self.run,
            "inputs": [drawing, files, count, maps, direction, solver, steps, seed],
            "outputs": [status, gallery, download],
            "show_progress_on": status,
            "concurrency_id": "translations",
            "concurrency_limit": VISITORS,
        }
        running: list[Any] = [start.click(**run)]
        if examples is not None:
            chosen = examples.click(
                lambda index: [str(self.examples[index])], examples, files, queue=False
            )
            running.append(chosen.then(**run))
        stop.click(None, cancels=running)


def shown(error: Exception) -> gr.Error:
    """An error as the page shows it, whose text is no HTML."""
    return gr.Error(html.escape(str(error), quote=False), print_exception=False)


def read_drawing(
    file: FileData | bytes | None, flatten_on_white: bool = False
) -> Image.Image | None:
    """A picture that the editor of drawings sent, which may be any file; read in place of Gradio.

    Args:
        file: where Gradio keeps it, or its bytes; None where nothing was drawn.
        flatten_on_white: is not looked at, since :func:`images.convert` blends transparent pixels later.

    Raises:
        gr.Error: it is no picture of the formats of uploads, or too large for a drawing.
    """
    if file is None:
        return None
    source = Path(file.path) if isinstance(file, FileData) else file
    try:
        return uploads.read(source, "drawing", MAX_DRAWING)
    except (ValueError, OSError) as error:
        raise shown(error) from error


def free_name(name: str, names: Collection[str]) -> str:
    """A name that is not among others, by a number from 2 on; on some disks, case tells no two apart."""
    taken = {other.casefold() for other in names}
    free = name
    number = 1
    while free.casefold() in taken:
        number += 1
        free = f"{name}_{number}"
    return free


def captioned(caption: str, picture: Image.Image) -> tuple[Image.Image, str]:
    """A picture as the gallery shows it."""
    return images.resized(picture, min(SHOWN, max(picture.size)), "fit"), caption


def averages(name: str, results: Sequence[Image.Image]) -> Pictures:
    """The mean and the spread of the results of a source."""
    levels = np.stack([np.atleast_3d(np.asarray(result, dtype=float)) for result in results])
    mean = levels.mean(0).round().squeeze()
    spread = (2 * levels.std(0, ddof=1).mean(-1)).clip(0, 255)
    return {
        f"{name}_mean": Image.fromarray(mean.astype(np.uint8)),
        f"{name}_spread": Image.fromarray(spread.astype(np.uint8)),
    }


def with_averages(name: str, outputs: Pictures, count: int) -> Pictures:
    """Pictures of a source, with mean and spread before the random ones, which are the last ``count``."""
    ordered = [*outputs.items()]
    random = dict(ordered[-count:])
    return dict(ordered[:-count]) | averages(name, [*random.values()]) | random


def zipped(results: Pictures) -> Path:
    """A file of all results."""
    path = Path(tempfile.mkdtemp(dir=os.environ.get("GRADIO_TEMP_DIR"))) / "results.zip"
    with zipfile.ZipFile(path, "w") as file:
        for name, picture in results.items():
            file.writestr(f"{name}.png", images.to_png(picture))
    return path
