"""`bbdm convert-vqgan` on a small state dict of latent diffusion."""

from pathlib import Path

import pytest
import torch

from bbdm import cli
from bbdm.cli.files import ConvertVQGAN
from bbdm.files.checkpoint import load_vqgan
from bbdm.networks.vqgan import VQGAN


@pytest.fixture(scope="module")
def vqgan() -> VQGAN:
    torch.manual_seed(0)
    return VQGAN(model_channels=32, num_codes=40, num_res_blocks=1, channel_mult=(1, 2))


@pytest.fixture
def state_dict(vqgan: VQGAN, tmp_path: Path) -> Path:
    torch.save({"state_dict": {**vqgan.state_dict(), "loss.a": torch.ones(1)}}, tmp_path / "model.ckpt")
    return tmp_path / "model.ckpt"


@pytest.mark.parametrize("name", ["out.pt", "out.safetensors"])
def test_converts(name: str, vqgan: VQGAN, state_dict: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    ConvertVQGAN.main([str(state_dict), str(tmp_path / name), "-c", "3", "--assert_weights_mapping"])
    assert f"{name}: VQ-f2, 40 codes of 3 channels, images of 3 channels\n" in capsys.readouterr().out
    loaded = load_vqgan(tmp_path / name)
    assert loaded.config == vqgan.config
    assert all(torch.equal(value, vqgan.state_dict()[key]) for key, value in loaded.state_dict().items())


def test_refuses(state_dict: Path, tmp_path: Path):
    out = tmp_path / "out.pt"
    with pytest.raises(ValueError, match=r"model\.ckpt is for images of 3 channels, got in_channels 1"):
        ConvertVQGAN.main([str(state_dict), str(out), "-c", "1"])
    with pytest.raises(ValueError, match=r"ends in \.pt or \.safetensors, got .*out\.pth"):
        ConvertVQGAN.main([str(state_dict), str(tmp_path / "out.pth")])
    content = torch.load(state_dict, weights_only=True)
    del content["state_dict"]["quant_conv.bias"]
    torch.save(content, state_dict)
    with pytest.raises(ValueError, match=r"missing: quant_conv\.bias"):
        ConvertVQGAN.main([str(state_dict), str(out)])
    assert not out.exists()
    with pytest.raises(SystemExit, match=f"^error: there is no VQGAN {tmp_path / 'gone'}$"):
        cli.run("convert-vqgan", [str(tmp_path / "gone"), str(out)])
