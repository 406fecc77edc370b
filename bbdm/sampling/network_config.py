"""Which trained network a command samples, and how: the settings that such scripts share."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from bbdm import solvers
from bbdm.base.settings import check, setting
from bbdm.pictures.images import Resize, Size, read_size
from bbdm.sampling.options import GuidanceOptions

if TYPE_CHECKING:
    import torch

    from bbdm.files.content import Checkpoint
    from bbdm.sampling.sampler import BridgeSampler

DEFAULT_SIZE = 256  # for checkpoints without the size of their pictures
SizeSetting = Size | Literal["train", "fit", "keep"]


def read_size_setting(text: str) -> Any:
    """A size from text, or the name of a way to choose one."""
    return text if text in ("train", "fit", "keep") else read_size(text)


def chosen_size(wanted: SizeSetting, trained: Size | None) -> tuple[Size, Resize | Literal["keep"]]:
    """The size of pictures, and what it means, for a network that was trained on pictures of a size."""
    if not isinstance(wanted, str):
        return wanted, "stretch"
    return trained or DEFAULT_SIZE, "stretch" if wanted == "train" else wanted


def described_size(size: Size, resize: Resize | Literal["keep"]) -> Any:
    """The size of pictures, for people and manifests."""
    return size if resize == "stretch" else "keep" if resize == "keep" else f"fit {size}"


@dataclass(frozen=True, kw_only=True)
class FileConfig:
    """What a trained network's file leaves out."""

    time_steps: int | None = setting(
        None, "number of times of the bridge, for files that leave it out", "-t", "--t", "--num_steps"
    )
    c_lambda: float | None = setting(None, "noise scale of the A-Bridge, for files that leave it out", "-l")
    vqgan_path: Path | None = setting(
        None, "the autoencoder, for files that leave it out: a VQGAN, or a folder of diffusers", "-vq", "--codec"
    )
    config: str | None = setting(None, "the name of the settings that a file of another program leaves out")

    @property
    def missing(self) -> dict[str, Any]:
        """What :func:`~bbdm.files.checkpoint.load_checkpoint` takes of it."""
        from bbdm.files.checkpoint import load_codec

        codec = None if self.vqgan_path is None else load_codec(self.vqgan_path)
        return {"num_steps": self.time_steps, "c_lambda": self.c_lambda, "codec": codec, "config": self.config}

    def load(self, path: Path) -> Checkpoint:
        """The file of a network; errors as for :func:`~bbdm.files.checkpoint.load_checkpoint`."""
        from bbdm.files.checkpoint import load_checkpoint

        return load_checkpoint(path, **self.missing)

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
        None, "network calls for each result; if unset, the file's with its own solver, else the solver's default"
    )
    fast_sampling: bool = setting(False, "the paper's 199 network calls: the solver 'fast'")
    compile: bool = setting(False, "faster results after a minute or two of compiling")
    dtype: Literal["bf16", "fp32"] | None = setting(None, "of the network's arithmetic; the file's if unset")

    def __post_init__(self) -> None:
        if self.fast_sampling and self.solver not in (None, "fast"):
            raise ValueError(f"fast_sampling means the solver 'fast', got solver {self.solver!r} too")
        super().__post_init__()
        check(self)

    @property
    def chosen_solver(self) -> str | None:
        """The solver, or None for the network's default."""
        return "fast" if self.fast_sampling else self.solver

    def sampler(self, path: Path, device: str | torch.device) -> BridgeSampler:
        """The sampler of a network's file; errors as for :meth:`bbdm.BridgeSampler.from_checkpoint`."""
        return self.build_sampler(
            path,
            solver=self.chosen_solver,
            steps=self.steps,
            device=device,
            dtype=self.dtype,
            compile=self.compile,
        )
