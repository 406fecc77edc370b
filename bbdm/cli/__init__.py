"""The command ``bbdm``: each subcommand is a :class:`~bbdm.base.scripts.Command`.

The scripts in ``examples/`` and ``export/`` call :func:`run` too. Modules import PyTorch in ``run``, after
the settings were checked.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from importlib import import_module
from typing import Any

from bbdm import __version__
from bbdm.base import flags, scripts
from bbdm.base.settings import setting

# the class of each, its summary, and what runs mere settings
COMMANDS: dict[str, tuple[str, ...]] = {
    "demo": ("bbdm.cli.translate.Demo", "translate the bundled drawings with the bundled weights"),
    "restore": ("bbdm.cli.translate.Restore", "restore photographs of any size"),
    "train": ("bbdm.cli.train.Train", "train a bridge on pairs"),
    "plot": ("bbdm.cli.plot.Plot", "draw the losses and grids of training runs"),
    "translate": ("bbdm.cli.translate.Translate", "translate pictures or a data set"),
    "calibrate": ("bbdm.cli.eval.Calibrate", "calibrate intervals of results"),
    "eval": ("bbdm.cli.eval.Eval", "score a network on a data set"),
    "distill": ("bbdm.cli.distill.Distill", "distil a network into one of few calls"),
    "train-vqgan": ("bbdm.cli.train_vqgan.TrainVQGAN", "train an autoencoder"),
    "info": ("bbdm.cli.files.Info", "what a file, a folder or a name on the Hub holds"),
    "export": ("bbdm.cli.files.Export", "write ONNX graphs, which run without PyTorch"),
    "app": ("bbdm.serving.config.App", "translate in the browser", "bbdm.serving.app.launch"),
    "serve": (
        "bbdm.serving.config.Serve",
        "serve a network over HTTP",
        "bbdm.serving.cluster.serve",
    ),
    "translate-ray": (
        "bbdm.serving.config.TranslateRay",
        "translate pictures on many machines",
        "bbdm.serving.cluster.translate",
    ),
    "convert-vqgan": ("bbdm.cli.files.ConvertVQGAN", "convert a VQGAN of latent diffusion"),
}


@dataclass(frozen=True, kw_only=True)
class GPUsCommand(scripts.Command):
    """A command that may start a process for each GPU."""

    use_multi_gpus: bool = setting(
        False,
        "a process for each GPU here, which share the work; or start it by torchrun --nproc_per_node N -m bbdm ...",
        "-use_multi_gpus",
        group="run",
    )

    @classmethod
    def main(cls, words: Sequence[str] | None = None) -> None:
        """Parse words, and run: in a process for each GPU where that is asked for."""
        command = cls.parse(sys.argv[1:] if words is None else words)
        # which the process before has said
        if not (command.use_multi_gpus and "WORLD_SIZE" in os.environ):
            command.announce()
        if command.use_multi_gpus:
            from bbdm.execution.processes import start_on_each_gpu

            start_on_each_gpu()
        command.run()


def run(command: str, argv: Sequence[str] | None = None) -> None:
    """Run a subcommand as a process does: an expected error is one line and an exit status.

    Args:
        command: a key of :data:`COMMANDS`.
        argv: its words; None for those of this process.
    """
    words = sys.argv[1:] if argv is None else list(argv)

    def run_command() -> None:
        path, _, *function = COMMANDS[command]
        command_class = _imported(path)
        with command_class.naming_flags():
            if not function:
                return command_class.main(words)
            settings = command_class.parse(words)
            settings.announce()
            try:
                _imported(*function)(settings)
            except KeyboardInterrupt:
                if not command_class.ENDS_BY_INTERRUPT:
                    raise

    scripts.run(run_command)


def _imported(path: str) -> Any:
    """What stands at a path, such as ``bbdm.cli.train.Train``."""
    module, _, name = path.rpartition(".")
    return getattr(import_module(module), name)


def main(argv: Sequence[str] | None = None) -> None:
    """The command ``bbdm``."""
    words = sys.argv[1:] if argv is None else list(argv)
    if words[1:] and words[0] == scripts.IMPORT:
        scripts.run(lambda: main(scripts.import_modules(words)))
        return
    if words and words[0] in COMMANDS:
        return run(words[0], words[1:])
    width = max(map(len, COMMANDS))
    rows = "\n".join(f"  {name:{width}}  {summary}" for name, (_, summary, *_) in COMMANDS.items())
    description = f"Image-to-image diffusion bridges.\n\ncommands:\n{rows}\n\nbbdm COMMAND --help shows its flags."
    parser = flags.Parser(
        description, prog="bbdm", usage=f"bbdm [{scripts.IMPORT} MODULE] COMMAND ..."
    )
    text = "import it first: a module with a bridge, solver or metric of yours"
    parser.add_argument(scripts.IMPORT, metavar="MODULE", help=text)
    parser.add_argument("--version", action="version", version=f"bbdm {__version__}")
    if not words:
        parser.print_help()
        raise SystemExit(2)
    if words[0].startswith("-"):
        parser.parse_args(words)
    meant = flags.most_like(words[0], [*COMMANDS])
    suggestion = "" if meant is None else f"did you mean {meant}? "
    parser.exit(
        2, f"error: there is no command {words[0]!r}; {suggestion}bbdm --help lists the commands\n"
    )
