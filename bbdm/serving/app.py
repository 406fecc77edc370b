"""A page for the browser that translates pictures, on Gradio. It fetches nothing from the internet."""

from __future__ import annotations

import html
import os
import tempfile
import time
import zipfile
from collections.abc import Iterator, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import gradio as gr
from PIL import Image

from bbdm.base import demo
from bbdm.base.scripts import termination
from bbdm.pictures import images
from bbdm.serving.app_model import DRAWING, FORMATS, PICTURES, Network, Result
from bbdm.serving.config import AppConfig

MOST_SEED = 2**63 - 1
TABS = PICTURES, DRAWING
COMPARED = 8  # results that show where they differ
MAPS = {"mean": "average", "std": "where they differ"}
LEGEND = "<br>Where they differ: white is a standard deviation of 128 or more, in levels of 0 to 255; black is none."
PREVIEW_SECONDS = 0.2  # at least, between two previews
CANVAS = 512  # pixels along the longer side of a drawing
LINE = CANVAS // 64  # radius of the brush: the bundled network knows lines of about 2 pixels of 64
COLOURS: list[Any] = ["black", "white", "red", "orange", "yellow", "green", "blue", "purple"]  # of the brush
GUIDANCE = 6  # at most
GALLERY: dict[str, Any] = {"object_fit": "contain", "allow_preview": False, "buttons": [], "interactive": False}
WAITING = 100  # visitors in the queue
UPLOAD = "50mb"  # of one file, at most
KEPT = 3600  # seconds that uploads and results stay on the disk and in memory
BUNDLED: tuple[tuple[Any, ...], ...] = (  # weights, name, what the page says, tabs
    (demo.WEIGHTS, "Drawings", "Emoji and other simple things, drawn in black lines on white.", (DRAWING, PICTURES)),
    (demo.PHOTOGRAPHS, "Photographs", "Photographs that were blurred, noisy or small JPEG files.", (PICTURES,)),
)


class StoppedError(Exception):
    """A visitor stopped a translation, or left."""


class Panel(Network):
    """A network on the page, with its name, what the page says of it and the tabs of its sources."""

    def __init__(self, config: AppConfig, name: str, about: str = "", tabs: Sequence[str] = TABS) -> None:
        super().__init__(config)
        self.name, self.about, self.tabs = name, about, tabs
        self.stopped: set[str | None] = set()  # sessions whose translations end; None: all

    def run(
        self,
        request: gr.Request,
        progress: gr.Progress = gr.Progress(),  # noqa: B008  (Gradio looks for this default)
        *inputs: Any,
    ) -> Iterator[tuple[Any, ...]]:
        """Translate what a visitor gave, in the order of :meth:`build`, and show it."""
        compared, tab, drawing, files, solver, steps, seed, count, *conditions = inputs
        session, last, text = request.session_hash, time.monotonic(), ""
        self.stopped.discard(session)

        def report(done: int, total: int) -> None:
            nonlocal text
            text = f"network call {done} of {total}"
            progress((done, total), unit="network calls")
            if self.stopped & {session, None}:
                raise StoppedError

        yield shown("", [])  # nothing of before stays beside an error
        try:
            sources, errors = self.sources(tab, drawing, files)
            if (seed := (seed or "").strip()) and not (seed.isdecimal() and int(seed) <= MOST_SEED):
                raise ValueError(f"seed must be an integer from 0 to {MOST_SEED}, got {seed[:20]!r}")
            options = dict(self.config.call)
            if (solver, steps) != (self.sampler.solver, len(self.sampler.table)):
                options |= {"solver": solver, "steps": steps}
            if conditions:
                guidance, *classes = conditions
                own = dict(zip(self.conditions.classes, classes, strict=True))
                options["conditions"] = dict.fromkeys(self.conditions.drop) | own
                options["guidance"] = None if guidance == 1 else guidance
            translate, results = self.compare if compared else self.translate, list[Result]()
            for results in translate(sources, count, int(seed) if seed else None, report, **options):
                if time.monotonic() - last > PREVIEW_SECONDS:
                    last = time.monotonic()
                    yield shown(text, results)
            seeds = [each.kind for each in results if each.kind not in MAPS]
            text = f"{len(seeds)} results, seeds {seeds[0]} to {seeds[-1]}"
            text = text if seeds[1:] else f"1 result, seed {seeds[0]}"
            text = f"{text}; left out: {'; '.join(errors)}" if errors else text
            yield shown(html.escape(text, quote=False) + LEGEND * compared, results, done=True)
        except StoppedError:
            yield f"stopped at {text}", *[gr.skip()] * 4
        except (ValueError, OSError) as error:
            raise gr.Error(html.escape(str(error), quote=False), print_exception=False) from error

    def stop(self, request: gr.Request, text: str = "") -> str:
        """End a visitor's translation at its next network call."""
        self.stopped.add(request.session_hash)
        return f"stopped at {text}" if text.startswith("network call") else text

    def build(self) -> None:
        """Put the panel on the page that is being built."""
        config, sampler = self.config, self.sampler
        tab, results = gr.State(self.tabs[0]), gr.State([], time_to_live=KEPT)
        sources: dict[str, Any] = {DRAWING: gr.State(), PICTURES: gr.State()}
        with gr.Row():
            with gr.Column():
                with gr.Tabs() as tabs:
                    for name in self.tabs:
                        with gr.Tab(name, id=name) as each:
                            sources[name] = sheet(self.size or CANVAS) if name == DRAWING else uploads()
                        each.select(partial(str, name), None, tab, queue=False)
                if self.examples and DRAWING in self.tabs:
                    examples = gr.Gallery(self.examples, label="Examples", columns=6, height=140, **GALLERY)
                    examples.select(self.take, None, [sources[PICTURES], tab, tabs], queue=False)
                count = number("Results", config.max_results, 1 if self.window else min(4, config.max_results))
                conditions: list[Any] = []
                if classes := self.conditions.classes:
                    droppable = any(name in self.conditions.drop for name in classes)
                    conditions = [gr.Slider(0, GUIDANCE, 1, step=0.5, label="Guidance", visible=droppable)]
                for name, named in classes.items():
                    choices = [*(map(str, range(named)) if isinstance(named, int) else named)]
                    choices += ["none"] if name in self.conditions.drop else []
                    conditions.append(gr.Dropdown([(text, i) for i, text in enumerate(choices)], value=0, label=name))
                with gr.Row():
                    start = gr.Button("Translate", variant="primary", min_width=120)
                    differ = gr.Button("Where it is uncertain", min_width=240, visible=config.max_results > 1)
                    stop = gr.Button("Stop", min_width=80)
                with gr.Accordion("Advanced", open=False):
                    solver = gr.Dropdown(self.solvers, value=sampler.solver, label="Solver")
                    steps = number("Network calls", config.max_steps, len(sampler.table))
                    seed = gr.Textbox("0", label="Seed", info="One number, one picture. Empty: another each time.")
                    gr.Markdown(f"`{sampler!r}`")
            with gr.Column():
                slider = gr.ImageSlider(label="Before and after", format="png", interactive=False)
                status = gr.Markdown()
                gallery = gr.Gallery(show_label=False, format="png", columns=4, **GALLERY)
                download = gr.DownloadButton("Download as zip", interactive=False)
        most = gr.State(min(COMPARED, config.max_results))
        running = [
            button.click(
                self.run,
                [gr.State(several is most), tab, *sources.values(), solver, steps, seed, several, *conditions],
                [status, slider, gallery, results, download],
                show_progress_on=status,
                concurrency_id="translations",
                concurrency_limit=config.visitors,
            )
            for button, several in ((start, count), (differ, most))
        ]
        stop.click(None, cancels=[*running])  # in one listener with the next, it would come after it
        stop.click(self.stop, status, status, queue=False, show_progress="hidden")
        gallery.select(choose, results, slider, queue=False)

    def take(self, event: gr.SelectData) -> tuple[Any, ...]:
        """An example in place of uploads."""
        return [self.examples[event.index]], PICTURES, gr.Tabs(selected=PICTURES)


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
        brush=gr.Brush(default_size=LINE, colors=COLOURS),
        show_label=False,
    )


