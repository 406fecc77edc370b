"""Networks from their settings and weights, as files hold them."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Mapping
from typing import Any, TypeVar

import torch
from torch import nn

Network = TypeVar("Network", bound=nn.Module)


def skeleton(build: Callable[[Any], Network], config: Any) -> Network:
    """A network without values: on the device "meta", where it takes no memory.

    Raises:
        ValueError: there is no such network.
    """
    try:
        with torch.device("meta"):
            return build(config)
    except (RuntimeError, OverflowError) as error:  # sizes that no tensor has
        raise ValueError(f"there is no network of such sizes: {str(error).splitlines()[0]}") from error


def fitting(build: Callable[[Any], Network], config: Any, state: Mapping[str, Any], whose: str = "its") -> Network:
    """The :func:`skeleton` of a network that these weights fit, by name, shape and kind of number.

    Args:
        build: makes the network of its settings.
        config: the settings.
        state: the weights, or anything else that has their ``shape`` and ``dtype``.
        whose: the beginning of an error.

    Raises:
        ValueError: they do not; with every key that is missing, extra or of another shape.
    """
    strange = (
        [key for key, value in state.items() if not hasattr(value, "shape")] if isinstance(state, Mapping) else [0]
    )
    if strange:
        raise ValueError(f"{whose} weights are no state dict: {str(strange[0])[:100]} is no tensor")
    blocks = getattr(config, "num_res_blocks", 0) * len(getattr(config, "channel_mult", ()))
    if blocks > len(state):  # before a number that is wrong is built
        raise ValueError(f"{whose} weights do not fit the network: {len(state)} tensors, for {blocks} blocks")
    network = skeleton(build, config)
    wanted = network.state_dict()
    both = sorted(state.keys() & wanted.keys())
    shapes = {key: (tuple(state[key].shape), tuple(wanted[key].shape)) for key in both}
    differences = {
        "missing": sorted(wanted.keys() - state.keys()),
        "extra": sorted(map(str, state.keys() - wanted.keys())),
        "of another shape": [f"{key} {got} (wanted {want})" for key, (got, want) in shapes.items() if got != want],
    }
    if any(differences.values()):
        found = "; ".join(f"{kind}: {', '.join(keys)}" for kind, keys in differences.items() if keys)
        raise ValueError(f"{whose} weights do not fit the network: {found}")
    for key in both:
        if wanted[key].is_floating_point() and state[key].dtype is not None and not state[key].dtype.is_floating_point:
            raise ValueError(f"{key} is of {state[key].dtype}; weights must be floating point")
    return network


def restore(
    build: Callable[[Any], Network], config: Any, state: dict[str, torch.Tensor], whose: str = "its"
) -> Network:
    """A network in float32 on the CPU, in evaluation mode; for arguments and errors see :func:`fitting`."""
    network = fitting(build, config, state, whose)
    network.to_empty(device="cpu")  # without values, which would take longer to draw than the file to read
    network.load_state_dict(state)
    return network.eval()


def state_hash(state: Mapping[str, torch.Tensor], dtype: torch.dtype | None = None) -> str:
    """SHA-256 of the keys and the values of a state dict, rounded to a dtype where one is given."""
    digest = hashlib.sha256()
    for key, value in sorted(state.items()):
        digest.update(key.encode())
        digest.update(
            value.detach().to("cpu", dtype or value.dtype).contiguous().flatten().view(torch.uint8).numpy().data
        )
    return digest.hexdigest()


def check_integers(config: Any, *names: str, least: int = 1) -> None:
    """Raise ValueError where an attribute, or a member of one that is a tuple, is no integer of at least ``least``."""
    for name in names:
        value = getattr(config, name)
        for number in value if isinstance(value, tuple) else (value,):
            if not isinstance(number, int) or isinstance(number, bool):
                raise ValueError(f"{name} must be of integers, got {value!r}")
            if number < least:
                raise ValueError(f"{name} must be at least {least}, got {value!r}")
