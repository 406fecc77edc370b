"""The UNet: its settings, its shapes, what a time is, and volumes against pictures."""

from __future__ import annotations

import json
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from bbdm.kernels.group_norm_silu import group_norm_silu
from bbdm.kernels.upsample_conv import upsample, upsample_conv3x3
from bbdm.networks.config import UNETS, UNetConfig
from bbdm.networks.layers import shuffled, unshuffled
from bbdm.networks.unet import UNet
from tests.conftest import TINY, MakeUNet


def state(batch: int = 2, channels: int = 3, height: int = 8, width: int = 8, seed: int = 0) -> torch.Tensor:
    return torch.randn(batch, channels, height, width, generator=torch.Generator().manual_seed(seed))


# Settings


@pytest.mark.parametrize(
    ("name", "parameters"),
    [
        ("paper", 237_091_331),
        ("bbdm", 237_091_331 + 3 * 9 * 128),  # three more input channels of the first 3x3 convolution
        ("lbbdm-f4", 237_091_331),
        ("lbbdm-f8", 237_091_331 + 9 * 128 + 9 * 128 + 1),  # one more channel in, and one more out with its bias
    ],
)
def test_presets(name: str, parameters: int) -> None:
    """Keys and values of the paper's network are compared with the public one's, in tests/peers."""
    with torch.device("meta"):
        assert sum(p.numel() for p in UNet.from_preset(name).parameters()) == parameters
        assert UNet(3, 3).config == UNETS["paper"]
    with pytest.raises(ValueError, match=r"preset must be one of \[.*'demo'.*\], got 'big'"):
        UNet.from_preset("big")


def test_the_preset_of_volumes() -> None:
    with torch.device("meta"):
        unet = UNet.from_preset("volume")
    assert sum(weight.numel() for weight in unet.parameters()) <= 20e6
    assert UNetConfig(**json.loads(json.dumps(unet.description()))) == UNETS["volume"]  # lists are tuples again
    assert (unet.axes, unet.stride, unet.strides) == (3, (4, 8, 8), (4, 8, 8))
    assert UNetConfig(channel_mult=(1, 4, 8), strides=((2, 1), (2, 2))).stride == (4, 2)


@pytest.mark.parametrize("value", [-1, 2.0, True])
def test_integers(value: Any) -> None:
    least = dict.fromkeys(["in_channels", "out_channels", "model_channels", "num_res_blocks", "head_channels"], 1)
    for name, lowest in {**least, "num_groups": 1, "patch": 1, "condition_channels": 0}.items():
        wanted = f"at least {lowest}" if value == -1 else "of integers"
        for each, reason in [(value, wanted), (0, "at least 1")][: 1 + lowest]:
            given: dict[str, Any] = {name: each}
            with pytest.raises(ValueError, match=f"{name} must be {reason}, got {each}"):
                UNetConfig(**given)


LEVELS = {"channel_mult": (1, 3), "num_groups": 4}


@pytest.mark.parametrize(
    ("settings", "reason"),
    [
        ({"channel_mult": ()}, "channel_mult must have a number for each level"),
        ({"channel_mult": (1, 0)}, r"channel_mult must be at least 1, got \(1, 0\)"),
        ({"channel_mult": [1.0]}, r"channel_mult must be of integers, got \(1.0,\)"),
        *(({"dropout": value}, rf"dropout must be in \[0, 1\), got {value}") for value in (float("nan"), 1.0, -0.5)),
        ({"num_groups": 24}, "128 channels wide, not a multiple of num_groups=24"),
        ({"head_channels": 96}, "attention.* 1024 channels.* 96"),
        ({**LEVELS, "attention_resolutions": (1,), "head_channels": 96}, "attention.* 128 channels.* 96"),
        ({**LEVELS, "model_channels": 15, "num_groups": 5}, "model_channels must be even, got 15"),
        ({"axes": 4}, "axes must be 2, of pictures, or 3, of volumes, got 4"),
        ({"axes": 3, "strides": ((2, 2),) * 2}, "strides must be 2 tuples of 3 numbers, each 1 or 2, got"),
        ({"strides": ((2, 3), (2, 2))}, r"strides must be 2 tuples of 2 numbers, .* got \(\(2, 3\), \(2, 2\)\)"),
        ({"strides": ((2, 2),)}, r"strides must be 2 tuples of 2 numbers, each 1 or 2, got \(\(2, 2\),\)"),
    ],
    ids=str,
)
def test_settings_that_are_refused(settings: dict[str, Any], reason: str) -> None:
    with pytest.raises(ValueError, match=reason):
        UNetConfig(**settings)


@pytest.mark.parametrize(("levels", "stride"), [((1,), 1), ((1, 2), 2), ((1, 2, 4, 4), 8)], ids=str)
def test_stride(levels: tuple[int, ...], stride: int) -> None:
    """Of lists too, which become tuples."""
    assert UNetConfig(channel_mult=levels).stride == stride
    assert UNetConfig(channel_mult=levels, patch=2).stride == 2 * stride
    listed: Any = list(levels)
    assert hash(UNetConfig(channel_mult=listed)) == hash(UNetConfig(channel_mult=levels))


