"""Volumes (B, C, D, H, W) trained on: the loss, what is drawn, a run and its files, and MONAI's network."""

import re
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image

from bbdm import BridgeSampler, BrownianBridge, Trainer, UNet, wrap
from bbdm.cli import train
from bbdm.cli.train import PRESETS
from bbdm.codec import wrap_codec
from bbdm.data.config import Crops
from bbdm.files.checkpoint import load_checkpoint
from bbdm.networks.base import Network
from bbdm.pictures.images import NAME_HEIGHT
from bbdm.training.config import TrainConfig
from bbdm.training.initial import fitted
from tests.conftest import newest, same_weights, tiny_unet

BRIDGE = BrownianBridge(objective="pinned")
SETTINGS: dict[str, Any] = {"epochs": 2, "batch_size": 2, "learning_rate": 1e-3, "preview_every": 1}


class Volumes:
    """Volumes (1, 4, 8, 8), and targets that are half of their neighbours, in a mask."""

    def __init__(self, count: int = 4, depth: int = 4) -> None:
        self.volumes = torch.rand(count, 1, depth, 8, 8, generator=torch.Generator().manual_seed(0)) * 2 - 1

    def __len__(self) -> int:
        return len(self.volumes)

    def __getitem__(self, index: int) -> dict[str, Any]:
        source = self.volumes[index]
        mask = torch.zeros_like(source)
        mask[:, 1:] = 1
        return {"source": source, "target": 0.5 * source.roll(1, -1), "mask": mask, "name": str(index)}


def unet() -> UNet:
    return tiny_unet(in_channels=1, out_channels=1, condition_channels=1, axes=3, strides=((1, 2, 2),))


def test_a_run(tmp_path: Path) -> None:
    """Trained, validated, shown by three planes, resumed, and sampled from its file."""
    bridge = fitted(BRIDGE, unet(), Volumes())
    volumes = Volumes().volumes
    inside = volumes[:, :, 1:]
    assert bridge.spread == pytest.approx((0.5 * inside.roll(1, -1) - inside).square().mean().sqrt().item(), rel=1e-5)
    trainer = Trainer(unet(), bridge, TrainConfig(**SETTINGS), Volumes(), Volumes(2), tmp_path / "run")
    trainer.fit()
    assert Image.open(tmp_path / "run" / "epoch_0002.png").size == (3 * 26 + 2, 2 * 10 + 2 + NAME_HEIGHT)
    checkpoint = load_checkpoint(newest(trainer))
    assert (checkpoint.unet.config.axes, checkpoint.image_size) == (3, (4, 8, 8))
    again = Trainer(unet(), bridge, TrainConfig(**{**SETTINGS, "epochs": 3}), Volumes(), Volumes(2), tmp_path / "run")
    assert again.resume_newest()
    again.fit()
    straight = Trainer(unet(), bridge, TrainConfig(**{**SETTINGS, "epochs": 3}), Volumes(), Volumes(2), tmp_path / "b")
    straight.fit()
    assert same_weights(again.network, straight.network)
    again.save(tmp_path / "model.safetensors")
    outputs = BridgeSampler.from_checkpoint(tmp_path / "model.safetensors", steps=2)(volumes, seed=0)
    assert torch.equal(outputs, BridgeSampler(again.average, bridge, steps=2)(volumes, seed=0))


def test_what_is_refused(tmp_path: Path) -> None:
    flat = tiny_unet(in_channels=1, out_channels=1, condition_channels=1)
    images = [(torch.zeros(1, 8, 8), torch.ones(1, 8, 8))] * 2
    cases: list[tuple[Network, Any, str]] = [
        (flat, Volumes(), "the network takes (B, C, H, W), and the pairs are (B, C, D, H, W), of 4 x 8 x 8"),
        (unet(), images, "the network takes (B, C, D, H, W), and the pairs are (B, C, H, W), of 8 x 8"),
        (tiny_unet(in_channels=1, out_channels=1, condition_channels=1, axes=3), Volumes(depth=3), "not a multiple of"),
    ]
    for network, data, message in cases:
        with pytest.raises(ValueError, match=re.escape(message)):
            Trainer(network, BRIDGE, TrainConfig(**SETTINGS), data, None, tmp_path)
    codec = wrap_codec(
        torch.nn.Conv2d(1, 1, 1), channels=1, stride=1, encode=lambda m, v: m(v), decode=lambda m, v: m(v)
    )
    message = re.escape("a codec is for pictures (B, C, H, W), and this network is of volumes (B, C, D, H, W)")
    with pytest.raises(ValueError, match=message):
        Trainer(unet(), BRIDGE, TrainConfig(**SETTINGS), Volumes(), None, tmp_path, codec)
    with pytest.raises(ValueError, match=message):
        BridgeSampler(unet(), BRIDGE, codec=codec)
    with pytest.raises(ValueError, match="vqgan_path is for pictures"):
        train.Train.of(dataset="paired", data_dir="A,B", output_model="m.pt", preset="volume", vqgan_path="vqgan.pt")


def test_the_preset_asks_for_crops_of_volumes() -> None:
    command = train.Train.of(dataset="paired", data_dir="A,B", output_model="m.pt", preset="volume")
    assert (PRESETS["volume"].axes, command.crop, command.channels) == (3, Crops((64, 96, 96)), 1)


def monai_network() -> Network:
    """MONAI's diffusion network of volumes, which sees the source beside the state."""
    from monai.networks import nets  # slow to import

    torch.manual_seed(0)
    sizes = {"channels": (8, 8), "num_res_blocks": 1, "attention_levels": (False, True), "num_head_channels": 8}
    module = nets.DiffusionModelUNet(3, 2, 1, norm_num_groups=4, **sizes)  # pyright: ignore

    def call(module: Any, x: torch.Tensor, t: torch.Tensor, conditions: Any) -> torch.Tensor:
        return module(torch.cat([x, conditions["source"]], 1), t)

    return wrap(module, 1, 1, stride=2, call=call, axes=3)


@pytest.mark.nightly  # MONAI takes many seconds to import
def test_monai(tmp_path: Path) -> None:
    trainer = Trainer(monai_network(), BRIDGE, TrainConfig(**SETTINGS), Volumes(), None, tmp_path / "run")
    trainer.fit()
    trainer.save(tmp_path / "model.pt")
    sampler = BridgeSampler.from_checkpoint(tmp_path / "model.pt", network=monai_network(), steps=2)
    volumes = Volumes(2).volumes[..., :7]
    outputs = sampler(volumes, seed=0)
    assert outputs.shape == volumes.shape
    average = trainer.average.requires_grad_(True)  # as of a file: PyTorch's products depend on it, by an ulp
    assert torch.equal(outputs, BridgeSampler(average, BRIDGE, steps=2)(volumes, seed=0))
    flat = wrap(torch.nn.Identity(), 1, 1, stride=2)
    with pytest.raises(ValueError, match=r"wrapped with .*'axes': 3.*; the one given has "):
        BridgeSampler.from_checkpoint(tmp_path / "model.pt", network=flat)
