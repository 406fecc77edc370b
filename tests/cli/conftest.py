"""What tests of several commands use: a small world of pairs and a checkpoint."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from bbdm import ABridge, BridgeSampler, save_checkpoint
from tests.conftest import SavePicture, save_random_pairs, tiny_unet

SIZE = 16


@pytest.fixture
def world(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, save_picture: SavePicture) -> Path:
    """Pairs in data/, 00 to 03 for training, 04 to 06 for validation; c.pt; the working directory."""
    save_random_pairs(tmp_path / "data", 4, 3, save_picture)
    save_checkpoint(tmp_path / "c.pt", tiny_unet(), ABridge(num_steps=100), image_size=SIZE)
    monkeypatch.chdir(tmp_path)
    return tmp_path


def pixels(path: Path | str) -> np.ndarray[Any, Any]:
    """A picture's levels, whose differences have a sign."""
    return np.asarray(Image.open(path), dtype=int)


def sides(name: str) -> tuple[Image.Image, np.ndarray[Any, Any]]:
    """The source and the target of a validation pair of the world."""
    pair = Image.open(f"data/val/{name}.png")
    return pair.crop((0, 0, SIZE, SIZE)), np.asarray(pair, dtype=int)[:, SIZE:]


@pytest.fixture
def count(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """The number of pictures of each call of the sampler."""
    calls: list[int] = []
    original = BridgeSampler.__call__

    def counted(self: BridgeSampler, source: Any, *args: Any, **settings: Any) -> Any:
        calls.append(len(source))
        return original(self, source, *args, **settings)

    monkeypatch.setattr(BridgeSampler, "__call__", counted)
    return calls
