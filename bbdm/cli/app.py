"""Translate pictures in the browser: bbdm app [CHECKPOINT|FOLDER|HUB_NAME] [flags].

FOLDER is an ONNX export, which runs without PyTorch, or a model that save_pretrained wrote. Without any, the
page shows the bundled networks. It is at http://127.0.0.1:7860, and fetches nothing from the internet.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from bbdm.base import demo
from bbdm.base.scripts import Parser
from bbdm.base.settings import add_flags, from_values
from bbdm.serving.config import AppConfig


def main(argv: Sequence[str]) -> None:
    """The command; see the module."""
    parser = Parser(__doc__, prog="bbdm app")
    text = "a checkpoint, a folder, or a name on the Hub; the bundled networks if left out"
    parser.add_argument("model", type=Path, nargs="?", default=demo.FOLDER, help=text)
    add_flags(parser, AppConfig)
    config = from_values(AppConfig, vars(parser.parse_args(argv)))
    from bbdm.serving.app import launch

    launch(config)
