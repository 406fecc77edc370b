"""A page for the browser that translates pictures, on Gradio. It fetches nothing from the internet."""

from __future__ import annotations

import os
import tempfile
import time
import zipfile
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from PIL import Image

from bbdm.pictures import images
from bbdm.serving.app_model import Model, Progress, Result, load, read, translate
from bbdm.serving.config import AppConfig

if TYPE_CHECKING:
    import gradio as gr

EXAMPLES = ("drawings", "examples")  # folders beside a checkpoint
PICTURES = {".bmp", ".jpeg", ".jpg", ".png", ".webp"}
PREVIEW_SECONDS = 0.2  # at least, between two previews
CANVAS = 512  # pixels along the longer side of a drawing
SHOWN = 1600  # pixels along the longer side of what the page shows; the zip has all
WAITING = 100  # visitors in the queue
UPLOAD = "50mb"  # of one file, at most
COLOURS: list[str | tuple[str, float]] = [
    "black",
    "white",
    "red",
    "orange",
    "yellow",
    "green",
    "blue",
    "purple",
]  # of the brush
KEPT = 3600  # seconds that uploads and results stay on the disk and in memory
CSS = """
.gradio-container, .gradio-container .fillable { width: 100%; max-width: 1100px !important; margin: auto !important }
footer { display: none !important }
.source img { width: 100%; height: 100%; object-fit: contain }
.block.status { min-height: 3.2em }
.status progress { display: block; width: 100%; height: .6em; appearance: none; border: 0; border-radius: .3em }
.status progress, .status ::-webkit-progress-bar { background: var(--border-color-primary); border-radius: .3em }
.status ::-webkit-progress-value { background: var(--color-accent); border-radius: .3em }
.status ::-moz-progress-bar { background: var(--color-accent); border-radius: .3em }
.results .grid-wrap { min-height: 7.5em; max-height: 30em; overflow-y: auto }
.results .grid-container { grid-template-columns: repeat(auto-fill, minmax(96px, 1fr)) !important }
.results .caption-label { font-size: .75em; max-width: 100%; padding: 0 .4em }
.about { font-size: .8em; overflow-wrap: anywhere; opacity: .7 }
"""


def example_pictures(config: AppConfig) -> list[Path]:
    """The example pictures that came with a model: of the first folder that has any."""
    beside = [folder / name for folder in (config.model, config.model.parent) for name in EXAMPLES]
    folders = beside if config.examples is None else [config.examples]
    found = (sorted(path for path in folder.glob("*") if path.suffix.lower() in PICTURES) for folder in folders)
    return next(filter(None, found), [])


def archive(results: Sequence[Result], folder: str | None = None) -> str:
    """A zip of results as PNG files, NAME_SEED.png, in a new folder below ``folder``."""
    path = Path(tempfile.mkdtemp(dir=folder)) / "results.zip"
    with zipfile.ZipFile(path, "w") as file:
        for result in results:
            file.writestr(f"{result.source.name}_{result.seed}.png", images.to_png(result.picture))
    return str(path)


def check(config: AppConfig, steps: int, count: int, files: int) -> None:
    """Raise ValueError unless a visitor's numbers are within the limits."""
    limits = {"network calls": (steps, config.max_steps), "results": (count, config.max_results)}
    for name, (value, most) in {**limits, "pictures": (files, config.max_files)}.items():
        if not 1 <= value <= most:
            raise ValueError(f"the number of {name} must be from 1 to {most}, got {value}")


def caption(result: Result, named: bool) -> str:
    """What the gallery says below a result."""
    return f"{result.source.name}, seed {result.seed}" if named else f"seed {result.seed}"


def status(progress: Progress) -> str:
    """The progress as HTML."""
    done, total, results, _ = progress
    if done == total:
        several = f"{len(results)} results, seeds {results[0].seed} to {results[-1].seed}"
        return several if len(results) > 1 else f"1 result, seed {results[0].seed}"
    return f'network call {done} of {total}<progress value="{done}" max="{total}"></progress>'


def shown(picture: Image.Image) -> Image.Image:
    """A picture as the page shows it, which takes no long time of larger ones."""
    return images.resized(picture, SHOWN, "fit") if max(picture.size) > SHOWN else picture


def pair(result: Result) -> tuple[Image.Image, Image.Image]:
    """What the slider compares."""
    return shown(result.source.picture), shown(result.picture)


def canvas(size: images.Size | None) -> tuple[int, int]:
    """(width, height) of a drawing that becomes a picture of a size."""
    height, width = images.sides(size or CANVAS)
    longer = max(height, width)
    return round(CANVAS * width / longer), round(CANVAS * height / longer)


