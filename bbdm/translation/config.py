"""The settings of what makes results. Nothing here needs torch or Ray."""

from __future__ import annotations

import re
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from bbdm.base import demo
from bbdm.base.memory import read_memory
from bbdm.base.settings import check, from_values, setting
from bbdm.data.config import RowsConfig, read_labels
from bbdm.sampling.network_config import NetworkConfig, SizeSetting, read_size_setting
from bbdm.sampling.options import WindowOptions

MAPS = ("mean", "std", "low", "high")


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
class RunConfig:
    """How a run that makes results takes memory, and what it shows. What has these settings checks them."""

    memory: int | None = setting(
        None,
        "memory for pictures, such as 4G or 500M; larger ones are translated by windows, with their steps in files "
        "beside the result; half of what is free if unset",
        parse=read_memory,
        least=1,
    )
    overwrite: bool = setting(False, "make existing results again")
    show_verbose: bool = setting(False, "a progress bar, as on a terminal")
    quiet: bool = setting(False, "no progress bar")


@dataclass(frozen=True, kw_only=True)
class ResultsConfig(RowsConfig, NetworkConfig, RunConfig):
    """Which results of pictures are made, and how.

    Raises:
        ValueError: a number below 1, or settings that contradict each other.
    """

    batch_size: int = setting(64, "results in a batch, or windows in a network call", "-b", least=1)
    num_samples: int = setting(1, "results of each source", "-r", "--repeat", "--samples", least=1)
    seed: int = setting(0, "of a folder's pictures with their names, else source i gets this seed + i", least=0)
    image_size: SizeSetting | None = setting(
        None,
        "side, or HxW, that sources are resized to; train: as in training; fit: inside that, keeping their shape; "
        "keep: as they are. With windows keep, for the data set 'folder' fit, else train, if unset",
        "--size",
        parse=read_size_setting,
    )
    skip_bad: bool = setting(False, "leave out pictures that cannot be read")
    orientations: Literal[1, 3] = setting(
        1, "3: the mean of the results by axial, coronal and sagittal slices, for three times the network calls"
    )
    maps: tuple[str, ...] = ()  # in place of samples
    intervals: Path | None = None  # the file of those whose ends are among the maps


@dataclass(frozen=True)
class TranslateConfig(ResultsConfig):
    """Which data set is translated, by which network, and how."""

    dataset: str  # the name of the layout
    data_dir: str  # the folder of the data set, or what else the layout takes
    model: Path  # the checkpoint, or its name on the Hub
    output_dir: Path  # the folder of the results
    split: str = setting("val", "the part of the data set to translate")
    conditions: dict[str, str] | None = setting(
        None,
        "classes of all sources, NAME=CLASS with commas; other conditions are columns",
        "--condition",
        parse=read_labels,
    )
    device: str | None = setting(None, "where to compute; cuda if unset and there is one, else cpu")
    use_multi_gpus: bool = setting(False, "a process for each GPU here", "-use_multi_gpus")


@dataclass(frozen=True, kw_only=True)
class MapsConfig(TranslateConfig):
    """A translation, and which maps of the results are written in their place.

    Raises:
        SingleResultError: maps of a single result.
        ValueError: maps of several orientations.
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
class ClusterConfig(ResultsConfig):
    """Which pictures a cluster translates, by which network, and how."""

    sources: str  # a folder of pictures, or its address
    results: str  # the folder of the results, or its address
    model: Path  # the checkpoint, or its name on the Hub
    workers: int | None = setting(
        None, "samplers; one for each GPU, or for as many cores as threads, if unset", least=1
    )
    threads: int = setting(1, "cores of a worker", least=1)
    address: str | None = setting(None, "of a running cluster, such as auto; one on this machine if unset")

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.compile and self.dtype is None:
            raise ValueError("compile needs dtype: workers that chose one by timing could choose different ones")

    def translation(self, output_dir: Path, device: str) -> TranslateConfig:
        """The translation of a process on a device, whose results are in a folder here."""
        about = {"dataset": "folder", "data_dir": self.sources, "output_dir": output_dir, "device": device}
        return from_values(TranslateConfig, {**vars(self), **about})


@dataclass(frozen=True, kw_only=True)
class RestoreConfig(WindowOptions, RunConfig):
    """Which photographs are restored, by which network, and how.

    Raises:
        ValueError: a number is out of range, or settings contradict each other.
    """

    photographs: tuple[Path, ...]  # files, or folders of them
    output_dir: Path  # the folder of the results
    model: Path = setting(demo.PHOTOGRAPHS, "a network that restores, a file or a name on the Hub")
    samples: int | None = setting(
        None, "random results of each photograph, in place of the expected picture, which is nearest to the clean one",
        least=1,
    )  # fmt: skip
    seed: int = setting(0, "of the random results", least=0)
    steps: int | None = setting(
        None, "network calls for each random result; those of the network's file if unset", least=1
    )
    dtype: Literal["bf16", "fp32"] | None = setting(None, "of the network's arithmetic; the faster here if unset")
    compile: bool = setting(False, "faster results after a minute or two of compiling, for many photographs")
    device: str | None = setting(None, "where to compute; cuda if unset and there is one, else cpu")

    def __post_init__(self) -> None:
        super().__post_init__()
        check(self)
        if self.samples is None and (self.steps is not None or self.seed):
            raise ValueError("steps and seed are of random results: give samples too")

    def translation(self, dtype: str) -> TranslateConfig:
        """The translation that it is, in this type where it names none."""
        how: dict[str, Any] = {"solver": "mean"} if self.samples is None else {"num_samples": self.samples}
        how |= {"dataset": "folder", "data_dir": "", "batch_size": 16, "dtype": self.dtype or dtype}
        return from_values(TranslateConfig, {**vars(self), **how})
