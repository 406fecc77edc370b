"""What the scripts that train share: the flags of a run, where it resumes, and how it ends."""

from __future__ import annotations

import argparse
from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar

import torch

from bbdm.base import scripts
from bbdm.base.atomic import check_suffix, remove_leftovers
from bbdm.execution.processes import Processes, start_on_each_gpu
from bbdm.files.checkpoint import load_checkpoint
from bbdm.training.loop import Training
from bbdm.training.run_folder import RunFolder

Build = Callable[[argparse.Namespace, Processes], Training]
Run = TypeVar("Run", bound=Training)
Resumed = tuple[Path, Any] | None  # the checkpoint that a run resumes from, and its content


def add_run_flags(parser: argparse.ArgumentParser) -> None:
    """Add the flags of a run that are no settings of training."""
    flag = parser.add_argument
    flag("--experiment", type=Path, help="folder of losses, grids and checkpoints; OUTPUT_MODEL.run if unset")
    flag("--ckpt_path", type=Path, help="resume from this checkpoint, not from the newest in the folder")
    flag("--overwrite", action="store_true", help="delete later steps in the folder, and begin")
    flag("--device", default="cuda" if torch.cuda.is_available() else "cpu", help="cpu, cuda, cuda:1, ...")
    flag("--use_multi_gpus", "-use_multi_gpus", action="store_true", help="a process for each GPU here")
    flag("--profile", action="store_true", help="print where the time of some steps goes, and write a trace")
    flag("--skip_bad", action="store_true", help="leave out pairs with a picture that cannot be read")
    flag("--show_verbose", action="store_true", help="show the run, as on a terminal")
    flag("--quiet", action="store_true", help="do not show the run")


def shown(args: argparse.Namespace) -> bool:
    """Whether the run is shown."""
    return scripts.is_shown(args.show_verbose, args.quiet)


def run_folder(args: argparse.Namespace, read: Callable[[Path], Any] = load_checkpoint) -> RunFolder:
    """The folder of the run; ``read`` gives the content of its checkpoints."""
    return RunFolder(args.experiment or args.output_model.with_suffix(".run"), args.keep, read)


def find_resumed(args: argparse.Namespace, folder: RunFolder, team: Processes) -> Resumed:
    """Where the run resumes; None if it begins. Checks that all processes share the folder, and caches."""
    for place in (folder.path, *(vars(args).get(name) for name in ("cache_images", "cache_latents"))):
        if place is not None:
            team.check_shared(place)
    with team.first_before_others():
        if args.ckpt_path is not None:
            return args.ckpt_path, folder.read(args.ckpt_path)
        return None if args.overwrite else folder.newest()


def resume(trainer: Run, args: argparse.Namespace, resumed: Resumed, team: Processes) -> Run:
    """Bring a run to the step that it resumes from, and delete later ones if they are to be overwritten."""
    if resumed is not None:
        trainer.resume(*resumed)
        if resumed[0].resolve().parent != trainer.folder.resolve() or args.overwrite:
            trainer.best = None  # of epochs of another run
    if args.overwrite:
        with team.first_before_others():
            trainer.run.forget_after(trainer.step)
    return trainer


def run(script: str, argv: list[str] | None, args: argparse.Namespace, build: Build) -> None:
    """Run a script's training: ``build`` makes it, at the step where it begins or resumes."""
    if args.use_multi_gpus:
        start_on_each_gpu(script, argv)
    remove_leftovers(args.output_model)
    check_suffix(args.output_model)
    team = Processes.join(args.device)
    finish(build(args, team), args, team)


def finish(trainer: Training, args: argparse.Namespace, team: Processes) -> None:
    """Train to the end, write the weights, and leave the team."""
    if team.first and trainer.epoch >= args.epochs:
        print(f"nothing is left to train: {trainer.folder} has {trainer.epoch} epochs already")
    try:
        with scripts.termination() as asked:
            trainer.fit(shown(args), asked)
    except KeyboardInterrupt:
        raise KeyboardInterrupt(trainer.how_to_resume()) from None
    trainer.save(args.output_model)
    if team.first:
        print(f"{args.output_model}: weights after epoch {trainer.epoch}; losses and checkpoints: {trainer.folder}")
    trainer.update.release()
    team.leave()
