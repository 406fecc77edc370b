"""How settings and weights become a network: weights are compared, hashed and loaded."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Mapping
from dataclasses import asdict
from typing import Any, ClassVar, TypeVar

import torch
from torch import nn

Network = TypeVar("Network", bound=nn.Module)
Configured = TypeVar("Configured", bound="ConfiguredNetwork")
DTYPES = {"bf16": torch.bfloat16, "fp16": torch.float16, "fp32": torch.float32, "fp64": torch.float64}


class ConfiguredNetwork:
    """A network whose arguments are the fields of a settings dataclass, its attribute ``config``."""

    presets: ClassVar[Mapping[str, Any]]  # settings by name

    @classmethod
    def from_config(cls: type[Configured], config: Any) -> Configured:
        """A network of these settings, with freshly initialised weights."""
        return cls(**asdict(config))

    @classmethod
    def from_preset(cls: type[Configured], name: str) -> Configured:
        """A network of a preset's settings, with freshly initialised weights; ``presets`` has the names.

        Raises:
            ValueError: there is no preset of that name.
        """
        if name not in cls.presets:
            raise ValueError(f"preset must be one of {sorted(cls.presets)}, got {name!r}")
        return cls.from_config(cls.presets[name])


def fitting(build: Callable[[Any], Network], config: Any, state: Mapping[str, Any], whose: str = "its") -> Network:
    """A network on the device "meta", without memory, that weights fit by key, shape and kind of number.

    ``whose`` begins a message.

    Raises:
        ValueError: there is no network of such sizes, or weights do not fit: the message has every key that
            is missing, extra or of another shape.
    """
    if not isinstance(state, Mapping) or not all(hasattr(value, "shape") for value in state.values()):
        raise ValueError(f"{whose} weights are no state dict of tensors")
    blocks = getattr(config, "num_res_blocks", 0) * len(getattr(config, "channel_mult", ()))
    if blocks > len(state):  # a wrong number of blocks can be huge, and would be built
        raise ValueError(f"{whose} weights do not fit the network: {len(state)} tensors, for {blocks} blocks")
    try:
        with torch.device("meta"):
            network = build(config)
    except (RuntimeError, OverflowError) as error:  # sizes that no tensor has
        raise ValueError(f"there is no network of such sizes: {str(error).splitlines()[0]}") from error
    wanted = network.state_dict()
    both = sorted(state.keys() & wanted.keys())
    shapes = {key: (tuple(state[key].shape), tuple(wanted[key].shape)) for key in both}
    floating = {key for key in both if wanted[key].is_floating_point() and not state[key].dtype.is_floating_point}
    differences = {
        "missing": sorted(wanted.keys() - state.keys()),
        "extra": sorted(map(str, state.keys() - wanted.keys())),
        "of another shape": [f"{key} {got} (wanted {want})" for key, (got, want) in shapes.items() if got != want],
        "no floating point numbers": sorted(floating),
    }
    if found := "; ".join(f"{kind}: {', '.join(keys)}" for kind, keys in differences.items() if keys):
        raise ValueError(f"{whose} weights do not fit the network: {found}")
    return network


def restore(
    build: Callable[[Any], Network], config: Any, state: dict[str, torch.Tensor], whose: str = "its"
) -> Network:
    """A network in float32 on the CPU, in evaluation mode; for arguments and errors see :func:`fitting`."""
    network = fitting(build, config, state, whose)
    network.to_empty(device="cpu")  # initial values would take longer to draw than the file takes to read
    network.load_state_dict(state)
    return network.eval()


def find_dtype(name: str | torch.dtype) -> torch.dtype:
    """A floating-point dtype, or that of a name: ``bf16``, ``fp16``, ``fp32``, or torch's own, ``bfloat16``.

    Raises:
        ValueError: the name is unknown, or the dtype is not one of floating-point numbers.
    """
    dtype = DTYPES.get(name, getattr(torch, name, None)) if isinstance(name, str) else name
    if not isinstance(dtype, torch.dtype) or not dtype.is_floating_point:
        raise ValueError(f"dtype must be a floating-point dtype such as {', '.join(DTYPES)}, got {name!r}")
    return dtype


def converted(state: Mapping[str, torch.Tensor], dtype: torch.dtype) -> dict[str, torch.Tensor]:
    """A state dict whose floating-point numbers are of a dtype; ValueError where they leave its range."""
    converted = {key: value.to(dtype) if value.is_floating_point() else value for key, value in state.items()}
    for key, value in converted.items():
        if bool((value.isfinite() != state[key].isfinite()).any()):
            raise ValueError(f"{key} has values beyond the range of {dtype}")
    return converted


def state_hash(state: Mapping[str, torch.Tensor], dtype: torch.dtype | None = None) -> str:
    """SHA-256 of the keys and values of a state dict; values are converted to ``dtype`` where it is given."""
    digest = hashlib.sha256()
    for key, value in sorted(state.items()):
        digest.update(key.encode())
        value = value.detach().to("cpu", dtype or value.dtype).contiguous()
        digest.update(value.flatten().view(torch.uint8).numpy().data)
    return digest.hexdigest()
