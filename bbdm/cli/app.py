"""Translate pictures in the browser: bbdm app MODEL [flags].

FOLDER is an ONNX export, which runs without PyTorch, or a model that save_pretrained wrote. Without any, the
page shows the bundled networks. It is at http://127.0.0.1:7860, and fetches nothing from the internet.
"""

from __future__ import annotations

from dataclasses import dataclass

from bbdm.base.scripts import Command
from bbdm.serving.config import AppConfig


@dataclass(frozen=True, kw_only=True)
class App(Command, AppConfig):
    """An app in the browser."""

    def run(self) -> None:
        """Show the page until a signal."""
        from bbdm.serving.app import launch

        launch(self)


main = App.main
