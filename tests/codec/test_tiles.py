"""Large images in tiles: exact where the network sees single values, and without seams where it sees more."""

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from bbdm.codec import Tiling, VQGANCodec
from tests.networks.test_vqgan import tiny_vqgan

SMALL = Tiling(whole=32 * 32, side=32, overlap=16)


def pooled(image: Tensor) -> Tensor:
    """An encoder of stride 4 in which a value sees its own pixels alone."""
    return F.avg_pool2d(image, 4)


def repeated(latents: Tensor) -> Tensor:
    """A decoder of stride 4 likewise."""
    return latents.repeat_interleave(4, -1).repeat_interleave(4, -2)


def picture(height: int, width: int, count: int = 1) -> Tensor:
    """Slow waves in [-1, 1]."""
    y, x = torch.arange(height)[:, None], torch.arange(width)
    waves = [torch.sin(x / 17 + phase) * torch.cos(y / 23 - phase) for phase in range(3 * count)]
    return torch.stack(waves).view(count, 3, height, width)


@pytest.mark.parametrize("size", [(32, 36), (100, 64), (36, 132), (8, 400)], ids=str)
@pytest.mark.parametrize("overlap", [0, 3, 8, 16])
def test_a_network_of_single_values_is_unchanged_by_tiles(size: tuple[int, int], overlap: int):
    shapes: list[tuple[int, ...]] = []
    image = torch.rand(3, 3, *size)

    def seen(image: Tensor) -> Tensor:
        shapes.append(tuple(image.shape))
        return pooled(image)

    tiling = Tiling(whole=32 * 32, side=32, overlap=overlap, images=2)
    latents = tiling.map(seen, image, 3, 1, 4)
    torch.testing.assert_close(latents, pooled(image), rtol=0, atol=1e-6)
    torch.testing.assert_close(tiling.map(repeated, latents, 3, 4, 1), repeated(latents), rtol=0, atol=1e-6)
    tile = min(32, size[0]), min(32, size[1])
    assert set(shapes) == {(1, 3, *tile)} if tile == (32, 32) else {(2, 3, *tile), (1, 3, *tile)}
    assert len(shapes) > 3


def test_tiles_overlap_and_stay_inside():
    at: list[tuple[int, int]] = []
    rows, columns = torch.meshgrid(torch.arange(80), torch.arange(112), indexing="ij")
    image = torch.stack([rows, columns])[None].float()

    def seen(image: Tensor) -> Tensor:
        at.append((int(image[0, 0, 0, 0]), int(image[0, 1, 0, 0])))
        return pooled(image)

    Tiling(whole=32 * 32, side=32, overlap=8).map(seen, image, 2, 1, 4)
    # Tiles of 32 that overlap by 8 or more: 3 in 80 pixels, 5 in 112 (4 reach 32 + 3 * 24 = 104 pixels).
    assert sorted({y for y, _ in at}) == [0, 24, 48]
    assert sorted({x for _, x in at}) == [0, 20, 40, 60, 80]
    assert len(at) == 15


def test_what_is_taken_at_once():
    def taken(shape: tuple[int, ...], stride: int = 1) -> list[tuple[int, ...]]:
        shapes: list[tuple[int, ...]] = []

        def encode(part: Tensor) -> Tensor:
            shapes.append(tuple(part.shape))
            return part.new_empty(*part.shape[:2], *(side // stride for side in part.shape[2:]))

        Tiling().map(encode, torch.empty(shape, device="meta"), 3, 1, stride)
        return shapes

    assert taken((40, 3, 64, 64)) == [(16, 3, 64, 64), (16, 3, 64, 64), (8, 3, 64, 64)]
    assert taken((3, 3, 1024, 512)) == [(2, 3, 1024, 512), (1, 3, 1024, 512)]
    assert taken((1, 3, 1024, 1024)) == [(1, 3, 1024, 1024)]
    assert set(taken((5, 3, 1024, 1028), 4)) == {(4, 3, 512, 512), (1, 3, 512, 512)}


def steps(made: Tensor, places: list[int], stride: int) -> tuple[float, float]:
    """Mean absolute steps between latents' pixels in a row: before these columns, and elsewhere."""
    difference = (made[..., 1:] - made[..., :-1]).abs().mean((0, 1, 2))[stride - 1 :: stride]
    border = torch.zeros(len(difference), dtype=torch.bool)
    border[[place // stride - 1 for place in places]] = True
    return difference[border].mean().item(), difference[~border].mean().item()


def test_blended_tiles_have_no_seams():
    codec = VQGANCodec(tiny_vqgan())
    latents = codec.latents(picture(32, 128, 4))
    codec.tiling = SMALL
    across, elsewhere = steps(codec.image(latents), [16, 32, 48, 64, 80, 96, 112], 2)
    assert across <= elsewhere
    codec.tiling = Tiling(whole=32 * 32, side=32, overlap=0)
    hard, elsewhere = steps(codec.image(latents), [32, 64, 96], 2)
    assert hard > 1.5 * elsewhere


def test_what_cannot_be():
    with pytest.raises(ValueError, match=r"whole must be at least a tile's 1048576 pixels, got 100"):
        Tiling(whole=100, side=1024)
    with pytest.raises(ValueError, match="overlap must be at most half of side=64, got 33"):
        Tiling(side=64, overlap=33)
    with pytest.raises(ValueError, match="images must be at least 1, got 0"):
        Tiling(images=0)
    with pytest.raises(ValueError, match=r"\(3, 16, 16\) must become \(3, 4, 4\) values, got \(3, 16, 16\)"):
        Tiling().map(lambda image: image, torch.zeros(2, 3, 16, 16), 3, 1, 4)
