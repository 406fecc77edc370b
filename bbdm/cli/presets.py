"""The presets of the commands that train: their networks, and the settings of their runs."""

from __future__ import annotations

from collections import ChainMap
from collections.abc import Mapping
from typing import Any, Literal

from bbdm.bridges import BRIDGES
from bbdm.data.config import Crops
from bbdm.networks.config import DITS, UNETS
from bbdm.networks.config import VQGANS as VQGAN_PRESETS

__all__ = ["BRIDGE_NAMES", "PRESETS", "PRESET_SETTINGS", "UNPAIRED_SETTINGS", "VARIANTS", "VQGAN_PRESETS", "SourceAs"]
SourceAs = Literal["concat", "tokens", "none"]
PRESETS: Mapping[str, Any] = ChainMap[str, Any](DITS, UNETS)
VARIANTS: dict[str, tuple[str, dict[str, Any]]] = {  # bridges that are another with settings
    "bbdm": ("brownian", {"schedule": "linear"}),
    "flow": ("brownian", {"max_variance": 0.0, "objective": "displacement"}),
}
BRIDGE_NAMES: Mapping[str, Any] = ChainMap(VARIANTS, BRIDGES)  # pyright: ignore[reportArgumentType]  (only its keys)
# the settings of the original's templates
BBDM = {"bridge": "bbdm", "batch_size": 8, "lr_schedule": "plateau", "ema_start": 30000, "ema_every": 8}
FEW_CALLS = {"bridge": "brownian", "objective": "pinned", "density": "high", "loss": "l2"}
UNPAIRED_SETTINGS = {  # over those of the preset, for two sets without pairs
    "bridge": "brownian",
    "objective": "preconditioned",
    "density": "uniform",
    "loss": "l2",
    "source_as": "none",
    "direction": "both",
    "ema_decay": 0.999,
}
SMALL = {
    "image_size": 64,
    "batch_size": 16,
    "epochs": 50,
    "learning_rate": 4e-4,
    "lr_schedule": "cosine",
    "warmup_steps": 200,
    "flip": True,
    "precision": "bf16",
}
PRESET_SETTINGS: dict[str, dict[str, Any]] = {  # of a run with a preset's network; otherwise the defaults
    "paper": {},
    "paper-pinned": {**FEW_CALLS, "ema_decay": 0.9999, "precision": "bf16"},
    **{name: {"loss": "l2", "precision": "bf16"} for name in DITS},
    **dict.fromkeys(["bbdm", "lbbdm-f4", "lbbdm-f8", "lbbdm-f16"], BBDM),
    "volume": {
        **FEW_CALLS,
        "channels": 1,
        "crop": Crops((64, 96, 96)),
        "batch_size": 2,
        "ema_decay": 0.999,
        "precision": "bf16",
    },
    "demo": {**SMALL, **FEW_CALLS, "ema_decay": 0.9995},
    "demo-residual": {**SMALL, "loss": "l2", "ema_decay": 0.999},
}
