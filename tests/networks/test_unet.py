"""The UNet: its settings, its shapes, what a time is, and volumes against pictures."""

from __future__ import annotations

import json
from typing import Any

import pytest
import torch
from torch import nn

from bbdm.networks.config import UNETS, DiTConfig, UNetConfig, VQGANConfig
from bbdm.networks.dit import DiT
from bbdm.networks.unet import UNet
from tests.conftest import TINY, MakeUNet, tiny_dit, tiny_unet


def state(
    batch: int = 2, channels: int = 3, height: int = 8, width: int = 8, seed: int = 0
) -> torch.Tensor:
    return torch.randn(
        batch, channels, height, width, generator=torch.Generator().manual_seed(seed)
    )


# Settings


def test_presets() -> None:
    """Keys and values of the paper's network are compared with the public one's, in tests/peers."""
    paper = 237_091_331
    # three more channels of the first kernel
    counts = {"paper": paper, "lbbdm-f4": paper, "bbdm": paper + 3 * 9 * 128}
    # one more channel in, and one more out with its bias
    counts["lbbdm-f8"] = paper + 9 * 128 + 9 * 128 + 1
    # of the level that f16 attends to: a norm, q, k, v and a projection
    attention = 2 * 1024 + 4 * (1024**2 + 1024)
    counts["lbbdm-f16"] = paper + 5 * (9 * 128 + 9 * 128 + 1) + 5 * attention
    with torch.device("meta"):
        for name, count in counts.items():
            assert sum(p.numel() for p in UNet.from_preset(name).parameters()) == count
        dits, unets = (
            {"dit-s": 33, "dit-b": 130, "dit-l": 458},
            {"demo": 8.74, "small": 1.2405, "demo-residual": 7.27, "volume": 17.2},
        )
        # as the paper of DiT has it, and docs/training.md
        for name, millions in (dits | unets).items():
            count = sum(
                p.numel() for p in (DiT if name in dits else UNet).from_preset(name).parameters()
            )
            assert count / 1e6 == pytest.approx(millions, rel=0.02 if name in dits else 1e-3)
        assert UNet(3, 3).config == UNETS["paper"]
        volume = UNet.from_preset("volume")
    # lists are tuples again
    assert UNetConfig(**json.loads(json.dumps(volume.description()))) == UNETS["volume"]
    assert (volume.axes, volume.stride, volume.strides) == (3, (4, 8, 8), (4, 8, 8))
    with pytest.raises(ValueError, match=r"preset must be one of \[.*'demo'.*\], got 'big'"):
        UNet.from_preset("big")


@pytest.mark.parametrize(
    ("settings", "reason"),
    [
        *(
            ({name: value}, f"{name} must be {wanted}, got {value}")
            for name, least in {
                "in_channels": 1,
                "num_groups": 1,
                "patch": 1,
                "condition_channels": 0,
            }.items()
            for value, wanted in [
                (-1, f"at least {least}"),
                (2.0, "of integers"),
                (True, "of integers"),
            ]
        ),
        ({"width": 15}, "width must be a multiple of heads=6 and of 4, got 15"),
        ({"num_codes": -1}, "num_codes must be at least 0, got -1"),
        ({"num_codes": 40.0}, "num_codes must be of integers, got 40.0"),
        ({"num_codes": 8, "model_channels": 6}, "6 channels wide, not a multiple of num_groups=32"),
        ({"channel_mult": ()}, "channel_mult must have a number for each level"),
        ({"channel_mult": (1, 0)}, r"channel_mult must be at least 1, got \(1, 0\)"),
        *(
            ({"dropout": value}, rf"dropout must be in \[0, 1\), got {value}")
            for value in (float("nan"), 1.0, -0.5)
        ),
        ({"num_groups": 24}, "128 channels wide, not a multiple of num_groups=24"),
        ({"head_channels": 96}, "attention.* 1024 channels.* 96"),
        (
            {"channel_mult": (1, 3), "attention_resolutions": (1,), "head_channels": 96},
            "attention.* 128 channels.* 96",
        ),
        (
            {"channel_mult": (1, 3), "model_channels": 15, "num_groups": 5},
            "model_channels must be even, got 15",
        ),
        ({"axes": 4}, "axes must be 2, of pictures, or 3, of volumes, got 4"),
        ({"axes": 3, "patch": 2}, "patch is of pictures, and must be 1 for volumes, got 2"),
        (
            {"axes": 3, "strides": ((2, 2),) * 2},
            "strides must be 2 tuples of 3 numbers, each 1 or 2, got",
        ),
        (
            {"strides": ((2, 3), (2, 2))},
            r"strides must be 2 tuples of 2 numbers, .* got \(\(2, 3\), \(2, 2\)\)",
        ),
        ({"strides": (2, 2)}, r"strides must be 2 tuples of 2 numbers, each 1 or 2, got \(2, 2\)"),
        ({"strides": ()}, r"strides must be 2 tuples of 2 numbers, each 1 or 2, got \(\)"),
    ],
    ids=str,
)
def test_settings_that_are_refused(settings: dict[str, Any], reason: str) -> None:
    """Of a transformer where there is a width, and of an autoencoder where there are codes."""
    config = (
        DiTConfig if "width" in settings else VQGANConfig if "num_codes" in settings else UNetConfig
    )
    with pytest.raises(ValueError, match=reason):
        config(**settings)


# Predictions


