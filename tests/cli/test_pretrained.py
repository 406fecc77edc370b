"""The commands with a network that diffusers saved: train, resume, translate, score, say what it is."""

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from diffusers.models.autoencoders.autoencoder_kl import AutoencoderKL
from diffusers.schedulers.scheduling_ddpm import DDPMScheduler

from bbdm import cli, load_checkpoint
from tests.conftest import SavePicture, same_weights, save_random_pairs
from tests.files.test_pretrained import save

FLAGS = ["--image_size", "16", "-b", "2", "--device", "cpu", "--warmup_steps", "0", "-lr", "1e-3"]


@pytest.fixture
def world(tmp_path: Path, save_picture: SavePicture, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Four pairs and two to validate, and two pretrained networks: of pixels, and of latents with text."""
    monkeypatch.chdir(tmp_path)
    save_random_pairs(tmp_path / "data", 4, 2, save_picture)
    save(tmp_path / "pixels", DDPMScheduler())
    save(tmp_path / "latents", DDPMScheduler(prediction_type="v_prediction"), "text")
    torch.manual_seed(0)
    blocks: dict[str, Any] = {"block_out_channels": (8,), "norm_num_groups": 4, "latent_channels": 4}
    AutoencoderKL(**blocks, scaling_factor=0.5).save_pretrained(tmp_path / "latents" / "vae")  # pyright: ignore
    return tmp_path


def train(folder: str, output: str, *flags: str) -> Any:
    cli.run("train", ["edge2shoes", "data", output, "--init_from", folder, *FLAGS, *flags])
    return load_checkpoint(output)


@pytest.mark.parametrize("folder", ["pixels", "latents"])
def test_the_commands_of_a_pretrained_network(folder: str, world: Path, capsys: Any) -> None:
    """With the loss, the objective and the autoencoder that it needs, by no flag."""
    model = train(folder, "out.pt", "-e", "1")
    config = json.loads(Path("out.run/config.json").read_text())
    assert (config["train"]["loss"], model.bridge.objective) == ("l2", "denoiser")
    assert (model.codec is not None) == (folder == "latents")
    straight = train(folder, "straight.pt", "-e", "2", "--seed", "1")
    train(folder, "again.pt", "-e", "1", "--seed", "1")
    shutil.rmtree(f"{folder}/unet/none", ignore_errors=True)
    again = train(folder, "again.pt", "-e", "2", "--seed", "1")
    assert torch.equal(again.unet.weights["module.conv_in.weight"], straight.unet.weights["module.conv_in.weight"])
    shutil.rmtree(folder)  # the file needs it no more
    cli.run("info", ["out.pt"])
    assert "pretrained" in capsys.readouterr().out
    cli.run("translate", ["edge2shoes", "data", "out.pt", "results", "--solver", "sde-dpm2m", "--steps", "5"])
    assert len(list(Path("results").glob("*.png"))) == 3
    cli.run("eval", ["edge2shoes", "data", "out.pt", "scores", "--metrics", "psnr", "--steps", "2"])
    assert json.loads(Path("scores/scores.json").read_text())["scores"]["psnr"] > 0
    assert same_weights(model.build_unet(), load_checkpoint("out.pt").build_unet())


@pytest.mark.parametrize(
    ("flags", "reason"),
    [
        (["--objective", "pinned"], "objective must be 'denoiser' of a pretrained network, got 'pinned'"),
        (["--normalize_latents"], "normalize_latents would make the noise of a pretrained network another one"),
        (["--source_as", "none"], "source_as must be concat"),
        (["--bridge", "flow"], "objective 'denoiser' needs noise, and this BrownianBridge has none"),
    ],
)
def test_what_does_not_go_with_it_is_refused(flags: list[str], reason: str, world: Path, capsys: Any) -> None:
    with pytest.raises(SystemExit) as caught:
        train("pixels", "out.pt", "-e", "1", *flags)
    assert reason in f"{caught.value.code}{capsys.readouterr().err}"
