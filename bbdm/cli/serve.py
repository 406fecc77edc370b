"""Serve a network over HTTP: bbdm serve CHECKPOINT [flags].

POST a picture (PNG, JPEG, WebP) to /translate, and get its translation as PNG. The query takes solver, steps
and seed:
curl --data-binary @drawing.png 'http://127.0.0.1:8000/translate?steps=20&seed=0' -o result.png
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from pathlib import Path

from bbdm.base.scripts import Parser
from bbdm.base.settings import add_flags, from_values
from bbdm.serving.config import ServeConfig
from bbdm.serving.connection import connected


def parse(argv: Sequence[str]) -> ServeConfig:
    """The settings of the command line."""
    parser = Parser(__doc__, prog="bbdm serve")
    parser.add_argument("model", metavar="checkpoint", type=Path, help="the weights, at the same path on all machines")
    add_flags(parser, ServeConfig)
    return from_values(ServeConfig, vars(parser.parse_args(argv)))


def main(argv: Sequence[str]) -> None:
    """The command; see the module."""
    config = parse(argv)
    from bbdm.serving.requests import facts

    known = facts(config)
    with connected(config.address):
        from bbdm.serving import serving  # which imports Ray, after it was told where to listen

        serving.run(config, known, partial(print, flush=True))
