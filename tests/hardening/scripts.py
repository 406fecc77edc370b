"""The scripts that write, with small networks and pictures: what is interrupted, killed and compared."""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import pytest
import torch

from bbdm import save_checkpoint
from bbdm.bridges import BrownianBridge
from bbdm.cli import distill, eval, shard, train, train_vqgan, translate
from bbdm.data.cache import ImageCache
from bbdm.data.latents import LatentDataset
from bbdm.files.checkpoint import save_vqgan
from bbdm.networks import unet_config, vqgan_config
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
    """12 pairs to train on and 4 to validate, as files and in shards; a bridge and an autoencoder."""
    save_random_pairs(folder / "data", 12, 4, save, 32)
    shard.main(["edge2shoes", str(folder / "data"), str(folder / "shards"), "--pairs_in_shard", "1", "--quiet"])
    bridge = BrownianBridge(1000, objective="pinned")
    save_checkpoint(folder / "bridge.pt", tiny_unet(condition_channels=3), bridge, image_size=16)
    save_vqgan(folder / "vqgan.pt", test_vqgan.tiny_vqgan())
    return folder


def make_small(folder: Path, patch: pytest.MonkeyPatch | None = None) -> None:
    """Tiny networks, small parts of caches, so that there are several, and for each run shards of its own."""
    patch = pytest.MonkeyPatch() if patch is None else patch
    torch.set_num_threads(1)
    patch.setenv("BBDM_SHARDS", str(folder.with_name(f"{folder.name}.fetched")))
    patch.setitem(unet_config.PRESETS, "demo", unet_config.UNetConfig(condition_channels=3, **TINY))
    patch.setitem(vqgan_config.PRESETS, "demo", vqgan_config.VQGANConfig(**test_vqgan.TINY))
    for cache in (ImageCache, LatentDataset):
        patch.setattr(cache, "in_block", 2)
        patch.setattr(cache, "at_once", 2)


def training(place: Path, output: Path, *flags: str) -> list[str]:
    common = [*RUN, "--image_size", "16", "-t", "50", "--save_every", "5", "--preview_every", "2"]
    return ["edge2shoes", str(place / "data"), str(output / "model.pt"), *common, "-e", "3", *flags]


def with_flags(flags: str) -> Callable[[Path, Path], list[str]]:
    return lambda place, output: training(place, output, *flags.split())


def from_shards(place: Path, output: Path, *flags: str) -> list[str]:
    return ["shards", str(place / "shards"), *training(place, output, *flags)[2:]]


def streaming(place: Path, output: Path) -> list[str]:
    command = f"pipe:sleep 0.03; cat {place}/shards/train/{{000000..000011}}.tar"  # so nothing to validate
    return ["shards", command, *training(place, output, "--workers", "2")[2:]]


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


def sharding(place: Path, output: Path) -> list[str]:
    return ["edge2shoes", str(place / "data"), str(output / "shards"), "--pairs_in_shard", "1"]


SCRIPTS: dict[str, Script] = {
    "train": Script(train.main, training, 40),
    "train_vqgan": Script(train_vqgan.main, autoencoder, 30),
    "distill": Script(distill.main, distilling, 10),
    "train from shards": Script(train.main, from_shards, before=("--workers", "1")),
    "train from shards elsewhere": Script(train.main, streaming, 20, before=("--workers", "0")),
    "train, plateau": Script(train.main, with_flags(PLATEAU)),
    "train, checkpointing": Script(train.main, with_flags("--gradient_checkpointing")),
    "train, float32": Script(train.main, with_flags("--no-flip --precision fp32")),
    "train, float16 in parts": Script(train.main, with_flags("--precision fp16 --grad_accumulation 2")),
    "a cache of pictures": Script(train.main, cached_pictures, 20, resumes=False),
    "a cache of latents": Script(train.main, cached_latents, 25, resumes=False),
    "eval": Script(eval.main, evaluating, 20, resumes=False),
    "generate": Script(translate.main, generating, 15, resumes=False),
    "shard": Script(shard.main, sharding, 20, resumes=False),
}