# Predictions


@pytest.mark.parametrize(("batch", "height", "width"), [(1, 8, 8), (2, 2, 2), (3, 4, 10), (0, 8, 8)])
def test_shape(batch: int, height: int, width: int, make_unet: MakeUNet) -> None:
    """Of any size; channels_last, whatever comes in."""
    unet = make_unet(in_channels=4, out_channels=2, condition_channels=1)
    x, condition = state(batch, 4, height, width), state(batch, 1, height, width)
    out = unet(x, torch.ones(batch), {"source": condition})
    assert out.shape == (batch, 2, height, width)
    assert not batch or out.is_contiguous(memory_format=torch.channels_last)
    assert torch.equal(out, unet(x.to(memory_format=torch.channels_last), torch.ones(batch), {"source": condition}))
    assert not UNet(**TINY)(state(), torch.tensor([1, 7])).any()  # before training it predicts zero


def test_patches_are_channels_of_a_plain_network(make_unet: MakeUNet) -> None:
    """Channels in the order of the picture's channel, the row and the column in the patch."""

    def channels(x: torch.Tensor) -> torch.Tensor:
        return torch.stack([x[:, c, i::2, j::2] for c in range(x.shape[1]) for i in (0, 1) for j in (0, 1)], 1)

    patched = make_unet(condition_channels=1, patch=2)
    plain = make_unet(in_channels=12, out_channels=12, condition_channels=4)
    plain.load_state_dict(patched.state_dict())
    x, condition, t = state(), state(channels=1, seed=1), torch.tensor([1, 20])
    out = patched(x, t, {"source": condition})
    torch.testing.assert_close(channels(out), plain(channels(x), t, {"source": channels(condition)}))


@pytest.mark.parametrize(
    ("expected", "x", "conditions", "reason"),
    [
        (3, state(), None, "condition 'source' is missing: this network has 'source'"),
        (0, state(), {"source": state()}, "conditions of this network are none, got 'source'"),
        (
            3,
            state(),
            {"source": state(channels=1)},
            r"'source' must have 3 channels, got \(2, 1, 8, 8\) of torch.float32",
        ),
        (0, state()[:, :, None], None, r"x must be \(B, 3, H, W\), got shape \(2, 3, 1, 8, 8\)"),
        (3, state(), {"source": state(), "sar": state()}, r"are 'source' \(3 channels\), got 'sar'"),
        (3, state(), state(), "must be a mapping of names to values, such as {'source': y}, got a Tensor"),
        (0, state(channels=4), None, "x must have 3 channels, got 4"),
        (0, state(height=7), None, "height and width that are multiples of 2, got 7 x 8"),
        (0, state(width=7), None, "multiples of 2, got 8 x 7"),
    ],
)
def test_inputs_that_are_refused(expected: int, x: Any, conditions: Any, reason: str, make_unet: MakeUNet) -> None:
    with pytest.raises(ValueError, match=reason):
        make_unet(condition_channels=expected)(x, torch.tensor([1, 7]), conditions)


def test_late_times_stay_apart_in_half_precision(make_unet: MakeUNet) -> None:
    """Cosines, then sines. bfloat16 rounds 999 to 1000, and the frequencies: so angles are in float32."""
    for dtype in (torch.int32, torch.float32, torch.float64):
        unet = make_unet()
        assert torch.equal(unet(state(), torch.tensor([5, 900], dtype=dtype)), unet(state(), torch.tensor([5, 900])))
    unet = make_unet().to(torch.bfloat16)
    seen: list[torch.Tensor] = []
    unet.time_embed.register_forward_pre_hook(lambda _, inputs: seen.append(inputs[0]))
    assert unet(state(1).to(torch.bfloat16), torch.tensor([999])).dtype == torch.bfloat16
    angles = 999 * 10000.0 ** (-torch.arange(4, dtype=torch.float64) / 4)
    wanted = torch.cat([angles.cos(), angles.sin()])
    torch.testing.assert_close(seen[0][0].double(), wanted, rtol=0, atol=2**-8)  # half a unit of bfloat16 below 1


@pytest.mark.parametrize("settings", [{}, {"dropout": 0.3}, {"axes": 3, "strides": ((1, 2, 2),)}], ids=str)
def test_gradient_checkpointing_changes_no_gradient(settings: dict[str, Any], make_unet: MakeUNet) -> None:
    unet, t = make_unet(**settings).train(), torch.tensor([5, 40])
    x = state() if unet.axes == 2 else state()[:, :, None].expand(-1, -1, 3, -1, -1)
    gradients: list[dict[str, torch.Tensor | None]] = []
    for checkpointing in (False, True):
        unet.gradient_checkpointing = checkpointing
        unet.zero_grad()
        torch.manual_seed(3)  # of dropout
        unet(x, t).square().sum().backward()
        gradients.append({name: parameter.grad for name, parameter in unet.named_parameters()})
    torch.testing.assert_close(*gradients)
    assert torch.equal(unet(x, t), unet(x, t)) == ("dropout" not in settings)
    assert torch.equal(unet.eval()(x, t), unet(x, t))


