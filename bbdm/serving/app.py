"""A page for the browser that translates pictures, on Gradio. It fetches nothing from the internet."""

from __future__ import annotations

import html
import os
import tempfile
import time
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from PIL import Image

from bbdm.base import demo
from bbdm.pictures import images
from bbdm.serving.app_look import COLOURS, CSS, GALLERY, NAMES
from bbdm.serving.app_model import Call, Model, Result, compare, load, translate
from bbdm.serving.app_told import told_fields
from bbdm.serving.app_visit import (
    MISSING,
    archive,
    caption,
    check,
    displayed,
    given_pictures,
    pair,
    read_all,
    status,
    stopped,
)
from bbdm.serving.config import AppConfig
from bbdm.serving.requests import integer

if TYPE_CHECKING:
    import gradio as gr

EXAMPLES = ("drawings", "examples")  # folders beside a checkpoint
PICTURES = {".bmp", ".jpeg", ".jpg", ".png", ".webp"}
COMPARED = 8  # results of which the page shows where they differ
PREVIEW_SECONDS = 0.2  # at least, between two previews
CANVAS = 512  # pixels along the longer side of a drawing
LINE = CANVAS // 64  # radius of the brush: the bundled network knows lines of about 2 pixels of 64
WAITING = 100  # visitors in the queue
UPLOAD = "50mb"  # of one file, at most
METHODS = {  # solvers in words, those of the page in examples/web
    "dpm2m": "Noise at the start only",
    "sde-dpm2m": "Fresh noise in each step",
    "midpoint": "Two looks a step",
    "ddim": "Plain steps",
    "posterior": "Many small steps",
    "fast": "The paper's fewer steps",
    "ancestral": "The paper's every step",
    "consistency": "The few steps it was taught",
    "mean": "The average of all answers",
}
BUNDLED = (  # networks: name, weights, what the page says, tabs
    (
        "Drawings",
        demo.WEIGHTS,
        "Draw, and watch the colours come. The network knows emoji and other simple things, drawn in black lines on "
        "white.",
        ("Drawing", "Picture", "Files"),
    ),
    (
        "Photographs",
        demo.PHOTOGRAPHS,
        "Bring a photograph's detail back. The network knows photographs that were blurred, noisy or saved as small "
        "JPEG files, and no drawings.",
        ("Picture", "Files"),
    ),
)
KEPT = 3600  # seconds that uploads and results stay on the disk and in memory


class Panel(NamedTuple):
    """A network on the page, and what visitors read of it."""

    name: str
    about: str
    model: Model
    config: AppConfig
    examples: Sequence[Path] = ()  # pictures that a visitor can take
    tabs: Sequence[str] = tuple(MISSING)  # the first is open


def panels(config: AppConfig) -> list[Panel]:
    """The network of the settings, or the bundled ones.

    Raises:
        ValueError: a network cannot be read, or a setting is not for it.
    """
    if not config.bundled:
        return [Panel(config.model.stem, "", load(config), config, example_pictures(config))]
    found: list[Panel] = []
    for name, path, about, tabs in BUNDLED:
        own = replace(config, model=path)
        if path.is_file():
            examples = example_pictures(own) if "Drawing" in tabs else []
            found.append(Panel(name, about, load(own), own, examples, tabs))
    return found


def example_pictures(config: AppConfig) -> list[Path]:
    """The example pictures that came with a model: of the first folder that has any."""
    beside = [folder / name for folder in (config.model, config.model.parent) for name in EXAMPLES]
    folders = beside if config.examples is None else [config.examples]
    found = (sorted(path for path in folder.glob("*") if path.suffix.lower() in PICTURES) for folder in folders)
    return next(filter(None, found), [])


def canvas(size: images.Size | None) -> tuple[int, int]:
    """(width, height) of a drawing that becomes a picture of a size."""
    height, width = images.sides(size or CANVAS)
    longer = max(height, width)
    return round(CANVAS * width / longer), round(CANVAS * height / longer)


