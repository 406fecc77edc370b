"""The UNet of volumes (B, C, D, H, W), against that of pictures and against formulas."""

from __future__ import annotations

import re
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from bbdm import UNet
from bbdm.kernels.group_norm_silu import group_norm_silu
from bbdm.kernels.upsample_conv import upsample, upsample_conv3x3
from bbdm.networks.config import UNETS, UNetConfig
from bbdm.networks.layers import shuffled, unshuffled
from tests.conftest import TINY

VARIANTS: dict[str, dict[str, Any]] = {
    "residual": {},
    "convolutions": {"residual_resampling": False, "scale_shift": False},
    "anisotropic": {"strides": ((1, 2, 2),)},
    "anisotropic convolutions": {"strides": ((1, 2, 2),), "residual_resampling": False},
}


def network(**settings: Any) -> UNet:
    """A network none of whose weights are 0."""
    torch.manual_seed(0)
    made = UNet(1, 1, **{**TINY, "condition_channels": 1, **settings})
    for weight in made.parameters():
        nn.init.normal_(weight, std=0.2)
    return made


@pytest.mark.parametrize("variant", VARIANTS)
def test_slices_that_are_alike(variant: str) -> None:
    """A volume of one slice many times, and kernels that see a slice alone: the result of the 2-D network."""
    settings = VARIANTS[variant]
    flat, deep = network(**{**settings, "strides": None}), network(axes=3, **settings)
    assert deep.state_dict().keys() == flat.state_dict().keys()
    for (_, one), (_, other) in zip(flat.named_parameters(), deep.named_parameters(), strict=True):
        with torch.no_grad():
            other.zero_()
            middle = other[:, :, other.shape[2] // 2] if other.ndim == 5 else other
            middle.copy_(one)
    x, y = torch.randn(2, 2, 1, 8, 12).unbind()
    t = torch.tensor([3.0, 70.0])
    with torch.no_grad():
        wanted = flat(x, t, {"source": y})[:, :, None].expand(-1, -1, 4, -1, -1)
        x, y = (v[:, :, None].expand_as(wanted) for v in (x, y))
        made = deep(x, t, {"source": y})
    torch.testing.assert_close(made, wanted, atol=2e-5, rtol=1e-4)


def test_axes_are_alike() -> None:
    """Kernels and volume turned: the result is turned, whatever is along the axes."""
    unet = network(axes=3)
    turned = network(axes=3)
    with torch.no_grad():
        for one, other in zip(unet.parameters(), turned.parameters(), strict=True):
            other.copy_(one.permute(0, 1, 4, 2, 3) if one.ndim == 5 else one)
        x, y = torch.randn(2, 1, 1, 4, 6, 8).unbind()
        wanted = unet(x, torch.ones(1), {"source": y}).permute(0, 1, 4, 2, 3)
        made = turned(x.permute(0, 1, 4, 2, 3), torch.ones(1), {"source": y.permute(0, 1, 4, 2, 3)})
    torch.testing.assert_close(made, wanted, atol=2e-5, rtol=1e-4)


def test_patches() -> None:
    """A patch of voxels is what a convolution with a kernel for each of them reads."""
    x = torch.randn(2, 3, 4, 6, 2)
    kernels = torch.eye(24).view(24, 3, 2, 2, 2)
    assert torch.equal(unshuffled(x, 2), F.conv3d(x, kernels, stride=2))
    assert torch.equal(shuffled(unshuffled(x, 2), 2), x)
    unet = network(axes=3, patch=2)
    assert unet.stride == 4
    x = torch.randn(1, 1, 4, 4, 8)
    assert unet(x, torch.ones(1), {"source": x}).shape == x.shape


@pytest.mark.parametrize(("last", "compiled"), [(False, False), (True, False), (True, True)])
def test_norm(last: bool, compiled: bool) -> None:
    x, weight, bias = torch.randn(2, 8, 3, 4, 5), torch.randn(2, 8), torch.randn(1, 8)
    x = x.to(memory_format=torch.channels_last_3d) if last else x
    op = torch.compile(group_norm_silu, backend="aot_eager", fullgraph=True) if compiled else group_norm_silu
    made = op(x, 4, weight, bias)
    one = (..., None, None, None)
    torch.testing.assert_close(made, F.silu(F.group_norm(x, 4) * weight[one] + bias[one]))
    if last:
        assert made.is_contiguous(memory_format=torch.channels_last_3d)


@pytest.mark.parametrize(("factors", "compiled"), [((2, 2, 2), False), ((1, 2, 2), False), ((1, 2, 2), True)])
def test_upsampling(factors: tuple[int, ...], compiled: bool) -> None:
    x, weight, bias = torch.randn(2, 3, 2, 3, 4, requires_grad=True), torch.randn(5, 3, 3, 3, 3), torch.randn(5)

    def op(*arguments: Any) -> torch.Tensor:  # of its own: each function is compiled a few times at most
        return upsample_conv3x3(*arguments)

    op = torch.compile(op, backend="aot_eager", fullgraph=True) if compiled else op
    wanted = x
    for axis, factor in enumerate(factors, 2):
        wanted = wanted.repeat_interleave(factor, axis)
    assert torch.equal(upsample(x, factors), wanted)
    wanted = F.conv3d(wanted, weight, bias, padding=1)
    torch.testing.assert_close(op(x, weight, bias, factors), wanted, atol=1e-5, rtol=1e-5)
    with torch.no_grad():
        torch.testing.assert_close(op(x, weight, bias, factors), wanted, atol=1e-5, rtol=1e-5)


def test_bfloat16() -> None:
    """Within what 8 bits allow of float32: a CPU lacks some ops of volumes in bfloat16."""
    unet = network(axes=3, strides=((2, 2, 2),)).eval()
    x = torch.randn(1, 1, 4, 8, 8)
    with torch.no_grad():
        wanted = unet(x, torch.ones(1), {"source": x})
        made = unet.bfloat16()(x.bfloat16(), torch.ones(1), {"source": x.bfloat16()}).float()
    assert (made - wanted).norm() < 0.05 * wanted.norm()


def test_preset() -> None:
    with torch.device("meta"):
        unet = UNet.from_preset("volume")
    assert sum(weight.numel() for weight in unet.parameters()) <= 20e6
    assert not {"axes", "strides"} & UNetConfig().description().keys()
    assert UNetConfig(**UNETS["volume"].description()) == UNETS["volume"]
    assert UNetConfig(channel_mult=(1, 4, 8), strides=((2, 1), (2, 2))).stride == (4, 2)
    assert (unet.axes, unet.stride, unet.strides) == (3, (4, 8, 8), (4, 8, 8))
    assert [size % step for size, step in zip((64, 96, 96), unet.strides, strict=True)] == [0, 0, 0]


@pytest.mark.parametrize(
    ("shape", "message"),
    [
        ((1, 1, 8, 8), "x must be (B, 1, D, H, W), got shape (1, 1, 8, 8)"),
        ((1, 1, 3, 8, 8), "x must have depth, height and width that are multiples of 2, got 3 x 8 x 8"),
    ],
)
def test_other_axes(shape: tuple[int, ...], message: str) -> None:
    with pytest.raises(ValueError, match=re.escape(message)):
        network(axes=3)(torch.zeros(shape), torch.ones(1), {"source": torch.zeros(shape)})
