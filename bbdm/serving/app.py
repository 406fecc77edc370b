"""A page for the browser that translates pictures, on Gradio. It fetches nothing from the internet."""

from __future__ import annotations

import html
import os
import tempfile
import threading
import time
import zipfile
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import gradio as gr
import numpy as np
import torch
from PIL import Image, ImageOps

from bbdm import solvers
from bbdm.base import demo
from bbdm.base.scripts import termination
from bbdm.base.seeds import resolve_seeds
from bbdm.networks.conditions import DIRECTION
from bbdm.pictures import images
from bbdm.serving.config import App

FORMATS = [".bmp", ".jpeg", ".jpg", ".png", ".webp"]
LEGEND = "<br>mean: their average; spread: white is a standard deviation of 128 levels of 255 or more, black none"
SHOWN = 1600  # pixels along the longer side of what the page shows; the zip has all
CANVAS = 512  # pixels along a side of a drawing
LINE = CANVAS // 64  # radius of the brush: the bundled network knows lines of about 2 pixels of 64
RESULTS = 8  # of a source, at most
FILES = 50  # sources at a time, at most
VISITORS = 2  # who translate at once; others wait
KEPT = 3600  # seconds that uploads and results stay on the disk
BUNDLED: tuple[tuple[Any, ...], ...] = (  # weights, name, what the page says, and whether there is a sheet to draw on
    (demo.WEIGHTS, "Drawings", "Emoji and other simple things, drawn in black lines on white.", True),
    (demo.PHOTOGRAPHS, "Photographs", "Photographs that were blurred, noisy or small JPEG files.", False),
)
Pictures = dict[str, Image.Image]  # by name: of a source, or of a result with its seed, mean or spread
ended = threading.Event()  # of the app: translations that run end at their next step


class Panel:
    """A network on the page, with its name, what the page says of it, and whether one may draw.

    Raises:
        ValueError: the model cannot be read, or a setting is not for it.
    """

    def __init__(self, config: App, name: str, about: str = "", drawn: bool = True) -> None:
        self.config, self.name, self.about, self.drawn = config, name, about, drawn
        self.sampler = config.open(config.device or ("cuda" if torch.cuda.is_available() else "cpu"))
        self.windowed = config.window_of(self.sampler.pictures.crop) is not None

    def sources(self, drawing: Any, files: Sequence[tuple[str, Any]] | None) -> Pictures:
        """What was drawn, and uploaded files, by name; ValueError where there is none, or one is bad."""
        sheet, sources = drawing and drawing["composite"], Pictures()
        drawn = sheet and ImageOps.invert(images.convert(sheet)).getbbox()  # not all white
        if drawn:
            sources["drawing"] = images.convert(sheet)
        if len(files := files or []) > FILES:
            raise ValueError(f"there may be at most {FILES} pictures, got {len(files)}")
        for path in (Path(file) for file, _ in files):
            name = path.stem if path.stem not in sources else f"{path.stem}_{len(sources)}"
            sources[name] = images.convert(images.open_image(path.read_bytes(), path.name))  # no folder in an error
        for name, picture in sources.items():
            if self.sampler.image_size is not None and (not self.windowed or (drawn and name == "drawing")):
                sources[name] = picture = images.resized(picture, self.sampler.image_size, "fit")
            if picture.width * picture.height > (most := self.config.max_pixels):
                got = f"{name} of height x width {picture.height} x {picture.width}"
                raise ValueError(f"a picture may have at most {most} pixels, got {got}")
        if not sources:
            raise ValueError("choose a picture first, or draw one")
        return sources

    def run(self, progress: gr.Progress = gr.Progress(), *inputs: Any) -> Iterator[Any]:  # noqa: B008  (Gradio looks for this default)
        """Translate what a visitor chose, in the order of :meth:`build`: status, gallery, and zip.

        It yields after each step, where Gradio may stop it.
        """
        drawing, files, count, maps, direction, solver, steps, seed = inputs
        yield "", [], gr.DownloadButton(interactive=False)  # nothing of before stays beside an error
        try:
            sources, count = self.sources(drawing, files), max(count, 2) if maps else count
            options = dict(self.config.call) | ({DIRECTION: direction} if direction else {})
            if (solver, steps) != (self.sampler.solver, len(self.sampler.table)):
                options |= {"solver": solver, "steps": steps}
            seeds, results, gallery = resolve_seeds(seed, count * len(sources)), Pictures(), []
            at_once = 1 if self.windowed else count
            for i, (name, source) in enumerate(sources.items()):
                found = Pictures()
                for start in range(i * count, (i + 1) * count, at_once):
                    own = seeds[start : start + at_once]
                    last: Any = None
                    for step in self.sampler.stream([source] * at_once, own, **options):
                        if ended.is_set():
                            raise ValueError("the app ends")
                        at = start // at_once * steps + step.index + 1, len(seeds) // at_once * steps
                        progress(at, unit="network calls")
                        yield gr.skip()
                        last = step
                    found |= zip((f"{name}_{each}" for each in own), last.preview(), strict=True)
                found = {**(averages(name, [*found.values()]) if maps else {}), **found}
                results |= found
                for caption, picture in ({name: source} | found).items():
                    gallery.append((images.resized(picture, min(SHOWN, max(picture.size)), "fit"), caption))
                yield "", gallery, gr.skip()
            status = f"done, seeds {seeds[0]} to {seeds[-1]}{LEGEND * maps}"
            yield status, gallery, gr.DownloadButton(value=zipped(results), interactive=True)
        except (ValueError, OSError) as error:
            raise gr.Error(html.escape(str(error), quote=False), print_exception=False) from error

    def build(self) -> None:
        """Put the panel on the page that is being built."""
        sampler = self.sampler
        with gr.Row():
            with gr.Column():
                with gr.Tab("Pictures"):  # which Gradio does not open: its errors show the server's path
                    files = gr.Gallery(file_types=FORMATS, sources=["upload", "webcam", "clipboard"], show_label=False)
                with gr.Tab("Drawing", visible=self.drawn):
                    drawing = gr.ImageEditor(
                        {"background": Image.new("RGB", (CANVAS, CANVAS), "white"), "layers": [], "composite": None},
                        type="pil",
                        sources=(),
                        canvas_size=(CANVAS, CANVAS),
                        fixed_canvas=True,
                        layers=False,
                        brush=gr.Brush(default_size=LINE, default_color="black"),
                        show_label=False,
                    )
                count = gr.Number(1 if self.windowed else 4, label="Results", precision=0, minimum=1, maximum=RESULTS)
                maps = gr.Checkbox(label="Where it is uncertain", info="Mean and spread of results, of 2 at least.")
                ways = ["AtoB", "BtoA"] if sampler.direction else []
                direction = gr.Radio(ways, value=sampler.direction, label="Direction", visible=bool(ways))
                with gr.Row():
                    start = gr.Button("Translate", variant="primary", min_width=120)
                    stop = gr.Button("Stop", min_width=80)
                with gr.Accordion("Advanced", open=False):
                    offered = solvers.choices(sampler.bridge, sampler.calls, len(sampler.table))
                    solver = gr.Dropdown([*dict.fromkeys([sampler.solver, *offered])], label="Solver")
                    own, most = len(sampler.table), self.config.max_steps
                    steps = gr.Number(own, label="Network calls", precision=0, minimum=1, maximum=most)
                    about = "One number, one picture. Empty: another each time."
                    seed = gr.Number(0, label="Seed", info=about, precision=0, minimum=0)
                    gr.Markdown(f"`{sampler.bridge!r}`")
            with gr.Column():
                status = gr.Markdown()
                gallery = gr.Gallery(show_label=False, format="png", columns=3)
                download = gr.DownloadButton("Download as zip", interactive=False)
        running = start.click(
            self.run,
            [drawing, files, count, maps, direction, solver, steps, seed],
            [status, gallery, download],
            show_progress_on=status,
            concurrency_id="translations",
            concurrency_limit=VISITORS,
        )
        stop.click(None, cancels=running)


