"""`bbdm train-vqgan` and `convert-vqgan` as a user runs them, and a latent bridge after them."""

import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from bbdm import cli, load_checkpoint, load_vqgan
from bbdm.cli import train, translate
from bbdm.cli.files import ConvertVQGAN
from bbdm.cli.train_vqgan import TrainVQGAN
from bbdm.codec import LatentStatistics
from bbdm.networks.config import VQGANS, VQGANConfig
from bbdm.networks.vqgan import VQGAN
from bbdm.pictures.images import NAME_HEIGHT
from tests.conftest import SavePicture, same_weights
from tests.networks.test_vqgan import TINY as TINY_VQGAN

# below an adversary's patch
TINY_RUN = ["--preset", "demo", "--image_size", "16", "-b", "2", "--perceptual", "none"]
ALONE = [*TINY_RUN, "--adversarial_weight", "0"]
BRIDGE_RUN = ["--preset", "demo", "--image_size", "16", "-b", "2", "--precision", "fp32"]


@pytest.fixture(autouse=True)
def place(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, save_picture: SavePicture, tiny_demo: None
) -> None:
    """Pairs in the layout of edge2shoes, and tiny networks as the demo's."""
    generator = np.random.default_rng(0)
    for name in ("train/1.png", "train/2.png", "train/3.png", "train/4.png", "val/5.png"):
        coarse = generator.integers(0, 256, (2, 4, 3), dtype=np.uint8)
        save_picture(
            tmp_path / "data" / name,
            Image.fromarray(coarse).resize((32, 16), Image.Resampling.NEAREST),
        )
    monkeypatch.setitem(VQGANS, "demo", VQGANConfig(**TINY_VQGAN))
    monkeypatch.chdir(tmp_path)


def fit(output: str = "vqgan.pt", *flags: str) -> VQGAN:
    TrainVQGAN.main(["edge2shoes", "data", output, *ALONE, "-e", "1", "-lr", "1e-2", *flags])
    return load_vqgan(output)


def fit_bridge(output: str, *flags: str) -> LatentStatistics:
    """The statistics of the autoencoder in the file of a bridge."""
    train.main(
        [
            "edge2shoes",
            "data",
            output,
            *BRIDGE_RUN,
            "-vq",
            "vqgan.pt",
            "--normalize_latents",
            *flags,
        ]
    )
    codec = load_checkpoint(output).build_codec()
    assert codec is not None
    assert codec.statistics is not None
    return codec.statistics


def test_grey_pictures_without_validation(capsys: pytest.CaptureFixture[str]):
    shutil.rmtree("data/val")
    assert fit("vqgan.pt", "--channels", "1", "--cache_images", "cache").config.image_channels == 1
    assert (
        "without validation pairs, no validation loss, grids and best.pt" in capsys.readouterr().out
    )


@pytest.mark.parametrize("kind", [pytest.param("vq", marks=pytest.mark.nightly), "kl"])
def test_a_latent_bridge_by_the_commands_of_the_readme(
    kind: str, monkeypatch: pytest.MonkeyPatch, capsys: Any
):
    """Normalised latents by statistics that are measured once, of what is trained on: mirrored pictures too,
    cached or not. The autoencoder is in the bridge's file."""
    assert (fit("vqgan.pt", "--kind", kind).config.num_codes == 0) == (kind == "kl")
    assert (
        "vqgan.pt: weights after epoch 1; losses and checkpoints: vqgan.run"
        in capsys.readouterr().out
    )
    assert Image.open(next(Path("vqgan.run").glob("step_*.png"))).size == (
        4 * (16 + 2) + 2,
        16 + 4 + NAME_HEIGHT,
    )
    cache = fit_bridge("cache.pt", "-e", "1", "--flip", "--cache_latents", "latents")
    assert [*Path("latents").glob("*")]
    known = fit_bridge("model.pt", "-e", "1", "--flip")
    assert known.source_mean == pytest.approx(cache.source_mean, rel=1e-4, abs=1e-5)
    assert known.target_std == pytest.approx(cache.target_std, rel=1e-4)
    monkeypatch.setattr("bbdm.data.latents.measure", lambda *_, **__: pytest.fail("measured again"))
    assert fit_bridge("model.pt", "-e", "2", "--flip") == known
    with pytest.raises(
        ValueError, match=r"was trained with codec \{.*, now None: resume with the same"
    ):
        train.main(["edge2shoes", "data", "model.pt", *BRIDGE_RUN, "--flip"])
    Path("vqgan.pt").rename("moved.pt")
    translate.main(["edge2shoes", "data", "model.pt", "results", "--steps", "2"])
    assert Image.open("results/5.png").size == (16, 16)


def test_a_vqgan_of_latent_diffusion_is_converted_or_refused(capsys: pytest.CaptureFixture[str]):
    vqgan = VQGAN(model_channels=32, num_codes=40, num_res_blocks=1, channel_mult=(1, 2))
    state = vqgan.state_dict()
    torch.save({"state_dict": {**state, "loss.a": torch.ones(1)}}, "model.ckpt")
    for name in ("vqgan.pt", "vqgan.safetensors"):
        ConvertVQGAN.main(["model.ckpt", name, "-c", "3", "--assert_weights_mapping"])
        assert (
            f"{name}: VQ-f2, 40 codes of 3 channels, images of 3 channels\n"
            in capsys.readouterr().out
        )
        loaded = load_vqgan(name)
        assert loaded.config == vqgan.config
        assert same_weights(loaded, vqgan)
    del state["quant_conv.bias"]
    torch.save({"state_dict": state}, "cut.ckpt")
    for words, message in (
        ("model.ckpt out.pth", r"ends in \.pt or \.safetensors, got .*out\.pth"),
        ("model.ckpt out.pt -c 1", r"model\.ckpt is for images of 3 channels, got --in_channels 1"),
        ("cut.ckpt out.pt", r"missing: quant_conv\.bias"),
    ):
        with pytest.raises(SystemExit, match=message):
            cli.run("convert-vqgan", words.split())
    assert not [*Path().glob("out*")]
