"""A network of volumes as an export, and what the runtime makes of it without PyTorch."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from bbdm import BridgeSampler, save_checkpoint
from bbdm.runtime import OnnxBridgeSampler
from tests.conftest import tiny_unet
from tests.onnx.exports import BRIDGE, export

pytestmark = pytest.mark.nightly  # exports take half a minute each
SOURCE = torch.rand(2, 1, 5, 10, 7, generator=torch.Generator().manual_seed(1)) * 2 - 1
SETTINGS: dict[str, Any] = {
    "in_channels": 1,
    "out_channels": 1,
    "condition_channels": 1,
    "axes": 3,
    "strides": ((1, 2, 2),),
}


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("model") / "volume.pt"
    save_checkpoint(path, tiny_unet(**SETTINGS, patch=2), BRIDGE, image_size=(4, 8, 8), solver="sde-dpm2m", steps=3)
    return path


@pytest.fixture(scope="module")
def folder(model: Path) -> Path:
    """The export, whose graphs and results were compared with PyTorch's: unet, step by step, pipeline."""
    return export(model, model.parent / "onnx", "--pipeline", "--check")


def test_the_runtime(model: Path, folder: Path) -> None:
    exported, sampler = OnnxBridgeSampler(folder), BridgeSampler.from_checkpoint(model)
    assert (exported.axes, exported.image_size) == (3, (4, 8, 8))
    assert (exported.settings["version"], exported.settings["stride"]) == (6, [2, 4, 4])
    mask = (SOURCE > 0).float()
    calls: list[dict[str, Any]] = [{}, {"window": (4, 8, 4)}, {"mask": mask}]
    for settings in calls:
        wanted = sampler(SOURCE, seed=[3, 5], **settings).numpy()
        given: dict[str, Any] = dict(settings)
        if "mask" in given:
            given["mask"] = mask.numpy()
        made = exported(SOURCE.numpy(), seed=[3, 5], **given)
        assert np.abs(made - wanted).max() <= 1e-4 * np.abs(wanted).max()
    with pytest.raises(ValueError, match=r"non-empty \(B, 1, D, H, W\) batch, got shape \(1, 2, 1, 10, 7\)"):
        exported(SOURCE[:, :, 0].numpy())
