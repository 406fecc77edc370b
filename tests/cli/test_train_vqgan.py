"""`bbdm train-vqgan` as a user runs it, and the commands of a latent bridge after it."""

import json
import os
import shutil
import signal
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from bbdm import load_checkpoint, load_vqgan
from bbdm.base.scripts import TERMINATED, StoppedError
from bbdm.cli import train, train_vqgan, translate
from bbdm.codec import LatentStatistics
from bbdm.data.examples import Example
from bbdm.networks.config import VQGANS, VQGANConfig
from bbdm.pictures.images import NAME_HEIGHT
from bbdm.training.trainer import Trainer
from tests.conftest import SavePicture, load_pairs
from tests.networks.test_vqgan import TINY as TINY_VQGAN


@pytest.fixture
def place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, save_picture: SavePicture, tiny_demo: None) -> Path:
    """Pairs in the layout of edge2shoes, and tiny networks as the demo's."""
    generator = np.random.default_rng(0)
    for name in ("train/1.png", "train/2.png", "train/3.png", "train/4.png", "val/5.png"):
        coarse = generator.integers(0, 256, (2, 4, 3), dtype=np.uint8)
        save_picture(tmp_path / "data" / name, Image.fromarray(coarse).resize((32, 16), Image.Resampling.NEAREST))
    monkeypatch.setitem(VQGANS, "demo", VQGANConfig(**TINY_VQGAN))
    monkeypatch.chdir(tmp_path)
    return tmp_path


TINY_RUN = ["--preset", "demo", "--image_size", "16", "-b", "2", "--perceptual", "none"]  # below an adversary's patch
ALONE = [*TINY_RUN, "--adversarial_weight", "0"]
BRIDGE_RUN = ["--preset", "demo", "--image_size", "16", "-b", "2", "--precision", "fp32"]


def statistics_of(file: str) -> LatentStatistics:
    """Those of the autoencoder in a bridge's file."""
    codec = load_checkpoint(file).build_codec()
    assert codec is not None
    assert codec.statistics is not None
    return codec.statistics


def train_tiny_vqgan(epochs: int, *flags: str) -> torch.Tensor:
    """Its error on the training pictures."""
    train_vqgan.main(["edge2shoes", "data", "vqgan.pt", *ALONE, "-e", str(epochs), "-lr", "1e-2", *flags])
    pairs = load_pairs("edge2shoes", "data", size=16)
    x = torch.stack([side for i in range(len(pairs)) for side in pairs[i]])
    return (load_vqgan("vqgan.pt").decode(load_vqgan("vqgan.pt").encode(x)) - x).abs().mean()


@pytest.mark.nightly
@pytest.mark.parametrize("kind", ["vq", "kl"])
def test_it_learns(kind: str, place: Path, capsys: pytest.CaptureFixture[str]):
    flags = ["--kind", kind, "--ema_decay", "0.9", "--overwrite"]
    before = train_tiny_vqgan(1, *flags)
    assert train_tiny_vqgan(40, *flags, "--preview_every", "40") < 0.7 * before
    assert Image.open("vqgan.run/epoch_0040.png").size == (4 * (16 + 2) + 2, 16 + 4 + NAME_HEIGHT)
    assert "vqgan.pt: weights after epoch 40; losses and checkpoints: vqgan.run" in capsys.readouterr().out
    record = json.loads(Path("vqgan.run/metrics.jsonl").read_text().splitlines()[-1])
    assert ("perplexity" in record) == (kind == "vq")


def test_the_same_command_resumes_after_sigterm(place: Path, monkeypatch: pytest.MonkeyPatch):
    """Bit for bit, at the third of the six steps, with the adversary."""
    for name in ("train", "val"):  # pictures that an adversary can take
        for path in Path("data", name).iterdir():
            Image.open(path).resize((64, 32), Image.Resampling.NEAREST).save(path)
    flags = [*TINY_RUN, "--image_size", "32", "--adversarial_start", "1", "--discriminator_width", "4", "-e", "3"]
    train_vqgan.main(["edge2shoes", "data", "whole.pt", *flags])
    original = Trainer.train_step

    def terminated(self: Trainer, batch: Example) -> float:
        if self.step == 2:
            os.kill(os.getpid(), signal.SIGTERM)
        return original(self, batch)

    with monkeypatch.context() as patched:
        patched.setattr(Trainer, "train_step", terminated)
        with pytest.raises(StoppedError, match="asked to end; the same command resumes from step 3") as caught:
            train_vqgan.main(["edge2shoes", "data", "parts.pt", *flags])
    assert caught.value.status == TERMINATED
    train_vqgan.main(["edge2shoes", "data", "parts.pt", *flags])
    ours, theirs = (load_vqgan(path).state_dict() for path in ("parts.pt", "whole.pt"))
    assert all(torch.equal(ours[key], theirs[key]) for key in theirs)


