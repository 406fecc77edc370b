"""The scripts that write, with small networks and pictures: what is interrupted, killed and compared."""

import io
import tarfile
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import product
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from bbdm import save_checkpoint
from bbdm.bridges import BrownianBridge
from bbdm.cli import eval, train, translate
from bbdm.cli.training import Distill, TrainVQGAN
from bbdm.data import latents
from bbdm.data.rows import Row, read_rows
from bbdm.files.checkpoint import save_vqgan
from bbdm.networks import config as networks
from tests.conftest import TINY, SavePicture, save_random_pairs, tiny_unet
from tests.networks import test_vqgan

STEPS = 6  # of an epoch
RUN = "--device cpu -b 2 -e 3 --save_every 5 --show_verbose"  # it reports its checkpoints
TRAIN = f"--preset demo {RUN} --image_size 16 -t 50 --preview_every 2"
VQGAN = "--perceptual none --adversarial_start 2 --discriminator_width 4 --restarts 2 --flip --image_size 32"
PAIRS = "edge2shoes {place}/data"
TARS = "{place}/tars/{{split}}/*.tar {output}/model.pt"


@dataclass(frozen=True)
class Script:
    """``words`` are the arguments, which read the folder ``{place}`` and write below ``{output}``.

    ``kills`` is how many every night. ``resumes`` is whether it trains for 3 epochs, and ``before`` are flags
    of a run that is interrupted, without which it resumes.
    """

    main: Callable[[list[str]], None]
    words: str
    kills: int = 0
    resumes: bool = True
    before: tuple[str, ...] = ()

    def argv(self, place: Path, output: Path) -> list[str]:
        """The arguments for two folders."""
        return self.words.format(place=place, output=output).split()


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
    patch.setattr(latents, "BLOCK", 2)
    patch.setattr(latents, "ENCODED_AT_ONCE", 2)


def from_tars(place: Path, output: Path, *flags: str, layout: str = "stream") -> list[str]:
    return [*f"{layout} {TARS} {TRAIN}".format(place=place, output=output).split(), *flags]


def _train(flags: str = "", data: str = f"{PAIRS} {{output}}/model.pt", **settings: Any) -> Script:
    return Script(train.main, f"{data} {TRAIN} {flags}", **settings)


SCRIPTS: dict[str, Script] = {
    "train": _train(kills=40),
    "train_vqgan": Script(TrainVQGAN.main, f"{PAIRS} {{output}}/v.pt --preset demo {RUN} {VQGAN}", 30),
    "distill": Script(Distill.main, f"{{place}}/bridge.pt {{place}}/data {{output}}/model.pt --calls 2 {RUN}", 10),
    "train from a table": _train(data=f"hub {TARS}", before=("--workers", "1")),
    "train from a stream": _train("--workers 2", f"stream {TARS}", kills=30, before=("--workers", "0")),
    "a cache of pictures": _train("-e 1 --cache_images {output}/cache", kills=30, resumes=False),
    "a cache of latents": _train(
        "-e 1 -vq {place}/vqgan.pt --cache_latents {output}/cache --normalize_latents", kills=25, resumes=False
    ),
    "eval": Script(
        eval.main,
        f"{PAIRS} {{place}}/bridge.pt {{output}}/scores --sweep dpm2m:2,3 --metrics psnr ssim -b 2 --device cpu",
        20,
        resumes=False,
    ),
    "generate": Script(
        translate.main,
        f"{PAIRS} {{place}}/bridge.pt {{output}}/results --split train --steps 2 --num_samples 2 -b 3 --device cpu",
        15,
        resumes=False,
    ),
}
