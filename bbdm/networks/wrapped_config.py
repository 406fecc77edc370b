"""What a file says of a network of the user's own; see :func:`bbdm.networks.base.wrap`."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from bbdm.networks.checks import Stride
from bbdm.networks.conditions import ConditionsConfig
from bbdm.networks.endpoint import check_endpoint


@dataclass(frozen=True)
class WrappedConfig(ConditionsConfig):
    """What a file says of a network that its user has to give: see :func:`bbdm.networks.base.wrap`."""

    module: str  # the name of its class
    channels: int  # channels of the state, and of the prediction
    condition_channels: int  # channels of the source; 0 where it is not shown
    stride: Stride  # sides are multiples of it: a number, or one for each axis
    endpoint: tuple[int, ...] | None = None  # source channels that the bridge ends in; None: itself, or the mean
    axes: int = 2  # spatial: 2 for pictures, 3 for volumes

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.endpoint is not None:
            object.__setattr__(self, "endpoint", tuple(self.endpoint))
        object.__setattr__(self, "stride", self.stride if isinstance(self.stride, int) else tuple(self.stride))
        check_endpoint(self.endpoint, self.channels, self.condition_channels)

    def description(self) -> dict[str, Any]:
        """Plain values; of conditions and ``endpoint`` only where there are any, of ``axes`` only 3."""
        usual = {"images": {}, "classes": {}, "tokens": {}, "drop": {}, "endpoint": None, "axes": 2}
        own = {k: v for k, v in vars(self).items() if k not in usual or v != usual[k]}
        return {name: own[name] for name in sorted(own, key=[*usual].__contains__)}  # what it is told comes last
