"""A page for the browser that translates pictures, on Gradio. It fetches nothing from the internet."""

from __future__ import annotations

import json
import os
import tempfile
import time
import warnings
from dataclasses import replace
from pathlib import Path
from typing import Any

import gradio as gr
from starlette.middleware import Middleware
from starlette.responses import PlainTextResponse

from bbdm.base import demo
from bbdm.base.scripts import termination
from bbdm.serving import uploads
from bbdm.serving.config import App
from bbdm.serving.panel import Panel, ended

STYLE = """
.results .grid-wrap { min-height: 0; max-height: none; overflow-y: visible; }
.results .grid-container { grid-template-columns: repeat(var(--grid-cols), minmax(0, 1fr)); }
@media (max-width: 640px) { .results .grid-container { grid-template-columns: repeat(2, minmax(0, 1fr)); } }
"""  # rows of results are neither cut off nor too small
UPLOAD = "/upload"  # the end of the path of Gradio's route that takes files
KEPT = 3600  # seconds that uploads and results stay on the disk
BUNDLED: tuple[tuple[Any, ...], ...] = (  # weights, and the other arguments of a panel
    (
        demo.WEIGHTS,
        "Drawings",
        "Emoji and other simple things, in black lines on white.",
        True,
        demo.DRAWINGS,
        False,
    ),
    (
        demo.PHOTOGRAPHS,
        "Photographs",
        "Photographs that were blurred, noisy or small JPEG files.",
        False,
        None,
        True,
    ),
)


class CheckedUploads:
    """An ASGI application in front of Gradio's, which refuses pictures as they arrive, by their headers.

    Otherwise the browser would show what it sent, and decode it.

    Args:
        app: the ASGI application of Gradio.
        max_pixels: the most that a picture may have.
    """

    def __init__(self, app: Any, max_pixels: int) -> None:
        self.app = app
        self.max_pixels = max_pixels

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        """Answer a request; of uploads, when all their files are checked."""
        if scope["type"] != "http" or not scope["path"].endswith(UPLOAD):
            await self.app(scope, receive, send)
            return
        messages: list[Any] = []

        async def keep(message: Any) -> None:
            messages.append(message)

        await self.app(scope, receive, keep)
        content = b"".join(message.get("body", b"") for message in messages)
        reason = self._reason(content) if messages[0]["status"] == 200 else None
        if reason is not None:
            await PlainTextResponse(reason, 422)(scope, receive, send)
            return
        for message in messages:
            await send(message)

    def _reason(self, content: bytes) -> str | None:
        """Why a file of Gradio's answer is refused, the first such one; None if none is.

        What is refused is deleted. The others stay: Gradio keeps equal files of all visitors as one.
        """
        reasons: list[str] = []
        for path in map(Path, json.loads(content)):
            try:
                uploads.check_header(path, path.name, self.max_pixels)
            except (ValueError, OSError) as error:
                path.unlink(missing_ok=True)
                reasons.append(str(error))
        return reasons[0] if reasons else None


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
        os.environ.update(
            GRADIO_ANALYTICS_ENABLED="False", GRADIO_RUN_HISTORY="False", GRADIO_TEMP_DIR=folder
        )
        app = build(config)
        # which the page shows
        warnings.filterwarnings("ignore", "the network was trained on pictures of")
        _, address, _ = app.launch(
            server_name=config.host,
            server_port=config.port,
            share=False,
            quiet=True,  # its message advertises a public link
            prevent_thread_lock=True,
            show_error=True,
            max_file_size="50mb",
            css=STYLE,
            app_kwargs={"middleware": [Middleware(CheckedUploads, max_pixels=config.max_pixels)]},
        )
        print(f"the app is at {address}; Ctrl-C ends it", flush=True)
        try:
            while not asked():
                time.sleep(0.1)
        finally:
            ended.set()
            app.close(verbose=False)
