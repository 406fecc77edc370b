"""Calibrating intervals of a network's file on a data set."""

from __future__ import annotations

import shutil
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

from bbdm.base import scripts
from bbdm.base.settings import setting
from bbdm.data.config import RowsConfig, read_labels
from bbdm.data.rows import Row, read_rows
from bbdm.evaluation.config import TranslateConfig
from bbdm.evaluation.intervals import By, Intervals, check_risk
from bbdm.evaluation.risk import Bound, NoLambdaError, TooFewPairsError
from bbdm.evaluation.unseen import check_copies
from bbdm.sampling.network_config import NetworkConfig, SizeSetting, read_size_setting

SUFFIX = ".intervals.json"


class IntervalsExistError(ValueError):
    """There are intervals already, or measurements for intervals of other settings."""


@dataclass(frozen=True, kw_only=True)
class CalibrateConfig(RowsConfig, NetworkConfig):
    """Of which network intervals are calibrated, on which pairs, and how.

    Raises:
        ValueError: a number is out of range, or settings contradict each other.
    """

    model: Path  # the checkpoint, or its name on the Hub
    dataset: str  # the name of the layout
    data_dir: str  # the folder of the data set, or what else the layout takes
    alpha: float = setting(0.1, "the largest share of values outside that is expected of a picture")
    delta: float = setting(0.1, "the probability that the guarantee fails")
    samples: int = setting(16, "results of each source", "-r", least=2)
    by: By = setting("quantiles", "what is widened: the samples' quantiles, or their mean by standard deviations")
    bound: Bound = setting("hoeffding-bentkus", "of the risk; conformal is for few pairs, and in expectation")
    split: str = setting("val", "the part of the data set to calibrate on")
    batch_size: int | None = setting(None, "results in a batch; 16 or fewer if unset", "-b", least=1)
    seed: int = setting(0, "sample j of pair i gets this seed + i + j times the number of pairs")
    image_size: SizeSetting = setting(
        "train",
        "side, or HxW, that pictures are resized to; train: as in training; keep: as they are",
        "--size",
        parse=read_size_setting,
    )
    skip_bad: bool = setting(False, "leave out pictures that cannot be read")
    conditions: dict[str, str] | None = setting(
        None,
        "classes of all sources, NAME=CLASS with commas; other conditions are columns",
        "--condition",
        parse=read_labels,
    )
    output: Path | None = setting(None, "where intervals are written; MODEL.intervals.json if unset", "-o", parse=Path)
    overwrite: bool = setting(False, "calibrate again, and replace the intervals")
    device: str | None = setting(None, "where to compute; cuda if unset and there is one, else cpu")
    show_verbose: bool = setting(False, "a progress bar, as on a terminal")
    quiet: bool = setting(False, "no progress bar")

    def __post_init__(self) -> None:
        super().__post_init__()
        check_risk(self.alpha, self.delta, self.by, self.bound)
        if self.dataset == "folder" and self.degrade is None:
            raise ValueError("the data set 'folder' has no targets to compare with: --degrade makes sources of them")


def place_of(model: Path) -> Path:
    """The file of the intervals of a network's file: ``OUT.intervals.json`` of ``OUT.pt``."""
    return model.with_name(model.stem + SUFFIX)


def calibrate(config: CalibrateConfig) -> tuple[Intervals, Path]:
    """Calibrate, and write the intervals to a file. What is measured is kept beside it until then.

    Raises:
        FileNotFoundError: the network or the data set is missing.
        IntervalsExistError: the file exists, or an interrupted calibration had other settings.
        NoLambdaError: all samples of too many values are equal. What is measured is deleted.
        SeenPairsError: a pair was in training.
        TooFewPairsError: too few pairs have values. What is measured is deleted.
        ValueError: an argument is refused; see :meth:`Intervals.calibrate`.
    """
    from bbdm.evaluation.results import ResultsError
    from bbdm.evaluation.translate import Translator

    output = config.output or place_of(config.model)
    if output.exists() and not config.overwrite:
        raise IntervalsExistError(f"{output} exists already")
    parts = output.with_name(output.name + ".parts")
    if config.overwrite:
        shutil.rmtree(parts, ignore_errors=True)
    shared = {each.name for each in fields(TranslateConfig)} & {each.name for each in fields(config)}
    given: dict[str, Any] = {name: getattr(config, name) for name in shared}
    given |= {"output_dir": parts, "batch_size": config.batch_size or 16}
    translator = Translator(TranslateConfig(**given))
    pairs = translator.dataset.without(translator._bad)
    check_copies(pairs, _training_part(config))
    try:
        made = Intervals.calibrate(
            translator.sampler(config.chosen_solver, config.steps),
            pairs,
            config.alpha,
            config.delta,
            config.samples,
            config.by,
            config.bound,
            seed=config.seed,
            batch_size=config.batch_size,
            progress=scripts.is_shown(config.show_verbose, config.quiet),
            folder=parts,
            **config.call,
        )
    except ResultsError as error:
        raise IntervalsExistError(f"a calibration was interrupted: {error}") from error
    except (NoLambdaError, TooFewPairsError):
        shutil.rmtree(parts, ignore_errors=True)
        raise
    made.save(output)
    shutil.rmtree(parts)
    return made, output


def _training_part(config: CalibrateConfig) -> Sequence[Row]:
    """The rows of the data set's part ``train``; none where that is calibrated on, or does not exist."""
    if config.split != "train":
        with suppress(FileNotFoundError, ValueError):
            return read_rows(config.dataset, config.data_dir, "train")
    return []
