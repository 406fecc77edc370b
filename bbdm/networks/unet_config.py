"""The settings of the UNet, and its presets, without torch."""

from __future__ import annotations

import math
from dataclasses import asdict, dataclass
from typing import Any

from bbdm.networks.checks import Stride, check_integers
from bbdm.networks.conditions import ConditionsConfig
from bbdm.networks.endpoint import check_endpoint

# Settings that older files lack; left out of files at these values, which every older network has.
LATER = {
    "num_heads": None,
    "scale_shift": True,
    "residual_resampling": True,
    "patch": 1,
    "endpoint": None,
    "axes": 2,
    "strides": None,
    "images": {},
    "classes": {},
    "tokens": {},
    "drop": {},
}


@dataclass(frozen=True)
class UNetConfig(ConditionsConfig):
    """The settings of a network, which decide its shapes.

    Condition images are concatenated to x, a class adds its embedding to the time's, and positions with
    self-attention attend to tokens too.

    Raises:
        ValueError: no network can be built from a value.
    """

    in_channels: int = 3  # channels of the state x
    out_channels: int = 3  # channels of the prediction
    condition_channels: int = 0  # channels of the source, concatenated to x; 0 where it is not shown
    model_channels: int = 128  # width of the first level
    channel_mult: tuple[int, ...] = (1, 4, 8)  # width of each level, in model_channels; each level halves the size
    num_res_blocks: int = 2  # residual blocks a level on the way down, one more on the way up
    attention_resolutions: tuple[int, ...] = (32, 16, 8)  # levels with attention, as factors from the first level
    head_channels: int = 64  # width of an attention head
    num_groups: int = 32  # groups of every GroupNorm
    dropout: float = 0.0  # before the last convolution of a residual block
    num_heads: int | None = None  # of every attention, in place of head_channels
    scale_shift: bool = True  # the time scales and shifts the second norm of a block; False: it is added before it
    residual_resampling: bool = True  # residual blocks change the size; False: single convolutions
    patch: int = 1  # side of the square of pixels, or cube of voxels, that is one position of the first level
    endpoint: tuple[int, ...] | None = None  # source channels that the bridge ends in; None: itself, or the mean
    axes: int = 2  # spatial: 2 for pictures (H, W), 3 for volumes (D, H, W)
    strides: tuple[tuple[int, ...], ...] | None = None  # of each axis from a level to the next, 1 or 2; None: all 2

    def __post_init__(self) -> None:
        super().__post_init__()
        object.__setattr__(self, "channel_mult", tuple(self.channel_mult))
        object.__setattr__(self, "attention_resolutions", tuple(self.attention_resolutions))
        counts = ("in_channels", "out_channels", "model_channels", "num_res_blocks", "head_channels", "num_groups")
        check_integers(self, *counts, "channel_mult", "attention_resolutions", "patch")
        check_integers(self, "condition_channels", least=0)
        if self.endpoint is not None:
            object.__setattr__(self, "endpoint", tuple(self.endpoint))
        check_endpoint(self.endpoint, self.in_channels, self.condition_channels)
        self._check_strides()
        if self.num_heads is not None:
            check_integers(self, "num_heads")
        if self.model_channels % 2:
            raise ValueError(f"model_channels must be even, got {self.model_channels}")
        if not self.channel_mult:
            raise ValueError("channel_mult must have a number for each level, got none")
        if not 0 <= self.dropout < 1:
            raise ValueError(f"dropout must be in [0, 1), got {self.dropout}")
        widths = [self.model_channels * mult for mult in self.channel_mult]
        for width in widths:
            if width % self.num_groups:
                raise ValueError(f"a level is {width} channels wide, not a multiple of num_groups={self.num_groups}")
        attended = [w for i, w in enumerate(widths) if 2**i in self.attention_resolutions] + [widths[-1]]
        for width in attended:
            if self.num_heads is not None and width % self.num_heads:
                raise ValueError(f"attention on {width} channels does not split into num_heads={self.num_heads}")
            if self.num_heads is None and width % self.head_channels:
                raise ValueError(f"attention on {width} channels does not split into heads of {self.head_channels}")

    def _check_strides(self) -> None:
        if self.axes not in (2, 3):
            raise ValueError(f"axes must be 2, of pictures, or 3, of volumes, got {self.axes!r}")
        if self.strides is None:
            return
        object.__setattr__(self, "strides", tuple(tuple(each) for each in self.strides))
        shapes = {len(self.strides) + 1 == len(self.channel_mult), *(len(each) == self.axes for each in self.strides)}
        if shapes != {True} or not {n for each in self.strides for n in each} <= {1, 2}:
            wanted = f"{len(self.channel_mult) - 1} tuples of {self.axes} numbers, each 1 or 2"
            raise ValueError(f"strides must be {wanted}, got {self.strides!r}")

    def heads(self, channels: int) -> int:
        """The number of heads of attention on so many channels."""
        return self.num_heads or channels // self.head_channels

    def description(self) -> dict[str, Any]:
        """Plain values from which a file builds it."""
        return {name: value for name, value in asdict(self).items() if name not in LATER or value != LATER[name]}

    @property
    def channels(self) -> int:
        """Of the state."""
        return self.in_channels

    @property
    def level_strides(self) -> tuple[tuple[int, ...], ...]:
        """Of each axis, from each level to the next."""
        return self.strides or ((2,) * self.axes,) * (len(self.channel_mult) - 1)

    @property
    def stride(self) -> Stride:
        """Sides must be multiples of this: a number for all, or one for each axis."""
        made = tuple(self.patch * math.prod(each[axis] for each in self.level_strides) for axis in range(self.axes))
        return made[0] if len(set(made)) == 1 else made


PRESETS: dict[str, UNetConfig] = {
    "paper": UNetConfig(),  # of the A-Bridge paper, in image space and on VQ-f4 latents; 237.1 M parameters
    "paper-pinned": UNetConfig(condition_channels=3),  # the same, to be trained for few calls
    "bbdm": UNetConfig(condition_channels=3),  # the original BBDM's pixel model
    "lbbdm-f4": UNetConfig(),  # the original BBDM on VQ-f4 latents
    "lbbdm-f8": UNetConfig(in_channels=4, out_channels=4),
    "lbbdm-f16": UNetConfig(in_channels=8, out_channels=8, attention_resolutions=(16, 8, 4)),
    "volume": UNetConfig(  # CT and MR, for crops of 64 x 96 x 96 voxels, slices farther apart; 17.2 M parameters
        in_channels=1,
        out_channels=1,
        condition_channels=1,
        model_channels=32,
        channel_mult=(1, 2, 4, 5),
        num_res_blocks=1,
        attention_resolutions=(8,),
        head_channels=32,
        num_groups=8,
        axes=3,
        strides=((1, 2, 2), (2, 2, 2), (2, 2, 2)),
    ),
    "demo": UNetConfig(
        condition_channels=3,
        model_channels=64,
        channel_mult=(1, 2, 3),
        num_res_blocks=1,
        attention_resolutions=(2, 4),
        num_groups=8,
        patch=2,
    ),
    "demo-residual": UNetConfig(  # what demo was before it was trained for few calls
        condition_channels=3,
        model_channels=32,
        channel_mult=(1, 2, 4, 4),
        attention_resolutions=(8,),
        head_channels=32,
        num_groups=8,
    ),
}
