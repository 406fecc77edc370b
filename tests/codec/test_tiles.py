"""Large images in tiles: exact where the network sees single values, and without seams where it sees more."""

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from bbdm.codec import Tiling, VQGANCodec
from bbdm.networks.windows import Windows
from tests.networks.test_vqgan import tiny_vqgan


def pooled(image: Tensor) -> Tensor:
    """An encoder of stride 4 in which a value sees its own pixels alone."""
    return F.avg_pool2d(image, 4)


def repeated(latents: Tensor) -> Tensor:
    """A decoder of stride 4 likewise."""
    return latents.repeat_interleave(4, -1).repeat_interleave(4, -2)


@pytest.mark.parametrize("size", [(32, 36), (100, 64), (8, 400)], ids=str)
@pytest.mark.parametrize("overlap", [0, 3, 8])
def test_a_network_of_single_values_is_unchanged_by_tiles(size: tuple[int, int], overlap: int):
    shapes: set[tuple[int, ...]] = set()
    image, tiling = torch.rand(3, 3, *size), Tiling(side=16, overlap=overlap)

    def seen(image: Tensor) -> Tensor:
        shapes.add(tuple(image.shape))
        return pooled(image)

    latents = tiling.map(seen, image, 3, 1, 4)
    torch.testing.assert_close(latents, pooled(image), rtol=0, atol=1e-6)
    torch.testing.assert_close(tiling.map(repeated, latents, 3, 4, 1), repeated(latents), rtol=0, atol=1e-6)
    assert shapes == {(3, 3, min(16, size[0]), 16)}


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


def test_shares_fall_linearly_to_the_edges_of_tiles():
    """Of two tiles of 8 pixels that share 4, in cells of 2: at 1 and at 3 of the 4 pixels."""
    np.testing.assert_allclose(Windows(12, 8, (0, 4)).ramps(2), [[1, 1, 0.75, 0.25], [0.25, 0.75, 1, 1]])


@pytest.mark.parametrize(("overlap", "least", "most"), [(16, 0, 1), (0, 1.5, 10)], ids=["blended", "hard"])
def test_blended_tiles_have_no_seams(overlap: int, least: float, most: float):
    """Steps of pixels across the borders of tiles, beside steps elsewhere."""
    y, x = torch.arange(32)[:, None], torch.arange(160)
    waves = torch.stack([torch.sin(x / 17 + phase) * torch.cos(y / 23 - phase) for phase in range(12)])
    codec = VQGANCodec(tiny_vqgan())
    latents = codec.latents(waves.view(4, 3, 32, 160))
    codec.tiling = Tiling(side=32, overlap=overlap)
    image = codec.image(latents)
    steps = (image[..., 1:] - image[..., :-1]).abs().mean((0, 1, 2))[1::2]  # between pixels of two latents
    border = torch.zeros(len(steps), dtype=torch.bool)
    border[[column // 2 - 1 for column in range(32 - overlap, 160, 32 - overlap)]] = True
    assert least <= steps[border].mean() / steps[~border].mean() <= most
