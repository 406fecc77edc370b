"""State dicts, whose shapes do not determine all settings; files of no importer, or that fill memory."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from bbdm.files.checkpoint import load_checkpoint, load_vqgan
from bbdm.files.importers import states
from bbdm.networks.config import UNETS, VQGANS, UNetConfig
from bbdm.networks.unet import UNet
from bbdm.networks.vqgan import VQGAN
from tests.files.importers.common import (
    assert_same_autoencoder,
    expected,
    fill,
    images,
    refused,
    save,
    small_vqgan,
)


@pytest.mark.filterwarnings("error")
@pytest.mark.parametrize("name", ["demo", "demo-residual"])
def test_state_dict_of_our_small_unet(tmp_path: Path, name: str):
    """On latents without a condition; its blocks, and its patches, are the preset's."""
    config = replace(UNETS[name], in_channels=4, out_channels=4, condition_channels=0)
    unet = fill(UNet.from_config(config))
    loaded = load_checkpoint(save(unet.state_dict(), tmp_path / "a.pt"), num_steps=100, c_lambda=1.0)
    assert loaded.unet.config == config
    x, t = images(1, 4, 16, 16), torch.ones(1)
    assert torch.equal(loaded.build_unet()(x, t), unet(x, t))


@pytest.mark.filterwarnings("error")
@pytest.mark.parametrize("name", [name for name, config in UNETS.items() if config.axes == 2])  # as those of others
def test_shapes_of_a_presets_unet(name: str):
    preset, known = UNETS[name], {"dropout": UNETS[name].dropout}
    levels = [2**level for level in range(len(preset.channel_mult))]
    reached = tuple(value for value in levels if value in preset.attention_resolutions)
    assert states.unet_config(expected(UNet, preset), **known) == replace(preset, attention_resolutions=reached)


@pytest.mark.filterwarnings("error")
def test_state_dict_of_our_small_vqgan(tmp_path: Path):
    vqgan = fill(VQGAN.from_preset("demo"))
    assert_same_autoencoder(load_vqgan(save(vqgan.state_dict(), tmp_path / "a.pt")), vqgan)


def test_a_warning_names_what_is_assumed(tmp_path: Path):
    unet = UNet(model_channels=64, channel_mult=(1,), num_res_blocks=1, head_channels=32, num_groups=16)
    path = save(unet.state_dict(), tmp_path / "a.pt")
    with pytest.warns(UserWarning, match="none of the presets: head_channels=64, num_groups=32 assumed"):
        load_checkpoint(path, num_steps=100, c_lambda=1.0)
    path = save(small_vqgan(num_groups=16).state_dict(), tmp_path / "b.pt")
    with pytest.warns(UserWarning, match="none of the presets: num_groups=32 assumed"):
        load_vqgan(path)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ([1, 2], "it is a list with no UNets in it; wanted: a checkpoint, module or network of sde-bbdm"),
        ({"a": torch.ones(2), "b": 1}, r"it is a dict of 2 entries \('a', 'b'\) with no UNets"),
        (nn.Linear(1, 1), "it is a torch.nn.modules.linear.Linear with no UNets"),
        ({"input_blocks.0.0.weight": 1}, r"it is a dict of 1 entries \('input_blocks\.0\.0\.weight'\) with no UNets"),
        ({"input_blocks.0.0.weight": torch.ones(3)}, "does not state its num_steps or c_lambda"),
        ({f"{p}.input_blocks.0.0.weight": torch.ones(1) for p in "ab"}, "with 2 UNets in it"),
        ({"m_t": torch.ones(3)}, "give config="),
    ],
)
def test_something_else(content: Any, message: str, tmp_path: Path):
    refused(save(content, tmp_path / "a.pt"), message)


def test_weights_that_are_not_floating_point(tmp_path: Path):
    state = {key: value.long() for key, value in UNet(channel_mult=(2,), model_channels=32).state_dict().items()}
    refused(save(state, tmp_path / "a.pt"), "no floating point numbers: ", num_steps=100, c_lambda=1.0)


@pytest.mark.parametrize("reader", [load_checkpoint, load_vqgan])
def test_tensors_that_share_their_storage(reader: Any, tmp_path: Path):
    """A small file that would build a network many times its size."""
    unet = UNet, UNetConfig(model_channels=64, channel_mult=(1,), num_res_blocks=50)
    wanted = expected(*(unet if reader is load_checkpoint else (VQGAN, VQGANS["demo"])))
    shared = torch.zeros(max(value.numel() for value in wanted.values()))
    path = save({k: shared[: v.numel()].view(v.shape) for k, v in wanted.items()}, tmp_path / "a.pt")
    arguments = {"num_steps": 100, "c_lambda": 1.0} if reader is load_checkpoint else {}
    refused(path, r"its tensors are of \d+ bytes, and only \d+ are stored", reader, **arguments)
