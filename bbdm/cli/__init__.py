"""The command ``bbdm``: each subcommand is a module with a :class:`~bbdm.base.scripts.Command`.

The scripts in ``examples/`` and ``export/`` call :func:`run` too. Modules import PyTorch in ``run``, after
the settings were checked.
"""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Sequence
from importlib import import_module
from typing import NamedTuple

from bbdm import __version__
from bbdm.base import scripts
from bbdm.base.scripts import IMPORT, import_modules

STARTS_ANEW = "the same command starts anew"
RESUMES = "results are kept, and the same command resumes"


class Command(NamedTuple):
    """A subcommand."""

    summary: str
    interrupted: str = STARTS_ANEW  # the state after Ctrl-C, and how to go on


COMMANDS = {  # a module each; - in a name is _ in the module's
    "demo": Command("translate the bundled drawings with the bundled weights", RESUMES),
    "restore": Command("restore photographs of any size", RESUMES),
    "train": Command("train a bridge on pairs"),
    "translate": Command("translate pictures or a data set", RESUMES),
    "calibrate": Command("calibrate intervals of results", RESUMES),
    "eval": Command("score a network on a data set", RESUMES),
    "distill": Command("distil a network into one of few calls"),
    "train-vqgan": Command("train an autoencoder"),
    "info": Command("what a file, a folder or a name on the Hub holds"),
    "export": Command("write ONNX graphs, which run without PyTorch"),
    "app": Command("translate in the browser"),
    "serve": Command("serve a network over HTTP"),
    "translate-ray": Command(
        "translate pictures on many machines", "results are kept, and the same command makes what is missing"
    ),
    "convert-vqgan": Command("convert a VQGAN of latent diffusion"),
}


def run(command: str, argv: Sequence[str] | None = None) -> None:
    """Run a subcommand as a process does: an expected error is one line and an exit status.

    Args:
        command: a key of :data:`COMMANDS`.
        argv: its words; None for those of this process.
    """
    words = sys.argv[1:] if argv is None else list(argv)
    module = f"{__name__}.{command.replace('-', '_')}"
    scripts.run(lambda: import_module(module).main(words), COMMANDS[command].interrupted)


def main(argv: Sequence[str] | None = None) -> None:
    """The command ``bbdm``."""
    words = sys.argv[1:] if argv is None else list(argv)
    if words[1:] and words[0] == IMPORT:
        scripts.run(lambda: main(import_modules(words)))
        return
    if scripts.COMPLETION in os.environ:
        words = os.environ["COMP_LINE"][: int(os.environ["COMP_POINT"])].split(" ")[1:]
        words = words[:1] if words[1:] else []  # the last word is not complete
        os.environ[scripts.COMPLETION] = str(1 + len(words))
    if words and words[0] in COMMANDS:
        return run(words[0], words[1:])
    width = max(map(len, COMMANDS))
    rows = [f"  {name:{width}}  {command.summary}" for name, command in COMMANDS.items()]
    parser = scripts.Parser(
        "Image-to-image diffusion bridges.\n\ncommands:\n"
        + "\n".join(rows)
        + "\n\nbbdm COMMAND --help lists its flags.",
        prog="bbdm",
        usage=f"bbdm [{IMPORT} MODULE] COMMAND ...",
    )
    parser.add_argument("command", choices=COMMANDS, metavar="COMMAND", help=argparse.SUPPRESS)
    text = "import a module with a bridge, a solver or a metric of your own before the command; may be repeated"
    parser.add_argument(IMPORT, metavar="MODULE", help=text)
    parser.add_argument("--version", action="version", version=f"bbdm {__version__}")
    parser.parse_args(words)
