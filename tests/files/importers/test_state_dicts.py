"""State dicts, whose shapes do not determine all settings."""

from dataclasses import replace
from pathlib import Path

import pytest
import torch

from bbdm.files.checkpoint import load_checkpoint, load_vqgan
from bbdm.files.importers import shapes
from bbdm.networks.config import UNETS
from bbdm.networks.unet import UNet
from bbdm.networks.vqgan import VQGAN
from tests.files.importers.common import expected, fill, images, save, small_vqgan


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
    assert shapes.unet_config(expected(UNet, preset), **known) == replace(preset, attention_resolutions=reached)


@pytest.mark.filterwarnings("error")
def test_state_dict_of_our_small_vqgan(tmp_path: Path):
    vqgan = fill(VQGAN.from_preset("demo"))
    loaded = load_vqgan(save(vqgan.state_dict(), tmp_path / "a.pt"))
    assert loaded.config == vqgan.config
    assert torch.equal(loaded.encode(images(1, 3, 16, 16)), vqgan.encode(images(1, 3, 16, 16)))


def test_a_warning_names_what_is_assumed(tmp_path: Path):
    unet = UNet(model_channels=64, channel_mult=(1,), num_res_blocks=1, head_channels=32, num_groups=16)
    path = save(unet.state_dict(), tmp_path / "a.pt")
    with pytest.warns(UserWarning, match="none of the presets: head_channels=64, num_groups=32 assumed"):
        load_checkpoint(path, num_steps=100, c_lambda=1.0)
    path = save(small_vqgan(num_groups=16).state_dict(), tmp_path / "b.pt")
    with pytest.warns(UserWarning, match="none of the presets: num_groups=32 assumed"):
        load_vqgan(path)
