"""examples/train_vqgan.py as a user runs it, and the commands of a latent bridge after it."""

import math
import re
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from bbdm import load_checkpoint, load_vqgan
from bbdm.codec import LatentStatistics
from bbdm.networks import unet_config, vqgan
from examples import generate, train, train_vqgan
from tests.conftest import TINY, SavePicture
from tests.networks.test_vqgan import TINY as TINY_VQGAN


@pytest.fixture
def place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, save_picture: SavePicture) -> Path:
    """Pairs in the layout of edge2shoes, and tiny networks as the demo's."""
    generator = np.random.default_rng(0)
    for name in ("train/1.png", "train/2.png", "train/3.png", "train/4.png", "val/5.png"):
        coarse = generator.integers(0, 256, (2, 4, 3), dtype=np.uint8)
        save_picture(tmp_path / "data" / name, Image.fromarray(coarse).resize((32, 16), Image.Resampling.NEAREST))
    monkeypatch.setitem(vqgan.PRESETS, "demo", vqgan.VQGANConfig(**TINY_VQGAN))
    monkeypatch.setitem(unet_config.PRESETS, "demo", unet_config.UNetConfig(condition_channels=3, **TINY))
    monkeypatch.chdir(tmp_path)
    return tmp_path


def train_tiny_vqgan(epochs: int) -> torch.Tensor:
    """Its reconstruction of a training picture."""
    flags = ["--preset", "demo", "--image_size", "16", "-b", "4", "-e", str(epochs), "-lr", "1e-2"]
    train_vqgan.main(["edge2shoes", "data", "vqgan.pt", *flags])
    pictures = train_vqgan.Pictures("edge2shoes", "data", "train", 16)
    x = torch.stack([pictures[i] for i in range(len(pictures))])
    return (load_vqgan("vqgan.pt").decode(load_vqgan("vqgan.pt").encode(x)) - x).abs().mean()


def test_it_learns(place: Path, capsys: pytest.CaptureFixture[str]):
    before = train_tiny_vqgan(1)
    assert train_tiny_vqgan(120) < 0.4 * before
    assert Image.open("vqgan.png").height == 2 * (16 + 2) + 2
    assert re.search(r"\d+ of \d+ codes used, 0 restarted; reconstructions: vqgan.png", capsys.readouterr().out)


def test_a_latent_bridge_by_the_commands_of_the_readme(place: Path):
    train_tiny_vqgan(1)
    flags = ["--preset", "demo", "--image_size", "16", "-b", "2", "-e", "2", "--precision", "fp32"]
    latent = ["-vq", "vqgan.pt", "--cache_latents", "latents", "--normalize_latents"]
    train.main(["edge2shoes", "data", "model.pt", *flags, *latent])
    codec = load_checkpoint("model.pt").build_codec()
    assert codec is not None
    assert codec.statistics is not None
    Path("vqgan.pt").rename("moved.pt")
    generate.main(["edge2shoes", "data", "model.pt", "results", "--steps", "2"])
    Path("moved.pt").rename("vqgan.pt")
    assert Image.open("results/5.png").size == (16, 16)
    with pytest.raises(ValueError, match="need -vq"):
        train.main(["edge2shoes", "data", "model.pt", "--cache_latents", "latents"])
    with pytest.raises(ValueError, match="--preset lbbdm-f4 is of latents: it needs -vq"):
        train.main(["edge2shoes", "data", "other.pt", "--preset", "lbbdm-f4"])
    message = "lbbdm-f8 takes 4 channels, and this autoencoder's latents have 3; presets for it: paper, paper-pinned"
    with pytest.raises(ValueError, match=message):
        train.main(["edge2shoes", "data", "other.pt", "--preset", "lbbdm-f8", "-vq", "vqgan.pt"])
    with pytest.raises(ValueError, match="where it began: with the same codec, with normalised latents"):
        train.main(["edge2shoes", "data", "model.pt", *flags])
    assert not Path("other.pt").exists()


