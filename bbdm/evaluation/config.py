"""The settings of a translation. Nothing here needs torch."""

from __future__ import annotations

import re
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

from bbdm.base import demo
from bbdm.base.memory import read_memory
from bbdm.base.settings import check, setting
from bbdm.data.config import RowsConfig, read_labels
from bbdm.sampling.network_config import NetworkConfig, SizeSetting, read_size_setting
from bbdm.sampling.options import WindowOptions

MAPS = ("mean", "std", "low", "high")


@dataclass(frozen=True)
class TranslateConfig(RowsConfig, NetworkConfig):
    """Which data set is translated, by which network, and how.

    Raises:
        ValueError: a number below 1, or settings that contradict each other.
    """

    dataset: str  # the name of the layout
    data_dir: str  # the folder of the data set, or what else the layout takes
    model: Path  # the checkpoint, or its name on the Hub
    output_dir: Path  # the folder of the results
    split: str = setting("val", "the part of the data set to translate")
    batch_size: int = setting(64, "results in a batch", "-b", least=1)
    memory: int | None = setting(
        None,
        "memory for pictures, such as 4G or 500M; larger ones are translated by windows, with their steps in files "
        "beside the result; half of what is free if unset",
        parse=read_memory,
        least=1,
    )
    num_samples: int = setting(1, "results of each source", "-r", "--repeat", "--samples", least=1)
    seed: int = setting(0, "source i gets this seed + i")
    image_size: SizeSetting | None = setting(
        None,
        "side, or HxW, that sources are resized to; train: as in training; fit: inside that, keeping their shape; "
        "keep: as they are. fit for the data set 'folder', else train, if unset",
        "--size",
        parse=read_size_setting,
    )
    skip_bad: bool = setting(False, "leave out pictures that cannot be read")
    orientations: Literal[1, 3] = setting(
        1, "3: the mean of the results by axial, coronal and sagittal slices, for three times the network calls"
    )
    conditions: dict[str, str] | None = setting(
        None,
        "classes of all sources, NAME=CLASS with commas; other conditions are columns",
        "--condition",
        parse=read_labels,
    )
    overwrite: bool = setting(False, "make existing results again")
    device: str | None = setting(None, "where to compute; cuda if unset and there is one, else cpu")
    use_multi_gpus: bool = setting(False, "a process for each GPU here", "-use_multi_gpus")
    show_verbose: bool = setting(False, "a progress bar, as on a terminal")
    quiet: bool = setting(False, "no progress bar")


class SingleResultError(ValueError):
    """Maps need several results."""


def read_maps(text: str) -> tuple[str, ...]:
    """The names of maps from text, such as ``mean,std,q05,q95``; a quantile is in percent.

    Raises:
        ValueError: there is no such map.
    """
    names = tuple(text.split(","))
    for name in names:
        if name not in MAPS and not (re.fullmatch(r"q\d+(\.\d+)?", name) and float(name[1:]) <= 100):
            raise ValueError(f"maps are {', '.join(MAPS)} and quantiles in percent such as q05, got {name!r}")
    return names


@dataclass(frozen=True, kw_only=True)
class MapsConfig(TranslateConfig):
    """A translation, and which maps of the results are written in their place.

    Raises:
        ValueError: maps of a single result, or of several orientations.
    """

    maps: tuple[str, ...] = setting(
        (),
        "in place of the results, maps of them with commas: mean, std, quantiles such as q05, and low, high, the ends "
        "of the intervals of bbdm calibrate",
        parse=read_maps,
    )
    intervals: Path | None = setting(
        None,
        "the file of the intervals, which low and high take solver, steps, samples, windows and guidance from; "
        "MODEL.intervals.json if unset",
    )
    named: frozenset[str] = field(default=frozenset(), compare=False)  # settings that were given, also as by default

    @property
    def with_ends(self) -> bool:
        """Whether ends of intervals are wanted."""
        return not {"low", "high"}.isdisjoint(self.maps)

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.maps and not self.with_ends and self.num_samples < 2:
            raise SingleResultError(
                f"maps are of several results: num_samples must be at least 2, got {self.num_samples}"
            )
        if self.maps and self.orientations != 1:
            raise ValueError("maps are of results by the slices of training: leave out orientations")


@dataclass(frozen=True, kw_only=True)
class RestoreConfig(WindowOptions):
    """Which photographs are restored, by which network, and how.

    Raises:
        ValueError: a number is out of range, or settings contradict each other.
    """

    photographs: tuple[Path, ...]  # files, or folders of them
    output_dir: Path  # the folder of the results
    model: Path = setting(demo.PHOTOGRAPHS, "a network that restores, a file or a name on the Hub")
    mean: bool = setting(False, "the expected picture, in one network call: the least error, and no grain")
    samples: int = setting(1, "results of each photograph", least=1)
    seed: int = setting(0, "of the first result", least=0)
    steps: int | None = setting(None, "network calls for each result; those of the network's file if unset", least=1)
    memory: int | None = setting(
        None,
        "memory for a photograph, such as 4G or 500M; larger ones are restored from file to file; half of what is "
        "free if unset",
        parse=read_memory,
        least=1,
    )
    dtype: Literal["bf16", "fp32"] | None = setting(None, "of the network's arithmetic; the faster here if unset")
    compile: bool = setting(False, "faster results after a minute or two of compiling, for many photographs")
    overwrite: bool = setting(False, "make existing results again")
    device: str | None = setting(None, "where to compute; cuda if unset and there is one, else cpu")
    show_verbose: bool = setting(False, "a progress bar, as on a terminal")
    quiet: bool = setting(False, "no progress bar")

    def __post_init__(self) -> None:
        super().__post_init__()
        check(self)
        if self.mean and (self.samples > 1 or self.steps is not None):
            raise ValueError("mean is one picture of one network call: samples and steps are of random results")
