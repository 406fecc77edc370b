"""Training a bridge."""

from __future__ import annotations

from typing import TYPE_CHECKING

from bbdm.base.lazy import public

if TYPE_CHECKING:
    from bbdm.training.callback import Callback as Callback
    from bbdm.training.config import TrainConfig as TrainConfig
    from bbdm.training.losses import bridge_loss as bridge_loss
    from bbdm.training.trainer import Trainer as Trainer

_HOMES = {
    "Callback": "bbdm.training.callback",
    "TrainConfig": "bbdm.training.config",
    "Trainer": "bbdm.training.trainer",
    "bridge_loss": "bbdm.training.losses",
}
__all__ = sorted(_HOMES)  # pyright: ignore[reportUnsupportedDunderAll]
__getattr__, __dir__ = public(__name__, _HOMES)