def test_statistics_are_measured_once_and_of_what_is_trained_on(place: Path, monkeypatch: pytest.MonkeyPatch):
    """With flips, of mirrored pictures too, cached or not; a resumed run keeps its own."""
    train_tiny_vqgan(1)
    flags = ["--preset", "demo", "--image_size", "16", "-b", "2", "--precision", "fp32", "--flip", "-vq", "vqgan.pt"]
    found: dict[str, LatentStatistics | None] = {}
    for name, more in {"pictures": [], "cache": ["--cache_latents", "latents"]}.items():
        train.main(["edge2shoes", "data", f"{name}.pt", *flags, *more, "-e", "1", "--normalize_latents"])
        codec = load_checkpoint(f"{name}.pt").build_codec()
        found[name] = None if codec is None else codec.statistics
    assert found["pictures"] is not None
    assert found["cache"] is not None
    assert found["pictures"].source_mean == pytest.approx(found["cache"].source_mean, rel=1e-4, abs=1e-5)
    assert found["pictures"].target_std == pytest.approx(found["cache"].target_std, rel=1e-4)
    monkeypatch.setattr(train, "measure", lambda *_, **__: pytest.fail("measured again"))
    resume = ["-e", "2", "--normalize_latents"]
    train.main(["edge2shoes", "data", "pictures.pt", *flags, *resume])
    codec = load_checkpoint("pictures.pt").build_codec()
    assert codec is not None
    assert codec.statistics == found["pictures"]


def test_each_epoch_is_written(place: Path, monkeypatch: pytest.MonkeyPatch):
    """8 pictures, 4 a step: the process ends in the second epoch."""
    original, calls = train_vqgan.train_step, []

    def interrupted(*arguments: Any) -> tuple[float, torch.Tensor, torch.Tensor]:
        calls.append(None)
        if len(calls) == 4:
            raise KeyboardInterrupt
        return original(*arguments)

    monkeypatch.setattr(train_vqgan, "train_step", interrupted)
    with pytest.raises(KeyboardInterrupt):
        train_tiny_vqgan(3)
    assert load_vqgan("vqgan.pt").config == vqgan.VQGANConfig(**TINY_VQGAN)
    assert [path.name for path in place.iterdir() if "tmp" in path.name] == []


@pytest.mark.parametrize("step", [2, 3, 4])
def test_a_loss_that_is_no_number_ends_it(step: int, place: Path, monkeypatch: pytest.MonkeyPatch):
    """With the weights of the last whole epoch, if there is one."""
    original, calls = torch.nn.functional.l1_loss, []

    def l1_loss(*arguments: Any) -> torch.Tensor:
        calls.append(None)
        return original(*arguments) * (math.nan if len(calls) == step else 1)

    monkeypatch.setattr(torch.nn.functional, "l1_loss", l1_loss)
    with pytest.raises(ValueError, match="the loss is nan: start again with a lower -lr"):
        train_tiny_vqgan(3)
    assert Path("vqgan.pt").exists() == (step > 2)
    if step > 2:
        assert all(value.isfinite().all() for value in load_vqgan("vqgan.pt").state_dict().values())


def test_verbose_prints_each_epoch(place: Path, capsys: pytest.CaptureFixture[str]):
    flags = ["--preset", "demo", "--image_size", "16", "-b", "4", "-e", "2", "--show_verbose"]
    train_vqgan.main(["edge2shoes", "data", "vqgan.pt", *flags])
    out = capsys.readouterr().out
    assert re.findall(r"^L1 0\.\d{4} over epoch (\d), \d+ of \d+ codes used, \d+ restarted$", out, re.MULTILINE) == [
        "1",
        "2",
    ]


def test_fewer_pictures_than_a_batch_are_refused(place: Path):
    with pytest.raises(ValueError, match="batch_size 9 is more than the number of training pictures, 8"):
        train_vqgan.main(["edge2shoes", "data", "vqgan.pt", "--preset", "demo", "--image_size", "16", "-b", "9"])
    for flags in (["-b", "0"], ["-e", "0"]):
        with pytest.raises(SystemExit):
            train_vqgan.main(["edge2shoes", "data", "vqgan.pt", *flags])
    assert not Path("vqgan.pt").exists()


def test_a_size_that_the_network_cannot_take(place: Path):
    with pytest.raises(ValueError, match="image_size 15 is not a multiple of the VQGAN's 2"):
        train_vqgan.main(["edge2shoes", "data", "vqgan.pt", "--preset", "demo", "--image_size", "15"])


def test_without_validation_pictures(place: Path, capsys: pytest.CaptureFixture[str]):
    shutil.rmtree("data/val")
    train_tiny_vqgan(1)
    assert capsys.readouterr().out.startswith("the grid is of training pictures: there is no folder data/val")
    assert Image.open("vqgan.png").size == (8 * (16 + 2) + 2, 2 * (16 + 2) + 2)


def test_other_suffixes_are_refused_before_training(place: Path):
    with pytest.raises(ValueError, match=r"ends in \.pt or \.safetensors"):
        train_vqgan.main(["edge2shoes", "data", "vqgan.bin"])