def run(
    panel: Panel,
    tab: str,
    picture: Any,
    drawing: Any,
    files: Any,
    solver: str,
    steps: float,
    seed: str,
    count: float,
    guidance: float = 1.0,
    *classes: int,
    compared: bool = False,
) -> Iterator[tuple[Any, ...]]:
    """Translate what a visitor gave: status, slider, gallery, results and zip, whenever they are shown.

    ``classes`` are numbers, in the order of the network's; the number of classes is none. ``compared`` shows
    where ``count`` results differ.
    """
    import gradio as gr

    model, config = panel.model, panel.config
    try:
        given = given_pictures(tab, picture, drawing, files)
        check(config, steps, count, len(given))
        first_seed = integer("seed", (seed or "").strip() or None, 0, 2**63 - 1)
        sources, bad = read_all(given, model)
        if bad:
            gr.Warning(html.escape("; ".join(bad), quote=False))
        seen = {True: 0.0, False: 0.0}  # when the page was last told of a step, and of a call within one
        told = dict(zip(model.further.classes, classes, strict=True))
        call = Call(sources, solver, int(steps), first_seed, int(count), told, guidance)
        for progress in (compare if compared else translate)(model, call):
            done, total, results, first = progress
            if done < total and time.monotonic() - seen[bool(results)] < PREVIEW_SECONDS:
                continue
            seen[bool(results)] = time.monotonic()
            if not results:
                yield status(progress), *[gr.skip()] * 4
                continue
            gallery = [(displayed(each), caption(each, len(given) > 1)) for each in results]
            path = archive(results, os.environ.get("GRADIO_TEMP_DIR")) if done == total else None
            button = gr.DownloadButton(value=path, interactive=path is not None)
            yield status(progress, bad), pair(results[first]), gallery, results, button
    except (ValueError, OSError) as error:
        raise gr.Error(html.escape(str(error), quote=False), print_exception=False) from error


def add(panel: Panel) -> None:
    """Put a network's panel on the page that is being built.

    Raises:
        ValueError: the network's own number of calls or of results is above the limit.
    """
    import gradio as gr

    model, config = panel.model, panel.config
    check(config, len(model.sampler.table), 1, 1)

    def choose(results: list[Result], event: Any) -> Any:
        return pair(results[event.index]) if event.index < len(results) else gr.skip()

    def take(event: Any) -> Any:
        return str(panel.examples[event.index]), "Picture", gr.Tabs(selected="Picture")

    def translated(*values: Any) -> Any:
        yield from run(panel, *values)

    def compared(*values: Any) -> Any:
        yield from run(panel, *values, compared=True)

    for function in (choose, take):
        function.__annotations__["event"] = gr.SelectData  # gradio looks for the class, not for its name

    results = gr.State([], time_to_live=KEPT)
    tab = gr.State(panel.tabs[0])
    inputs: dict[str, Any] = {}

    def whole(most: int, value: int, label: str) -> gr.Slider:
        return gr.Slider(1, max(2, most), value, step=1, label=label, visible=most > 1)

    def add_picture() -> None:
        inputs["Picture"] = made = gr.Image(
            type="filepath",
            image_mode=None,
            sources=["upload", "webcam", "clipboard"],
            height=300,
            show_label=False,
            elem_classes="source",
        )
        # Gradio's own opens the file, and shows a visitor the error and the server's path of a damaged one
        made.preprocess = lambda payload: payload and payload.path

    def add_drawing() -> None:
        inputs["Drawing"] = gr.ImageEditor(
            {"background": Image.new("RGB", canvas(model.size), "white"), "layers": [], "composite": None},
            type="pil",
            sources=(),
            height=480,
            canvas_size=canvas(model.size),
            fixed_canvas=True,
            layers=False,
            brush=gr.Brush(default_size=LINE, colors=COLOURS),
            show_label=False,
        )

    def add_files() -> None:
        inputs["Files"] = gr.File(file_count="multiple", file_types=["image"], show_label=False)

    ways = {"Picture": add_picture, "Drawing": add_drawing, "Files": add_files}
    with gr.Row():
        with gr.Column():
            with gr.Tabs() as tabs:
                for name in panel.tabs:
                    with gr.Tab(name, id=name) as each:
                        ways[name]()
                    each.select(lambda name=name: name, None, tab, queue=False)
            if panel.examples:
                examples = gr.Gallery(
                    [str(path) for path in panel.examples],
                    label="Examples",
                    elem_classes=["examples", "gallery"],
                    **GALLERY,
                )
                examples.select(take, None, [inputs["Picture"], tab, tabs], queue=False)
            count = whole(
                config.max_results,
                min(4, config.max_results) if model.windows["window"] is None else 1,
                "Results",
            )
            told = told_fields(model.further)
            with gr.Row():
                start = gr.Button("Translate", variant="primary", min_width=120)
                stop = gr.Button("Stop", min_width=80, scale=0)
                differ = gr.Button("Where it is uncertain", min_width=300, visible=config.max_results > 1)
            with gr.Accordion("Advanced", open=False):
                solver = gr.Dropdown(
                    [(f"{METHODS[each]} ({each})", each) for each in dict.fromkeys([model.solver, *model.solvers])],
                    value=model.solver,
                    label="How it answers",
                )
                steps = whole(config.max_steps, len(model.sampler.table), "Network calls: more are finer and slower")
                seed = gr.Textbox(
                    "0", label="Seed: one number, one picture", info="Empty: another each time.", elem_classes="seed"
                )
                gr.HTML(html.escape(repr(model.sampler), quote=False), elem_classes="about")
        with gr.Column():
            slider = gr.ImageSlider(label="Before and after", format="png", interactive=False, elem_classes="compared")
            state = gr.HTML(elem_classes="status")
            gallery = gr.Gallery(
                show_label=False, format="png", columns=4, elem_classes=["results", "gallery"], **GALLERY
            )
            download = gr.DownloadButton("Download as zip", interactive=False)
    given = [inputs[name] if name in inputs else gr.State() for name in MISSING]
    several = gr.State(min(COMPARED, config.max_results))
    running = [
        button.click(
            function,
            [tab, *given, solver, steps, seed, number, *told],
            [state, slider, gallery, results, download],
            show_progress_on=state,
            concurrency_id="translations",
            concurrency_limit=config.visitors,
        )
        for button, function, number in ((start, translated, count), (differ, compared, several))
    ]
    stop.click(None, cancels=[*running])  # in one listener with the next, it would come after it
    stop.click(stopped, state, state, queue=False, show_progress="hidden")
    gallery.select(choose, results, slider, queue=False)


