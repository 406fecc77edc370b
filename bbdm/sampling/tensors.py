"""Tensors as sources of a sampler; see :mod:`bbdm.sampling.sources`."""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt
import torch

from bbdm.pictures import images
from bbdm.sampling import sources


def _read_tensor(tensor: Any, channels: int, range: sources.Range) -> sources.Item | None:
    """One (C, H, W) tensor of a list."""
    if not isinstance(tensor, torch.Tensor):
        return None
    if tensor.ndim != 3:
        raise ValueError(f"a tensor in a list must be ({channels}, H, W), got shape {tuple(tensor.shape)}")
    values = sources.scaled(tensor.detach(), range) if tensor.is_floating_point() else tensor
    images.check(values[None], channels)

    def restore(made: npt.NDArray[np.float32]) -> torch.Tensor:
        return sources.unscaled(torch.from_numpy(made), range).to(tensor.device, tensor.dtype)

    return sources.Item(values.float().cpu().numpy(), restore)


def _to_numpy(tensor: torch.Tensor) -> npt.NDArray[Any]:
    return tensor.cpu().numpy()


def _like(tensor: torch.Tensor, other: torch.Tensor) -> torch.Tensor:
    return tensor.to(other)


TENSORS = sources.ArrayBackend(torch.Tensor, "a tensor", torch.from_numpy, _to_numpy, torch.cat, _read_tensor, _like)
