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
from functools import partial
from pathlib import Path
from typing import Any

import gradio as gr
import numpy as np
import torch
from PIL import Image, ImageOps

from bbdm import BridgeSampler, solvers
from bbdm.base import demo
from bbdm.base.scripts import termination
from bbdm.base.seeds import resolve_seeds
from bbdm.data.spec import check_eight_bit
from bbdm.execution.device import best_dtype
from bbdm.networks.arrays import check_pictures
from bbdm.pictures import images
from bbdm.serving.config import AppConfig

FORMATS = [".bmp", ".jpeg", ".jpg", ".png", ".webp"]
TABS = PICTURES, DRAWING = "Pictures", "Drawing"
LEGEND = "<br>mean: their average; spread: white is a standard deviation of 128 levels of 255 or more, black none"
SHOWN = 1600  # pixels along the longer side of what the page shows; the zip has all
CANVAS = 512  # pixels along the longer side of a drawing
LINE = CANVAS // 64  # radius of the brush: the bundled network knows lines of about 2 pixels of 64
VISITORS = 2  # who translate at once; others wait
KEPT = 3600  # seconds that uploads and results stay on the disk
BUNDLED: tuple[tuple[Any, ...], ...] = (  # weights, name, what the page says, tabs
    (demo.WEIGHTS, "Drawings", "Emoji and other simple things, drawn in black lines on white.", (DRAWING, PICTURES)),
    (demo.PHOTOGRAPHS, "Photographs", "Photographs that were blurred, noisy or small JPEG files.", (PICTURES,)),
)
Pictures = dict[str, Image.Image]  # by name: of a source, or of a result with its seed, mean or spread


def load(config: AppConfig) -> BridgeSampler:
    """The sampler of a checkpoint, or of a model's folder or name on the Hub.

    Raises:
        ValueError: the model cannot be read, or a setting is not for it.
    """
    device = config.device or ("cuda" if torch.cuda.is_available() else "cpu")
    faster = best_dtype(torch.device(device)) if config.model == demo.PHOTOGRAPHS else None
    dtype = config.dtype or faster
    sampler = BridgeSampler.from_pretrained(config.model, device=device, dtype=dtype, compile=config.compile)
    check_eight_bit(sampler.pictures, "the app")
    check_pictures(sampler.axes, "the app")
    conditions = sampler._shapes.conditions.each.values()
    if needed := [each.name for each in conditions if each.kind != "class" and not each.droppable]:
        raise ValueError(f"this network needs {', '.join(needed)}: images and tokens, which the app cannot give")
    sampler.window_grid(config)  # refused now, and not when a visitor comes
    if len(sampler.table) > config.max_steps:
        raise ValueError(f"max_steps must be at least the network's {len(sampler.table)}, got {config.max_steps}")
    return sampler


