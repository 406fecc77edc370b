"""One optimizer step of a training run: a batch of pairs in, new weights and their moving average out.

Times, noise and flips of a sample are a function of (run seed, optimizer step, index in the batch), so a
resumed run draws the same ones as an uninterrupted run.
"""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from typing import Any

import torch
from torch.amp import GradScaler

from bbdm.bridges import Bridge
from bbdm.codec import Codec, Role
from bbdm.execution.processes import Processes
from bbdm.network import Network
from bbdm.training.augmentation import augment
from bbdm.training.config import Precision, TrainConfig
from bbdm.training.ema import EMA
from bbdm.training.losses import bridge_loss
from bbdm.training.optimizers import Plateau, make_optimizer
from bbdm.training.tracking import Tracker

VALIDATION_STEPS = range(2**32 - 4, 2**32)  # counter values above those of optimizer steps
DROPOUT = (torch.nn.Dropout, torch.nn.Dropout1d, torch.nn.Dropout2d, torch.nn.AlphaDropout)
AUTOCAST: dict[Precision, torch.dtype] = {"bf16": torch.bfloat16, "fp16": torch.float16}


def sample_seeds(run_seed: int, first: int, count: int, device: torch.device) -> torch.Tensor:
    """(count,) seeds of samples ``first``.. of a batch: the run's seed as low word, the index as high."""
    return run_seed + (torch.arange(first, first + count, device=device) << 32)


def mixed(seed: int, number: int) -> int:
    """A 32-bit seed from a run's seed and a number; a generator reads no more bits."""
    return (seed * 0x9E3779B9 + number) % 2**32


