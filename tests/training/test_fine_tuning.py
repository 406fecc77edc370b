"""Copying the weights of a trained network into another."""

from pathlib import Path
from typing import Any

import pytest
import torch

from bbdm import ABridge, load_checkpoint, save_checkpoint
from bbdm.files.content import Checkpoint
from bbdm.networks.unet import UNet
from bbdm.training.fine_tuning import FIRST, copy_weights
from tests.conftest import TINY, tiny_unet


def checkpoint(path: Path, unet: UNet, ema: UNet | None = None) -> Checkpoint:
    save_checkpoint(path, unet, ABridge(), ema=ema)
    return load_checkpoint(path)


@pytest.mark.parametrize("average", [False, True])
def test_weights_are_those_of_the_file_and_averaged_ones_first(average: bool, tmp_path: Path):
    first, second, unet = (tiny_unet(seed) for seed in range(3))
    assert copy_weights(unet, checkpoint(tmp_path / "a.pt", first, second if average else None)) == []
    wanted = (second if average else first).state_dict()
    assert all(torch.equal(value, wanted[key]) for key, value in unet.state_dict().items())
    assert all(p.is_contiguous(memory_format=torch.channels_last) for p in unet.parameters() if p.ndim == 4)


def test_a_condition_that_is_new_changes_nothing_at_first(tmp_path: Path):
    trained, unet = tiny_unet(0), tiny_unet(1, condition_channels=3)
    lines = copy_weights(unet, checkpoint(tmp_path / "a.pt", trained))
    assert lines == [f"{FIRST} begins at zero for 3 new input channels"]
    x, t = torch.randn(2, 3, 8, 8), torch.tensor([1, 500])
    torch.testing.assert_close(unet(x, t, {"source": torch.randn(2, 3, 8, 8)}), trained(x, t))


@pytest.mark.parametrize("before", [{}, {"condition_channels": 3}, {"condition_channels": 3, "images": {"dem": 1}}])
def test_what_is_told_anew_changes_nothing_at_first(before: dict[str, Any], tmp_path: Path):
    """With patches too; a class and tokens begin without influence."""
    now = {**before, "images": {**before.get("images", {}), "sar": 2}, "patch": 2, "classes": {"style": 3}}
    trained, unet = tiny_unet(0, **before, patch=2), UNet(**TINY, **now)
    copy_weights(unet, checkpoint(tmp_path / "a.pt", trained))
    x, t = torch.randn(2, 3, 8, 8), torch.tensor([1, 500])
    seen = {name: torch.randn(2, count, 8, 8) for name, count in trained.conditions.items()}
    told = {**seen, "sar": torch.randn(2, 2, 8, 8), "style": torch.tensor([0, 2])}
    torch.testing.assert_close(unet(x, t, told), trained(x, t, seen))


@pytest.mark.parametrize(
    ("before", "now"),
    [
        ({"condition_channels": 3, "images": {"sar": 2}}, {"condition_channels": 3, "images": {"dem": 1, "sar": 2}}),
        ({"condition_channels": 3}, {"in_channels": 1, "condition_channels": 1}),  # fewer
        ({"condition_channels": 3}, {"condition_channels": 0}),
        ({"in_channels": 1}, {"in_channels": 3}),  # more, but not of a condition
    ],
    ids=["an image before others", "grey", "no condition", "colour"],
)
def test_a_convolution_of_another_shape_is_left_and_named(before: dict[str, Any], now: dict[str, Any], tmp_path: Path):
    trained, unet = tiny_unet(0, **before), tiny_unet(1, **now)
    initial = unet.state_dict()[FIRST].clone()
    lines = copy_weights(unet, checkpoint(tmp_path / "a.pt", trained))
    shapes = [tuple(network.state_dict()[FIRST].shape) for network in (unet, trained)]
    assert lines == [f"{FIRST} is left as initialised: its shape is {shapes[0]}, the checkpoint's {shapes[1]}"]
    assert torch.equal(unet.state_dict()[FIRST], initial)
    others = [key for key in unet.state_dict() if key != FIRST]
    assert all(torch.equal(unet.state_dict()[key], trained.state_dict()[key]) for key in others)


def test_layers_that_only_one_of_them_has_are_named(tmp_path: Path):
    trained, unet = tiny_unet(0), tiny_unet(1, attention_resolutions=())
    lines = copy_weights(unet, checkpoint(tmp_path / "a.pt", trained))
    keys, before = unet.state_dict().keys(), trained.state_dict().keys()
    new, gone = sorted(keys - before), sorted(before - keys)
    assert new
    assert gone
    assert lines == [
        *(f"{key} is left as initialised: the checkpoint has none" for key in new),
        *(f"{key} has no place in this network" for key in gone),
    ]


def test_another_network_is_refused_and_changes_nothing(tmp_path: Path):
    unet = tiny_unet(1)
    before = {key: value.clone() for key, value in unet.state_dict().items()}
    with pytest.raises(ValueError, match=r"only \d+ of \d+ weights fit: of another network \(preset\), UNetConf"):
        copy_weights(unet, checkpoint(tmp_path / "a.pt", tiny_unet(0, model_channels=16)))
    assert all(torch.equal(value, before[key]) for key, value in unet.state_dict().items())