def uploads() -> gr.Gallery:
    """A field for pictures that Gradio does not open: it would show an error with the server's path."""
    return gr.Gallery(
        file_types=FORMATS, sources=["upload", "webcam", "clipboard"], object_fit="contain", show_label=False
    )


def number(label: str, most: int, value: int) -> gr.Slider | gr.State:
    """A slider of whole numbers from 1, which refuses others; 1 alone is not shown."""
    return gr.Slider(1, most, value, step=1, precision=0, label=label) if most > 1 else gr.State(1)


def choose(results: list[Result], event: gr.SelectData) -> Any:
    """The chosen result in the slider."""
    return results[event.index].pair() if event.index < len(results) else gr.skip()


def shown(text: str, results: list[Result], done: bool = False) -> tuple[Any, ...]:
    """Status, slider, gallery, results and zip of a page."""
    named = len({each.name for each in results}) > 1
    captions = [MAPS.get(each.kind, f"seed {each.kind}") for each in results]
    captions = [f"{each.name}, {what}" if named else what for each, what in zip(results, captions, strict=True)]
    gallery = [(each.pair()[1], caption) for each, caption in zip(results, captions, strict=True)]
    path = Path(tempfile.mkdtemp(dir=os.environ.get("GRADIO_TEMP_DIR"))) / "results.zip" if done else None
    if path is not None:
        with zipfile.ZipFile(path, "w") as file:
            for each in results:
                file.writestr(f"{each.name}_{each.kind}.png", images.to_png(each.picture))
    button = gr.DownloadButton(value=path, interactive=done)
    return text, results[0].pair() if results else None, gallery, results, button


def panels(config: AppConfig) -> list[Panel]:
    """The network of the settings, or the bundled ones; errors as for :func:`load`."""
    if not config.bundled:
        return [Panel(config, config.model.stem)]
    return [Panel(replace(config, model=path), *about) for path, *about in BUNDLED]


def build(shown: Sequence[Panel]) -> gr.Blocks:
    """The page: a tab for each network where there are several."""
    title = "bbdm" if len(shown) > 1 else f"bbdm: {shown[0].name}"
    with gr.Blocks(title=title, analytics_enabled=False, delete_cache=(KEPT, KEPT)) as app:
        gr.Markdown(f"# {title}")
        for panel in shown:
            with gr.Tab(panel.name) if len(shown) > 1 else gr.Column():
                gr.Markdown(panel.about, visible=bool(panel.about))
                panel.build()
            app.unload(panel.stop)
    return app


def launch(config: AppConfig) -> None:
    """Show the page, until SIGTERM or Ctrl-C. Uploads and results go with it."""
    with tempfile.TemporaryDirectory(prefix="bbdm-app-") as folder, termination() as ended:
        os.environ.update(GRADIO_ANALYTICS_ENABLED="False", GRADIO_RUN_HISTORY="False", GRADIO_TEMP_DIR=folder)
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
            allowed_paths=[path for panel in found for path in panel.examples],
        )
        print(f"the app is at {address}; Ctrl-C ends it", flush=True)
        try:
            while not ended():
                time.sleep(0.1)
        finally:
            for panel in found:
                panel.stopped.add(None)  # translations that run
            app.close(verbose=False)
