"""State dicts, whose shapes do not determine all settings; VQGANs of latent diffusion."""

import argparse
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from bbdm.bridges import ABridge
from bbdm.files.checkpoint import load_checkpoint, load_vqgan
from bbdm.files.importers import states
from bbdm.networks.config import UNETS, VQGANS
from bbdm.networks.unet import UNet
from bbdm.networks.vqgan import VQGAN
from tests.files.importers.common import (
    LATENT,
    expected,
    fill,
    images,
    peers_blocked,
    refused,
    save,
    small_vqgan,
)


@pytest.mark.filterwarnings("error")
def test_settings_of_published_networks():
    for name in ("paper", "bbdm", "lbbdm-f8", "lbbdm-f16"):
        preset = UNETS[name]
        reached = tuple(n for n in (1, 2, 4) if n in preset.attention_resolutions)
        assert states.unet_config(expected(UNet, preset)) == replace(
            preset, attention_resolutions=reached
        )
    for name in ("vq-f4", "vq-f8", "vq-f16"):
        assert states.vqgan_config(expected(VQGAN, VQGANS[name])) == VQGANS[name]


def test_a_warning_names_what_is_assumed(tmp_path: Path):
    """Of two values of a name, the one that is nearer to the network counts."""
    unet = fill(UNet(model_channels=64, channel_mult=(1,), num_res_blocks=1))
    module = {"time_steps": 100, "c_lambda": 1.5, "network": unet.state_dict()}
    path = save({"time_steps": 7, "module": module, "c_lambda": 3.0}, tmp_path / "a.pt")
    with pytest.warns(UserWarning, match="heads of their network are, .*: 64 channels assumed"):
        loaded = load_checkpoint(path)
    assert loaded.bridge == ABridge(100, 1.5)
    x, t = images(1, 3, 16, 16), torch.ones(1)
    assert torch.equal(loaded.build_unet()(x, t), unet(x, t))


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (
            [1, 2],
            "it is a list with no UNets in it; wanted: a checkpoint, module or network of sde-bbdm",
        ),
        ({"a": torch.ones(2), "b": 1}, r"it is a dict of 2 entries \('a', 'b'\) with no UNets"),
        (nn.Linear(1, 1), "it is a torch.nn.modules.linear.Linear with no UNets"),
        ({"input_blocks.0.0.weight": torch.ones(3)}, "does not state its num_steps or c_lambda"),
        ({f"{p}.input_blocks.0.0.weight": torch.ones(1) for p in "ab"}, "with 2 UNets in it"),
        ({"m_t": torch.ones(3)}, "give config="),
        (
            dict.fromkeys("abcdefghi", 1),
            r"it is a dict of 9 entries \('a', .*, 'h', \.\.\.\) with no UNets",
        ),
    ],
)
def test_no_network(content: Any, message: str, tmp_path: Path):
    refused(save(content, tmp_path / "a.pt"), message)


def test_weights_that_are_not_floating_point(tmp_path: Path):
    state = {
        key: value.long()
        for key, value in UNet(channel_mult=(2,), model_channels=32).state_dict().items()
    }
    with pytest.warns(UserWarning, match="assumed"):
        refused(
            save(state, tmp_path / "a.pt"),
            "no floating point numbers: ",
            num_steps=100,
            c_lambda=1.0,
        )


def test_tensors_that_share_their_storage(tmp_path: Path):
    """A small file that would build a network many times its size."""
    wanted = expected(VQGAN, VQGANS["vq-f4"])
    shared = torch.zeros(max(value.numel() for value in wanted.values()))
    path = save(
        {k: shared[: v.numel()].view(v.shape) for k, v in wanted.items()}, tmp_path / "a.pt"
    )
    refused(path, r"its tensors are of \d+ bytes, and only \d+ are stored", load_vqgan)


@pytest.mark.parametrize(
    ("prefix", "name"), [*zip(["", "first_stage_model.", "vqgan."], LATENT, strict=True)]
)
def test_a_full_checkpoint_of_latent_diffusion(name: str, prefix: str, tmp_path: Path):
    vqgan = small_vqgan(**LATENT[name])
    state = {f"{prefix}{key}": value for key, value in vqgan.state_dict().items()}
    state[f"{prefix}loss.discriminator.main.0.weight"] = torch.ones(3)
    state["model_ema.decay"] = torch.ones(())
    if prefix:
        state["model.diffusion_model.time_embed.0.weight"] = torch.ones(2, 2)
        state["cond_stage_model.quantize.embedding.weight"] = torch.ones(2, 2)
    content = {
        "state_dict": state,
        "epoch": 3,
        "callbacks": {argparse.Namespace: argparse.Namespace(a=1)},
    }
    with peers_blocked():
        loaded = load_vqgan(save(content, tmp_path / "last.ckpt"))
    assert (loaded.config, loaded.training) == (vqgan.config, False)
    torch.testing.assert_close(loaded.state_dict(), vqgan.state_dict(), rtol=0, atol=0)


OTHER = {"zeta": torch.ones(1), "decoder.conv_in.weight": torch.ones(64, 3, 1, 1)}
WRONG = {
    key: value for key, value in small_vqgan().state_dict().items() if key != "quant_conv.bias"
} | OTHER


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (
            WRONG,
            r"missing: quant_conv\.bias; extra: zeta; of another shape: decoder\.conv_in\.weight \(64, 3, 1, 1\)",
        ),
        (
            {"a": torch.ones(1)},
            r"a dict of 1 entries \('a'\) with no codebooks in it; wanted: a VQGAN of latent",
        ),
        (
            {f"{p}.quantize.embedding.weight": torch.ones(1, 1) for p in "ab"},
            "with 2 codebooks in it",
        ),
    ],
)
def test_no_vqgan(content: Any, message: str, tmp_path: Path):
    refused(save(content, tmp_path / "a.pt"), message, load_vqgan)