def averages(name: str, results: Sequence[Image.Image]) -> Pictures:
    """The mean and the spread of the results of a source."""
    levels = np.stack([np.atleast_3d(np.asarray(each, dtype=float)) for each in results])
    maps = {"mean": levels.mean(0).round().squeeze(), "spread": (2 * levels.std(0, ddof=1).mean(-1)).clip(0, 255)}
    return {f"{name}_{kind}": Image.fromarray(each.astype(np.uint8)) for kind, each in maps.items()}


def zipped(results: Pictures) -> Path:
    """A file of all results."""
    path = Path(tempfile.mkdtemp(dir=os.environ.get("GRADIO_TEMP_DIR"))) / "results.zip"
    with zipfile.ZipFile(path, "w") as file:
        for name, picture in results.items():
            file.writestr(f"{name}.png", images.to_png(picture))
    return path


def build(config: App) -> gr.Blocks:
    """The page: of the network of the settings, or a tab for each of the bundled ones.

    Raises:
        ValueError: a model cannot be read, or a setting is not for it.
    """
    bundled = config.model == demo.FOLDER
    networks: Any = BUNDLED if bundled else ((config.model, config.model.stem),)
    panels = [Panel(replace(config, model=path), *about) for path, *about in networks]
    title = "bbdm" if bundled else f"bbdm: {config.model.stem}"
    with gr.Blocks(title=title, analytics_enabled=False, delete_cache=(KEPT, KEPT)) as app:
        gr.Markdown(f"# {title}")
        for panel in panels:
            with gr.Tab(panel.name) if bundled else gr.Column():
                gr.Markdown(panel.about, visible=bool(panel.about))
                panel.build()
    return app


def launch(config: App) -> None:
    """Show the page, until SIGTERM or Ctrl-C. Uploads and results go with it."""
    with tempfile.TemporaryDirectory(prefix="bbdm-app-") as folder, termination() as asked:
        os.environ.update(GRADIO_ANALYTICS_ENABLED="False", GRADIO_RUN_HISTORY="False", GRADIO_TEMP_DIR=folder)
        app = build(config)
        _, address, _ = app.launch(
            server_name=config.host,
            server_port=config.port,
            share=False,
            quiet=True,  # its message advertises a public link
            prevent_thread_lock=True,
            show_error=True,
            max_file_size="50mb",
        )
        print(f"the app is at {address}; Ctrl-C ends it", flush=True)
        try:
            while not asked():
                time.sleep(0.1)
        finally:
            ended.set()
            app.close(verbose=False)
