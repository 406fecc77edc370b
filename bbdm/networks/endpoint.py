"""The source in the target's channels, of tensors and of arrays alike; without torch."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, TypeVar

Images = TypeVar("Images", bound=Any)


def check_endpoint(endpoint: tuple[int, ...] | None, channels: int, condition_channels: int) -> None:
    """Raise ValueError unless an endpoint is None, or has a source channel for each of the target's channels.

    Args:
        endpoint: the source channels, counted from 0.
        channels: the target's number of channels.
        condition_channels: the source's number of channels, or 0 where it is not known.
    """
    if endpoint is None:
        return
    for channel in endpoint:
        if not isinstance(channel, int) or isinstance(channel, bool) or channel < 0:
            raise ValueError(f"endpoint must be of source channels, counted from 0, got {endpoint!r}")
    if len(endpoint) != channels:
        raise ValueError(f"endpoint must have a source channel for each of the {channels} channels, got {endpoint!r}")
    if condition_channels and max(endpoint) >= condition_channels:
        raise ValueError(f"endpoint must be of the source's {condition_channels} channels, got {endpoint!r}")


def source_channels(channels: int, condition_channels: int, endpoint: Sequence[int] | None) -> int:
    """The channels of a network's sources; see :attr:`bbdm.networks.base.Network.source_channels`."""
    return condition_channels or (channels if endpoint is None else max(endpoint) + 1)


def in_channels(
    source: Images, channels: int, endpoint: Sequence[int] | None, concatenate: Callable[[list[Images], int], Images]
) -> Images:
    """The source, a tensor or an array (B, C, *S), in the target's channels: (B, channels, *S).

    Args:
        source: (B, C, *S) in its own channels.
        channels: the target's number of channels.
        endpoint: the source channel for each of them. None takes a source of as many channels as it is; of
            other numbers it takes the mean over the source's channels, repeated.
        concatenate: tensors or arrays along an axis.
    """
    count = source.shape[1]
    if list(range(count)) == (list(range(channels)) if endpoint is None else list(endpoint)):
        return source
    single = [source[:, channel : channel + 1] for channel in range(count)]
    if endpoint is not None:  # not by a list as an index, which would be copied to a GPU
        return concatenate([single[channel] for channel in endpoint], 1)
    total = single[0]
    for other in single[1:]:  # in this order, so that tensors and arrays have the same bits
        total = total + other
    return concatenate([total / count] * channels, 1)
