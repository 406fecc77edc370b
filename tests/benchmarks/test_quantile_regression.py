"""Quantile regression as a peer of calibrated samples, on networks and pictures too small to be good."""

import json
from itertools import count
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch

from bbdm import BridgeSampler, BrownianBridge, UNet, load_checkpoint, save_checkpoint
from benchmarks import quantile_regression
from tests.conftest import SavePicture, load_pairs, save_random_pairs, tiny_unet


def test_the_loss_is_least_at_quantiles_and_mean():
    """Of constants that are 0.02 apart against 1,000 values, whose quantiles are PyTorch's."""
    values = torch.randn(1000, generator=torch.Generator().manual_seed(0))
    tried = torch.linspace(-2, 2, 201)
    wanted = [values.quantile(0.1), values.mean(), values.quantile(0.9)]
    for place, expected in enumerate(wanted):
        predicted = torch.zeros(len(tried), 3, 1, 1, 1000)
        predicted[:, place] = tried[:, None, None, None]
        found = quantile_regression.loss(predicted, values.expand(len(tried), 1, 1, -1), 0.2)
        assert abs(tried[found.argmin()] - expected) < 0.021


def test_a_value_is_at_the_end_of_the_interval_of_its_lambda():
    low, middle, high = predicted = np.array([[-0.5, 0.1, 0.2], [0.0, 0.3, 0.2], [0.25, 0.9, 0.2]])
    target = np.array([-0.75, 0.6, 0.2 - 1 / 255])
    excess, half = quantile_regression.compared(predicted, target)
    assert excess == pytest.approx([1.5, 0.5, 1])  # the last has no width, and gets half a level on both sides
    ends = np.where(target < middle, middle - excess * (middle - low), middle + excess * (high - middle))
    assert ends[:2] == pytest.approx(target[:2])
    assert half == pytest.approx([0.375, 0.4, 1 / 255])


@pytest.mark.nightly
def test_it_begins_as_the_mean_of_a_bridge_trains_and_is_kept(
    tmp_path: Path, save_picture: SavePicture, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
):
    data = save_random_pairs(tmp_path / "data", 20, 24, save_picture, 8)
    bridge = BrownianBridge(objective="pinned", density="high")
    save_checkpoint(tmp_path / "c.pt", tiny_unet(condition_channels=3, patch=2), bridge, image_size=8)
    words = [str(data), "", "--init_from", str(tmp_path / "c.pt"), "--alpha", "0.3", "--splits", "3", "-lr", "0.01"]
    words += ["--calibrating", "12", "--seconds"]

    def run(name: str, seconds: str) -> tuple[dict, dict]:
        words[1] = str(tmp_path / f"{name}.json")
        quantile_regression.main([*words, seconds])
        return json.loads(Path(words[1]).read_text()), torch.load(tmp_path / f"{name}.pt", weights_only=True)

    report, kept = run("none", "0")
    assert report["steps"] == 0
    sampler = BridgeSampler.from_checkpoint(tmp_path / "c.pt", solver="mean")
    sources, targets = map(torch.stack, zip(*load_pairs("edge2shoes", str(data), "val", size=8), strict=True))
    error = (sampler(sources) - targets).square().flatten(1).mean(1)
    assert report["psnr"] == pytest.approx((10 * torch.log10(4 / error)).tolist(), abs=1e-3)

    ticks = count()  # a clock of 20 steps a second
    monkeypatch.setattr(quantile_regression, "time", SimpleNamespace(process_time=lambda: next(ticks) / 20))
    monkeypatch.setitem(quantile_regression.RECIPE, "warmup_steps", 0)
    trained, weights = run("some", "2")
    assert np.mean(trained["psnr"]) > np.mean(report["psnr"]) + 0.2
    assert trained["pairs"] == 16 * trained["steps"] > 0
    assert any(not torch.equal(value, weights["weights"][name]) for name, value in kept["weights"].items())
    for each in trained["splits"]["regression:hoeffding-bentkus"]:
        assert 0 < each["risk"] <= 0.3  # pictures of noise are alike
    assert "| regression | conformal | " in capsys.readouterr().out
    monkeypatch.setattr(quantile_regression, "train", None)
    assert run("some", "2")[0] == trained
    with pytest.raises(SystemExit, match="name another file"):
        run("some", "3")


def test_without_weights_it_is_the_network_of_the_preset():
    unet, bridge = quantile_regression.build(None)
    assert (unet.config.out_channels, unet.config.in_channels, bridge.density) == (9, 3, "high")


def test_a_bridge_is_trained_by_the_same_recipe(tmp_path: Path, save_picture: SavePicture):
    data = save_random_pairs(tmp_path / "data", 2, 2, save_picture, 64)
    quantile_regression.main([str(data), str(tmp_path / "bridge.pt"), "--bridge", "--seconds", "0"])
    made = load_checkpoint(tmp_path / "bridge.pt")
    assert (made.bridge.density, made.bridge.objective, made.image_size) == ("high", "pinned", 64)
    assert made.unet.config == UNet.presets["demo"]
