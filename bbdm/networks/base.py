"""What any network must be to be trained, sampled, compiled, exported and saved; and how to make one so."""

from __future__ import annotations

import copy
from abc import abstractmethod
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any, Protocol, TypeVar

import torch
from torch import nn

from bbdm.networks.checks import check_images

Call = Callable[[Any, torch.Tensor, torch.Tensor, torch.Tensor | None], torch.Tensor]


class Body(Protocol):
    """The part of a network that the loop calls, eager, compiled or packaged; see :meth:`Network.body`."""

    def __call__(
        self, x: torch.Tensor, embedding: torch.Tensor, condition: torch.Tensor | None = None, /
    ) -> torch.Tensor:
        """The prediction, (B, C, H, W) in the dtype of x."""
        ...


class Network(nn.Module):
    """The base class of networks. :func:`wrap` makes one of any module.

    Attributes: ``channels`` of the state and of the prediction; ``condition_channels``, 0 where it does not
    see the source; ``stride``, of which height and width must be multiples.
    """

    kind: str = "wrapped"  # its name in files, which hold the weights of a class of one's own, and not the class
    channels: int
    condition_channels: int
    stride: int

    def forward(self, x: torch.Tensor, t: torch.Tensor, condition: torch.Tensor | None = None) -> torch.Tensor:
        """Predict the bridge's objective.

        Args:
            x: (B, channels, H, W) what the bridge shows of the state.
            t: (B,) integers or reals, what the network sees of the times; or (1,) for all.
            condition: (B, condition_channels, H, W), where the network has one.

        Returns:
            (B, channels, H, W) the prediction of the bridge's objective.

        Raises:
            ValueError: x has other channels or a size that is no multiple of the stride, or a condition is
                missing or not expected.
        """
        check_images(x, self.channels, self.stride)
        given = 0 if condition is None else condition.shape[1]
        if given != self.condition_channels:
            raise ValueError(f"condition must have {self.condition_channels} channels, got {given}")
        return self.body(x, self.embed(t), condition)

    def embed(self, t: torch.Tensor) -> torch.Tensor:
        """What depends on the time alone, computed once a table; the time itself by default."""
        return t

    @abstractmethod
    def body(self, x: torch.Tensor, embedding: torch.Tensor, condition: torch.Tensor | None = None) -> torch.Tensor:
        """The rest of the network; ``embedding`` has a row for each image, or one for all."""

    def embedder(self) -> Callable[[torch.Tensor], torch.Tensor]:
        """:meth:`embed` of times on any device, without keeping weights that it does not need."""
        device = next(self.parameters()).device
        return lambda t: self.embed(t.to(device))

    def units(self) -> Iterator[list[nn.Module]]:
        """Groups of modules, inner ones first, whose weights are read only while they are called.

        Sharded weights of a group are all-gathered for the time of its calls. The rest of the network, by
        default all of it, is all-gathered for each call of the network.
        """
        return iter(())

    def description(self) -> dict[str, Any]:
        """Plain values by which a checkpoint names it: by default the class and the sizes."""
        sizes = {name: getattr(self, name) for name in ("channels", "condition_channels", "stride")}
        return {"module": type(self).__qualname__, **sizes}


@dataclass(frozen=True)
class WrappedConfig:
    """What a file says of a network that its user has to give: see :func:`wrap`."""

    module: str  # the name of its class
    channels: int  # channels of the state, and of the prediction
    condition_channels: int  # channels of the source; 0 where it is not shown
    stride: int  # height and width are multiples of it


class Wrapped(Network):
    """Any module as a network; see :func:`wrap`."""

    def __init__(self, module: nn.Module, config: WrappedConfig, call: Call | None) -> None:
        super().__init__()
        self.module = module
        self.config = config
        self.channels = config.channels
        self.condition_channels = config.condition_channels
        self.stride = config.stride
        self._call = call

    def body(self, x: torch.Tensor, embedding: torch.Tensor, condition: torch.Tensor | None = None) -> torch.Tensor:
        """The module's prediction; the embedding is the time."""
        t = embedding.expand(len(x))
        if self._call is not None:
            return self._call(self.module, x, t, condition)
        return self.module(x, t) if condition is None else self.module(x, t, condition)

    def description(self) -> dict[str, Any]:
        """The class and the sizes."""
        return dict(vars(self.config))


def wrap(
    module: nn.Module,
    channels: int = 3,
    condition_channels: int = 0,
    stride: int = 1,
    call: Call | None = None,
) -> Wrapped:
    """Any module as a network that can be trained, sampled, compiled, exported and saved.

    Args:
        module: the module, which is used, not copied.
        channels: of the state, and of the prediction.
        condition_channels: channels of the source, where the module sees it; otherwise 0.
        stride: height and width must be multiples of it. Pictures are padded to that.
        call: call(module, x, t, condition) gives the prediction, (B, channels, H, W). The time is (B,)
            float, and the condition None without ``condition_channels``. By default module(x, t, condition).

    Raises:
        ValueError: a size is out of range, or ``module`` is no module.
    """
    if not isinstance(module, nn.Module):
        raise ValueError(f"module must be a torch.nn.Module, got {type(module).__name__}")
    for name, value, least in (
        ("channels", channels, 1),
        ("condition_channels", condition_channels, 0),
        ("stride", stride, 1),
    ):
        if not isinstance(value, int) or isinstance(value, bool) or value < least:
            raise ValueError(f"{name} must be an integer of at least {least}, got {value!r}")
    name = f"{type(module).__module__}.{type(module).__qualname__}"
    return Wrapped(module, WrappedConfig(name, channels, condition_channels, stride), call)


def check_network(network: Any) -> None:
    """Raise ValueError for what is no network."""
    if not isinstance(network, Network):
        raise ValueError(f"it must be a network, got {type(network).__name__}: bbdm.wrap makes one of any module")
    if next(network.parameters(), None) is None:
        raise ValueError(f"a network must have parameters, got a {type(network).__name__} without any")


def is_sharded(tensor: torch.Tensor) -> bool:
    """Whether a weight is sharded over processes (a DTensor); see :mod:`bbdm.execution.sharing`."""
    return hasattr(tensor, "full_tensor")


Placed = TypeVar("Placed", bound=Network)


def placed(network: Placed, device: torch.device, dtype: torch.dtype) -> Placed:
    """The network on a device, in a dtype and in evaluation mode: itself where it is so, else a copy."""
    weight = next(network.parameters())
    if (weight.device, weight.dtype) == (device, dtype) and not network.training:
        return network
    return copy.deepcopy(network).to(device, dtype).eval().requires_grad_(False)
