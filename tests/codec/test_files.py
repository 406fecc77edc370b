"""Files of autoencoders: those of diffusers, our own, and what is neither."""

import json
import sys
from pathlib import Path

import pytest
import safetensors.torch
import torch

from bbdm import (
    ABridge,
    DiffusersCodec,
    VQGANCodec,
    load_checkpoint,
    load_codec,
    load_vqgan,
    save_checkpoint,
    save_vqgan,
)
from tests.codec.autoencoders import tiny_kl
from tests.codec.test_every_codec import IMAGE, SUFFIXES, saved
from tests.conftest import tiny_unet
from tests.networks.test_vqgan import tiny_vqgan

WEIGHTS = "diffusion_pytorch_model.safetensors"


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A folder that diffusers wrote."""
    tiny_kl().save_pretrained(tmp_path / "kl")
    return tmp_path / "kl"


def test_a_folder_of_diffusers(folder: Path):
    expected = DiffusersCodec(tiny_kl())
    for path in (folder, folder / WEIGHTS):
        codec = load_codec(path)
        assert codec.config() == expected.config()
        torch.testing.assert_close(codec.latents(IMAGE), expected.latents(IMAGE), rtol=0, atol=0)


def test_weights_in_float16_and_of_old_versions(folder: Path):
    expected = DiffusersCodec(tiny_kl().half().float())
    old = {"to_q": "query", "to_k": "key", "to_v": "value", "to_out.0": "proj_attn"}
    state = safetensors.torch.load_file(folder / WEIGHTS)
    for new, name in old.items():
        state = {key.replace(f".{new}.", f".{name}."): value.half() for key, value in state.items()}
    assert "encoder.mid_block.attentions.0.proj_attn.weight" in state
    (folder / WEIGHTS).unlink()
    safetensors.torch.save_file(state, folder / "vae.fp16.safetensors")
    codec = load_codec(folder / "vae.fp16.safetensors")
    assert codec.dtype == torch.float32
    torch.testing.assert_close(codec.latents(IMAGE), expected.latents(IMAGE), rtol=0, atol=0)


def test_folders_that_hold_no_autoencoder(folder: Path, tmp_path: Path):
    config = json.loads((folder / "config.json").read_text())
    (folder / WEIGHTS).rename(folder / "diffusion_pytorch_model.bin")
    with pytest.raises(FileNotFoundError, match=rf"no {WEIGHTS} in .*kl, which is all that is read"):
        load_codec(folder)
    (folder / "diffusion_pytorch_model.bin").rename(folder / WEIGHTS)
    (folder / "config.json").write_text(json.dumps({**config, "_class_name": "UNet2DModel"}))
    with pytest.raises(ValueError, match="of a 'UNet2DModel', and an AutoencoderKL is wanted"):
        load_codec(folder)
    (folder / "config.json").write_text("{")
    with pytest.raises(ValueError, match=r"cannot read .*config\.json as a config of an autoencoder"):
        load_codec(folder)
    (folder / "config.json").unlink()
    with pytest.raises(FileNotFoundError, match=r"there is no config\.json of an autoencoder in .*kl$"):
        load_codec(folder / WEIGHTS)
    with pytest.raises(FileNotFoundError, match="there is no VQGAN"):
        load_codec(tmp_path / "none.safetensors")


def test_without_diffusers(folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    path = saved(tmp_path / "bridge.pt", DiffusersCodec(tiny_kl()))
    monkeypatch.setitem(sys.modules, "diffusers", None)
    for load in (lambda: load_codec(folder), lambda: load_checkpoint(path)):
        with pytest.raises(
            ModuleNotFoundError, match=r"kind 'kl' needs diffusers, .*: pip install 'bbdm\[diffusers\]'"
        ):
            load()


@pytest.mark.parametrize("suffix", SUFFIXES)
def test_vqgan_round_trip(suffix: str, tmp_path: Path):
    vqgan = tiny_vqgan(eps=1e-5, projects_attention=False)
    save_vqgan(tmp_path / f"vqgan{suffix}", vqgan)
    loaded, codec = load_vqgan(tmp_path / f"vqgan{suffix}"), load_codec(tmp_path / f"vqgan{suffix}")
    assert loaded.config == vqgan.config
    assert not loaded.training
    assert all(torch.equal(value, loaded.state_dict()[key]) for key, value in vqgan.state_dict().items())
    assert codec.description() == VQGANCodec(vqgan).description()


@pytest.mark.parametrize("suffix", SUFFIXES)
def test_one_kind_of_file_is_not_the_other(suffix: str, tmp_path: Path):
    bridge, vqgan = tmp_path / f"bridge{suffix}", tmp_path / f"vqgan{suffix}"
    save_checkpoint(bridge, tiny_unet(), ABridge())
    assert load_checkpoint(bridge).build_codec() is None
    save_vqgan(vqgan, tiny_vqgan())
    with pytest.raises(ValueError, match=r"cannot read .* as a VQGAN"):
        load_vqgan(bridge)
    with pytest.raises(ValueError, match=r"cannot read .* as a checkpoint"):
        load_checkpoint(vqgan)
    with pytest.raises(FileNotFoundError, match="there is no VQGAN"):
        load_vqgan(tmp_path / "none.pt")
    with pytest.raises(ValueError, match=r"ends in \.pt or \.safetensors"):
        save_vqgan(tmp_path / "vqgan.bin", tiny_vqgan())
