"""The scripts that write, with small networks and pictures: what is interrupted, killed and compared."""

import io
import tarfile
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from itertools import product
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from bbdm import save_checkpoint
from bbdm.bridges import BrownianBridge
from bbdm.cli import distill, eval, train, train_vqgan, translate
from bbdm.data import cached
from bbdm.data.rows import Row, read_rows
from bbdm.files.checkpoint import save_vqgan
from bbdm.networks import config as networks
from tests.conftest import TINY, SavePicture, save_random_pairs, tiny_unet
from tests.networks import test_vqgan

STEPS = 6  # of an epoch
RUN = ["--preset", "demo", "--device", "cpu", "-b", "2", "--show_verbose"]  # it reports its checkpoints
PLATEAU = "--lr_schedule plateau --plateau_patience 2 --optimizer adamw --grad_clip 0.5 --ema_start 6 --ema_every 4"


@dataclass(frozen=True)
class Script:
    """``argv`` are the arguments that read the first folder and write below the second.

    ``kills`` is how many every night. ``resumes`` is whether it trains for 3 epochs, and ``before`` are flags
    of a run that is interrupted, without which it resumes.
    """

    main: Callable[[list[str]], None]
    argv: Callable[[Path, Path], list[str]]
    kills: int = 0
    resumes: bool = True
    before: tuple[str, ...] = ()


def make_place(folder: Path, save: SavePicture) -> Path:
    """12 pairs to train on and 4 to validate, as files and in tars; a bridge and an autoencoder."""
    save_random_pairs(folder / "data", 12, 4, save, 32)
    for split in ("train", "val"):
        write_tars(read_rows("edge2shoes", str(folder / "data"), split), folder / "tars" / split)
    bridge = BrownianBridge(1000, objective="pinned")
    save_checkpoint(folder / "bridge.pt", tiny_unet(condition_channels=3), bridge, image_size=16)
    save_vqgan(folder / "vqgan.pt", test_vqgan.tiny_vqgan())
    return folder


def write_tars(rows: Sequence[Row], folder: Path, in_each: int = 2) -> None:
    """Tars of WebDataset, with NAME.source.png and NAME.target.png of each row."""
    folder.mkdir(parents=True)
    for start in range(0, len(rows), in_each):
        with tarfile.open(folder / f"{start:06d}.tar", "w") as tar:
            for row, side in product(rows[start : start + in_each], ("source", "target")):
                half = np.split(np.asarray(Image.open(row[side].path)), 2, axis=1)[row[side].side]
                Image.fromarray(half).save(content := io.BytesIO(), "png")
                member = tarfile.TarInfo(f"{row['name']}.{side}.png")
                member.size = len(content.getvalue())
                tar.addfile(member, io.BytesIO(content.getvalue()))


def make_small(folder: Path, patch: pytest.MonkeyPatch | None = None) -> None:
    """Tiny networks, and small parts of caches, so that there are several."""
    patch = pytest.MonkeyPatch() if patch is None else patch
    torch.set_num_threads(1)
    patch.setitem(networks.UNETS, "demo", networks.UNetConfig(condition_channels=3, **TINY))
    patch.setitem(networks.VQGANS, "demo", networks.VQGANConfig(**test_vqgan.TINY))
    for kind in (cached.CachedExamples, cached.LatentDataset):
        patch.setattr(kind, "BLOCK", 2)
    patch.setattr(cached, "ENCODED_AT_ONCE", 2)


def training(place: Path, output: Path, *flags: str) -> list[str]:
    common = [*RUN, "--image_size", "16", "-t", "50", "--save_every", "5", "--preview_every", "2"]
    return ["edge2shoes", str(place / "data"), str(output / "model.pt"), *common, "-e", "3", *flags]


def with_flags(flags: str) -> Callable[[Path, Path], list[str]]:
    return lambda place, output: training(place, output, *flags.split())


def from_tars(place: Path, output: Path, *flags: str, layout: str = "stream") -> list[str]:
    return [layout, f"{place}/tars/{{split}}/*.tar", *training(place, output, *flags)[2:]]


def streaming(place: Path, output: Path) -> list[str]:
    return from_tars(place, output, "--workers", "2")


def autoencoder(place: Path, output: Path) -> list[str]:
    flags = ["--perceptual", "none", "--adversarial_start", "2", "--discriminator_width", "4", "--restarts", "2"]
    flags += ["--flip", "--image_size", "32", "-e", "3", "--save_every", "5"]
    return ["edge2shoes", str(place / "data"), str(output / "v.pt"), *RUN, *flags]


def cached_pictures(place: Path, output: Path) -> list[str]:
    return training(place, output, "-e", "1", "--cache_images", str(output / "cache"))


def cached_latents(place: Path, output: Path) -> list[str]:
    flags = ["-vq", str(place / "vqgan.pt"), "--cache_latents", str(output / "cache"), "--normalize_latents"]
    return training(place, output, "-e", "1", *flags)


def distilling(place: Path, output: Path) -> list[str]:
    flags = ["--calls", "2", "-b", "2", "-e", "3", "--save_every", "5", "--device", "cpu", "--show_verbose"]
    return [str(place / "bridge.pt"), str(place / "data"), str(output / "model.pt"), *flags]


def evaluating(place: Path, output: Path) -> list[str]:
    flags = ["--sweep", "dpm2m:2,3", "--metrics", "psnr", "ssim", "-b", "2", "--device", "cpu"]
    return ["edge2shoes", str(place / "data"), str(place / "bridge.pt"), str(output / "scores"), *flags]


def generating(place: Path, output: Path) -> list[str]:
    flags = ["--split", "train", "--steps", "2", "--num_samples", "2", "-b", "3", "--device", "cpu"]
    return ["edge2shoes", str(place / "data"), str(place / "bridge.pt"), str(output / "results"), *flags]


SCRIPTS: dict[str, Script] = {
    "train": Script(train.main, training, 40),
    "train_vqgan": Script(train_vqgan.main, autoencoder, 30),
    "distill": Script(distill.main, distilling, 10),
    "train from a table": Script(train.main, partial(from_tars, layout="hub"), before=("--workers", "1")),
    "train from a stream": Script(train.main, streaming, 30, before=("--workers", "0")),
    "train, plateau": Script(train.main, with_flags(PLATEAU)),
    "train, checkpointing": Script(train.main, with_flags("--gradient_checkpointing")),
    "train, float32": Script(train.main, with_flags("--no-flip --precision fp32")),
    "train, float16 in parts": Script(train.main, with_flags("--precision fp16 --grad_accumulation 2")),
    "a cache of pictures": Script(train.main, cached_pictures, 30, resumes=False),
    "a cache of latents": Script(train.main, cached_latents, 25, resumes=False),
    "eval": Script(eval.main, evaluating, 20, resumes=False),
    "generate": Script(translate.main, generating, 15, resumes=False),
}
