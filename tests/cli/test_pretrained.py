"""The commands with a network that diffusers saved: train, resume, translate, score, say what it is."""

import json
import shutil
from pathlib import Path
from typing import Any

import huggingface_hub
import pytest
import torch
from diffusers.models.autoencoders.autoencoder_kl import AutoencoderKL
from diffusers.schedulers.scheduling_ddpm import DDPMScheduler

from bbdm import BridgeSampler, BrownianBridge, cli, load_checkpoint, pretrained, save_checkpoint
from bbdm.data.trained import Trained
from bbdm.networks.config import UNETS, Base, UNetConfig
from bbdm.networks.unet import UNet
from tests.conftest import TINY, SavePicture, same_weights, save_random_pairs
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
    blocks: dict[str, Any] = {
        "block_out_channels": (8,),
        "norm_num_groups": 4,
        "latent_channels": 4,
    }
    for folder in (tmp_path / "latents" / "vae", tmp_path / "four"):
        AutoencoderKL(**blocks, scaling_factor=0.5).save_pretrained(folder)
    return tmp_path


def train(folder: str, output: str, *flags: str) -> Any:
    cli.run("train", ["edge2shoes", "data", output, "--init_from", folder, *FLAGS, *flags])
    return load_checkpoint(output)


@pytest.mark.parametrize("folder", ["pixels", "latents"])
def test_the_commands_of_a_pretrained_network(folder: str, world: Path, capsys: Any) -> None:
    """With the loss, the objective and the autoencoder that it needs, by no flag."""
    model = train(folder, "out.pt", "-e", "1")
    config = json.loads(Path("out.run/config.json").read_text())
    assert (config["train"]["loss"], model.bridge.objective, model.bridge.density) == (
        "l2",
        "denoiser",
        "high",
    )
    assert (model.codec is not None) == (folder == "latents")
    straight = train(folder, "straight.pt", "-e", "2", "--seed", "1")
    train(folder, "again.pt", "-e", "1", "--seed", "1")
    shutil.rmtree(f"{folder}/unet/none", ignore_errors=True)
    again = train(folder, "again.pt", "-e", "2", "--seed", "1")
    assert torch.equal(
        again.unet.weights["module.conv_in.weight"], straight.unet.weights["module.conv_in.weight"]
    )
    shutil.rmtree(folder)  # the file needs it no more
    capsys.readouterr()
    cli.run("info", ["out.pt"])
    output = capsys.readouterr().out
    expected = {
        "pixels": "UNet2DModel, predicts epsilon",
        "latents": "UNet2DConditionModel, predicts v_prediction",
    }
    assert (
        f"  settings      {expected[folder]} at 1000 noise levels from 0.01 to 157.4; channels="
        in output
    )
    assert (
        f"  noise levels  0.01 to {2 if folder == 'pixels' else 157}, at which the bridge uses the"
        in output
    )
    assert len(output) < 2000
    cli.run(
        "translate",
        ["edge2shoes", "data", "out.pt", "results", "--solver", "sde-dpm2m", "--steps", "5"],
    )
    assert len(list(Path("results").glob("*.png"))) == 3
    cli.run("eval", ["edge2shoes", "data", "out.pt", "scores", "--metrics", "psnr", "--steps", "2"])
    assert json.loads(Path("scores/scores.json").read_text())["scores"]["psnr"] > 0
    assert same_weights(model.build_unet(), load_checkpoint("out.pt").build_unet())


def test_the_commands_of_adm(world: Path, capsys: Any) -> None:
    """A file of guided diffusion in place of the folder; resumed to the bit, and not needed afterwards."""
    torch.manual_seed(0)
    network = UNet(
        3, 6, model_channels=32, channel_mult=(1, 2), attention_resolutions=(2,), num_res_blocks=1
    )
    for parameter in network.parameters():
        torch.nn.init.normal_(parameter, std=0.1)
    torch.save(network.state_dict(), "ADM.pt")
    model = train("ADM.pt", "out.pt", "-e", "1", "--seed", "1")
    config = json.loads(Path("out.run/config.json").read_text())
    assert (config["train"]["loss"], model.bridge.objective, model.codec) == (
        "l2",
        "denoiser",
        None,
    )
    straight = train("ADM.pt", "straight.pt", "-e", "2", "--seed", "1")
    again = train("ADM.pt", "out.pt", "-e", "2", "--seed", "1")
    assert same_weights(again.build_unet(), straight.build_unet())
    Path("ADM.pt").unlink()
    cli.run("info", ["out.pt"])
    assert "pretrained" in capsys.readouterr().out
    cli.run(
        "translate",
        ["edge2shoes", "data", "out.pt", "results", "--solver", "sde-dpm2m", "--steps", "5"],
    )
    assert len(list(Path("results").glob("*.png"))) == 3


