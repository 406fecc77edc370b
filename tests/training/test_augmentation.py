"""Random changes of training pairs."""

import torch

from bbdm.data.examples import Example
from bbdm.training.augmentation import augment
from bbdm.training.config import TrainConfig
from bbdm.training.task import sample_seeds

SEEDS = sample_seeds(0, 0, 64, torch.device("cpu"))


def dots(height: int = 16, width: int = 12) -> torch.Tensor:
    """(64, 3, H, W) black pictures with a white pixel in the middle."""
    pictures = torch.full((64, 3, height, width), -1.0)
    pictures[:, :, height // 2, width // 2] = 1.0
    return pictures


def places(pictures: torch.Tensor) -> torch.Tensor:
    """(B, 2) row and column of the brightest pixel."""
    flat = pictures[:, 0].flatten(1).argmax(1)
    return torch.stack([flat // pictures.shape[-1], flat % pictures.shape[-1]], dim=1)


def test_shift_moves_source_and_target_together_by_whole_pixels() -> None:
    y, x0, *_ = augment(Example(dots(), dots()), SEEDS, 0, TrainConfig(shift=0.25))
    assert torch.equal(y, x0)
    assert y.unique().tolist() == [-1.0, 1.0]
    assert ((y == 1).sum(dim=(1, 2, 3)) == 3).all()  # the pixel is there once, in three channels
    moved = places(y) - torch.tensor([8, 6])
    assert moved.abs().amax(0).tolist() == [4, 3]  # a quarter of each side
    assert len(moved.unique(dim=0)) > 20


def test_beyond_a_side_pictures_go_on_as_at_it() -> None:
    white = torch.ones(64, 3, 8, 8)
    y = augment(Example(white, white), SEEDS, 0, TrainConfig(shift=0.5, zoom=0.5)).source
    torch.testing.assert_close(y, white)
    batch = Example(white, dots())
    same = augment(batch, SEEDS, 0, TrainConfig())  # without settings, pairs stay
    assert same[0] is batch.source
    assert same[1] is batch.target


def test_zoom_keeps_the_middle_and_changes_areas() -> None:
    pictures = torch.full((64, 3, 32, 32), -1.0)
    pictures[:, :, 8:24, 8:24] = 1.0  # a quarter of the area
    y, x0, *_ = augment(Example(pictures, pictures), SEEDS, 0, TrainConfig(zoom=0.5))
    assert torch.equal(y, x0)
    assert (y[:, :, 15:17, 15:17] > 0.99).all()
    share = ((y[:, 0] + 1) / 2).mean((1, 2))
    assert 0.25 / 1.5**2 * 0.95 < share.min() < 0.15
    assert 0.4 < share.max() < 0.25 * 1.5**2 * 1.05


def test_is_a_function_of_seed_and_step() -> None:
    config = TrainConfig(shift=0.3, zoom=0.2, flip=True)
    pairs = Example(dots(), dots())
    whole = augment(pairs, SEEDS, 5, config).source
    part = augment(Example(dots()[32:], dots()[32:]), SEEDS[32:], 5, config).source
    assert torch.equal(whole[32:], part)
    assert not torch.equal(whole, augment(pairs, SEEDS, 6, config).source)
