"""Which trained network makes results, and of what: settings of commands. Nothing here needs torch or Ray."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, Literal

from bbdm import solvers
from bbdm.base.settings import ShownConfig, check, position, setting
from bbdm.base.sizes import read_memory
from bbdm.data.config import DatasetConfig, read_labels
from bbdm.pictures.images import Size, read_size
from bbdm.sampling.options import GuidanceOptions

if TYPE_CHECKING:
    import torch

    from bbdm.sampling.sampler import BridgeSampler

OF_SEQUENCES = ("neighbours", "noise_by", "film")  # settings of the data set 'frames'
MAPS = ("mean", "std", "low", "high")
SizeSetting = Size | Literal["train", "fit", "keep"]


@dataclass(frozen=True, kw_only=True)
class FileConfig:
    """What a trained network's file leaves out."""

    time_steps: int | None = setting(
        None,
        "number of times of the bridge, for files that leave it out",
        "-t",
        "--t",
        "--num_steps",
    )
    c_lambda: float | None = setting(
        None, "noise scale of the A-Bridge, for files that leave it out", "-l"
    )
    vqgan_path: Path | None = setting(
        None,
        "the autoencoder, for files that leave it out: a VQGAN, or a folder of diffusers",
        "-vq",
        "--codec",
    )
    config: str | None = setting(
        None,
        "the name of the settings that a file of another program leaves out, or a .json of the arguments that it was "
        "trained with",
    )

    @property
    def missing(self) -> dict[str, Any]:
        """What :func:`~bbdm.files.checkpoint.load_checkpoint` takes of it."""
        from bbdm.files.checkpoint import load_codec

        codec = None if self.vqgan_path is None else load_codec(self.vqgan_path)
        return {
            "num_steps": self.time_steps,
            "c_lambda": self.c_lambda,
            "codec": codec,
            "config": self.config,
        }

    def build_sampler(self, path: Path, **settings: Any) -> BridgeSampler:
        """The sampler of a network's file, as :meth:`bbdm.BridgeSampler.from_checkpoint` makes it."""
        from bbdm.sampling.sampler import BridgeSampler

        return BridgeSampler.from_checkpoint(path, **self.missing, **settings)


@dataclass(frozen=True, kw_only=True)
class NetworkConfig(GuidanceOptions, FileConfig):
    """How a trained network samples, and what its file leaves out.

    Raises:
        ValueError: settings contradict each other.
    """

    solver: str | None = setting(
        None,
        f"solver of the bridge's equation; the file's own, or {solvers.DEFAULT}, if unset",
        choices=solvers.SOLVERS,
    )
    steps: int | None = setting(
        None,
        "network calls for each result; if unset, the file's with its own solver, else the solver's default",
    )
    fast_sampling: bool = setting(False, "the paper's 199 network calls: the solver 'fast'")
    compile: bool = setting(False, "faster results after a minute or two of compiling")
    dtype: Literal["bf16", "fp32"] | None = setting(
        None, "of the network's arithmetic; the file's if unset"
    )

    def __post_init__(self) -> None:
        if self.fast_sampling and self.solver not in (None, "fast"):
            raise ValueError(f"--fast_sampling means --solver fast, got --solver {self.solver} too")
        if self.fast_sampling:
            object.__setattr__(self, "solver", "fast")
        super().__post_init__()
        check(self)

    def sampler(self, path: Path, device: str | torch.device) -> BridgeSampler:
        """The sampler of a network's file; errors as for :meth:`bbdm.BridgeSampler.from_checkpoint`."""
        chosen = {name: getattr(self, name) for name in ("solver", "steps", "dtype", "compile")}
        return self.build_sampler(path, device=device, **chosen)


@dataclass(frozen=True, kw_only=True)
class TranslateConfig(DatasetConfig, NetworkConfig, ShownConfig):
    """Which results of a data set a network makes, and how; what makes others extends it.

    Raises:
        ValueError: a number below 1, or settings that contradict each other.
    """

    HEADING: ClassVar[str] = "results"
    TARGETS: ClassVar[bool] = False
    ENDING: ClassVar[str] = ""  # of the name of the folder of results, where none is named

    model: Path = position("a file, or a name on the Hub", metavar="CHECKPOINT")
    output_dir: Path | None = position(
        "the folder of the results; a folder of out/ if left out", None, names=("-o",)
    )
    split: str = setting("val", "the part of the data set", group="data")
    conditions: dict[str, str] | None = setting(
        None,
        "classes of all sources, NAME=CLASS with commas; other conditions are columns",
        "--condition",
        parse=read_labels,
        group="data",
    )
    skip_bad: bool = setting(False, "leave out pictures that cannot be read", group="data")
    outside: float | None = setting(
        None,
        "stored value of results where the mask is 0, the column mask of the data set",
        group="data",
    )
    image_size: SizeSetting | None = setting(
        None,
        "side, or HxW, that sources are resized to; train: as in training; fit: inside that, keeping their shape; "
        "keep: as they are. Without targets, with windows keep, for the data set 'folder' fit; else train, if unset",
        "--size",
        parse=lambda text: text if text in ("train", "fit", "keep") else read_size(text),
        group="data",
    )
    batch_size: int = setting(64, "results in a batch, or windows in a call", "-b", least=1)
    num_samples: int = setting(1, "results of each source", "-r", "--repeat", "--samples", least=1)
    seed: int = setting(
        0, "of a folder's pictures with their names, else source i gets this seed + i", least=0
    )
    noise_by: Literal["sequence", "frame"] = setting(
        "sequence",
        "of the data set 'frames': all frames of a sequence have one noise, or each its own",
    )
    film: Literal["view", "exact", "none"] = setting(
        "view",
        "of the data set 'frames': beside the frames, results of films are films, view: H.264, with small errors; "
        "exact: FFV1 in .mkv, with none",
    )
    maps: tuple[str, ...] = setting(
        (),
        "in place of the results, maps of them with commas: mean, std, and low, high, the ends of the intervals of "
        "bbdm calibrate",
        parse=lambda text: tuple(text.split(",")),
        choices=MAPS,
    )
    intervals: Path | None = setting(
        None,
        "the file of the intervals, which low and high take solver, steps, samples, windows and guidance from; "
        "MODEL.intervals.json if unset",
    )
    plain_files: bool = setting(
        False,
        "leave out of results' files what made them: the model's hash, seed, steps, solver",
        group="run",
    )
    overwrite: bool = setting(False, "make existing results again", group="run")
    device: str | None = setting(
        None, "where to compute; cuda if unset and there is one, else cpu", group="run"
    )
    memory: int | None = setting(
        None,
        "memory for pictures, such as 4G or 500M; larger ones are translated by windows, with their steps in files "
        "beside the result; half of what is free if unset",
        parse=read_memory,
        least=1,
        group="run",
    )

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.maps and not self.with_ends and self.num_samples < 2:
            raise ValueError(
                f"--maps are of several results: --num_samples must be at least 2, got {self.num_samples}"
            )

    @property
    def folder(self) -> Path:
        """The folder of the results."""
        return self.output_dir or Path("out") / f"{self.model.stem}{self.ENDING}"

    @property
    def with_ends(self) -> bool:
        """Whether ends of intervals are wanted."""
        return not {"low", "high"}.isdisjoint(self.maps)

    @property
    def usual_size(self) -> SizeSetting:
        """What an unset ``image_size`` means."""
        if self.TARGETS:
            return "train"
        usual = "fit" if self.dataset == "folder" else "train"
        return usual if isinstance(self.window, str) else "keep"
