"""Serve a network over HTTP: python examples/serve.py CHECKPOINT [flags].

POST a picture (PNG, JPEG, WebP) to /, and get its translation as PNG. The query takes solver, steps and seed:
curl --data-binary @drawing.png 'http://127.0.0.1:8000/?steps=20&seed=0' -o result.png
"""

from __future__ import annotations

from functools import partial
from pathlib import Path

from bbdm.base import scripts
from bbdm.base.settings import add_flags, flag_names, from_values
from bbdm.files.weights import IncompleteFileError
from bbdm.sampling.network_config import FileConfig
from bbdm.serving.connection import connected
from bbdm.serving.requests import ServeConfig, facts


def parse(argv: list[str] | None = None) -> ServeConfig:
    """The settings of the command line."""
    parser = scripts.Parser(__doc__)
    parser.add_argument("model", metavar="checkpoint", type=Path, help="the weights, at the same path on all machines")
    add_flags(parser, ServeConfig)
    return from_values(ServeConfig, vars(parser.parse_args(argv)))


def main(argv: list[str] | None = None) -> None:
    config = parse(argv)
    served = facts(config)
    with connected(config.address):
        from bbdm.serving import serving  # which imports Ray, after it was told where to listen

        serving.run(served, partial(print, flush=True))


if __name__ == "__main__":
    scripts.run(main, hints={IncompleteFileError: f"the flags are {flag_names(FileConfig)}"})
