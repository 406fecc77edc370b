"""Checks of settings and of inputs, without torch: modules of settings use them."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import torch


def check_integers(config: Any, *names: str, least: int = 1) -> None:
    """Raise ValueError where a setting, or a member of a tuple, is not an integer of at least ``least``."""
    for name in names:
        value = getattr(config, name)
        for number in value if isinstance(value, tuple) else (value,):
            if not isinstance(number, int) or isinstance(number, bool):
                raise ValueError(f"{name} must be of integers, got {value!r}")
            if number < least:
                raise ValueError(f"{name} must be at least {least}, got {value!r}")


def check_images(x: torch.Tensor, channels: int, stride: int) -> None:
    """Raise ValueError where x has other channels, or a side that is not a multiple of the stride."""
    if x.shape[1] != channels:
        raise ValueError(f"x must have {channels} channels, got {x.shape[1]}")
    if x.shape[2] % stride or x.shape[3] % stride:
        size = f"{x.shape[2]} x {x.shape[3]}"
        raise ValueError(f"x must have height and width that are multiples of {stride}, got {size}")
