"""What the commands that train share: flags, pairs, where a run resumes, and how it ends."""

from __future__ import annotations

import argparse
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from bbdm.base import scripts
from bbdm.base.atomic import check_suffix, remove_leftovers
from bbdm.base.settings import add_flags, flag_type, from_values
from bbdm.data.config import Crops, DataConfig
from bbdm.data.rows import DATASETS, read_layout
from bbdm.data.spec import Spec
from bbdm.networks.conditions import ConditionsConfig
from bbdm.pictures.images import read_size

if TYPE_CHECKING:
    from bbdm.data.pairs import Pairs
    from bbdm.execution.processes import Processes
    from bbdm.training.run_folder import RunFolder
    from bbdm.training.trainer import Trainer

Resumed = tuple[Path, Any] | None  # the checkpoint that a run resumes from, and its content
DATA_DIR = "the data set's folder; for 'paired', SOURCES,TARGETS; ,NAME=FOLDER adds a column: see docs/data.md"


def add_layout(parser: argparse.ArgumentParser, name: str = "dataset", **settings: Any) -> None:
    """Add the layout of a data set, which a shell completes."""
    action = parser.add_argument(name, type=flag_type(read_layout), **settings)
    action.completer = lambda **_: DATASETS  # pyright: ignore[reportAttributeAccessIssue]  (of argcomplete)


def add_data_flags(parser: argparse.ArgumentParser, image_size: int | None, unset: str) -> None:
    """Add the flags of pairs of pictures; ``unset`` says what size they have by default."""
    flag = parser.add_argument
    flag("--image_size", type=flag_type(read_size), default=image_size, help=f"side, or HxW, {unset}")
    flag("--cache_images", type=Path, help="folder of what is decoded and resized once")
    add_flags(parser, DataConfig)


def add_run_flags(parser: argparse.ArgumentParser) -> None:
    """Add the flags of a run that are no settings of training."""
    flag = parser.add_argument
    flag("--experiment", type=Path, help="folder of losses, grids and checkpoints; OUTPUT_MODEL.run if unset")
    flag("--ckpt_path", type=Path, help="resume from this checkpoint, not from the newest in the folder")
    flag("--overwrite", action="store_true", help="delete later steps in the folder, and begin")
    flag("--device", help="cpu, cuda, cuda:1, ...; cuda if unset and there is one, else cpu")
    flag("--use_multi_gpus", "-use_multi_gpus", action="store_true", help="a process for each GPU here")
    flag("--skip_bad", action="store_true", help="the next pair takes the place of one that cannot be read")
    flag("--check", action="store_true", help="read all pairs before training, and list what is wrong")
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
    channels: int | None,
    team: Processes,
    learned: Spec | None = None,
    known: ConditionsConfig | None = None,
) -> tuple[Pairs, Pairs | None]:
    """The training pairs and the validation pairs of the data set; of a data set without the latter, None.

    Validation pairs have the classes of the training pairs. What the first ones show is printed.

    Args:
        args: the flags of the command.
        size: that of the pictures.
        channels: 1 or 3, which photographs are converted to; None for those of the files.
        team: the processes of the run.
        learned: what a trained network has learned.
        known: the conditions of a trained network.

    Raises:
        BadPicturesError: with ``--check``, pairs cannot be read.
        FileNotFoundError: the data set does not exist.
        ValueError: see :func:`~bbdm.data.rows.read_rows` and :meth:`~bbdm.data.config.RowsConfig.spec`.
    """
    from bbdm.data import checking
    from bbdm.data.conditions import known_conditions
    from bbdm.data.examples import BadPicturesError
    from bbdm.data.pairs import Pairs
    from bbdm.data.rows import read_rows

    report: Callable[[str], object] = print if team.first else lambda _: None
    config = from_values(DataConfig, vars(args))
    crops = config.crop or (Crops(learned.crop) if learned is not None and learned.crop else None)

    def pairs(split: str, train: Pairs | None) -> Pairs:
        rows = read_rows(args.dataset, args.data_dir, split)
        cache = args.cache_images if crops or config.slices or args.dataset == "synthrad" else None
        if train is not None:
            return Pairs(rows, train.spec, cache, config.degrade, args.skip_bad)
        seen = config.conditions or {}
        if known is not None:
            for name, each in seen.items():
                if name not in known.each or known.each[name].kind != each.kind:
                    raise ValueError(f"the network takes {known.described}, got {name}={each}")
            seen = known_conditions(known, learned.conditions if learned else seen, rows)
        about: dict[str, Any] = {"size": size, "channels": channels, "axes": vars(args).get("axes", 2)}
        spec = config.spec(args.dataset, rows, learned=learned, crops=crops, conditions=seen, **about)
        return Pairs(rows, spec, cache, config.degrade, args.skip_bad)

    def checked(found: Pairs, split: str) -> Pairs:
        bad = checking.check_rows(found, args.workers, shown(args) and team.first) if args.check else {}
        for reason in bad.values() if args.skip_bad else ():
            report(f"left out: {reason}")
        if bad and not args.skip_bad:
            reasons = list(bad.values())
            raise BadPicturesError("\n".join([f"{len(bad)} of {len(found.rows)} pairs of {split}:", *reasons]))
        return found

    with team.first_before_others():  # the others find what the first caches
        train, validation = checked(pairs("train", None), "train"), None
        without = "write {split} in the paths"
        try:
            validation = pairs("val", train)
        except FileNotFoundError as error:
            without = str(error)
        if validation is None or validation.same_rows(train):
            report(f"without validation pairs, no validation loss, grids and best.pt: {without}")
            validation = None
        validation = None if validation is None else checked(validation, "val")
    for line in checking.first_look(train):
        report(line)
    if known is not None and (missing := [name for name in known.each if name not in train.further.each]):
        raise ValueError(f"the network takes {missing[0]!r} too, and `--drop` does not name it")
    return train, validation


