"""First filters that see fine detail."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from scipy.linalg import sqrtm

from bbdm import UNet
from bbdm.networks.dit import DiT
from bbdm.training.whitening import FLOOR, whiten


def network(**settings: Any) -> UNet:
    torch.manual_seed(0)
    kind = {"condition_channels": 3, "model_channels": 32, "channel_mult": (1,), "head_channels": 32}
    return UNet(**{**kind, **settings})


def photographs(count: int = 6, side: int = 32) -> list[tuple[torch.Tensor, torch.Tensor]]:
    """Whose amplitudes fall as 1 / f^2."""
    draws = torch.Generator().manual_seed(0)
    frequencies = torch.fft.fftfreq(side)
    falling = (frequencies[:, None] ** 2 + frequencies**2 + 1 / side**2) ** -1.0
    noise = torch.randn(count, 3, side, side, generator=draws)
    pictures = torch.fft.ifft2(torch.fft.fft2(noise) * falling).real
    pictures = pictures / pictures.abs().amax()
    return [(each, each) for each in pictures]


def of_source(unet: UNet) -> torch.Tensor:
    channels = 3 * unet.config.patch**2
    return unet.input_blocks[0][0].weight[:, channels : 2 * channels].detach()  # pyright: ignore


@pytest.mark.parametrize(("patch", "images"), [(1, {}), (2, {}), (2, {"sar": 2})])
def test_filters_are_random_ones_in_white_coordinates(patch: int, images: dict[str, int]):
    """By NumPy and SciPy: the second moments of what a filter sees, and their inverse square root."""
    pairs = photographs()
    unet = network(patch=patch, images=images)
    before = {name: weight.clone() for name, weight in unet.state_dict().items()}
    random = of_source(unet).flatten(1).double().numpy()
    whiten(unet, pairs)
    sources = torch.stack([source for source, _ in pairs])
    seen = torch.nn.functional.pixel_unshuffle(sources, patch).double().numpy()
    views = np.lib.stride_tricks.sliding_window_view(seen, (3, 3), axis=(2, 3))  # (B, C, H, W, 3, 3)
    patches = views.transpose(0, 2, 3, 1, 4, 5).reshape(-1, random.shape[1])
    moments = patches.T @ patches / len(patches)
    wanted = random @ np.linalg.inv(np.real(sqrtm(moments + FLOOR**2 * np.eye(len(moments)))))
    wanted /= np.sqrt(np.mean((patches @ wanted.T) ** 2))  # responses have a mean square of 1
    np.testing.assert_allclose(of_source(unet).flatten(1).numpy(), wanted, rtol=1e-4, atol=1e-4)
    changed = {name for name, weight in unet.state_dict().items() if not weight.equal(before[name])}
    assert changed == {"input_blocks.0.0.weight"}
    first, channels = unet.state_dict()["input_blocks.0.0.weight"], 3 * patch**2
    for others in (slice(channels), slice(2 * channels, None)):
        assert first[:, others].equal(before["input_blocks.0.0.weight"][:, others])


def test_they_see_detail():
    """The share of detail, which is what a mean of 5 x 5 leaves, in the responses' variance."""
    pairs = photographs()
    sources = torch.stack([source for source, _ in pairs])
    detail = sources - torch.nn.functional.avg_pool2d(sources, 5, 1, 2)

    def share(unet: UNet) -> float:
        parts = [torch.nn.functional.conv2d(x, of_source(unet)).square().mean() for x in (detail, sources)]
        return float(parts[0] / parts[1])

    unet = network()
    assert share(unet) < 0.1
    whiten(unet, pairs)
    assert share(unet) > 0.5


@pytest.mark.parametrize(
    "other", [network(condition_channels=0), DiT(width=32, depth=1, heads=1, channels=3, condition="channels")]
)
def test_other_networks_are_refused(other: Any):
    with pytest.raises(ValueError, match="filters are whitened of a UNet that sees the source"):
        whiten(other, photographs())
