"""Tensors as sources of a sampler; see :mod:`bbdm.sampling.sources`."""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt
import torch

from bbdm.base import sizes
from bbdm.pictures import images
from bbdm.sampling import sources
from bbdm.sampling.scale import Scale


def _read_tensor(tensor: Any, channels: int, scale: Scale) -> sources.Item | None:
    """One (C, H, W) tensor of a list."""
    if not isinstance(tensor, torch.Tensor):
        return None
    if tensor.ndim != 1 + scale.axes:
        sides = sizes.SIDES[scale.axes]
        raise ValueError(f"a tensor in a list must be ({channels}, {sides}), got shape {tuple(tensor.shape)}")
    values = scale.scaled(tensor.detach()) if scale.given or tensor.is_floating_point() else tensor
    images.check(values[None], channels, scale.axes)

    def restore(made: npt.NDArray[np.float32]) -> torch.Tensor:
        result = scale.unscaled(torch.from_numpy(made))
        return torch.as_tensor(result).to(tensor.device) if scale.given else result.to(tensor.device, tensor.dtype)

    return sources.Item.of(values.float().cpu().numpy(), restore)


def _to_numpy(tensor: torch.Tensor) -> npt.NDArray[Any]:
    return (tensor.float() if tensor.dtype == torch.bfloat16 else tensor).cpu().numpy()  # NumPy has no bfloat16


def _like(tensor: torch.Tensor, other: torch.Tensor) -> torch.Tensor:
    return tensor.to(other)


TENSORS = sources.ArrayBackend(torch.Tensor, "a tensor", torch.from_numpy, _to_numpy, torch.cat, _read_tensor, _like)
