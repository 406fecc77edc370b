"""Bridges in latents, sampled and masked; large images in tiles, without seams."""

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from bbdm import ABridge, BridgeSampler, wrap
from bbdm.codec import LatentStatistics, Tiling, VQGANCodec
from bbdm.networks.windows import Windows
from tests.conftest import tiny_unet
from tests.networks.test_vqgan import tiny_vqgan

BRIDGE = ABridge(num_steps=50)
SOURCE = torch.rand(3, 3, 8, 8, generator=torch.Generator().manual_seed(5)) * 2 - 1
STATISTICS = LatentStatistics((0.1, -0.2, 0.3), (8.0, 2.0, 6.0), (0.4, 0.0, -0.1), (0.7, 1.1, 3.0))


@pytest.fixture
def sampler() -> BridgeSampler:
    codec = VQGANCodec(tiny_vqgan()).with_statistics(STATISTICS)
    return BridgeSampler(tiny_unet(), ABridge(), "sde-dpm2m", 4, codec=codec)


def test_a_latent_sampler_is_encode_sample_decode(sampler: BridgeSampler):
    codec = sampler.codec
    assert codec is not None
    made, steps = sampler(SOURCE, seed=3), list(sampler.stream(SOURCE, seed=3))
    plain = BridgeSampler(tiny_unet(), ABridge(), "sde-dpm2m", 4).stream(
        codec.encode(SOURCE, "source"), seed=3
    )
    for step, expected in zip(steps, plain, strict=True):
        torch.testing.assert_close(step.x, expected.x, rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(codec.decode(steps[-1].x).clamp(-1, 1), made, rtol=1e-4, atol=1e-4)


def test_sizes_are_padded_and_cropped(sampler: BridgeSampler):
    source = torch.rand(2, 3, 9, 6) * 2 - 1  # the strides of both networks together are 4
    padded = torch.nn.functional.pad(source, (0, 2, 0, 3), mode="replicate")
    made = sampler(source, seed=0)
    assert made.shape == source.shape
    torch.testing.assert_close(made, sampler(padded, seed=0)[..., :9, :6], rtol=1e-4, atol=1e-4)
    assert sampler(source, noise=torch.randn(4, 2, 3, 6, 4)).shape == source.shape
    with pytest.raises(
        ValueError,
        match=r"noise must be a tensor of shape \(4, 2, 3, 6, 4\), got \(4, 2, 3, 9, 6\)",
    ):
        sampler(source, noise=torch.randn(4, 2, 3, 9, 6))


def test_a_sampler_takes_large_pictures_in_tiles():
    codec, shapes = VQGANCodec(tiny_vqgan()), set[tuple[int, ...]]()
    codec.tiling = Tiling(side=8, overlap=4)
    encoder, decoder = codec.encoder, codec.decoder
    codec.encoder = lambda image: shapes.add(tuple(image.shape)) or encoder(image)
    codec.decoder = lambda latents: shapes.add(tuple(latents.shape)) or decoder(latents)
    made = BridgeSampler(tiny_unet(), BRIDGE, steps=2, codec=codec)(
        -torch.ones(1, 3, 30, 20), seed=0
    )
    assert made.shape == (1, 3, 30, 20)
    assert shapes == {(1, 3, 8, 8), (1, 3, 4, 4)}


def test_a_mask_makes_each_latent_that_it_touches():
    """One pixel of a mask makes its latent as without a mask, and leaves the others as the source's."""
    torch.manual_seed(0)
    codec = VQGANCodec(tiny_vqgan())
    pointwise = nn.Conv2d(6, 3, 1)  # each position sees itself alone
    network = wrap(
        pointwise,
        3,
        3,
        call=lambda module, x, t, given: module(torch.cat([x, given["source"]], dim=1)),
    )
    sampler = BridgeSampler(network, ABridge(50), "sde-dpm2m", 4, codec=codec)
    y = torch.rand(1, 3, 16, 16) * 2 - 1
    mask = torch.zeros(1, 1, 16, 16)
    mask[:, :, 5, 6] = 1
    (*_, whole), (*_, part) = (sampler.stream(y, seed=1, mask=each) for each in (None, mask))
    source, row, column = codec.encode(y, "source"), 5 // codec.stride, 6 // codec.stride
    wanted = source.clone()
    wanted[..., row, column] = whole.x[..., row, column]
    assert not torch.equal(wanted, source)
    torch.testing.assert_close(part.x, wanted, rtol=1e-4, atol=1e-4)
    result = sampler(y, seed=1, mask=mask)
    assert torch.equal(torch.where(mask == 0, result, y), y), "what the codec lost is there again"


# Large images in tiles


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
    torch.testing.assert_close(
        tiling.map(repeated, latents, 3, 4, 1), repeated(latents), rtol=0, atol=1e-6
    )
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
    np.testing.assert_allclose(
        Windows(12, 8, (0, 4)).ramps(2), [[1, 1, 0.75, 0.25], [0.25, 0.75, 1, 1]]
    )


@pytest.mark.parametrize(
    ("overlap", "least", "most"), [(16, 0, 1), (0, 1.5, 10)], ids=["blended", "hard"]
)
def test_blended_tiles_have_no_seams(overlap: int, least: float, most: float):
    """Steps of pixels across the borders of tiles, beside steps elsewhere."""
    y, x = torch.arange(32)[:, None], torch.arange(160)
    waves = torch.stack(
        [torch.sin(x / 17 + phase) * torch.cos(y / 23 - phase) for phase in range(12)]
    )
    codec = VQGANCodec(tiny_vqgan())
    latents = codec.latents(waves.view(4, 3, 32, 160))
    codec.tiling = Tiling(side=32, overlap=overlap)
    image = codec.image(latents)
    # between pixels of two latents
    steps = (image[..., 1:] - image[..., :-1]).abs().mean((0, 1, 2))[1::2]
    border = torch.zeros(len(steps), dtype=torch.bool)
    border[[column // 2 - 1 for column in range(32 - overlap, 160, 32 - overlap)]] = True
    assert least <= steps[border].mean() / steps[~border].mean() <= most