def test_the_decoder_of_a_trained_autoencoder(place: Path):
    """Latents of before are those of after, so a bridge that was trained on them goes on."""
    train_tiny_vqgan(1)
    train_vqgan.main(["edge2shoes", "data", "sharp.pt", *ALONE, "-e", "1", "--init_from", "vqgan.pt", "--decoder_only"])
    before, after = load_vqgan("vqgan.pt").state_dict(), load_vqgan("sharp.pt").state_dict()
    changed = {key.split(".")[0] for key in before if not torch.equal(before[key], after[key])}
    assert changed == {"decoder", "post_quant_conv"}
    with pytest.raises(ValueError, match="decoder_only trains the decoder of a trained autoencoder"):
        train_vqgan.main(["edge2shoes", "data", "other.pt", *ALONE, "--decoder_only"])
    with pytest.raises(ValueError, match=r"vqgan\.pt is of another kind than 'kl'"):
        train_vqgan.main(["edge2shoes", "data", "other.pt", *ALONE, "--init_from", "vqgan.pt", "--kind", "kl"])
    assert not Path("other.pt").exists()


def test_grey_pictures_without_validation(place: Path, capsys: pytest.CaptureFixture[str]):
    shutil.rmtree("data/val")
    train_vqgan.main(["edge2shoes", "data", "grey.pt", *ALONE, "-e", "1", "--channels", "1", "--cache_images", "cache"])
    assert load_vqgan("grey.pt").config.image_channels == 1
    assert "without validation pairs, no validation loss, grids and best.pt" in capsys.readouterr().out


@pytest.mark.parametrize("kind", ["vq", "kl"])
def test_a_latent_bridge_by_the_commands_of_the_readme(kind: str, place: Path):
    """Cached and normalised latents, and the autoencoder in the bridge's file."""
    train_tiny_vqgan(1, "--kind", kind)
    latent = ["-vq", "vqgan.pt", "--cache_latents", "latents", "--normalize_latents"]
    train.main(["edge2shoes", "data", "model.pt", *BRIDGE_RUN, "-e", "2", *latent])
    statistics_of("model.pt")
    Path("vqgan.pt").rename("moved.pt")
    translate.main(["edge2shoes", "data", "model.pt", "results", "--steps", "2"])
    assert Image.open("results/5.png").size == (16, 16)


def test_what_a_latent_bridge_is_refused_for(place: Path):
    train_tiny_vqgan(1)
    train.main(["edge2shoes", "data", "model.pt", *BRIDGE_RUN, "-e", "1", "-vq", "vqgan.pt", "--normalize_latents"])
    channels = (
        "lbbdm-f8 takes 4 channels, and this autoencoder's latents have 3; preset must be one of paper, paper-pinned"
    )
    for output, flags, message in (
        ("other.pt", ["--cache_latents", "latents"], "need vqgan_path"),
        ("other.pt", ["--preset", "lbbdm-f4"], "preset lbbdm-f4 is of latents: it needs vqgan_path"),
        ("other.pt", ["--preset", "lbbdm-f8", "-vq", "vqgan.pt"], channels),
        ("model.pt", BRIDGE_RUN, "where it began: with the same codec .vqgan_path., with normalised latents"),
    ):
        with pytest.raises(ValueError, match=message):
            train.main(["edge2shoes", "data", output, *flags])
    assert not Path("other.pt").exists()


def test_statistics_are_measured_once_and_of_what_is_trained_on(place: Path, monkeypatch: pytest.MonkeyPatch):
    """With flips, of mirrored pictures too, cached or not; a resumed run keeps its own."""
    train_tiny_vqgan(1)
    flags = [*BRIDGE_RUN, "--flip", "-vq", "vqgan.pt", "--normalize_latents"]
    for name, more in {"pictures": [], "cache": ["--cache_latents", "latents"]}.items():
        train.main(["edge2shoes", "data", f"{name}.pt", *flags, *more, "-e", "1"])
    pictures, cache = statistics_of("pictures.pt"), statistics_of("cache.pt")
    assert pictures.source_mean == pytest.approx(cache.source_mean, rel=1e-4, abs=1e-5)
    assert pictures.target_std == pytest.approx(cache.target_std, rel=1e-4)
    monkeypatch.setattr("bbdm.data.cached.measure", lambda *_, **__: pytest.fail("measured again"))
    train.main(["edge2shoes", "data", "pictures.pt", *flags, "-e", "2"])
    assert statistics_of("pictures.pt") == pictures


def test_bad_input(place: Path):
    for flags, message in (
        (["-b", "9"], "batch_size must be at most the 4 training pairs, got 9"),
        (["-e", "0"], "epochs must be at least 1, got 0"),
        (["--image_size", "15"], "image_size 15 is not a multiple of the autoencoder's 2"),
        (["--adversarial_weight", "1"], r"an adversary needs pictures of at least 24 x 24, got \(16, 16\)"),
        (["--perceptual", "vgg", "--lpips_weights", "no.pth"], "perceptual='vgg', LPIPS: there is no file no.pth"),
    ):
        with pytest.raises(ValueError, match=message):
            train_vqgan.main(["edge2shoes", "data", "vqgan.pt", *ALONE, *flags])
    with pytest.raises(ValueError, match="'folder' has no targets"):
        train_vqgan.main(["folder", "data", "vqgan.pt", *ALONE])
    with pytest.raises(ValueError, match=r"ends in \.pt or \.safetensors"):
        train_vqgan.main(["edge2shoes", "data", "vqgan.bin"])
    assert not Path("vqgan.pt").exists()