def test_grey_targets_are_of_a_network_of_colours(world: Path, capsys: Any) -> None:
    assert train("pixels", "out.pt", "-e", "1", "--channels", "1").unet.config.channels == 1
    assert "are new" not in capsys.readouterr().out


def test_a_name_on_the_hub(world: Path, monkeypatch: pytest.MonkeyPatch, capsys: Any) -> None:
    def snapshot_download(name: str, **_: Any) -> str:
        assert name == "someone/latents"
        return "latents"

    monkeypatch.setattr(huggingface_hub, "snapshot_download", snapshot_download)
    assert train("someone/latents", "out.pt", "-e", "1").codec is not None
    assert "latents has no text encoder of CLIP: it is shown zeros" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("flags", "reason"),
    [
        (["--codec", "four"], "the network of pixels has 3 channels, and latents of four 4"),
        (["--config", "adm"], "config=adm was given, and pixels has its own settings"),
        (
            ["--objective", "pinned"],
            "objective must be 'denoiser' of a pretrained network, got 'pinned'",
        ),
        (
            ["--normalize_latents"],
            "normalize_latents would make the noise of a pretrained network another one",
        ),
        (["--source_as", "none"], "source_as must be concat"),
        (
            ["--bridge", "flow"],
            "objective 'denoiser' needs noise, and this BrownianBridge has none",
        ),
    ],
)
def test_what_does_not_go_with_it_is_refused(
    flags: list[str], reason: str, world: Path, capsys: Any
) -> None:
    with pytest.raises(SystemExit) as caught:
        train("pixels", "out.pt", "-e", "1", *flags)
    assert reason in f"{caught.value.code}{capsys.readouterr().err}"


def refused(*arguments: str) -> str:
    """What a training that is refused prints: one line."""
    with pytest.raises(SystemExit) as caught:
        train(*arguments)
    line = f"{caught.value.code}"
    assert "\n" not in line
    assert len(line) < 400
    return line


@pytest.mark.parametrize(("folder", "lora"), [("latents", []), ("pixels", ["--lora", "2"])])
def test_a_file_that_began_with_one_is_a_start_as_its_folder_is(
    folder: str, lora: list[str], world: Path, save_picture: SavePicture
) -> None:
    """Network, objective, noise levels and autoencoder are the file's, and its pairs are recorded too."""
    begun = train(folder, "begun.pt", "-e", "1")
    shutil.rmtree(folder)
    save_random_pairs(world / "others", 2, 1, save_picture, size=24)
    flags = ["--init_from", "begun.pt", *FLAGS, "-lr", "1e-9", "-e", "1", *lora]
    cli.run("train", ["edge2shoes", "others", "out.pt", *flags])
    out = load_checkpoint("out.pt")
    network = out.build_unet().state_dict()
    for name, value in begun.build_unet().state_dict().items():
        torch.testing.assert_close(network[name], value, rtol=0, atol=1e-7)
    assert out.bridge.noise_range == begun.bridge.noise_range
    assert (out.bridge.objective, out.codec is None) == ("denoiser", folder == "pixels")
    assert json.loads(Path("out.run/config.json").read_text())["train"]["loss"] == "l2"
    trained = Trained.of_origin(out.origin)
    assert trained is not None
    assert [len(pairs) for pairs in trained.record.earlier] == [4]
    file = "out.run/step_00000001.pt" if lora else "out.pt"
    cli.run("translate", ["edge2shoes", "data", file, "results", "--steps", "2"])
    assert len(list(Path("results").glob("*.png"))) == 3


def test_what_does_not_fit_a_file_that_began_with_one_is_refused_by_a_line(world: Path) -> None:
    train("pixels", "pixels.pt", "-e", "1")
    train("latents", "latents.pt", "-e", "1", "--lora", "2")
    reasons = {
        (
            "pixels.pt",
            "--channels",
            "1",
        ): "channels of sources and targets: (3, 3), and the pairs have (1, 1)",
        (
            "pixels.pt",
            "--codec",
            "four",
        ): "a codec was given, but the network was trained in image space",
        (
            "latents.pt",
            "--codec",
            "four",
        ): "another codec was given than the one that the network was trained with",
        (
            "pixels.pt",
            "--config",
            "adm",
        ): "config=adm was given, but the file describes its network itself",
        (
            "pixels.pt",
            "--objective",
            "pinned",
        ): "objective must be 'denoiser' of a pretrained network",
        ("latents.run/step_00000002.pt",): "the file has only the SHA-256 of its codec",
        (
            "latents.run/step_00000002.pt",
            "--codec",
            "latents/vae",
            "--lora",
            "2",
        ): "has only what LoRA trained",
    }
    for (file, *flags), reason in reasons.items():
        assert reason in refused(file, "out.pt", "-e", "1", *flags)


