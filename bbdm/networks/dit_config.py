"""The settings of the transformer, and its presets, without torch."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any, ClassVar, Literal, get_args

from bbdm.networks.checks import check_integers
from bbdm.networks.conditions import ConditionsConfig
from bbdm.networks.endpoint import check_endpoint

LATER = {"endpoint": None, "images": {}, "classes": {}, "tokens": {}, "drop": {}}  # left out of files at these values
Condition = Literal["channels", "tokens"]


@dataclass(frozen=True)
class DiTConfig(ConditionsConfig):
    """The settings of a transformer, which decide its shapes.

    Condition images are concatenated to x, a class adds its embedding to the time's, and each block attends
    to tokens after itself.

    Raises:
        ValueError: no network can be built from a value.
    """

    axes: ClassVar[int] = 2  # spatial: pictures alone
    channels: int = 3  # of the state, and of the prediction
    condition_channels: int = 3  # of the source; 0 where it is not shown
    condition: Condition = "channels"  # how the source is shown
    patch: int = 4  # side of a token, in pixels
    width: int = 384  # channels of a token
    depth: int = 12  # blocks
    heads: int = 6  # heads of every attention
    mlp_ratio: int = 4  # width of the MLP, in ``width``
    endpoint: tuple[int, ...] | None = None  # source channels that the bridge ends in; None: itself, or the mean

    def __post_init__(self) -> None:
        super().__post_init__()
        check_integers(self, "channels", "patch", "width", "depth", "heads", "mlp_ratio")
        check_integers(self, "condition_channels", least=0)
        if self.endpoint is not None:
            object.__setattr__(self, "endpoint", tuple(self.endpoint))
        check_endpoint(self.endpoint, self.channels, self.condition_channels)
        if self.condition not in get_args(Condition):
            raise ValueError(f"condition must be one of {get_args(Condition)}, got {self.condition!r}")
        if self.width % self.heads or self.width % 4:
            raise ValueError(f"width must be a multiple of heads={self.heads} and of 4, got {self.width}")

    def description(self) -> dict[str, Any]:
        """Plain values from which a file builds it, the endpoint and conditions only where there are any."""
        return {name: value for name, value in asdict(self).items() if name not in LATER or value != LATER[name]}

    @property
    def stride(self) -> int:
        """Height and width must be multiples of this."""
        return self.patch


PRESETS: dict[str, DiTConfig] = {  # the paper's sizes
    "dit-s": DiTConfig(width=384, depth=12, heads=6),  # 33 M parameters
    "dit-b": DiTConfig(width=768, depth=12, heads=12),  # 131 M
    "dit-l": DiTConfig(width=1024, depth=24, heads=16),  # 459 M
}