def build(shown: Sequence[Panel]) -> gr.Blocks:
    """The page: a tab for each network where there are several.

    Raises:
        ValueError: a network's own number of calls or of results is above the limit.
    """
    import gradio as gr

    title = "bbdm" if len(shown) > 1 else f"bbdm: {shown[0].name}"
    with gr.Blocks(title=title, analytics_enabled=False, delete_cache=(KEPT, KEPT)) as app:
        gr.Markdown(f"# {title}")
        for panel in shown:
            with gr.Tab(panel.name) if len(shown) > 1 else gr.Column():
                gr.Markdown(panel.about, visible=bool(panel.about))
                add(panel)
    return app


def launch(config: AppConfig) -> None:
    """Show the page, until the process is stopped."""
    with tempfile.TemporaryDirectory(prefix="bbdm-app-") as folder:  # of uploads and results
        os.environ.update(GRADIO_ANALYTICS_ENABLED="False", GRADIO_RUN_HISTORY="False", GRADIO_TEMP_DIR=folder)
        from gradio.themes import Default

        found = panels(config)
        app = build(found)
        _, address, _ = app.queue(max_size=WAITING).launch(
            server_name=config.host,
            server_port=config.port,
            share=False,
            quiet=True,  # its message advertises a public link
            prevent_thread_lock=True,
            show_error=True,
            max_file_size=UPLOAD,
            allowed_paths=[str(path) for panel in found for path in panel.examples],
            theme=Default(
                primary_hue="indigo", font=["system-ui", "sans-serif"], font_mono=["ui-monospace", "monospace"]
            ).set(
                body_text_color_subdued="*neutral_600",
                button_primary_background_fill="*primary_600",
                button_primary_background_fill_hover="*primary_700",
            ),
            css=CSS,
            head=NAMES,
        )
        print(f"the app is at {address}; Ctrl-C ends it", flush=True)
        app.block_thread()
