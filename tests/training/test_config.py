"""The settings of a training run: what they refuse, and the learning rate."""

from __future__ import annotations

import math
from dataclasses import FrozenInstanceError
from typing import Any

import pytest

from bbdm.training.config import TrainConfig


class TestTrainConfig:
    @pytest.mark.parametrize(
        ("name", "value", "reason"),
        [
            ("epochs", 0, "epochs must be at least 1, got 0"),
            ("batch_size", 0, "batch_size must be at least 1, got 0"),
            ("preview_every", 0, "preview_every must be at least 1, got 0"),
            ("save_every", 0, "save_every must be at least 1, got 0"),
            ("keep", 0, "keep must be at least 1, got 0"),
            ("warmup_steps", -1, "warmup_steps must be at least 0, got -1"),
            ("seed", -1, "seed must be at least 0, got -1"),
            ("workers", -2, "workers must be at least 0, got -2"),
            ("learning_rate", 0.0, "learning_rate must be positive, got 0.0"),
            ("learning_rate", math.nan, "learning_rate must be positive, got nan"),
            ("ema_decay", 1.0, r"ema_decay must be in \[0, 1\), got 1.0"),
            ("ema_decay", -0.1, r"ema_decay must be in \[0, 1\), got -0.1"),
            ("grad_accumulation", 0, "grad_accumulation must be at least 1, got 0"),
            ("grad_accumulation", 3, "batch_size 64 does not split into grad_accumulation=3 equal parts"),
            ("plateau_patience", 0, "plateau_patience must be at least 1, got 0"),
            ("ema_every", 0, "ema_every must be at least 1, got 0"),
            ("ema_start", -1, "ema_start must be at least 0, got -1"),
            ("weight_decay", -0.1, "weight_decay must be at least 0, got -0.1"),
            ("grad_clip", math.nan, "grad_clip must be at least 0, got nan"),
            ("optimizer", "sgd", r"optimizer must be one of \('adam', 'adamw'\), got 'sgd'"),
            ("loss", "l3", r"loss must be one of \('l1', 'l2', 'huber'\), got 'l3'"),
            ("lr_schedule", "step", r"lr_schedule must be one of \('constant', 'cosine', 'plateau'\), got 'step'"),
            ("precision", "fp8", r"precision must be one of \('fp32', 'bf16', 'fp16'\), got 'fp8'"),
        ],
        ids=lambda value: "" if isinstance(value, str) and " " in value else str(value),
    )
    def test_refuses(self, name: str, value: Any, reason: str) -> None:
        with pytest.raises(ValueError, match=reason):
            TrainConfig(**{name: value})

    def test_is_frozen(self) -> None:
        with pytest.raises(FrozenInstanceError):
            TrainConfig().epochs = 3  # pyright: ignore[reportAttributeAccessIssue]

    def test_warmup_rises_to_the_learning_rate(self) -> None:
        config = TrainConfig(learning_rate=8.0, warmup_steps=4)
        assert [config.lr_at(step, 100) for step in range(6)] == [2.0, 4.0, 6.0, 8.0, 8.0, 8.0]

    def test_constant_without_warmup(self) -> None:
        config = TrainConfig(learning_rate=8.0)
        assert {config.lr_at(step, 100) for step in (0, 1, 50, 99, 100)} == {8.0}

    def test_cosine_falls_to_zero(self) -> None:
        """Half of 1 + cos at 0, 60, 90, 120 and 180 degrees."""
        config = TrainConfig(learning_rate=8.0, lr_schedule="cosine")
        rates = [config.lr_at(step, 12) for step in (0, 4, 6, 8, 12)]
        assert rates == pytest.approx([8.0, 6.0, 4.0, 2.0, 0.0], abs=1e-12)

    def test_warmup_and_cosine_multiply(self) -> None:
        config = TrainConfig(learning_rate=8.0, lr_schedule="cosine", warmup_steps=10)
        assert config.lr_at(4, 12) == pytest.approx(8 * 0.5 * 0.75)
