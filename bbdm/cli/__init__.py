"""The command ``bbdm``: its subcommands, each a module of this package with ``main(argv)``.

The scripts in ``examples/`` and ``export/`` call :func:`run` too. Modules import PyTorch in ``main``, after
the flags were checked.
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

STARTS_ANEW = "the same command starts anew"
RESUMES = "results are kept, and the same command resumes"


class Command(NamedTuple):
    """A subcommand."""

    summary: str
    interrupted: str = STARTS_ANEW  # the state after Ctrl-C, and how to go on
    without: tuple[str, ...] = ()  # errors whose hint names flags that it lacks


COMMANDS = {  # a module each; - in a name is _ in the module's
    "demo": Command("translate the bundled drawings with the bundled weights", RESUMES),
    "restore": Command("restore photographs of any size", RESUMES),
    "train": Command("train a bridge on pairs", without=("IncompleteFileError",)),
    "translate": Command("translate pictures or a data set", RESUMES),
    "calibrate": Command("calibrate intervals of results", RESUMES),
    "eval": Command("score a network on a data set", RESUMES),
    "distill": Command("distil a network into one of few calls", without=("OtherCodecError",)),
    "train-vqgan": Command("train an autoencoder"),
    "info": Command("what a file, a folder or a name on the Hub holds"),
    "export": Command("write ONNX graphs, which run without PyTorch"),
    "app": Command("translate in the browser", without=("IncompleteFileError",)),
    "serve": Command("serve a network over HTTP"),
    "translate-ray": Command(
        "translate pictures on many machines", "results are kept, and the same command makes what is missing"
    ),
    "convert-vqgan": Command("convert a VQGAN of latent diffusion"),
}
HINTS = {  # what a user can do about an error of the library, by the error's class
    "BadPicturesError": "--skip_bad leaves them out",
    "DivergedError": "the flags of learning_rate and grad_clip are -lr and --grad_clip",
    "DownloadError": "the flags are --fid_weights and --lpips_weights",
    "FolderInUseError": "--experiment gives another folder",
    "IncompleteFileError": "the flags are -t, -l, -vq and --config",
    "IntervalsExistError": "--overwrite calibrates again, and --output gives another file",
    "LargePictureError": "--window gives the side of windows, and --memory more memory",
    "LaterStepsError": "so does the command without --ckpt_path; --overwrite deletes it, --experiment gives another "
    "folder",
    "NoLambdaError": "the flag is --by quantiles",
    "OtherCodecError": "-vq gives the autoencoder, and --normalize_latents normalises its latents",
    "OtherNetworkError": "--preset names the network of this run",
    "OtherRunError": "--overwrite starts anew, and --experiment gives another folder",
    "PerceptualError": "--lpips_weights gives them as a file, and --perceptual none trains without",
    "PresetError": "--preset names the network",
    "ResultsError": "give another folder for results, or --overwrite to make all results again",
    "SingleResultError": "the flag is --samples",
    "TooLargeError": "lower -b or --size",
    "UnreadableRunError": "--overwrite starts the run anew",
}


def run(command: str, argv: Sequence[str] | None = None) -> None:
    """Run a subcommand as a process does: an expected error is one line and an exit status.

    Args:
        command: a key of :data:`COMMANDS`.
        argv: its words; None for those of this process.
    """
    words = sys.argv[1:] if argv is None else list(argv)
    _, interrupted, without = COMMANDS[command]
    hints = {error: hint for error, hint in HINTS.items() if error not in without}
    scripts.run(lambda: import_module(f"{__name__}.{command.replace('-', '_')}").main(words), interrupted, hints)


def main(argv: Sequence[str] | None = None) -> None:
    """The command ``bbdm``."""
    words = sys.argv[1:] if argv is None else list(argv)
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
        usage="bbdm COMMAND ...",
    )
    parser.add_argument("command", choices=COMMANDS, metavar="COMMAND", help=argparse.SUPPRESS)
    parser.add_argument("--version", action="version", version=f"bbdm {__version__}")
    parser.parse_args(words)
