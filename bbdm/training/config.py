"""The settings of a training run. What a run is, is in :mod:`bbdm.training.trainer`."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal, get_args

Loss = Literal["l1", "l2", "huber"]
Optimizer = Literal["adam", "adamw"]
Precision = Literal["fp32", "bf16", "fp16"]
Schedule = Literal["constant", "cosine", "plateau"]
FREE = {  # what may change when a run goes on
    "epochs",
    "learning_rate",
    "grad_accumulation",
    "grad_clip",
    "compile",
    "workers",
    "preview_every",
    "save_every",
    "keep",
}


@dataclass(frozen=True)
class TrainConfig:
    """How to train.

    Raises:
        ValueError: a value is out of range.
    """

    epochs: int = 100
    batch_size: int = 64  # pairs in an optimizer step
    grad_accumulation: int = 1  # parts that a batch is computed in, one after the other: less memory, the same step
    learning_rate: float = 1e-4
    lr_schedule: Schedule = "constant"  # cosine: to 0 over all epochs; plateau: see bbdm.training.optimizers
    warmup_steps: int = 0  # optimizer steps over which the learning rate rises from 0
    plateau_patience: int = 3000  # optimizer steps
    optimizer: Optimizer = "adam"
    weight_decay: float = 0.01  # of adamw
    grad_clip: float = 0.0  # norm that gradients are cut to; 0: as they are
    loss: Loss = "l1"  # of the prediction; l1 trains a conditional median, l2 the mean that solvers assume
    ema_decay: float = 0.995  # of the moving average of weights
    ema_start: int = 0  # optimizer steps during which the average is a copy
    ema_every: int = 1  # optimizer steps between its updates
    flip: bool = False  # mirror half of the pairs
    precision: Precision = "fp32"  # bf16, fp16: autocast, weights stay float32; fp16 scales the loss
    compile: bool = False  # compile the network's forward and backward: minutes at the first step
    seed: int = 0
    workers: int = 0  # processes that read pictures
    preview_every: int = 10  # epochs between grids of validation pairs
    save_every: int = 500  # optimizer steps between checkpoints, beside those at the end of each epoch
    keep: int = 2  # checkpoints that stay, the newest

    def __post_init__(self) -> None:
        for name in (
            *("epochs", "batch_size", "grad_accumulation", "plateau_patience", "ema_every"),
            *("preview_every", "save_every", "keep"),
        ):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} must be at least 1, got {getattr(self, name)}")
        for name in ("warmup_steps", "ema_start", "weight_decay", "grad_clip", "seed", "workers"):
            if not getattr(self, name) >= 0:
                raise ValueError(f"{name} must be at least 0, got {getattr(self, name)}")
        if self.seed >= 2**32:
            raise ValueError(f"seed must be below 2^32, got {self.seed}")
        if self.batch_size % self.grad_accumulation:
            parts = self.grad_accumulation
            raise ValueError(f"batch_size {self.batch_size} does not split into grad_accumulation={parts} equal parts")
        if not self.learning_rate > 0:
            raise ValueError(f"learning_rate must be positive, got {self.learning_rate}")
        if not 0 <= self.ema_decay < 1:
            raise ValueError(f"ema_decay must be in [0, 1), got {self.ema_decay}")
        choices = {"loss": Loss, "lr_schedule": Schedule, "optimizer": Optimizer, "precision": Precision}
        for name, kind in choices.items():
            if getattr(self, name) not in get_args(kind):
                raise ValueError(f"{name} must be one of {get_args(kind)}, got {getattr(self, name)!r}")

    def lr_at(self, step: int, total: int) -> float:
        """The learning rate of optimizer step ``step`` of ``total``, before what a plateau makes of it."""
        rate = self.learning_rate * min(1.0, (step + 1) / max(1, self.warmup_steps))
        if self.lr_schedule == "cosine":
            rate *= 0.5 * (1 + math.cos(math.pi * min(1.0, step / total)))
        return rate
