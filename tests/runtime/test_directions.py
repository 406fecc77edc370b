"""An export of a network of two directions, against PyTorch."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from torch import nn

from bbdm import DDBM, ABridge, BridgeSampler, save_checkpoint
from bbdm.bridges import Bridge
from bbdm.runtime import OnnxBridgeSampler
from bbdm.runtime.__main__ import main
from tests.conftest import noise, tiny_unet
from tests.onnx.exports import export

PRECONDITIONED = DDBM(sigma_data=0.3, sigma_source=0.6, cov=0.1)
SOURCE = torch.rand(2, 3, 8, 8, generator=torch.Generator().manual_seed(0)) * 2 - 1


@pytest.mark.parametrize(("bridge", "version"), [(ABridge(50), 6), (PRECONDITIONED, 7)])
def test_an_export_goes_both_ways(bridge: Bridge, version: int, tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    unet = tiny_unet(condition_channels=3, classes={"direction": ("AtoB", "BtoA")})
    for module in unet.modules():
        if isinstance(module, nn.Embedding):
            nn.init.normal_(module.weight)
    save_checkpoint(tmp_path / "c.pt", unet.eval(), bridge, image_size=8)
    folder = export(tmp_path / "c.pt", tmp_path / "onnx", "--steps", "3", "--check")
    assert json.loads((folder / "bridge.json").read_text())["version"] == version  # which the page refuses, or reads
    exported, sampler = OnnxBridgeSampler(folder), BridgeSampler(unet, bridge, steps=3)
    for how in ({}, {"steps": 2}):
        results = [exported(SOURCE.numpy(), seed=7, direction=way, **how) for way in ("AtoB", "BtoA")]
        for way, made in zip(("AtoB", "BtoA"), results, strict=True):
            wanted = sampler(SOURCE, seed=7, direction=way, **how).numpy()
            np.testing.assert_allclose(made, wanted, atol=1e-4)
        assert np.abs(results[0] - results[1]).max() > 0.01
    noise(3, 8, 8).save(tmp_path / "x.png")
    for flags in (["--direction", "BtoA"], ["--condition", "direction=BtoA"], ["--condition", "direction=1"]):
        main([str(folder), str(tmp_path / "x.png"), "-o", str(tmp_path / "out"), "--seed", "5", *flags])
        (wanted,) = exported([tmp_path / "x.png"], 5, direction="BtoA")
        assert np.array_equal(np.asarray(Image.open(tmp_path / "out" / "x.png")), np.asarray(wanted))
    twice = ["--direction", "BtoA", "--condition", "direction=AtoB"]
    with pytest.raises(ValueError, match="direction is given twice, as BtoA and as the condition AtoB"):
        main([str(folder), str(tmp_path / "x.png"), "-o", str(tmp_path / "out"), *twice])
    if version == 7:
        with pytest.raises(ValueError, match=r"pipeline\.onnx has the steps of one direction"):
            export(tmp_path / "c.pt", tmp_path / "whole", "--pipeline")