def test_a_run_resumes_without_its_folder(world: Path) -> None:
    """By the same command, whose folder is gone, and by the step alone."""
    straight = train("pixels", "straight.pt", "-e", "2")
    train("pixels", "out.pt", "-e", "1")
    shutil.rmtree("pixels")
    step = ["--ckpt_path", "out.run/step_00000002.pt"]
    cli.run("train", ["edge2shoes", "data", "other.pt", *step, *FLAGS, "-e", "2"])
    train("pixels", "out.pt", "-e", "2")
    for output in ("out.pt", "other.pt"):
        assert same_weights(load_checkpoint(output).build_unet(), straight.build_unet())


def test_a_run_in_latents_resumes_with_their_autoencoder_alone(world: Path) -> None:
    train("latents", "out.pt", "-e", "1")
    Path("latents/vae").rename("vae")
    shutil.rmtree("latents")
    reason = "is of latents: give --vqgan_path, the autoencoder that the run began with"
    assert reason in refused("latents", "out.pt", "-e", "2")
    train("latents", "out.pt", "-e", "2", "--codec", "vae")
    assert Path("out.run/step_00000004.pt").exists()


def test_a_run_of_another_network_is_not_gone_on_with(
    world: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(UNETS, "demo", UNetConfig(condition_channels=3, **TINY))
    cli.run("train", ["edge2shoes", "data", "out.pt", "--preset", "demo", *FLAGS, "-e", "1"])
    assert "the run in this folder is of another network, unet" in refused(
        "pixels", "out.pt", "-e", "2"
    )


CARD = """---
license: other
license_name: stability
license_link: https://example.com/LICENSE
tags: [text-to-image]
---
# A network
"""


def test_base_and_licence_go_with_the_weights(
    world: Path, monkeypatch: pytest.MonkeyPatch, capsys: Any
) -> None:
    """Of a repository: through LoRA, another start, distillation, a folder and its card."""
    monkeypatch.setattr(huggingface_hub, "snapshot_download", lambda name, **_: "pixels")
    Path("pixels/README.md").write_text(CARD, encoding="utf-8")
    flags = ["--bridge", "brownian", "--max_steps", "1"]
    train("someone/network@v1", "lora.pt", "--lora", "2", *flags)
    train("lora.pt", "again.pt", *flags)
    cli.run(
        "distill", ["again.pt", "data", "student.pt", "--calls", "1", *FLAGS, "--max_steps", "1"]
    )
    BridgeSampler.from_checkpoint("student.pt").save_pretrained("folder")
    base = Base("someone/network", "other", "stability", "https://example.com/LICENSE")
    for file in ("lora.run/step_00000001.pt", "again.pt", "student.pt", "folder"):
        assert load_checkpoint(file).build_unet().base == base
    card = huggingface_hub.metadata_load("folder/README.md")
    assert card is not None
    assert (card["base_model"], card["license"]) == ("someone/network", "other")
    assert (card["license_name"], card["license_link"]) == (
        "stability",
        "https://example.com/LICENSE",
    )
    capsys.readouterr()
    cli.run("info", ["folder"])
    assert (
        "someone/network, license other, stability, https://example.com/LICENSE"
        in capsys.readouterr().out
    )


@pytest.mark.parametrize(
    "text", ["no head", "---\nlicense: [mit\n---\n", "---\nlicense: [mit, gpl]\n---\n", None]
)
def test_a_licence_that_no_card_says_is_unknown(text: str | None, world: Path) -> None:
    if text is not None:
        Path("pixels/README.md").write_text(text, encoding="utf-8")
    network, bridge = pretrained("pixels", BrownianBridge())
    assert f"{network.base}" == "pixels, license unknown"
    save_checkpoint("out.pt", network, bridge)
    BridgeSampler.from_checkpoint("out.pt").save_pretrained("folder")
    card = huggingface_hub.metadata_load("folder/README.md")
    assert card is not None
    assert not {"base_model", "license"} & card.keys()
