"""What the commands that train share: flags, pairs, where a run resumes, and how it ends."""

from __future__ import annotations

import argparse
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

from bbdm.base import scripts
from bbdm.base.atomic import check_suffix, remove_leftovers
from bbdm.base.settings import add_flags, flag_type, from_values
from bbdm.data.config import DIRECTIONS, ColumnsConfig, DegradeConfig, PicturesConfig
from bbdm.networks.conditions import ConditionsConfig
from bbdm.pictures.images import read_size
from bbdm.pictures.kind import EIGHT_BIT_PICTURES, PictureKind

if TYPE_CHECKING:
    from bbdm.data.examples import Examples, PairExamples
    from bbdm.execution.processes import Processes
    from bbdm.training.callback import Callback
    from bbdm.training.loop import Training
    from bbdm.training.run_folder import RunFolder

Run = TypeVar("Run", bound="Training")
Resumed = tuple[Path, Any] | None  # the checkpoint that a run resumes from, and its content
DATA_DIR = "the data set's folder; for 'paired', SOURCES,TARGETS; for 'shards', see docs/data.md"


def add_data_flags(parser: argparse.ArgumentParser, image_size: int | None, unset: str) -> None:
    """Add the flags of pairs of pictures; ``unset`` says what size they have by default."""
    flag = parser.add_argument
    flag("--image_size", type=flag_type(read_size), default=image_size, help=f"side, or HxW, {unset}")
    add_flags(parser, DegradeConfig)
    add_flags(parser, ColumnsConfig)
    add_flags(parser, PicturesConfig)
    flag("--direction", choices=DIRECTIONS, default="AtoB", help="AtoB translates A into B")


def add_run_flags(parser: argparse.ArgumentParser) -> None:
    """Add the flags of a run that are no settings of training."""
    flag = parser.add_argument
    flag("--experiment", type=Path, help="folder of losses, grids and checkpoints; OUTPUT_MODEL.run if unset")
    flag("--ckpt_path", type=Path, help="resume from this checkpoint, not from the newest in the folder")
    flag("--overwrite", action="store_true", help="delete later steps in the folder, and begin")
    flag("--device", help="cpu, cuda, cuda:1, ...; cuda if unset and there is one, else cpu")
    flag("--use_multi_gpus", "-use_multi_gpus", action="store_true", help="a process for each GPU here")
    flag("--profile", action="store_true", help="print where the time of some steps goes, and write a trace")
    flag("--skip_bad", action="store_true", help="leave out pairs with a picture that cannot be read")
    flag("--show_verbose", action="store_true", help="show the run, as on a terminal")
    flag("--quiet", action="store_true", help="do not show the run")


def check_targets(args: argparse.Namespace) -> None:
    """Raise ValueError for pictures without targets."""
    if args.dataset == "folder" and args.degrade is None:
        raise ValueError("the data set 'folder' has no targets: --degrade makes sources, and pictures are targets")


def shown(args: argparse.Namespace) -> bool:
    """Whether the run is shown."""
    return scripts.is_shown(args.show_verbose, args.quiet)


def run_folder(args: argparse.Namespace, read: Callable[[Path], Any] | None = None) -> RunFolder:
    """The folder of the run; ``read`` gives the content of its checkpoints, by default those of networks."""
    from bbdm.training.run_folder import RunFolder

    path = args.experiment or args.output_model.with_suffix(".run")
    return RunFolder(path, args.keep) if read is None else RunFolder(path, args.keep, read)


def find_resumed(args: argparse.Namespace, folder: RunFolder, team: Processes) -> Resumed:
    """Where the run resumes; None if it begins. Checks that all processes share the folder, and caches."""
    for place in (folder.path, *(vars(args).get(name) for name in ("cache_images", "cache_latents"))):
        if place is not None:
            team.check_shared(place)
    with team.first_before_others():
        if args.ckpt_path is not None:
            return args.ckpt_path, folder.read(args.ckpt_path)
        return None if args.overwrite else folder.newest()


def load_pairs(
    args: argparse.Namespace,
    size: Any,
    channels: int,
    folder: RunFolder,
    team: Processes,
    kind: PictureKind = EIGHT_BIT_PICTURES,
    known: ConditionsConfig | None = None,
) -> tuple[PairExamples, PairExamples | None]:
    """The training pairs and the validation pairs of the data set, whose pictures were all looked at.

    Without validation pairs of its own the data set has None. Validation pairs have the classes of the
    training pairs. What was found is kept in the run's folder, for when the run resumes.

    Args:
        args: the flags of the command.
        size: that of the pictures.
        channels: those of the network's targets.
        folder: the folder of the run.
        team: the processes of the run.
        kind: of the pictures' values, where the flags leave them open.
        known: what a trained network is told.

    Raises:
        BadPicturesError, FileNotFoundError, ValueError: see :func:`~bbdm.data.survey.readable` and
            :func:`~bbdm.data.pairs.load_dataset`.
    """
    from bbdm.data.pairs import load_dataset
    from bbdm.data.survey import readable

    report: Callable[[str], object] = print if team.first else lambda _: None
    pictures = from_values(PicturesConfig, vars(args)).of_kind(kind)
    degraded, cache = (args.degrade, args.degrade_seed), vars(args).get("cache_images")
    settings = size, args.direction, channels, "stretch", *degraded, args.columns, pictures, cache

    def looked_at(pairs: PairExamples, split: str) -> PairExamples:
        kept = folder.path / f"pictures_{split}.json"
        return readable(pairs, args.skip_bad, report, kept, shown(args) and team.first)

    with team.first_before_others():  # the others find what the first has seen
        train, validation = load_dataset(args.dataset, args.data_dir, "train", *settings, known), None
        without = "write {split} in the paths"
        try:
            validation = load_dataset(args.dataset, args.data_dir, "val", *settings, train.further)
        except FileNotFoundError as error:
            without = str(error)
        if validation is None or validation.pairs == train.pairs:
            report(f"without validation pairs, no validation loss, grids and best.pt: {without}")
            validation = None
        train = looked_at(train, "train")
        validation = None if validation is None else looked_at(validation, "val")
    if train.told.left_out:
        raise ValueError(f"the network is told {train.told.left_out[0]!r} too, and in training no example lacks it")
    return train, validation


def cached_pictures(
    args: argparse.Namespace, pairs: PairExamples, validation: PairExamples | None, team: Processes
) -> tuple[Examples, Examples | None]:
    """The pairs from the cache of ``--cache_images``, which is made where it is missing.

    Crops and slices have a cache of the decoded files.
    """
    from bbdm.data.cache import ImageCache

    if args.cache_images is None or pairs.kind.crop or pairs.kind.slices:
        return pairs, validation
    how = args.workers, shown(args) and team.first
    with team.first_before_others():  # the others find what the first caches
        cached = ImageCache(pairs, args.cache_images, "train", *how)
        return cached, None if validation is None else ImageCache(validation, args.cache_images, "val", *how)


def callbacks(args: argparse.Namespace) -> list[Callback]:
    """What ``--profile`` adds to a run."""
    from bbdm.training.profiling import Profile

    return [Profile()] if args.profile else []


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


def train(
    command: str,
    argv: Sequence[str],
    args: argparse.Namespace,
    build: Callable[[argparse.Namespace, Processes], Training],
) -> None:
    """Train to the end and write the weights; ``build`` makes the run, where it begins or resumes."""
    from bbdm.execution.processes import Processes, start_on_each_gpu

    if args.use_multi_gpus:
        start_on_each_gpu([command, *argv])
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
    trainer.task.release()
    team.leave()