def build(model: Model, config: AppConfig) -> gr.Blocks:
    """The page.

    Raises:
        ValueError: the network's own number of calls or of results is above the limit.
    """
    import gradio as gr

    check(config, len(model.sampler.table), model.results or 1, 1)

    def run(tab, picture, drawing, files, solver, steps, seed, count):
        try:
            given = {"Picture": [picture], "Drawing": [drawing and drawing["composite"]], "Files": files or []}[tab]
            given = [each for each in given if each is not None]
            steps, count = int(steps), int(count)
            check(config, steps, count, len(given))
            sources = [read(each, model, model.max_pixels) for each in given]
            seen = {True: 0.0, False: 0.0}  # when the page was last told of a step, and of a call within one
            for progress in translate(model, sources, solver, steps, seed, count):
                done, total, results, first = progress
                if done < total and time.monotonic() - seen[bool(results)] < PREVIEW_SECONDS:
                    continue
                seen[bool(results)] = time.monotonic()
                if not results:
                    yield status(progress), *[gr.skip()] * 4
                    continue
                gallery = [(shown(each.picture), caption(each, len(sources) > 1)) for each in results]
                path = archive(results, os.environ.get("GRADIO_TEMP_DIR")) if done == total else None
                button = gr.DownloadButton(value=path, interactive=path is not None)
                yield status(progress), pair(results[first]), gallery, results, button
        except (ValueError, OSError) as error:
            raise gr.Error(str(error), print_exception=False) from error

    def choose(results, event):
        return pair(results[event.index]) if event.index < len(results) else gr.skip()

    choose.__annotations__["event"] = gr.SelectData  # gradio looks for the class, not for its name

    with gr.Blocks(title=f"bbdm: {config.model.stem}", analytics_enabled=False, delete_cache=(KEPT, KEPT)) as app:
        gr.Markdown(f"# {config.model.stem}")
        results = gr.State([], time_to_live=KEPT)
        tab = gr.State("Picture")
        with gr.Row():
            with gr.Column():
                with gr.Tab("Picture") as uploading:
                    picture = gr.Image(
                        type="filepath",
                        image_mode=None,
                        sources=["upload", "webcam", "clipboard"],
                        height=300,
                        show_label=False,
                        elem_classes="source",
                    )
                    if found := example_pictures(config):
                        gr.Examples([[str(path)] for path in found], picture, label="Examples")
                with gr.Tab("Drawing") as drawing_tab:
                    drawing = gr.ImageEditor(
                        {"background": Image.new("RGB", canvas(model.size), "white"), "layers": [], "composite": None},
                        type="pil",
                        sources=(),
                        height=480,
                        canvas_size=canvas(model.size),
                        fixed_canvas=True,
                        layers=False,
                        brush=gr.Brush(default_size=CANVAS // 32, colors=COLOURS),
                        show_label=False,
                    )
                with gr.Tab("Files") as batch:
                    files = gr.File(file_count="multiple", file_types=["image"], show_label=False)
                with gr.Row():
                    solver = gr.Dropdown(
                        list(dict.fromkeys([model.solver, *model.solvers])), value=model.solver, label="Solver"
                    )
                    steps = gr.Slider(
                        1,
                        config.max_steps,
                        len(model.sampler.table),
                        step=1,
                        label="Network calls",
                    )
                with gr.Row():
                    seed = gr.Number(0, label="Seed, or empty", precision=0, minimum=0)
                    count = gr.Slider(
                        1,
                        model.results or config.max_results,
                        model.results or min(4, config.max_results),
                        step=1,
                        label="Results (as exported)" if model.results else "Results",
                        interactive=not model.results,
                    )
                with gr.Row():
                    start = gr.Button("Translate", variant="primary", min_width=120)
                    stop = gr.Button("Stop", min_width=80, scale=0)
            with gr.Column():
                slider = gr.ImageSlider(
                    label="Source and result", format="png", interactive=False, elem_classes="compared"
                )
                state = gr.HTML(elem_classes="status")
                gallery = gr.Gallery(
                    show_label=False,
                    format="png",
                    columns=4,
                    height="auto",
                    object_fit="contain",
                    allow_preview=False,
                    buttons=[],
                    interactive=False,
                    elem_classes="results",
                )
                download = gr.DownloadButton("Download as zip", interactive=False)
        gr.HTML(repr(model.sampler), elem_classes="about")
        for each in (uploading, drawing_tab, batch):
            each.select(lambda name=each.label: name, None, tab, queue=False)
        inputs = [tab, picture, drawing, files, solver, steps, seed, count]
        running = start.click(run, inputs, [state, slider, gallery, results, download], show_progress_on=state)
        stop.click(None, cancels=[running])
        gallery.select(choose, results, slider, queue=False)
    return app


def launch(config: AppConfig) -> None:
    """Show the page, until the process is stopped."""
    with tempfile.TemporaryDirectory(prefix="bbdm-app-") as folder:  # of uploads and results
        os.environ.update(GRADIO_ANALYTICS_ENABLED="False", GRADIO_RUN_HISTORY="False", GRADIO_TEMP_DIR=folder)
        from gradio.themes import Default

        app = build(load(config), config)
        app.queue(default_concurrency_limit=config.visitors, max_size=WAITING).launch(
            server_name=config.host,
            server_port=config.port,
            share=False,
            show_error=True,
            max_file_size=UPLOAD,
            theme=Default(
                primary_hue="indigo", font=["system-ui", "sans-serif"], font_mono=["ui-monospace", "monospace"]
            ),
            css=CSS,
        )