class Panel:
    """A network on the page, with its name, what the page says of it and the tabs of its sources.

    Raises:
        ValueError: the model cannot be read, or a setting is not for it.
    """

    ended = threading.Event()  # of the app: translations that run end at their next network call

    def __init__(self, config: AppConfig, name: str, about: str = "", tabs: Sequence[str] = TABS) -> None:
        self.config, self.name, self.about, self.tabs = config, name, about, tabs
        self.sampler = load(config)
        self.conditions = self.sampler._shapes.conditions
        self.window = config.window_of(self.sampler.pictures.crop)
        self.size = config.size or self.sampler.image_size  # of drawings; and of others, but for windows

    def read(self, file: str | Image.Image) -> Image.Image:
        """An uploaded file or a drawing as the network takes it.

        Raises:
            ValueError: the file cannot be read, or has too many pixels. It is known by its name alone.
        """
        drawn = isinstance(file, Image.Image)
        name = "drawing" if drawn else Path(file).name
        picture = images.convert(file if drawn else images.open_image(Path(file).read_bytes(), name))
        if self.size is not None and (drawn or self.window is None or self.config.size is not None):
            picture = images.resized(picture, self.size, "fit")
        if picture.width * picture.height > (most := self.config.max_pixels):
            got = f"{picture.height} x {picture.width}"
            raise ValueError(f"a picture may have at most {most} pixels, got {name} of height x width {got}")
        return picture

    def sources(self, tab: str, drawing: Any, files: Sequence[tuple[str, Any]] | None) -> Pictures:
        """The pictures of a tab by name; ValueError where there is none, or too many, or one is bad."""
        if tab == DRAWING:
            sheet = drawing and drawing["composite"]
            if not sheet or not ImageOps.invert(images.convert(sheet)).getbbox():  # all white
                raise ValueError("the sheet is empty: draw something")
            return {"drawing": self.read(sheet)}
        if not files:
            raise ValueError("choose a picture first")
        if len(files) > self.config.max_files:
            raise ValueError(f"there may be at most {self.config.max_files} pictures, got {len(files)}")
        sources = Pictures()
        for path, _ in files:
            name = Path(path).stem
            while name in sources:
                name = f"{name}_{len(sources)}"
            sources[name] = self.read(path)
        return sources

    def run(self, progress: gr.Progress = gr.Progress(), *inputs: Any) -> Iterator[Any]:  # noqa: B008  (Gradio looks for this default)
        """Translate what a visitor chose, in the order of :meth:`build`: status, gallery, and zip.

        It yields after each step, where Gradio may stop it.
        """
        tab, drawing, files, count, maps, solver, steps, seed, *conditions = inputs
        yield "", [], gr.DownloadButton(interactive=False)  # nothing of before stays beside an error
        try:
            sources = self.sources(tab, drawing, files)
            if maps and count < 2:
                raise ValueError(f"results must be at least 2 to show where they differ, got {count}")
            if (seed := (seed or "").strip()) and not seed.isdecimal():
                raise ValueError(f"seed must be an integer of at least 0, got {seed[:20]!r}")
            options = dict(self.config.call)
            if (solver, steps) != (self.sampler.solver, len(self.sampler.table)):
                options |= {"solver": solver, "steps": steps}
            if conditions:
                guidance, *classes = conditions
                chosen = dict(zip(self.conditions.classes, classes, strict=True))
                options["conditions"] = dict.fromkeys(self.conditions.drop) | chosen
                options["guidance"] = None if guidance == 1 else guidance
            seeds, results, gallery = resolve_seeds(int(seed) if seed else None, count * len(sources)), Pictures(), []
            at_once = 1 if self.window else count
            for i, (name, source) in enumerate(sources.items()):
                found = Pictures()
                for start in range(i * count, (i + 1) * count, at_once):
                    own = seeds[start : start + at_once]
                    last: Any = None
                    for step in self.sampler.stream([source] * at_once, own, **options):
                        if self.ended.is_set():
                            raise ValueError("the app ends")
                        at = start // at_once * steps + step.index + 1, len(seeds) // at_once * steps
                        progress(at, unit="network calls")
                        yield gr.skip()
                        last = step
                    found |= zip((f"{name}_{each}" for each in own), last.preview(), strict=True)
                found = {**(averages(name, [*found.values()]) if maps else {}), **found}
                gallery += [(shown(picture), caption) for caption, picture in ({name: source} | found).items()]
                results |= found
                yield "", gallery, gr.skip()
            status = f"done, seeds {seeds[0]} to {seeds[-1]}{LEGEND * maps}"
            yield status, gallery, gr.DownloadButton(value=zipped(results), interactive=True)
        except (ValueError, OSError) as error:
            raise gr.Error(html.escape(str(error), quote=False), print_exception=False) from error

    def build(self) -> None:
        """Put the panel on the page that is being built."""
        config, sampler, most = self.config, self.sampler, self.config.max_results
        tab = gr.State(self.tabs[0])
        sources: dict[str, Any] = {DRAWING: gr.State(), PICTURES: gr.State()}
        with gr.Row():
            with gr.Column():
                for name in self.tabs:
                    with gr.Tab(name) as each:
                        sources[name] = sheet(self.size or CANVAS) if name == DRAWING else uploads()
                    each.select(partial(str, name), None, tab, queue=False)
                number = partial(gr.Number, precision=0, minimum=1)
                usual = 1 if self.window else min(4, most)
                count = number(usual, label="Results", maximum=most, visible=most > 1)
                maps = gr.Checkbox(label="Where it is uncertain", info="Mean and spread of results.", visible=most > 1)
                conditions: list[Any] = []
                if self.conditions.classes:
                    conditions = [gr.Slider(0, 6, 1, step=0.5, label="Guidance", visible=bool(self.conditions.drop))]
                for name, named in self.conditions.classes.items():
                    choices = [*(map(str, range(named)) if isinstance(named, int) else named)]
                    choices += ["none"] if name in self.conditions.drop else []
                    conditions.append(gr.Dropdown([(text, i) for i, text in enumerate(choices)], value=0, label=name))
                with gr.Row():
                    start = gr.Button("Translate", variant="primary", min_width=120)
                    stop = gr.Button("Stop", min_width=80)
                with gr.Accordion("Advanced", open=False):
                    offered = solvers.choices(sampler.bridge, sampler.calls, len(sampler.table))
                    solver = gr.Dropdown([*dict.fromkeys([sampler.solver, *offered])], label="Solver")
                    steps = number(len(sampler.table), label="Network calls", maximum=config.max_steps)
                    seed = gr.Textbox("0", label="Seed", info="One number, one picture. Empty: another each time.")
                    gr.Markdown(f"`{sampler.bridge!r}`")
            with gr.Column():
                status = gr.Markdown()
                gallery = gr.Gallery(show_label=False, format="png", columns=3)
                download = gr.DownloadButton("Download as zip", interactive=False)
        running = start.click(
            self.run,
            [tab, *sources.values(), count, maps, solver, steps, seed, *conditions],
            [status, gallery, download],
            show_progress_on=status,
            concurrency_id="translations",
            concurrency_limit=VISITORS,
        )
        stop.click(None, cancels=running)


