"""Checks of settings and of inputs, without torch: modules of settings use them."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from bbdm.base.sizes import SIDES, shown

if TYPE_CHECKING:
    import torch

Stride = int | tuple[int, ...]  # of all axes, or one of each
NAMES = {2: ("height", "width"), 3: ("depth", "height", "width")}


def along(number: int | Sequence[int], axes: int) -> tuple[int, ...]:
    """A number for each axis, of one for all."""
    return (number,) * axes if not isinstance(number, Sequence) else tuple(number)


def listed(axes: int) -> str:
    """The names of sides, for messages."""
    *first, last = NAMES[axes]
    return f"{', '.join(first)} and {last}"


def check_integers(config: Any, *names: str, least: int = 1) -> None:
    """Raise ValueError where a setting, or a member of a tuple, is not an integer of at least ``least``."""
    for name in names:
        value = getattr(config, name)
        for number in value if isinstance(value, tuple) else (value,):
            if not isinstance(number, int) or isinstance(number, bool):
                raise ValueError(f"{name} must be of integers, got {value!r}")
            if number < least:
                raise ValueError(f"{name} must be at least {least}, got {value!r}")


def check_images(x: torch.Tensor, channels: int, stride: Stride, axes: int = 2) -> None:
    """Raise ValueError where x has other axes or channels, or a side that is not a multiple of the stride."""
    if x.ndim != 2 + axes:
        raise ValueError(f"x must be (B, {channels}, {SIDES[axes]}), got shape {tuple(x.shape)}")
    if x.shape[1] != channels:
        raise ValueError(f"x must have {channels} channels, got {x.shape[1]}")
    if any(side % step for side, step in zip(x.shape[2:], along(stride, axes), strict=True)):
        raise ValueError(f"x must have {listed(axes)} that are multiples of {stride}, got {shown(x.shape[2:])}")


def check_pictures(axes: int, what: str) -> None:
    """Raise ValueError for a network of volumes, by its axes; ``what`` begins the message."""
    if axes != 2:
        raise ValueError(f"{what} is for pictures (B, C, H, W), and this network is of volumes (B, C, D, H, W)")