def cached_pictures(
    args: argparse.Namespace, pairs: Pairs, validation: Pairs | None, team: Processes
) -> tuple[Pairs, Pairs | None]:
    """The pairs from the cache of ``--cache_images``, which is made where it is missing.

    Crops and slices have a cache of the decoded files.
    """
    from bbdm.data.cached import CachedExamples

    if args.cache_images is None or pairs.cache is not None:
        return pairs, validation
    how: dict[str, Any] = {"workers": args.workers, "progress": shown(args) and team.first}
    with team.first_before_others():  # the others find what the first caches
        cached = CachedExamples(pairs, args.cache_images / "train", **how)
        return cached, None if validation is None else CachedExamples(validation, args.cache_images / "val", **how)


def resume(trainer: Trainer, args: argparse.Namespace, resumed: Resumed, team: Processes) -> Trainer:
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
    build: Callable[[argparse.Namespace, Processes], Trainer],
) -> None:
    """Train to the end and write the weights; ``build`` makes the run, where it begins or resumes."""
    from bbdm.execution.processes import Processes, start_on_each_gpu

    if args.use_multi_gpus:
        start_on_each_gpu([command, *argv])
    remove_leftovers(args.output_model)
    check_suffix(args.output_model)
    team = Processes.join(args.device)
    finish(build(args, team), args, team)


def finish(trainer: Trainer, args: argparse.Namespace, team: Processes) -> None:
    """Train to the end, write the weights, and leave the team."""
    if team.first and trainer.epoch >= args.epochs:
        print(f"nothing is left to train: {trainer.folder} has {trainer.epoch} epochs already")
    try:
        with scripts.termination() as asked:
            done = trainer.fit(shown(args), asked)
    except KeyboardInterrupt:
        raise KeyboardInterrupt(trainer.run.how_to_resume()) from None
    if not done:
        raise scripts.StoppedError(f"asked to end; {trainer.run.how_to_resume()}", scripts.TERMINATED)
    trainer.save(args.output_model)
    if team.first:
        print(f"{args.output_model}: weights after epoch {trainer.epoch}; losses and checkpoints: {trainer.folder}")
    trainer.task.release()
    team.leave()