# Volumes (B, C, D, H, W)


def network(**settings: Any) -> UNet:
    """A network none of whose weights are 0."""
    torch.manual_seed(0)
    made = UNet(1, 1, **{**TINY, "condition_channels": 1, **settings})
    for weight in made.parameters():
        nn.init.normal_(weight, std=0.2)
    return made


@pytest.mark.parametrize("settings", [{}, {"strides": ((1, 2, 2),)}], ids=["isotropic", "anisotropic"])
def test_slices_that_are_alike(settings: dict[str, Any]) -> None:
    """A volume of one slice many times, and kernels that see a slice alone: the result of the 2-D network."""
    flat, deep = network(**{**settings, "strides": None}), network(axes=3, **settings)
    assert deep.state_dict().keys() == flat.state_dict().keys()
    for one, other in zip(flat.parameters(), deep.parameters(), strict=True):
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
    unet, turned = network(axes=3), network(axes=3)
    with torch.no_grad():
        for one, other in zip(unet.parameters(), turned.parameters(), strict=True):
            other.copy_(one.permute(0, 1, 4, 2, 3) if one.ndim == 5 else one)
        x, y = torch.randn(2, 1, 1, 4, 6, 8).unbind()
        wanted = unet(x, torch.ones(1), {"source": y}).permute(0, 1, 4, 2, 3)
        made = turned(x.permute(0, 1, 4, 2, 3), torch.ones(1), {"source": y.permute(0, 1, 4, 2, 3)})
    torch.testing.assert_close(made, wanted, atol=2e-5, rtol=1e-4)


def test_patches_of_voxels() -> None:
    """A patch of voxels is what a convolution with a kernel for each of them reads."""
    x = torch.randn(2, 3, 4, 6, 2)
    kernels = torch.eye(24).view(24, 3, 2, 2, 2)
    assert torch.equal(unshuffled(x, 2), F.conv3d(x, kernels, stride=2))
    assert torch.equal(shuffled(unshuffled(x, 2), 2), x)
    unet, x = network(axes=3, patch=2), torch.randn(1, 1, 4, 4, 8)
    assert unet(x, torch.ones(1), {"source": x}).shape == x.shape


@pytest.mark.parametrize(("last", "compiled"), [(False, False), (True, False), (True, True)])
def test_norm(last: bool, compiled: bool) -> None:
    x, weight, bias = torch.randn(2, 8, 3, 4, 5), torch.randn(2, 8), torch.randn(1, 8)
    x = x.to(memory_format=torch.channels_last_3d) if last else x
    op = torch.compile(group_norm_silu, backend="aot_eager", fullgraph=True) if compiled else group_norm_silu
    made = op(x, 4, weight, bias)
    one = (..., None, None, None)
    torch.testing.assert_close(made, F.silu(F.group_norm(x, 4) * weight[one] + bias[one]))
    assert not last or made.is_contiguous(memory_format=torch.channels_last_3d)


@pytest.mark.parametrize(("factors", "compiled"), [((2, 2, 2), False), ((1, 2, 2), True)])
def test_upsampling(factors: tuple[int, ...], compiled: bool) -> None:
    x, weight, bias = torch.randn(2, 3, 2, 3, 4, requires_grad=True), torch.randn(5, 3, 3, 3, 3), torch.randn(5)
    op = torch.compile(upsample_conv3x3, backend="aot_eager", fullgraph=True) if compiled else upsample_conv3x3
    wanted = x
    for axis, factor in enumerate(factors, 2):
        wanted = wanted.repeat_interleave(factor, axis)
    assert torch.equal(upsample(x, factors), wanted)
    wanted = F.conv3d(wanted, weight, bias, padding=1)
    for function, grad in ((op, True), (op, False), (upsample_conv3x3, False)):
        with torch.set_grad_enabled(grad):
            torch.testing.assert_close(function(x, weight, bias, factors), wanted, atol=1e-5, rtol=1e-5)


def test_volumes_in_bfloat16_and_of_other_axes() -> None:
    """Within what 8 bits allow of float32: a CPU lacks some ops of volumes in bfloat16."""
    unet = network(axes=3, strides=((2, 2, 2),)).eval()
    x, t = torch.randn(1, 1, 4, 8, 8), torch.ones(1)
    with torch.no_grad():
        wanted = unet(x, t, {"source": x})
        made = unet.bfloat16()(x.bfloat16(), t, {"source": x.bfloat16()}).float()
    assert (made - wanted).norm() < 0.05 * wanted.norm()
    with pytest.raises(ValueError, match=r"x must be \(B, 1, D, H, W\), got shape \(1, 1, 8, 8\)"):
        unet(x[:, :, 0], t, {"source": x[:, :, 0]})
    with pytest.raises(ValueError, match="must have depth, height and width that are multiples of 2, got 3 x 8 x 8"):
        unet(x[:, :, 1:], t, {"source": x[:, :, 1:]})