def sheet(size: images.Size) -> gr.ImageEditor:
    """A white sheet to draw on, of the shape of pictures of a size."""
    height, width = (round(CANVAS * side / max(images.sides(size))) for side in images.sides(size))
    return gr.ImageEditor(
        {"background": Image.new("RGB", (width, height), "white"), "layers": [], "composite": None},
        type="pil",
        sources=(),
        canvas_size=(width, height),
        fixed_canvas=True,
        layers=False,
        brush=gr.Brush(default_size=LINE, default_color="black"),
        show_label=False,
    )


def uploads() -> gr.Gallery:
    """A field for pictures that Gradio does not open: it would show an error with the server's path."""
    return gr.Gallery(file_types=FORMATS, sources=["upload", "webcam", "clipboard"], show_label=False)


def averages(name: str, results: Sequence[Image.Image]) -> Pictures:
    """The mean and the spread of the results of a source."""
    levels = np.stack([np.atleast_3d(np.asarray(each, dtype=float)) for each in results])
    maps = {"mean": levels.mean(0).round().squeeze(), "spread": (2 * levels.std(0, ddof=1).mean(-1)).clip(0, 255)}
    return {f"{name}_{kind}": Image.fromarray(each.astype(np.uint8)) for kind, each in maps.items()}


def shown(picture: Image.Image) -> Image.Image:
    """A picture as the page shows it."""
    return images.resized(picture, min(SHOWN, max(picture.size)), "fit")


def zipped(results: Pictures) -> Path:
    """A file of all results."""
    path = Path(tempfile.mkdtemp(dir=os.environ.get("GRADIO_TEMP_DIR"))) / "results.zip"
    with zipfile.ZipFile(path, "w") as file:
        for name, picture in results.items():
            file.writestr(f"{name}.png", images.to_png(picture))
    return path


def build(config: AppConfig) -> gr.Blocks:
    """The page: of the network of the settings, or a tab for each of the bundled ones.

    Raises:
        ValueError: a model cannot be read, or a setting is not for it.
    """
    networks = BUNDLED if config.bundled else ((config.model, config.model.stem),)
    panels = [Panel(replace(config, model=path), *about) for path, *about in networks]
    title = "bbdm" if config.bundled else f"bbdm: {config.model.stem}"
    with gr.Blocks(title=title, analytics_enabled=False, delete_cache=(KEPT, KEPT)) as app:
        gr.Markdown(f"# {title}")
        for panel in panels:
            with gr.Tab(panel.name) if config.bundled else gr.Column():
                gr.Markdown(panel.about, visible=bool(panel.about))
                panel.build()
    return app


def launch(config: AppConfig) -> None:
    """Show the page, until SIGTERM or Ctrl-C. Uploads and results go with it."""
    with tempfile.TemporaryDirectory(prefix="bbdm-app-") as folder, termination() as ended:
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
            while not ended():
                time.sleep(0.1)
        finally:
            Panel.ended.set()
            app.close(verbose=False)
