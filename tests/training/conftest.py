"""The data of runs in several processes, and the same run in one."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from bbdm.networks.unet_config import PRESETS, UNetConfig
from examples import train
from tests.conftest import TINY, SavePicture
from tests.training.launching import arguments


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory, save_picture: SavePicture) -> Path:
    """20 training pairs, and 5 to validate: batches of 2, 2 and 1 in two processes."""
    folder = tmp_path_factory.mktemp("data")
    generator = np.random.default_rng(0)
    for index in range(25):
        pixels = generator.integers(0, 256, (16, 32, 3), dtype=np.uint8)
        save_picture(folder / ("train" if index < 20 else "val") / f"{index:02d}.png", Image.fromarray(pixels))
    return folder


@pytest.fixture(scope="module")
def alone(data: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The output of one process."""
    output = tmp_path_factory.mktemp("alone") / "model.pt"
    with pytest.MonkeyPatch.context() as monkeypatch:
        monkeypatch.setitem(PRESETS, "demo", UNetConfig(condition_channels=3, **TINY))
        train.main(arguments(data, output))
    return output
