"""Calibrating intervals of a network's file on a data set."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from contextlib import suppress
from dataclasses import dataclass, fields, replace
from pathlib import Path
from typing import ClassVar, TypeVar

from bbdm.base.settings import setting
from bbdm.data.rows import Row, read_rows
from bbdm.evaluation.intervals import By, Intervals, OtherSamplerError, check_risk
from bbdm.evaluation.pairs import check_copies
from bbdm.evaluation.risk import Bound
from bbdm.files.hub import find_checkpoint
from bbdm.translation.config import TranslateConfig

Config = TypeVar("Config", bound=TranslateConfig)


@dataclass(frozen=True, kw_only=True)
class CalibrateConfig(TranslateConfig):
    """Of which network intervals are calibrated, on which pairs, and how.

    Raises:
        ValueError: a number is out of range, or settings contradict each other.
    """

    HEADING: ClassVar[str] = "intervals"
    HIDDEN: ClassVar[frozenset[str]] = frozenset({"output_dir", "maps", "intervals", "memory"})
    TARGETS: ClassVar[bool] = True

    alpha: float = setting(0.1, "the largest share of values outside that is expected of a picture")
    delta: float = setting(0.1, "the probability that the guarantee fails")
    num_samples: int = setting(16, "results of each source", "-r", "--repeat", "--samples", least=2)
    by: By = setting("quantiles", "what is widened: the samples' quantiles, or their mean by standard deviations")
    bound: Bound = setting("hoeffding-bentkus", "of the risk; conformal is for few pairs, and in expectation")
    batch_size: int | None = setting(  # pyright: ignore[reportIncompatibleVariableOverride]  (the sampler's own)
        None, "results in a batch; 16 or fewer if unset", "-b", least=1
    )
    output: Path | None = setting(None, "where intervals are written; MODEL.intervals.json if unset", "-o")

    def __post_init__(self) -> None:
        super().__post_init__()
        check_risk(self.alpha, self.delta, self.by, self.bound)


def file_of(model: Path) -> Path:
    """The file of the intervals of a network's file: ``OUT.intervals.json`` of ``OUT.pt``."""
    return model.with_name(f"{model.stem}.intervals.json")


def calibrate(config: CalibrateConfig) -> tuple[Intervals, Path]:
    """Calibrate, and write the intervals to a file.

    Raises:
        FileNotFoundError: the network or the data set is missing.
        NoLambdaError: all samples of too many values are equal.
        SeenPairsError: a pair was in training.
        TooFewPairsError: too few pairs have values.
        ValueError: the file exists, or an argument is refused; see :meth:`Intervals.calibrate`.
    """
    from bbdm.translation.translator import Translator

    output = config.output or file_of(config.model)
    if output.exists() and not config.overwrite:
        raise ValueError(f"{output} exists already: overwrite calibrates again, output gives another file")
    translator = Translator(replace(config, output_dir=output.parent))
    pairs = translator.dataset.without(translator.bad)
    trained: Sequence[Row] = []
    if config.split != "train":
        with suppress(FileNotFoundError, ValueError):  # there is no such part
            trained = read_rows(config.dataset, config.data_dir, "train")
    check_copies(pairs, trained)
    intervals = Intervals.calibrate(
        translator.sampler(config.chosen_solver, config.steps),
        pairs,
        config.alpha,
        config.delta,
        config.num_samples,
        config.by,
        config.bound,
        seed=config.seed,
        batch_size=config.batch_size,
        progress=config.shown,
        **config.call,
    )
    intervals.save(output)
    return intervals, output


def as_calibrated(config: Config, named: Collection[str] = ()) -> Config:
    """A translation with what its file of intervals fixes: solver, steps, samples, windows and guidance.

    Args:
        config: the translation whose ends are made; it gets the path of the file too.
        named: settings that were named, which count as chosen also where they are the default.

    Raises:
        FileNotFoundError: there is no such file.
        OtherSamplerError: a setting that was given, or is not the default, says otherwise.
    """
    path = config.intervals or file_of(find_checkpoint(config.model))
    fixed = Intervals.call_of(path)
    fixed["num_samples"] = fixed.pop("samples")
    usual = {each.name: each.default for each in fields(config)}
    for name, value in fixed.items():
        own = config.chosen_solver if name == "solver" else getattr(config, name)
        if own != value and (name in named or own != usual[name]):
            raise OtherSamplerError(
                f"{name} is {own}, and {path} was calibrated with {name} {value}: leave it out, or calibrate again"
            )
    if config.image_size is None and config.window != fixed["window"]:  # which keeps pictures as they are, if named
        fixed["image_size"] = config.usual_size
    return replace(config, **fixed, intervals=path, fast_sampling=False)
