"""One optimizer step of a training run: a batch of pairs in, new weights and their moving average out.

Times, noise and flips of a sample are a function of (run seed, optimizer step, index in the batch), so a
resumed run draws the same ones as an uninterrupted run.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path
from typing import Any

import torch
from torch.amp import GradScaler

from bbdm.base.atomic import Write, write_atomically
from bbdm.bridges import Bridge
from bbdm.codec import Codec, Role
from bbdm.data.latents import LatentDataset
from bbdm.data.pairs import PairedDataset
from bbdm.execution import sharing
from bbdm.execution.processes import Processes
from bbdm.files.checkpoint import load_checkpoint, save_checkpoint
from bbdm.files.content import Checkpoint, network_settings
from bbdm.networks.base import Network
from bbdm.pictures.images import Size
from bbdm.sampling.sampler import BridgeSampler
from bbdm.training.augmentation import augment
from bbdm.training.base import TrainingTask, mixed, sample_seeds
from bbdm.training.config import TrainConfig
from bbdm.training.losses import bridge_loss
from bbdm.training.resume import resumed_codec, training_state
from bbdm.training.tracking import LossesByTime

VALIDATION_STEPS = range(2**32 - 4, 2**32)  # counter values above those of optimizer steps
DROPOUT = (torch.nn.Dropout, torch.nn.Dropout1d, torch.nn.Dropout2d, torch.nn.AlphaDropout)


class BridgeTask(TrainingTask):
    """An optimizer step of a bridge's network.

    Arguments are those of :class:`~bbdm.training.trainer.Trainer`; ``latents``: batches are latents, not
    pictures; and ``total``: the optimizer steps of the whole run, for the learning rate.
    """

    unet: Network
    read = staticmethod(load_checkpoint)

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
        self.shared = config.shard and processes.count > 1
        super().__init__(unet if self.shared else unet.to(processes.device), config, processes, total)
        self.config = config
        self.bridge = bridge
        self.codec = codec
        self.latents = latents
        self.scaler = GradScaler(self.device.type, enabled=config.precision == "fp16")
        self.random = any(isinstance(module, DROPOUT) and module.p for module in unet.modules())
        self.by_time = LossesByTime(bridge.train_interval, self.device)
        self.calls: int | None = None  # the network evaluations that results are made for, where they are fixed

    def parallel(self, network: Any) -> Any:
        """See :meth:`TrainingTask.parallel`; with ``shard``, the weights and their average are sharded."""
        if not self.shared:
            return super().parallel(network)
        mesh = sharing.all_of(self.processes)
        sharing.share_out(network, mesh, units=True)
        sharing.share_out(self.ema.unet, mesh, units=False)
        return network

    def averaged(self) -> AbstractContextManager[None]:
        """A context for what calls the averaged weights, in which each process has all of them."""
        return sharing.together(self.ema.unet) if self.shared else nullcontext()

    def state(self) -> dict[str, Any]:
        """The state that :meth:`load` restores, besides the network and its average."""
        return {**super().state(), "scaler": self.scaler.state_dict()}

    def load(self, state: dict[str, Any]) -> None:
        """Restore a :meth:`state` of the same settings."""
        super().load(state)
        self.scaler.load_state_dict(state["scaler"])

    def description(self) -> dict[str, Any]:
        """The settings of network, bridge and codec."""
        coded = {} if self.codec is None else {"codec": self.codec.config()}
        return {"unet": self.unet.description(), "bridge": self.bridge.config(), **coded}

    def save(
        self,
        path: Path,
        image_size: Size,
        training: dict[str, Any] | None = None,
        write: Write = write_atomically,
    ) -> None:
        """Write the weights, their average and the codec; with training state, only the hash of the codec."""
        about: dict[str, Any] = {"codec": self.codec, "image_size": image_size, "training": training, "write": write}
        save_checkpoint(path, self.unet, self.bridge, ema=self.ema.unet, calls=self.calls, **about)

    def resume(self, path: Path, checkpoint: Checkpoint, train: PairedDataset | LatentDataset) -> dict[str, Any]:
        """See :meth:`TrainingTask.resume`; only settings in :data:`~bbdm.training.config.FREE` may change."""
        codec = resumed_codec(checkpoint.codec, self.codec)
        stored = {"network": checkpoint.unet.kind, **vars(checkpoint.unet.config), **checkpoint.bridge.settings()}
        asked = {**network_settings(self.unet), **self.bridge.settings()}
        weights, average = checkpoint.unet.weights, checkpoint.unet.ema
        whole = None if weights is None or average is None else checkpoint.training
        state = training_state(path, whole, stored, asked, self.config, train)
        self.codec = codec
        sharing.restore_weights(self.unet, weights)  # pyright: ignore[reportArgumentType]  (checked with the state)
        sharing.restore_weights(self.ema.unet, average)  # pyright: ignore[reportArgumentType]
        self.load(state)
        return state

    def results(
        self, y: torch.Tensor, x0: torch.Tensor, seed: int | Sequence[int] = 0
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Translations of sources by the sampler's default solver and steps, and targets."""
        return BridgeSampler(self.ema.unet, self.bridge, codec=self.codec, calls=self.calls)(y, seed=seed), x0

    def columns(self, y: torch.Tensor, x0: torch.Tensor) -> dict[str, torch.Tensor]:
        """Sources, translations and targets."""
        return {"source": y, "result": self.results(y, x0)[0], "target": x0}

    def __call__(self, y: torch.Tensor, x0: torch.Tensor, step: int) -> float:
        """See :meth:`TrainingTask.__call__`."""
        config = self.config
        if self.random:
            torch.manual_seed(mixed(config.seed, step * self.processes.count + self.processes.rank))
        rate = self.rate(step)
        for group in self.optimizer.param_groups:
            group["lr"] = rate
        loss = self._gradients(y, x0, step)
        with self.part("optimizer"):
            norm = self.gradient_norm(step)
            self.scaler.step(self.optimizer)  # skipped where a gradient overflows float16
            self.scaler.update()
            self.optimizer.zero_grad(set_to_none=True)
        with self.part("average of weights"):
            self.ema.update(self.unet, step)
        mean = self.processes.total(loss).item() / self.processes.count  # waits for the device
        self.plateau.update(mean)
        if (tracker := self.due(step)) is not None and norm is not None:
            points = {"loss": mean, "learning_rate": rate, "gradient_norm": norm.item()}
            tracker.write(step + 1, **points, **self.by_time.take())
        return mean

    def _gradients(self, y: torch.Tensor, x0: torch.Tensor, step: int) -> torch.Tensor:
        """Compute the gradients of the batch, part by part; returns the loss of this process's share."""
        parts = self.config.grad_accumulation
        seeds = sample_seeds(self.config.seed, self.processes.rank * len(y), len(y), self.device)
        total = torch.zeros((), device=self.device)
        for index, part in enumerate(zip(y.chunk(parts), x0.chunk(parts), seeds.chunk(parts), strict=True), start=1):
            with nullcontext() if index == parts or self.shared else self.processes.alone(self.network):
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
            self.by_time.add(losses, t)
        return losses.mean()

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
        with self.autocast():
            return bridge_loss(network, self.bridge, x0, y, t, loss=self.config.loss, per_image=True, **drawn), t
