"""The settings of a training run. What a run is, is in :mod:`bbdm.training`."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal, get_args

Loss = Literal["l1", "l2"]
Precision = Literal["fp32", "bf16"]
Schedule = Literal["constant", "cosine"]
FREE = {"epochs", "learning_rate", "compile", "workers", "preview_every", "save_every", "keep"}  # may change in a run


@dataclass(frozen=True)
class TrainConfig:
    """How to train.

    Raises:
        ValueError: a value is out of range.
    """

    epochs: int = 100
    batch_size: int = 64
    learning_rate: float = 1e-4
    lr_schedule: Schedule = "constant"  # cosine: decays to 0 over all epochs
    warmup_steps: int = 0  # optimizer steps over which the learning rate rises from 0
    loss: Loss = "l1"  # of the prediction; l1 trains a conditional median, l2 the mean that solvers assume
    ema_decay: float = 0.995  # of the moving average of weights
    flip: bool = False  # mirror half of the pairs
    precision: Precision = "fp32"  # bf16: autocast, weights stay float32
    compile: bool = False  # compile the network's forward and backward: minutes at the first step
    seed: int = 0
    workers: int = 0  # processes that read pictures
    preview_every: int = 10  # epochs between grids of validation pairs
    save_every: int = 500  # optimizer steps between checkpoints, beside those at the end of each epoch
    keep: int = 2  # checkpoints that stay, the newest

    def __post_init__(self) -> None:
        for name in ("epochs", "batch_size", "preview_every", "save_every", "keep"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} must be at least 1, got {getattr(self, name)}")
        for name in ("warmup_steps", "seed", "workers"):
            if getattr(self, name) < 0:
                raise ValueError(f"{name} must be at least 0, got {getattr(self, name)}")
        if self.seed >= 2**32:
            raise ValueError(f"seed must be below 2^32, got {self.seed}")
        if not self.learning_rate > 0:
            raise ValueError(f"learning_rate must be positive, got {self.learning_rate}")
        if not 0 <= self.ema_decay < 1:
            raise ValueError(f"ema_decay must be in [0, 1), got {self.ema_decay}")
        for name, kind in {"loss": Loss, "lr_schedule": Schedule, "precision": Precision}.items():
            if getattr(self, name) not in get_args(kind):
                raise ValueError(f"{name} must be one of {get_args(kind)}, got {getattr(self, name)!r}")

    def lr_at(self, step: int, total: int) -> float:
        """The learning rate of optimizer step ``step`` of ``total``."""
        rate = self.learning_rate * min(1.0, (step + 1) / max(1, self.warmup_steps))
        if self.lr_schedule == "cosine":
            rate *= 0.5 * (1 + math.cos(math.pi * min(1.0, step / total)))
        return rate
