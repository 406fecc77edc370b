"""Examples mirrored, moved, turned and scaled."""

from __future__ import annotations

import math
from typing import Any

import torch

from bbdm.data.examples import Example
from bbdm.training.augmentation import augmented
from bbdm.training.config import TrainConfig
from bbdm.training.task import sample_seeds

SEEDS = sample_seeds(0, 0, 64, torch.device("cpu"))


def changed(batch: Example, seeds: torch.Tensor = SEEDS, step: int = 0, **config: Any) -> Example:
    """A batch as the settings change it."""
    return augmented(batch, seeds, step, TrainConfig(**config))


def test_pictures_and_volumes_are_moved_together_by_whole_pixels() -> None:
    """One pixel of each goes somewhere within the shift along each axis; flips mirror the last one."""
    for sides in ((16, 12), (8, 12, 16)):
        pictures = torch.full((64, 3, *sides), -1.0)
        middle = torch.tensor(sides) // 2
        pictures[(..., *middle)] = 1.0
        y, x0, *_ = changed(Example(pictures, pictures), shift=0.25)
        assert torch.equal(y, x0)
        found = (y[:, 0] == 1).nonzero()
        assert len(found) == 64  # the pixel is there once
        assert (y == 1).sum() + (y == -1).sum() == y.numel()
        moved = found[:, 1:] - middle
        assert moved.abs().amax(0).tolist() == (torch.tensor(sides) // 4).tolist()
        assert len(moved.unique(dim=0)) > 20
        mirrored = changed(Example(pictures, pictures), flip=True).source
        columns = {tuple(place) for place in (mirrored[:, 0] == 1).nonzero()[:, 1:].tolist()}
        assert columns == {(*middle.tolist()[:-1], sides[-1] // 2 - each) for each in (0, 1)}
    white = torch.ones(64, 3, 8, 8)  # beyond a side, pictures go on as at it
    assert torch.equal(changed(Example(white, white), shift=0.5).source, white)


def test_conditions_and_masks_are_changed_with_the_pair() -> None:
    """Columns are numbered: each image says where its pixels were. A part of a batch has the same draws."""
    ramp = torch.linspace(-1, 1, 12).expand(64, 1, 16, 12).contiguous()
    batch = Example(
        ramp,
        ramp.expand(-1, 3, -1, -1).contiguous(),
        {"sar": ramp, "season": torch.arange(64)},
        ramp,
    )
    outputs = changed(batch, flip=True, shift=0.25)
    assert not torch.equal(outputs.source, ramp)
    for image in (outputs.target[:, :1], outputs.conditions["sar"], outputs.mask):
        assert torch.equal(image, outputs.source)
    assert outputs.conditions["season"] is batch.conditions["season"]
    half = changed(batch.map(lambda v: v[32:]), SEEDS[32:], flip=True, shift=0.25)
    assert torch.equal(half.source, outputs.source[32:])
    assert not torch.equal(changed(batch, SEEDS, 1, flip=True, shift=0.25).source, outputs.source)


def blobs(
    count: int, sides: tuple[int, ...], place: tuple[float, float], width: float
) -> torch.Tensor:
    """(N, 1, *sides) round blobs at a place in pixels, right and down of the middle of a plane."""
    height, across = sides[-2:]
    y = torch.arange(height) - (height - 1) / 2 - place[1]
    x = torch.arange(across) - (across - 1) / 2 - place[0]
    blob = torch.exp(-(y[:, None] ** 2 + x[None] ** 2) / (2 * width**2))
    return blob.expand(count, 1, *sides).contiguous()


def moments(pictures: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """(N, 2) centres right and down of the middle, and (N, 2, 2) covariances, in pixels, of (N, H, W)."""
    height, across = pictures.shape[-2:]
    y, x = torch.meshgrid(
        torch.arange(height) - (height - 1) / 2,
        torch.arange(across) - (across - 1) / 2,
        indexing="ij",
    )
    places = torch.stack([x, y], dim=-1).reshape(-1, 2)
    weights = pictures.flatten(1) / pictures.flatten(1).sum(dim=1, keepdim=True)
    centres = weights @ places
    offsets = places[None] - centres[:, None]
    return centres, torch.einsum("np,npi,npj->nij", weights, offsets, offsets)


def test_pictures_and_volumes_are_turned_about_the_middle_and_scaled_alike() -> None:
    """A round blob stays round in a plane that is no square, and goes as far as turn and zoom say."""
    for sides in ((64, 96), (3, 64, 96)):
        source = blobs(64, sides, (14.0, -6.0), 3.0)
        outputs = changed(Example(source, source.repeat_interleave(3, dim=1)), turn=30.0, zoom=0.25)
        assert torch.equal(outputs.target[:, 2:], outputs.source)
        plane = outputs.source.flatten(1, -3)[:, 0]
        centres, covariances = moments(plane)
        scales = centres.norm(dim=1) / math.hypot(14, 6)
        angles = torch.rad2deg(torch.atan2(centres[:, 1], centres[:, 0]) - math.atan2(-6, 14))
        assert 0.8 - 0.01 < scales.min() < 0.85
        assert 1.2 < scales.max() < 1.25 + 0.01
        assert -30.1 < angles.min() < -25
        assert 25 < angles.max() < 30.1
        widths = covariances.diagonal(dim1=1, dim2=2)
        expected = (3.0 * scales[:, None]) ** 2
        # interpolation widens by at most 1/4 of a pixel squared
        assert (widths / expected - 1).abs().max() < 0.06
        assert covariances[:, 0, 1].abs().max() < 0.15


def test_turned_masks_count_whole_pixels_and_edges_go_on() -> None:
    """A turned mask is 0 or 1, and 1 only where no pixel that does not count was mixed in."""
    values = torch.ones(64, 1, 16, 16)
    mask = torch.ones_like(values)
    mask[..., 4:8] = 0
    values[..., 4:8] = -1  # what does not count
    outputs = changed(Example(values, values, {}, mask), turn=45.0, zoom=0.5)
    assert set(outputs.mask.unique().tolist()) == {0.0, 1.0}
    assert ((outputs.source - 1).abs()[outputs.mask == 1] < 3e-3).all()
    white = torch.ones(64, 3, 8, 8)
    torch.testing.assert_close(changed(Example(white, white), turn=180.0, zoom=1.0).source, white)


def test_a_part_of_a_batch_is_turned_as_the_whole() -> None:
    values = torch.rand(64, 2, 8, 8)
    whole = changed(Example(values, values), turn=20.0, zoom=0.2).source
    part = changed(Example(values[32:], values[32:]), SEEDS[32:], turn=20.0, zoom=0.2).source
    torch.testing.assert_close(part, whole[32:])
    assert not torch.allclose(changed(Example(values, values), SEEDS, 1, turn=20.0).source, whole)
