"""Pictures of several requests in one call."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from bbdm import ABridge, BridgeSampler, save_checkpoint
from bbdm.cli import serve
from bbdm.serving.batching import Item, Made, translate_together
from bbdm.serving.requests import FAILED, RequestError, facts
from tests.conftest import tiny_unet
from tests.serving.pictures import SIZE, picture


def test_requests_of_several_kinds_are_not_mixed():
    """Each picture is what a sampler makes of it alone, with its own solver, steps and seed."""
    sampler = BridgeSampler(tiny_unet(condition_channels=3), ABridge(num_steps=50))
    kinds = [("ddim", 2), ("sde-dpm2m", 3), (None, None), ("ancestral", 3), ("ddim", 2), ("ddim", 3)]
    shapes = [(16, 16), (24, 8)]
    items = [Item(np.asarray(picture(i, shapes[i % 2])), *kinds[i % 6], seed=i) for i in range(12)]
    made = translate_together(sampler, items, 8)
    batches: list[int] = []
    for item, result in zip(items, made, strict=True):
        if isinstance(result, RequestError):
            assert (item.solver, result.status) == ("ancestral", 422)
            assert "ancestral" in str(result)
            continue
        alone = sampler([item.pixels], seed=item.seed, solver=item.solver, steps=item.steps)[0]
        assert np.abs(result.pixels.astype(int) - alone.astype(int)).max() <= 1
        batches.append(result.batch)
    assert batches == [4, 2, 2, 4, 2] * 2


def test_pictures_by_windows_are_those_of_the_sampler(tmp_path: Path):
    path = tmp_path / "c.pt"
    save_checkpoint(path, tiny_unet(condition_channels=3), ABridge(num_steps=50))
    config = serve.parse([str(path), "--window", "16", "--margin", "2", "--steps", "2"])
    sampler = config.sampler(path, "cpu")
    source = picture(0, (24, 40))
    (made,) = translate_together(sampler, [Item(np.asarray(source), None, None, 5)], 8, **config.call)
    assert isinstance(made, Made)
    for window, same in ((16, True), (None, False)):
        alone = sampler(source, seed=5, window=window, margin=2)[0]
        assert (np.abs(made.pixels.astype(int) - np.asarray(alone, int)).max() <= 1) == same
    with pytest.raises(ValueError, match="window must be a multiple of the network's stride 2, got 15"):
        facts(serve.parse([str(path), "--window", "15"]))


def test_a_lack_of_memory_fails_the_pictures_of_one_size(caplog: pytest.LogCaptureFixture):
    def sampler(sources: list[Any], **_: Any) -> list[Any]:
        if sources[0].shape[0] > SIZE:
            raise torch.OutOfMemoryError("CUDA out of memory")
        return sources

    pictures = [np.asarray(picture(size=(SIZE, height))) for height in (SIZE, 2 * SIZE, 8)]
    made = translate_together(sampler, [Item(pixels, None, None, 0) for pixels in pictures], 8)
    good, bad, other = made
    assert isinstance(good, Made)
    assert isinstance(other, Made)
    assert isinstance(bad, RequestError)
    assert (bad.status, str(bad)) == (500, FAILED)
    assert "CUDA out of memory" in caplog.text
