"""200 SIGKILLs over the scripts that write: nothing torn, nothing lost, bitwise the undisturbed result."""

from __future__ import annotations

import hashlib
import json
import os
import pickle
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from bbdm import save_checkpoint
from bbdm.cli import distill, eval, shard, train, train_vqgan, translate
from bbdm.data.cache import ImageCache
from bbdm.data.latents import LatentDataset
from bbdm.files.checkpoint import save_vqgan
from bbdm.networks import vqgan
from tests.conftest import BRIDGE, SavePicture, tiny_unet
from tests.hardening.killing import Left, Script, content, kill_at_random_moments
from tests.networks.test_vqgan import TINY, tiny_vqgan
from tests.training import tiny_train

for package in ("webdataset", "braceexpand", "torchmetrics"):
    pytest.importorskip(package)
pytestmark = pytest.mark.skipif(sys.platform == "win32", reason="no SIGKILL there")

RUN = ["--preset", "demo", "--device", "cpu", "-b", "2", "--show_verbose"]  # it reports its checkpoints


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory, save_picture: SavePicture) -> Path:
    """12 pairs to train on and 4 to validate, as files and in shards; a bridge and an autoencoder."""
    folder, generator = tmp_path_factory.mktemp("place"), np.random.default_rng(0)
    for index in range(16):
        pixels = generator.integers(0, 256, (32, 64, 3), dtype=np.uint8)
        save_picture(folder / "data" / ("train" if index < 12 else "val") / f"{index:02d}.png", Image.fromarray(pixels))
    shard.main(["edge2shoes", str(folder / "data"), str(folder / "shards"), "--pairs_in_shard", "1", "--quiet"])
    save_checkpoint(folder / "bridge.pt", tiny_unet(condition_channels=3), BRIDGE, image_size=16)
    save_vqgan(folder / "vqgan.pt", tiny_vqgan())
    return folder


def small(folder: Path) -> None:
    """Tiny networks, small parts of caches, so that there are several, and for each run shards of its own."""
    os.environ["BBDM_SHARDS"] = str(folder.with_name(f"{folder.name}.fetched"))
    tiny_train.set_up()
    vqgan.PRESETS["demo"] = vqgan.VQGANConfig(**TINY)
    ImageCache.in_block = ImageCache.at_once = LatentDataset.in_block = LatentDataset.at_once = 2


def training(place: Path, output: Path, *flags: str) -> list[str]:
    common = [*RUN, "--image_size", "16", "-t", "50", "--save_every", "5", "--preview_every", "2"]
    return ["edge2shoes", str(place / "data"), str(output / "model.pt"), *common, "-e", "3", *flags]


def streaming(place: Path, output: Path) -> list[str]:
    command = f"pipe:sleep 0.03; cat {place}/shards/train/{{000000..000011}}.tar"  # so nothing to validate
    return ["shards", command, *training(place, output, "--workers", "2")[2:]]


def autoencoder(place: Path, output: Path) -> list[str]:
    flags = ["--perceptual", "none", "--adversarial_start", "2", "--discriminator_width", "4", "--image_size", "32"]
    return ["edge2shoes", str(place / "data"), str(output / "v.pt"), *RUN, *flags, "-e", "2", "--save_every", "4"]


def cached_pictures(place: Path, output: Path) -> list[str]:
    return training(place, output, "-e", "1", "--cache_images", str(output / "cache"))


def cached_latents(place: Path, output: Path) -> list[str]:
    flags = ["-vq", str(place / "vqgan.pt"), "--cache_latents", str(output / "cache"), "--normalize_latents"]
    return training(place, output, "-e", "1", *flags)


def distilling(place: Path, output: Path) -> list[str]:
    flags = ["--calls", "1", "-b", "2", "-e", "2", "--save_every", "4", "--device", "cpu", "--show_verbose"]
    return [str(place / "bridge.pt"), str(place / "data"), str(output / "model.pt"), *flags]


