"""Files of autoencoders: those of diffusers, our own, and what is neither."""

import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

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
State = dict[str, torch.Tensor]


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A folder that diffusers wrote."""
    tiny_kl().save_pretrained(tmp_path / "kl")
    return tmp_path / "kl"


def edited(folder: Path, edit: Callable[[State], object]) -> Path:
    state = safetensors.torch.load_file(folder / WEIGHTS)
    edit(state)
    safetensors.torch.save_file(state, folder / WEIGHTS, {"format": "pt"})
    return folder


def old(state: State) -> None:
    """The names of attention before diffusers 0.15, in float16."""
    names = {"to_q": "query", "to_k": "key", "to_v": "value", "to_out.0": "proj_attn"}
    for key in list(state):
        name = next((key.replace(f".{new}.", f".{old}.") for new, old in names.items() if f".{new}." in key), key)
        state[name] = state.pop(key).half()
    assert "encoder.mid_block.attentions.0.proj_attn.weight" in state


def test_a_folder_of_diffusers(folder: Path):
    for edit, expected in ((dict, tiny_kl()), (old, tiny_kl().half().float())):
        codec, own = load_codec(edited(folder, edit)), DiffusersCodec(expected)
        assert (codec.config(), codec.dtype) == (own.config(), torch.float32)
        torch.testing.assert_close(codec.latents(IMAGE), own.latents(IMAGE), rtol=0, atol=0)


def test_folders_that_hold_no_autoencoder(folder: Path, tmp_path: Path):
    cases: list[tuple[Callable[[State], Any], str]] = [
        (lambda state: state.pop("quant_conv.bias"), r"missing_keys': \['quant_conv.bias'\]"),
        (lambda state: state.update(more=torch.ones(1)), r"unexpected_keys': \['more'\]"),
    ]
    for edit, message in cases:
        with pytest.raises(ValueError, match=f"cannot read .*kl as a codec: .*{message}"):
            load_codec(edited(folder, edit))
    for name in (WEIGHTS, "config.json"):
        (folder / name).unlink()
        with pytest.raises(OSError, match=f"no file named {name} found"):
            load_codec(folder)
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
def test_our_own_vqgan(suffix: str, tmp_path: Path):
    vqgan, path = tiny_vqgan(), tmp_path / f"vqgan{suffix}"
    save_vqgan(path, vqgan)
    loaded = load_vqgan(path)
    assert (loaded.config, loaded.training) == (vqgan.config, False)
    assert all(torch.equal(value, loaded.state_dict()[key]) for key, value in vqgan.state_dict().items())
    assert load_codec(path).description() == VQGANCodec(vqgan).description()
    bridge = tmp_path / f"bridge{suffix}"
    save_checkpoint(bridge, tiny_unet(), ABridge())
    with pytest.raises(ValueError, match=r"cannot read .* as a VQGAN"):
        load_vqgan(bridge)
    with pytest.raises(ValueError, match=r"cannot read .* as a checkpoint"):
        load_checkpoint(path)
