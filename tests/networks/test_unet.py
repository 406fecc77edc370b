from typing import Any

import pytest
import torch

from bbdm.networks.config import UNETS, UNetConfig
from bbdm.networks.unet import UNet
from tests.conftest import TINY, MakeUNet


def state(batch: int = 2, channels: int = 3, height: int = 8, width: int = 8, seed: int = 0) -> torch.Tensor:
    return torch.randn(batch, channels, height, width, generator=torch.Generator().manual_seed(seed))


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


LEVELS = {"channel_mult": (1, 3), "num_groups": 4}


class TestConfig:
    def test_settings_added_later_are_left_out_of_files(self) -> None:
        """A network of before has the description of before."""
        assert list(UNetConfig().description()) == [
            *("in_channels", "out_channels", "condition_channels", "model_channels", "channel_mult"),
            *("num_res_blocks", "attention_resolutions", "head_channels", "num_groups", "dropout"),
        ]
        other = UNetConfig(num_heads=8, scale_shift=False, residual_resampling=False, patch=2)
        assert UNetConfig(**other.description()) == other

    @pytest.mark.parametrize("value", [-1, 2.0, True])
    def test_integers(self, value: Any) -> None:
        least = dict.fromkeys(["in_channels", "out_channels", "model_channels", "num_res_blocks", "head_channels"], 1)
        for name, lowest in {**least, "num_groups": 1, "num_heads": 1, "patch": 1, "condition_channels": 0}.items():
            wanted = f"at least {lowest}" if value == -1 else "of integers"
            for each, reason in [(value, wanted), (0, "at least 1")][: 1 + lowest]:
                given: dict[str, Any] = {name: each}
                with pytest.raises(ValueError, match=f"{name} must be {reason}, got {each}"):
                    UNetConfig(**given)

    @pytest.mark.parametrize(
        ("settings", "reason"),
        [
            ({"channel_mult": ()}, "channel_mult must have a number for each level"),
            ({"channel_mult": (1, 0)}, r"channel_mult must be at least 1, got \(1, 0\)"),
            ({"channel_mult": [1.0]}, r"channel_mult must be of integers, got \(1.0,\)"),
            *(
                ({"dropout": value}, rf"dropout must be in \[0, 1\), got {value}")
                for value in (float("nan"), 1.0, -0.5)
            ),
            ({"num_groups": 24}, "128 channels wide, not a multiple of num_groups=24"),
            ({"head_channels": 96}, "attention.* 1024 channels.* 96"),
            ({"num_heads": 24}, "attention.* 1024 channels.* num_heads=24"),
            ({**LEVELS, "attention_resolutions": (1,), "head_channels": 96}, "attention.* 128 channels.* 96"),
            ({**LEVELS, "model_channels": 15, "num_groups": 5}, "model_channels must be even, got 15"),
            ({"axes": 4}, "axes must be 2, of pictures, or 3, of volumes, got 4"),
            ({"axes": 3, "strides": ((2, 2),) * 2}, "strides must be 2 tuples of 3 numbers, each 1 or 2, got"),
            ({"strides": ((2, 3), (2, 2))}, r"strides must be 2 tuples of 2 numbers, .* got \(\(2, 3\), \(2, 2\)\)"),
            ({"strides": ((2, 2),)}, r"strides must be 2 tuples of 2 numbers, each 1 or 2, got \(\(2, 2\),\)"),
        ],
        ids=str,
    )
    def test_refuses(self, settings: dict[str, Any], reason: str) -> None:
        with pytest.raises(ValueError, match=reason):
            UNetConfig(**settings)

    @pytest.mark.parametrize(("levels", "stride"), [((1,), 1), ((1, 2), 2), ((1, 2, 4, 4), 8)], ids=str)
    def test_stride(self, levels: tuple[int, ...], stride: int) -> None:
        """Of lists too, which become tuples."""
        assert UNetConfig(channel_mult=levels).stride == stride
        assert UNetConfig(channel_mult=levels, patch=2).stride == 2 * stride
        listed: Any = list(levels)
        assert hash(UNetConfig(channel_mult=listed)) == hash(UNetConfig(channel_mult=levels))


