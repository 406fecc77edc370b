"""VQGANs of latent diffusion, whose keys are ours, and of the A-Bridge scripts, which have others."""

import argparse
from pathlib import Path
from typing import Any

import pytest
import torch

from bbdm.files.checkpoint import load_vqgan
from bbdm.files.importers import states
from bbdm.networks.config import VQGANS
from bbdm.networks.vqgan import VQGAN
from tests.files.importers.common import (
    LATENT,
    assert_same_autoencoder,
    expected,
    peers_blocked,
    refused,
    save,
    seed_vqgan,
    small_vqgan,
)

PREFIXES = ["", "first_stage_model.", "vqgan."]


@pytest.mark.parametrize("kind", ["zip", "legacy", "state dict"])
def test_the_scripts_vqgan(kind: str, tmp_path: Path):
    ours, seed = seed_vqgan()
    content = seed.state_dict() if kind == "state dict" else seed
    loaded = load_vqgan(save(content, tmp_path / "vqgan.model", kind != "legacy"))
    assert (loaded.config.eps, loaded.config.projects_attention) == (1e-5, False)
    assert (loaded.config.channel_mult, loaded.config.num_codes, loaded.config.stride) == ((1, 2, 3), 40, 4)
    assert_same_autoencoder(loaded, ours)


def test_the_scripts_keys_that_do_not_fit(tmp_path: Path):
    state = seed_vqgan()[1].state_dict()
    del state["encoder.mid_blocks.1.q.bias"]
    state["decoder.up.0.block.0.block.9.weight"] = torch.ones(1)
    message = r"missing: encoder\.mid\.attn_1\.q\.bias; extra: decoder\.up\.0\.block\.0\.block\.9\.weight$"
    refused(save(state, tmp_path / "a.pt"), message, load_vqgan)


class TestLatentDiffusion:
    @pytest.mark.parametrize("name", ["vq-f4", "vq-f8", "vq-f16"])
    def test_settings_from_shapes(self, name: str):
        assert states.vqgan_config(expected(VQGAN, VQGANS[name])) == VQGANS[name]

    @pytest.mark.parametrize(("prefix", "name"), [*zip(PREFIXES, LATENT, strict=True)])
    def test_full_checkpoint(self, name: str, prefix: str, tmp_path: Path):
        vqgan = small_vqgan(**LATENT[name])
        state = {f"{prefix}{key}": value for key, value in vqgan.state_dict().items()}
        state[f"{prefix}loss.discriminator.main.0.weight"] = torch.ones(3)
        state["model_ema.decay"] = torch.ones(())
        if prefix:
            state["model.diffusion_model.time_embed.0.weight"] = torch.ones(2, 2)
            state["cond_stage_model.quantize.embedding.weight"] = torch.ones(2, 2)
        content = {"state_dict": state, "epoch": 3, "callbacks": {argparse.Namespace: argparse.Namespace(a=1)}}
        with peers_blocked():
            assert_same_autoencoder(load_vqgan(save(content, tmp_path / "last.ckpt")), vqgan)

    def test_every_missing_and_extra_key_is_listed(self, tmp_path: Path):
        state = small_vqgan().state_dict()
        for key in ("quant_conv.bias", "encoder.conv_out.weight"):
            del state[key]
        state |= {"zeta": torch.ones(1), "alpha": torch.ones(1), "decoder.conv_in.weight": torch.ones(64, 3, 1, 1)}
        wanted = (
            r"missing: encoder\.conv_out\.weight, quant_conv\.bias; extra: alpha, zeta; "
            r"of another shape: decoder\.conv_in\.weight \(64, 3, 1, 1\) \(wanted \(64, 3, 3, 3\)\)$"
        )
        refused(save(state, tmp_path / "a.pt"), wanted, load_vqgan)

    @pytest.mark.parametrize(
        ("content", "message"),
        [
            ({"a": torch.ones(1)}, r"a dict of 1 entries \('a'\) with no codebooks in it; wanted: a VQGAN of latent"),
            ({"quantize.embedding.weight": 3}, r"\('quantize\.embedding\.weight'\) with no codebooks"),
            ({f"{p}.quantize.embedding.weight": torch.ones(1, 1) for p in "ab"}, "with 2 codebooks in it"),
        ],
    )
    def test_something_else(self, content: Any, message: str, tmp_path: Path):
        refused(save(content, tmp_path / "a.pt"), message, load_vqgan)