class TrainStep:
    """An optimizer step as a function of a batch, with the state that it changes.

    Arguments are those of :class:`~bbdm.training.trainer.Trainer`; ``latents``: batches are latents, not
    pictures; and ``total``: the optimizer steps of the whole run, for the learning rate.
    """

    def __init__(
        self,
        unet: Network,
        bridge: Bridge,
        config: TrainConfig,
        codec: Codec | None,
        processes: Processes,
        latents: bool,
        total: int,
    ) -> None:
        self.unet = unet
        self.device = next(unet.parameters()).device
        network = torch.compile(unet, fullgraph=True, dynamic=False) if config.compile else unet
        self.network = processes.parallel(network)
        self.bridge = bridge
        self.config = config
        self.codec = codec
        self.processes = processes
        self.latents = latents
        self.total = total
        self.ema = EMA(unet, config.ema_decay, config.ema_start, config.ema_every)
        self.optimizer = make_optimizer(unet, config)
        self.plateau = Plateau(config.plateau_patience)
        self.scaler = GradScaler(self.device.type, enabled=config.precision == "fp16")
        self.random = any(isinstance(module, DROPOUT) and module.p for module in unet.modules())
        self.calls: int | None = None  # the network evaluations that results are made for, where they are fixed
        self.tracker: Tracker | None = None  # TensorBoard, for losses and gradients
        self.part: Callable[[str], AbstractContextManager[Any]] = nullcontext  # entered around each part of a step

    def state(self) -> dict[str, Any]:
        """The state that :meth:`load` restores, besides the network and its average."""
        return {
            "optimizer": self.optimizer.state_dict(),
            "scaler": self.scaler.state_dict(),
            "plateau": self.plateau.state(),
        }

    def load(self, state: dict[str, Any]) -> None:
        """Restore a :meth:`state` of the same settings."""
        self.optimizer.load_state_dict(state["optimizer"])
        self.scaler.load_state_dict(state["scaler"])
        self.plateau = Plateau(self.config.plateau_patience, **state["plateau"])

    def __call__(self, y: torch.Tensor, x0: torch.Tensor, step: int) -> float:
        """Do optimizer step ``step`` on a batch of sources and targets from the data set.

        Each process passes its share of the batch; all return the loss of the whole batch before the step.
        """
        config = self.config
        if self.random:
            torch.manual_seed(mixed(config.seed, step * self.processes.count + self.processes.rank))
        rate = config.lr_at(step, self.total)
        rate = self.plateau.rate(rate) if config.lr_schedule == "plateau" else rate
        for group in self.optimizer.param_groups:
            group["lr"] = rate
        loss = self._gradients(y, x0, step)
        with self.part("optimizer"):
            norm = self._gradient_norm(step)
            self.scaler.step(self.optimizer)  # skipped where a gradient overflows float16
            self.scaler.update()
            self.optimizer.zero_grad(set_to_none=True)
        with self.part("average of weights"):
            self.ema.update(self.unet, step)
        mean = self.processes.sum(loss.item()) / self.processes.count  # waits for the device
        self.plateau.update(mean)
        if self.tracker is not None and norm is not None and self.tracker.due(step + 1):
            self.tracker.write_losses(step + 1)
            self.tracker.write(step + 1, loss=mean, learning_rate=rate, gradient_norm=norm.item())
        return mean

    def _gradients(self, y: torch.Tensor, x0: torch.Tensor, step: int) -> torch.Tensor:
        """Compute the gradients of the batch, part by part; returns the loss of this process's share."""
        parts = self.config.grad_accumulation
        seeds = sample_seeds(self.config.seed, self.processes.rank * len(y), len(y), self.device)
        total = torch.zeros((), device=self.device)
        for index, part in enumerate(zip(y.chunk(parts), x0.chunk(parts), seeds.chunk(parts), strict=True), start=1):
            with nullcontext() if index == parts else self.processes.alone(self.network):
                loss = self._part_loss(*part, step) / parts
                with self.part("backward"):
                    self.scaler.scale(loss).backward()
            total += loss.detach()
        self.scaler.unscale_(self.optimizer)
        return total

    def _part_loss(self, y: torch.Tensor, x0: torch.Tensor, seeds: torch.Tensor, step: int) -> torch.Tensor:
        """The loss of pairs from the data set, one seed for each."""
        with self.part("augment, encode"):
            y, x0 = augment(y, x0, seeds, step, self.config)
            y, x0 = self.encode(y, "source", self.latents), self.encode(x0, "target", self.latents)
        with self.part("forward"):
            losses, t = self.losses(self.network, y, x0, seeds, step)
        if self.tracker is not None:
            self.tracker.add_losses(losses, t)
        return losses.mean()

    def _gradient_norm(self, step: int) -> torch.Tensor | None:
        """The norm of all gradients before they are clipped, or None where nothing needs it."""
        if self.config.grad_clip:
            return torch.nn.utils.clip_grad_norm_(self.unet.parameters(), self.config.grad_clip)
        if self.tracker is not None and self.tracker.due(step + 1):
            return torch.nn.utils.get_total_norm([p.grad for p in self.unet.parameters() if p.grad is not None])
        return None

    def encode(self, v: torch.Tensor, role: Role, latents: bool = False) -> torch.Tensor:
        """A batch of pictures, or of latents from a cache, in the space of the bridge."""
        if self.codec is None:
            return v
        v = self.codec.normalize(v, role) if latents else self.codec.encode(v, role)
        return v.contiguous(memory_format=torch.channels_last)

    @torch.no_grad()
    def validation_loss(self, y: torch.Tensor, x0: torch.Tensor, seeds: torch.Tensor) -> float:
        """The averaged weights' loss, the mean over VALIDATION_STEPS and the sum over pairs of pictures."""
        y, x0 = self.encode(y, "source"), self.encode(x0, "target")
        losses = [self.losses(self.ema.unet, y, x0, seeds, step)[0].sum().item() for step in VALIDATION_STEPS]
        return sum(losses) / len(losses)

    def losses(
        self, network: Callable[..., torch.Tensor], y: torch.Tensor, x0: torch.Tensor, seeds: torch.Tensor, step: int
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Losses and times, both (B,), of pairs in the space of the bridge, drawn from seeds and step."""
        t = self.bridge.draw_times(seeds, step)
        condition = y if self.unet.condition_channels else None
        drawn: dict[str, Any] = {"condition": condition, "seeds": seeds, "step": step}
        dtype = AUTOCAST.get(self.config.precision)
        with torch.autocast(self.device.type, dtype, enabled=dtype is not None):
            return bridge_loss(network, self.bridge, x0, y, t, loss=self.config.loss, per_image=True, **drawn), t
