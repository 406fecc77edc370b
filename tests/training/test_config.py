"""The settings of a training run: what they refuse, and the learning rate."""

import math
from dataclasses import asdict
from typing import Any

import pytest

from bbdm.training.bridge import BridgeTask
from bbdm.training.config import FREE, ONLY, AutoencoderConfig, DistillConfig, TrainConfig
from tests.conftest import BRIDGE, ROOT, tiny_unet

LEAST = {
    (TrainConfig, 1): "epochs batch_size preview_every save_every keep grad_accumulation plateau_patience ema_every",
    (TrainConfig, 0): "warmup_steps seed workers ema_start weight_decay grad_clip",
    (DistillConfig, 1): "calls epochs",
    (DistillConfig, 2): "results",
    (AutoencoderConfig, 1): "discriminator_width",
    (AutoencoderConfig, 0): "perceptual_weight codebook_weight kl_weight restarts adversarial_weight adversarial_start",
}


@pytest.mark.parametrize("value", ["below", "nan"])
@pytest.mark.parametrize(
    ("config", "least", "name"), [(*key, name) for key, names in LEAST.items() for name in names.split()]
)
def test_least_values(config: Any, least: int, name: str, value: str) -> None:
    number = math.nan if value == "nan" else least - 1
    with pytest.raises(ValueError, match=f"^{name} must be at least {least}, got {number}$"):
        config(**{name: number})
    config(**{name: least})


class TestTrainConfig:
    @pytest.mark.parametrize(
        ("config", "name", "value", "reason"),
        [
            (TrainConfig, "seed", 2**32, r"seed must be below 2\^32, got 4294967296"),
            (TrainConfig, "learning_rate", 0.0, "learning_rate must be positive, got 0.0"),
            (TrainConfig, "learning_rate", math.nan, "learning_rate must be positive, got nan"),
            (TrainConfig, "ema_decay", 1.0, r"ema_decay must be in \[0, 1\), got 1.0"),
            (TrainConfig, "ema_decay", -0.1, r"ema_decay must be in \[0, 1\), got -0.1"),
            *((TrainConfig, "shift", v, rf"shift must be in \[0, 0.5\], got {v}") for v in (-0.1, 0.6, math.nan)),
            (TrainConfig, "grad_accumulation", 3, "batch_size 64 does not split into grad_accumulation=3 equal parts"),
            (TrainConfig, "optimizer", "sgd", r"optimizer must be one of \('adam', 'adamw'\), got 'sgd'"),
            (TrainConfig, "loss", "l3", r"loss must be one of \('l1', 'l2', 'huber'\), got 'l3'"),
            (TrainConfig, "lr_schedule", "step", r"must be one of \('constant', 'cosine', 'plateau'\), got 'step'"),
            (TrainConfig, "precision", "fp8", r"precision must be one of \('fp32', 'bf16', 'fp16'\), got 'fp8'"),
            (AutoencoderConfig, "perceptual", "resnet", r"must be one of \('vgg', 'alex', 'squeeze', 'none'\), got 'r"),
            (AutoencoderConfig, "precision", "fp16", r"precision must be one of \('fp32', 'bf16'\), got 'fp16'"),
        ],
        ids=lambda value: str(value) if isinstance(value, str) and " " not in value else "",
    )
    def test_refuses(self, config: Any, name: str, value: Any, reason: str) -> None:
        with pytest.raises(ValueError, match=reason):
            config(**{name: value})

    @pytest.mark.parametrize(
        ("schedule", "warmup", "total", "rates"),
        [
            ("constant", 4, 100, {0: 2.0, 1: 4.0, 2: 6.0, 3: 8.0, 4: 8.0, 5: 8.0}),
            ("constant", 0, 100, dict.fromkeys((0, 1, 50, 99, 100), 8.0)),
            (
                "cosine",
                0,
                12,
                {0: 8.0, 4: 6.0, 6: 4.0, 8: 2.0, 12: 0.0},
            ),  # (1 + cos) / 2 of 0, 60, 90, 120, 180 degrees
            ("cosine", 10, 12, {4: 8 * 0.5 * 0.75}),  # they multiply
        ],
    )
    def test_learning_rates(self, schedule: Any, warmup: int, total: int, rates: dict[int, float]) -> None:
        config = TrainConfig(lr_schedule=schedule, warmup_steps=warmup)
        task = BridgeTask(tiny_unet(), BRIDGE, config, total=total)
        assert {step: task.rate(step, 8.0) for step in rates} == pytest.approx(rates, abs=1e-12)

    def test_what_a_resume_compares(self) -> None:
        """Settings that are free may change, and those that have no effect; the guide names the free ones."""
        for config in (TrainConfig(), DistillConfig(), AutoencoderConfig()):
            assert {*asdict(config)} - {*config.compared()} == FREE & {*asdict(config)} | {*ONLY}
        assert "loss" not in DistillConfig().compared()
        assert {"weight_decay", "loss"} <= {*TrainConfig(optimizer="adamw").compared()}
        assert "plateau_patience" in TrainConfig(lr_schedule="plateau").compared()
        assert {*asdict(TrainConfig())} >= FREE
        names = {"epochs": "-e", "learning_rate": "-lr"}
        guide = (ROOT / "docs" / "training.md").read_text().split("These settings may change: ")[1].split(". With")[0]
        assert all(f"`{names.get(name, '--' + name)}`" in guide for name in FREE)