class TestForward:
    @pytest.mark.parametrize(("batch", "height", "width"), [(1, 8, 8), (2, 2, 2), (3, 4, 10), (0, 8, 8)])
    def test_shape(self, batch: int, height: int, width: int, make_unet: MakeUNet) -> None:
        unet = make_unet(in_channels=4, out_channels=2, condition_channels=1)
        condition = state(batch, 1, height, width)
        out = unet(state(batch, 4, height, width), torch.ones(batch), {"source": condition})
        assert out.shape == (batch, 2, height, width)
        assert not UNet(**TINY)(state(), torch.tensor([1, 7])).any()  # before training it predicts zero

    @pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last], ids=["nchw", "nhwc"])
    def test_is_channels_last_whatever_comes_in(self, layout: torch.memory_format, make_unet: MakeUNet) -> None:
        unet, x, t = make_unet(), state(), torch.tensor([1, 7])
        out = unet(x.contiguous(memory_format=layout), t)
        assert out.is_contiguous(memory_format=torch.channels_last)
        torch.testing.assert_close(out, unet(x, t), rtol=0, atol=0)

    def test_patches_are_channels_of_a_plain_network(self, make_unet: MakeUNet) -> None:
        """Channels in the order of the picture's channel, the row and the column in the patch."""

        def channels(x: torch.Tensor) -> torch.Tensor:
            places = [(c, i, j) for c in range(x.shape[1]) for i in (0, 1) for j in (0, 1)]
            return torch.stack([x[:, c, i::2, j::2] for c, i, j in places], 1)

        patched = make_unet(condition_channels=1, patch=2)
        plain = make_unet(in_channels=12, out_channels=12, condition_channels=4)
        plain.load_state_dict(patched.state_dict())
        x, condition, t = state(), state(channels=1, seed=1), torch.tensor([1, 20])
        out = patched(x, t, {"source": condition})
        assert out.shape == x.shape
        torch.testing.assert_close(channels(out), plain(channels(x), t, {"source": channels(condition)}))

    @pytest.mark.parametrize(
        ("expected", "x", "conditions", "reason"),
        [
            (3, state(), None, "condition 'source' is missing: this network has 'source'"),
            (0, state(), {"source": state()}, "conditions of this network are none, got 'source'"),
            (3, state(), {"source": state(channels=1)}, "condition 'source' must have 3 channels, got 1"),
            (0, state()[:, :, None], None, r"x must be \(B, 3, H, W\), got shape \(2, 3, 1, 8, 8\)"),
            (3, state(), {"source": state(), "sar": state()}, r"are 'source' \(3 channels\), got 'sar'"),
            (3, state(), state(), "must be a mapping of names to values, such as {'source': y}, got a Tensor"),
            (0, state(channels=4), None, "x must have 3 channels, got 4"),
            (0, state(height=7), None, "multiples of 2, got 7 x 8"),
            (0, state(width=7), None, "multiples of 2, got 8 x 7"),
        ],
    )
    def test_refuses(self, expected: int, x: Any, conditions: Any, reason: str, make_unet: MakeUNet) -> None:
        with pytest.raises(ValueError, match=reason):
            make_unet(condition_channels=expected)(x, torch.tensor([1, 7]), conditions)


class TestTime:
    @pytest.mark.parametrize("dtype", [torch.int32, torch.float32, torch.float64], ids=str)
    def test_integer_and_float_are_one(self, dtype: torch.dtype, make_unet: MakeUNet) -> None:
        unet, x = make_unet(), state()
        assert torch.equal(unet(x, torch.tensor([5, 900], dtype=dtype)), unet(x, torch.tensor([5, 900])))

    def test_late_times_stay_apart_in_half_precision(self, make_unet: MakeUNet) -> None:
        """Cosines, then sines. bfloat16 rounds 999 to 1000, and the frequencies: so angles are in float32."""
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