@pytest.mark.parametrize(
    ("batch", "height", "width"), [(1, 8, 8), (2, 2, 2), (3, 4, 10), (0, 8, 8)]
)
def test_shape(batch: int, height: int, width: int, make_unet: MakeUNet) -> None:
    """Of any size; channels_last, whatever comes in."""
    unet = make_unet(in_channels=4, out_channels=2, condition_channels=1)
    x, condition = state(batch, 4, height, width), state(batch, 1, height, width)
    out = unet(x, torch.ones(batch), {"source": condition})
    assert out.shape == (batch, 2, height, width)
    assert not batch or out.is_contiguous(memory_format=torch.channels_last)
    assert torch.equal(
        out, unet(x.to(memory_format=torch.channels_last), torch.ones(batch), {"source": condition})
    )
    assert not UNet(**TINY)(state(), torch.tensor([1, 7])).any()  # before training it predicts zero


def test_patches_are_channels_of_a_plain_network(make_unet: MakeUNet) -> None:
    """Channels in the order of the picture's channel, the row and the column in the patch."""

    def channels(x: torch.Tensor) -> torch.Tensor:
        return torch.stack(
            [x[:, c, i::2, j::2] for c in range(x.shape[1]) for i in (0, 1) for j in (0, 1)], 1
        )

    patched = make_unet(condition_channels=1, patch=2)
    plain = make_unet(in_channels=12, out_channels=12, condition_channels=4)
    plain.load_state_dict(patched.state_dict())
    x, condition, t = state(), state(channels=1, seed=1), torch.tensor([1, 20])
    out = patched(x, t, {"source": condition})
    torch.testing.assert_close(
        channels(out), plain(channels(x), t, {"source": channels(condition)})
    )


@pytest.mark.parametrize(
    ("expected", "x", "conditions", "reason"),
    [
        (0, state(), {"source": state()}, "conditions of this network are none, got 'source'"),
        (
            3,
            state(),
            {"source": state(channels=1)},
            r"must have 3 channels, got \(2, 1, 8, 8\) of torch.float32",
        ),
        (0, state()[:, :, None], None, r"x must be \(B, 3, H, W\), got shape \(2, 3, 1, 8, 8\)"),
        (
            3,
            state(),
            {"source": state(), "sar": state()},
            r"are 'source' \(3 channels\), got 'sar'",
        ),
        (0, state(channels=4), None, r"x must be \(B, 3, H, W\), got shape \(2, 4, 8, 8\)"),
        (0, state(height=7), None, "x must have sides that are multiples of 2 x 2, got 7 x 8"),
    ],
)
def test_inputs_that_are_refused(
    expected: int, x: Any, conditions: Any, reason: str, make_unet: MakeUNet
) -> None:
    with pytest.raises(ValueError, match=reason):
        make_unet(condition_channels=expected)(x, torch.tensor([1, 7]), conditions)


def test_late_times_stay_apart_in_half_precision(make_unet: MakeUNet) -> None:
    """Cosines, then sines. bfloat16 rounds 999 to 1000, and the frequencies: so angles are in float32."""
    for dtype in (torch.int32, torch.float32, torch.float64):
        unet = make_unet()
        assert torch.equal(
            unet(state(), torch.tensor([5, 900], dtype=dtype)),
            unet(state(), torch.tensor([5, 900])),
        )
    unet = make_unet().to(torch.bfloat16)
    seen: list[torch.Tensor] = []
    unet.time_embed.register_forward_pre_hook(lambda _, inputs: seen.append(inputs[0]))
    assert unet(state(1).to(torch.bfloat16), torch.tensor([999])).dtype == torch.bfloat16
    angles = 999 * 10000.0 ** (-torch.arange(4, dtype=torch.float64) / 4)
    wanted = torch.cat([angles.cos(), angles.sin()])
    # half a unit of bfloat16 below 1
    torch.testing.assert_close(seen[0][0].double(), wanted, rtol=0, atol=2**-8)


@pytest.mark.parametrize(
    "settings", [{}, {"dropout": 0.3}, {"axes": 3, "strides": ((1, 2, 2),)}, None], ids=str
)
def test_gradient_checkpointing_changes_no_gradient(settings: dict[str, Any] | None) -> None:
    """Of a transformer too."""
    net = tiny_dit(condition_channels=0) if settings is None else tiny_unet(**settings)
    x = state() if net.axes == 2 else state()[:, :, None].expand(-1, -1, 3, -1, -1)
    t = torch.tensor([5, 40])
    gradients: list[dict[str, torch.Tensor | None]] = []
    for checkpointing in (False, True):
        net.train().gradient_checkpointing = checkpointing
        net.zero_grad()
        torch.manual_seed(3)  # of dropout
        net(x, t).square().sum().backward()
        gradients.append({name: parameter.grad for name, parameter in net.named_parameters()})
    torch.testing.assert_close(*gradients)
    assert torch.equal(net(x, t), net(x, t)) == ("dropout" not in (settings or {}))
    assert torch.equal(net.eval()(x, t), net(x, t))


# Volumes (B, C, D, H, W)


def network(**settings: Any) -> UNet:
    """A network none of whose weights are 0."""
    torch.manual_seed(0)
    made = UNet(1, 1, **{**TINY, "condition_channels": 1, **settings})
    for weight in made.parameters():
        nn.init.normal_(weight, std=0.2)
    return made


@pytest.mark.parametrize(
    "settings", [{}, {"strides": ((1, 2, 2),)}], ids=["isotropic", "anisotropic"]
)
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
    with pytest.raises(
        ValueError, match="x must have sides that are multiples of 2 x 2 x 2, got 3 x 8 x 8"
    ):
        unet(x[:, :, 1:], t, {"source": x[:, :, 1:]})
