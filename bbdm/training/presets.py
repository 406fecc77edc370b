"""What a preset sets besides its network: defaults of the flags of ``bbdm train``, by their names."""

from __future__ import annotations

from typing import Any

from bbdm.data.config import Crops
from bbdm.networks.config import DITS

# for few network calls: see docs/calls.md
FEW_CALLS = {"bridge": "brownian", "objective": "pinned", "density": "high", "loss": "l2"}
# of the original BBDM's templates
BBDM = {
    "bridge": "bbdm",
    "batch_size": 8,
    "lr_schedule": "plateau",
    "ema_start": 30000,
    "ema_every": 8,
}
# of pictures of 64 x 64
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
PRESET_SETTINGS: dict[str, dict[str, Any]] = {
    "paper": {},
    "paper-pinned": {**FEW_CALLS, "ema_decay": 0.9999, "precision": "bf16"},
    "few": {
        **FEW_CALLS,
        "batch_size": 16,
        "max_steps": 2000,
        "warmup_steps": 50,
        "grad_clip": 1.0,
        "ema_decay": 0.99,
        "precision": "bf16",
        "shift": 0.1,
        "turn": 15.0,
        "zoom": 0.15,
        "validate_every": 100,
        "best": True,
    },
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
    "small": {**SMALL, **FEW_CALLS, "ema_decay": 0.999},
    "demo-residual": {**SMALL, "loss": "l2", "ema_decay": 0.999},
}
# in place of those of the preset, where training begins with a network of diffusion models
PRETRAINED_SETTINGS = {"objective": "denoiser", "density": "high", "loss": "l2"}
# in place of those of the preset, for two sets without pairs
UNPAIRED_SETTINGS = {
    "bridge": "brownian",
    "objective": "preconditioned",
    "density": "uniform",
    "loss": "l2",
    "source_as": "none",
    "direction": "both",
    "ema_decay": 0.999,
}