def evaluating(place: Path, output: Path) -> list[str]:
    flags = ["--sweep", "dpm2m:2,3", "--metrics", "psnr", "ssim", "-b", "2", "--device", "cpu"]
    return ["edge2shoes", str(place / "data"), str(place / "bridge.pt"), str(output / "scores"), *flags]


def generating(place: Path, output: Path) -> list[str]:
    flags = ["--split", "train", "--steps", "2", "--num_samples", "2", "-b", "3", "--device", "cpu"]
    return ["edge2shoes", str(place / "data"), str(place / "bridge.pt"), str(output / "results"), *flags]


def sharding(place: Path, output: Path) -> list[str]:
    return ["edge2shoes", str(place / "data"), str(output / "shards"), "--pairs_in_shard", "1"]


SCRIPTS: dict[str, tuple[Callable[[list[str]], None], Callable[[Path, Path], list[str]], int]] = {
    "train": (train.main, training, 40),
    "train from shards elsewhere": (train.main, streaming, 20),
    "train_vqgan": (train_vqgan.main, autoencoder, 30),
    "a cache of pictures": (train.main, cached_pictures, 20),
    "a cache of latents": (train.main, cached_latents, 25),
    "distill": (distill.main, distilling, 10),
    "eval": (eval.main, evaluating, 20),
    "generate": (translate.main, generating, 15),
    "shard": (shard.main, sharding, 20),
}


def test_as_many_as_are_claimed() -> None:
    assert sum(kills for _, _, kills in SCRIPTS.values()) == 200


FAULTS: dict[str, tuple[Callable[[Path], object], str]] = {
    "torn": (lambda folder: (folder / "a.png").write_bytes(b"pic"), "a.png is another one"),
    "torn JSON": (lambda folder: (folder / "manifest.json").write_text('{"shards": {'), "Expecting property name"),
    "torn weights": (lambda folder: (folder / "m.run" / "step_00000002.pt").write_bytes(b"PK"), "Weights only load"),
    "lost": (lambda folder: (folder / "a.png").unlink(), "a.png'. are lost"),
    "lost step": (lambda folder: (folder / "m.run" / "step_00000002.pt").unlink(), "the newest checkpoint is lost"),
    "never saved": (
        lambda folder: folder.with_suffix(".log").open("a").write("checkpoint: m.run/step_00000003.pt\n"),
        "a checkpoint is lost that was reported saved",
    ),
    "not as reported": (lambda folder: (folder / "0.bin").write_bytes(b"x"), "0.bin is not the one that was reported"),
    "made again": (lambda folder: os.utime(folder / "0.bin", (1, 1)), "0.bin again"),
}


@pytest.mark.parametrize("fault", FAULTS)
def test_faults_are_found(fault: str, tmp_path: Path) -> None:
    folder = tmp_path / "run"
    (folder / "m.run").mkdir(parents=True)
    for name in ("a.png", "0.bin"):
        (folder / name).write_bytes(b"picture")
    digest = hashlib.sha256(b"picture").hexdigest()
    (folder / "manifest.json").write_text(json.dumps({"shards": {"0.bin": digest}}))
    torch.save({"weights": torch.zeros(3)}, folder / "m.run" / "step_00000002.pt")
    (tmp_path / "run.log").write_text("checkpoint: m.run/step_00000002.pt\n")
    whole = {name: each for name, each in content(folder).items() if name != "0.bin"}
    left = Left(folder, whole)
    left.check()
    left.check()
    make, message = FAULTS[fault]
    make(folder)
    with pytest.raises((AssertionError, ValueError, pickle.UnpicklingError), match=message):
        left.check()


@pytest.mark.nightly
@pytest.mark.parametrize("name", SCRIPTS)
def test_killed_at_random_moments(name: str, place: Path, tmp_path: Path) -> None:
    main, argv, kills = SCRIPTS[name]
    count = kill_at_random_moments(Script(main, lambda output: argv(place, output), small), kills, tmp_path)
    print(name, count)
    assert count.inside, "no kill fell into a write"
