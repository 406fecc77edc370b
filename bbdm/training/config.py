"""The settings of a training run."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from math import inf
from typing import Any, Literal

from bbdm.base.settings import check, setting

Loss = Literal["l1", "l2"]
Precision = Literal["fp32", "bf16", "fp16"]
Schedule = Literal["constant", "cosine", "plateau"]
Every = int | str  # optimizer steps, or epochs as in "2e"
FREE = {  # what may change when a run resumes
    *("epochs", "max_steps", "learning_rate", "grad_accumulation", "grad_clip", "compile"),
    *("workers", "validate_every", "preview_every", "save_every", "keep"),
}


def read_every(text: str) -> Every:
    """A number of optimizer steps, or of epochs as in ``2e``.

    Raises:
        ValueError: it is neither, or is below 1.
    """
    number = text.removesuffix("e")
    if not number.isdecimal() or int(number) < 1:
        raise ValueError(
            f"it is optimizer steps, such as 5000, or epochs, such as 2e; got {text!r}"
        )
    return text if text.endswith("e") else int(number)


def read_decoded(text: str) -> float:
    """The weight in ``lpips:WEIGHT``; ValueError where it is written in another way."""
    name, _, weight = text.partition(":")
    if name != "lpips" or not weight:
        raise ValueError(f"it is written as lpips:WEIGHT, got {text!r}")
    return float(weight)


def steps_of(every: Every, steps_per_epoch: int) -> int:
    """The optimizer steps in so many steps or epochs."""
    if isinstance(every, int):
        return every
    return int(every.removesuffix("e")) * steps_per_epoch


def compared(
    description: Mapping[str, Any], config: Mapping[str, Any], pairs: Mapping[str, Any]
) -> dict[str, Any]:
    """What must not change when a run resumes."""
    fixed = {name: value for name, value in config.items() if name not in FREE}
    return {**description, **fixed, "pairs": dict(pairs)}


@dataclass(frozen=True)
class RunConfig:
    """How to run a training, whatever it trains.

    Raises:
        ValueError: a value is out of range.
    """

    epochs: int = setting(100, "passes over the pairs", "-e", least=1)
    max_steps: int | None = setting(None, "optimizer steps of the run, in place of epochs", least=1)
    batch_size: int = setting(64, "pairs in an optimizer step", "-b", least=1)
    learning_rate: float = setting(1e-4, "of the optimizer", "-lr")
    lr_schedule: Schedule = setting(
        "constant",
        "cosine: to 0 over the run; plateau: halved when the training loss stops falling",
    )
    warmup_steps: int = setting(
        0, "optimizer steps over which the learning rate rises from 0", least=0
    )
    weight_decay: float = setting(0.0, "of AdamW, which is Adam without it", least=0)
    grad_clip: float = setting(0.0, "largest norm of the gradients; 0: no clipping", least=0)
    ema_decay: float = setting(0.995, "of the moving average of weights")
    ema_start: int = setting(0, "optimizer steps during which the average is a copy", least=0)
    ema_every: int = setting(1, "optimizer steps between updates of the average", least=1)
    flip: bool = setting(False, "mirror half of the pairs")
    shift: float = setting(0.0, "move pairs by up to this share of their side")
    turn: float = setting(0.0, "turn pairs by up to so many degrees, either way")
    zoom: float = setting(0.0, "make pairs larger or smaller by up to this share")
    precision: Precision = setting("fp32", "of the network's arithmetic; weights stay float32")
    compile: bool = setting(False, "faster steps after minutes of compiling")
    seed: int = setting(0, "of weights, order, times and noise", least=0)
    workers: int = setting(0, "processes that read pictures", least=0)
    validate_every: Every = setting(
        "1e",
        "optimizer steps, or epochs as in 2e, between validations: lines of metrics, and best.pt",
        parse=read_every,
    )
    preview_every: int = setting(10, "validations between grids of validation pairs", least=1)
    save_every: Every = setting(
        500,
        "optimizer steps, or epochs as in 2e, between checkpoints, besides one after each validation",
        parse=read_every,
    )
    keep: int = setting(2, "number of newest checkpoints that are kept", least=1)

    def __post_init__(self) -> None:
        check(self)
        for name in ("validate_every", "save_every"):
            try:
                object.__setattr__(self, name, read_every(str(getattr(self, name))))
            except ValueError as error:
                raise ValueError(f"{name}: {error}") from error
        if self.seed >= 2**32:
            raise ValueError(f"seed must be below 2^32, got {self.seed}")
        if not self.learning_rate > 0:
            raise ValueError(f"learning_rate must be positive, got {self.learning_rate}")
        if not 0 <= self.ema_decay < 1:
            raise ValueError(f"ema_decay must be in [0, 1), got {self.ema_decay}")
        if not 0 <= self.shift <= 0.5:
            raise ValueError(f"shift must be in [0, 0.5], got {self.shift}")
        if not 0 <= self.turn <= 180:
            raise ValueError(f"turn must be in [0, 180], got {self.turn}")
        if not 0 <= self.zoom <= 1:
            raise ValueError(f"zoom must be in [0, 1], got {self.zoom}")

    @property
    def parts(self) -> int:
        """The equal parts that a batch is computed in."""
        return 1

    def check_batch(self, pairs: int, processes: int) -> None:
        """Raise ValueError where a batch has more pairs than there are, or cannot be shared equally."""
        if self.batch_size > pairs:
            raise ValueError(
                f"batch_size must be at most the {pairs} training pairs, got {self.batch_size}"
            )
        if self.batch_size % (processes * self.parts):
            shares = f"{processes} processes x {self.parts} parts"
            raise ValueError(f"batch_size {self.batch_size} does not split into {shares}")


@dataclass(frozen=True)
class BridgeConfig(RunConfig):
    """How to train the network of a bridge, by whatever loss."""

    grad_accumulation: int = setting(
        1, "parts that a batch is computed in: less memory, the same step", least=1
    )

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.batch_size % self.grad_accumulation:
            parts = self.grad_accumulation
            raise ValueError(
                f"batch_size {self.batch_size} does not split into grad_accumulation={parts} equal parts"
            )

    @property
    def parts(self) -> int:
        """The equal parts that a batch is computed in."""
        return self.grad_accumulation


@dataclass(frozen=True)
class TrainConfig(BridgeConfig):
    """How to train a bridge."""

    loss: Loss = setting(
        "l1", "of the prediction; l1 trains a conditional median, l2 the mean that solvers assume"
    )
    decoded_loss: float | None = setting(
        None,
        "lpips:WEIGHT, such as lpips:5, adds LPIPS between crops that estimates and targets decode to, of latents",
        parse=read_decoded,
        metavar="LPIPS",
        group="latents",
    )

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.decoded_loss is not None and not 0 < self.decoded_loss < inf:
            raise ValueError(f"decoded_loss must be a positive weight, got {self.decoded_loss}")


@dataclass(frozen=True)
class UnpairedConfig(TrainConfig):
    """How to train between two sets without pairs."""

    pairing_steps: int = setting(
        2000,
        "optimizer steps on random pairs, before the other ends are made; of the data set 'unpaired'",
        least=1,
    )
    simulation_steps: int = setting(16, "steps of the solver that makes the other ends", least=2)


@dataclass(frozen=True)
class DistillConfig(BridgeConfig):
    """How to distil; the loss is the energy score."""

    calls: int = setting(2, "network calls of the student", least=1)
    results: int = setting(2, "of each pair, that the energy score compares", least=2)


@dataclass(frozen=True)
class AutoencoderConfig(RunConfig):
    """How to train an autoencoder. A batch has two pictures of each pair."""

    precision: Literal["fp32", "bf16"] = setting(
        "fp32", "of the network's arithmetic; weights stay float32"
    )
    perceptual: Literal["vgg", "alex", "squeeze", "none"] = setting(
        "vgg", "network of LPIPS; none: without LPIPS"
    )
    perceptual_weight: float = setting(1.0, "of LPIPS, against 1 of L1", least=0)
    codebook_weight: float = setting(1.0, "of a codebook's loss", least=0)
    kl_weight: float = setting(1e-6, "of the KL divergence of a KL autoencoder's latents", least=0)
    restarts: int = setting(
        50,
        "times that unused codes move to latents, over the first half of the run; 0: never",
        least=0,
    )
    adversarial_weight: float = setting(0.75, "of the adversarial loss; 0: no adversary", least=0)
    adversarial_start: int = setting(50000, "optimizer steps before the adversary begins", least=0)
    discriminator_width: int = setting(64, "channels of its first layer", least=1)
