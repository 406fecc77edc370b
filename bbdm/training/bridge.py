"""One optimizer step of a training run: a batch of pairs in, new weights and their moving average out.

Times, noise and flips of a sample are a function of (run seed, optimizer step, index in the batch), so a
resumed run draws the same ones as an uninterrupted run.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import nullcontext
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch

from bbdm.bridges import Bridge
from bbdm.codec import Codec, Role
from bbdm.data.examples import Example
from bbdm.data.pairs import Pairs
from bbdm.execution.processes import Processes
from bbdm.files.checkpoint import load_checkpoint
from bbdm.files.content import Checkpoint, CodecState, NetworkState
from bbdm.files.weights import Snapshot
from bbdm.networks.base import Network
from bbdm.sampling.sampler import BridgeSampler
from bbdm.solvers import USUAL, Defaults
from bbdm.training.augmentation import Pair, augment, dropped
from bbdm.training.base import TrainingTask, mixed
from bbdm.training.config import TrainConfig
from bbdm.training.losses import bridge_loss
from bbdm.training.resume import Stored, resumed_codec
from bbdm.training.tracking import LossesByTime

VALIDATION_STEPS = range(2**32 - 4, 2**32)  # counter values above those of optimizer steps
Forward = Callable[..., torch.Tensor]  # of a network
DROPOUT = (torch.nn.Dropout, torch.nn.Dropout1d, torch.nn.Dropout2d, torch.nn.AlphaDropout)


class BridgeTask(TrainingTask):
    """An optimizer step of a bridge's network, as :class:`~bbdm.training.trainer.Trainer` makes it.

    ``latents`` is whether batches are latents, not pictures.
    """

    network: Network
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
        super().__init__(unet.to(processes.device), config, processes, total)
        self.config = config
        self.bridge = bridge
        self.codec = codec
        self.latents = latents
        self.random = any(isinstance(module, DROPOUT) and module.p for module in unet.modules())
        self.by_time = LossesByTime(bridge.train_interval, self.device)
        self.defaults = Defaults("mean") if bridge.density == "top" else USUAL  # how results are made

    def description(self) -> dict[str, Any]:
        """The settings of network, bridge and codec."""
        coded = {} if self.codec is None else {"codec": self.codec.config()}
        return {"unet": self.network.description(), "bridge": self.bridge.config(), **coded}

    def snapshot(self, train: Pairs, training: dict[str, Any] | None = None) -> Snapshot:
        """The weights, their average and the codec; with training state, only the hash of the codec."""
        spec = replace(train.spec, spacing=train.spacing)
        network = NetworkState.of(self.network, self.average)
        coded = None if self.codec is None else CodecState.of(self.codec)
        about = coded, train.image_size, training, self.defaults, spec
        return Checkpoint(network, self.bridge, *about).snapshot()

    def stored(self, checkpoint: Checkpoint) -> Stored:
        """See :meth:`TrainingTask.stored`."""
        unet, own = checkpoint.unet, NetworkState.of(self.network)
        settings = {**unet.settings, **checkpoint.bridge.settings()}
        return Stored(unet.weights, unet.ema, settings, {**own.settings, **self.bridge.settings()})

    def resume(self, path: Path, checkpoint: Checkpoint, train: Pairs) -> dict[str, Any]:
        """See :meth:`TrainingTask.resume`; a codec takes the stored statistics."""
        codec = resumed_codec(checkpoint.codec, self.codec)
        state = super().resume(path, checkpoint, train)
        self.codec = codec
        return state

    def results(self, batch: Example, seed: int | Sequence[int] = 0) -> Pair:
        """Translations of sources by the sampler's default solver and steps, and targets."""
        sampler = BridgeSampler(self.average, self.bridge, codec=self.codec, defaults=self.defaults)
        return sampler(batch.source, seed=seed, conditions=batch.conditions), batch.target

    def columns(self, batch: Example) -> dict[str, torch.Tensor]:
        """Sources, translations and targets."""
        own = self.network.endpoint_channels is None  # of a slice with neighbours, its own channels are shown
        source = batch.source if own else self.network.endpoint(batch.source)
        return {"source": source, "result": self.results(batch)[0], "target": batch.target}

    def __call__(self, batch: Example, step: int) -> float:
        """See :meth:`TrainingTask.__call__`."""
        if self.random:
            torch.manual_seed(mixed(self.config.seed, step * self.processes.count + self.processes.rank))
        loss = self._gradients(batch, step)
        norm = self.move_weights(step)
        mean = self.processes.total(loss).item() / self.processes.count  # waits for the device
        by_time = {} if self.due(step) is None else self.by_time.take()
        self.record(step, norm, mean, **by_time)
        return mean

    def _gradients(self, batch: Example, step: int) -> torch.Tensor:
        """Compute the gradients of the batch, part by part; returns the loss of this process's share."""
        parts = self.config.grad_accumulation
        total = torch.zeros((), device=self.device)
        chunks = zip(_chunks(batch, parts), self.seeds(len(batch.source)).chunk(parts), strict=True)
        for index, chunk in enumerate(chunks, start=1):
            with nullcontext() if index == parts else self.processes.alone(self.replica):
                loss = self._loss(*chunk, step) / parts
                self.scaler.scale(loss).backward()
            total += loss.detach()
        self.scaler.unscale_(self.optimizer)
        return total

    def _loss(self, batch: Example, seeds: torch.Tensor, step: int) -> torch.Tensor:
        """The loss of a batch from the data set, one seed for each example."""
        batch = encode(augment(batch, seeds, step, self.config, self.latents), self.codec, self.latents)
        batch = dropped(batch, seeds, step, self.network)
        losses, t = self.losses(self.replica, batch, seeds, step)
        if self.tracker is not None:
            self.by_time.add(losses, t)
        return losses.mean()

    @torch.no_grad()
    def validation_loss(self, batch: Example, seeds: torch.Tensor) -> float:
        """The averaged weights' loss, the mean over VALIDATION_STEPS and the sum over pairs of pictures."""
        batch = encode(batch, self.codec)
        losses = [self.losses(self.average, batch, seeds, step)[0].sum().item() for step in VALIDATION_STEPS]
        return sum(losses) / len(losses)

    def validation_losses(self, batch: Example, seeds: torch.Tensor) -> dict[str, float]:
        """See :meth:`TrainingTask.validation_losses`; also those without a condition that training drops."""
        found = super().validation_losses(batch, seeds)
        for name in self.network.drop:
            less = batch._replace(conditions=self.network.without(batch.conditions, [name]))
            found[f"validation_without_{name}"] = self.validation_loss(less, seeds)
        return found

    def counted(self, batch: Example) -> torch.Tensor | None:
        """The batch's mask, where pixels are those of the bridge's space."""
        return batch.mask if self.codec is None else None

    def losses(self, network: Forward, batch: Example, seeds: torch.Tensor, step: int) -> Pair:
        """Losses and times, both (B,), of a batch in the space of the bridge, drawn from seeds and step."""
        t = self.bridge.draw_times(seeds, step)
        y, conditions = self.network.endpoint(batch.source), self.network.given(batch.source, batch.conditions)
        drawn: dict[str, Any] = {"conditions": conditions, "seeds": seeds, "step": step, "mask": self.counted(batch)}
        with self.autocast():
            losses = bridge_loss(
                network, self.bridge, batch.target, y, t, loss=self.config.loss, per_image=True, **drawn
            )
        return losses, t


def encode(batch: Example, codec: Codec | None, latents: bool = False) -> Example:
    """A batch of pictures, or of latents from a cache, in the space of the bridge. Conditions stay."""
    if codec is None:
        return batch
    coded = codec.normalize if latents else codec.encode
    roles: dict[Role, torch.Tensor] = {"source": batch.source, "target": batch.target}
    source, target = (coded(v, r).contiguous(memory_format=torch.channels_last) for r, v in roles.items())
    return batch._replace(source=source, target=target)


def _chunks(batch: Example, parts: int) -> Iterator[Example]:
    """Parts of a batch, as ``torch.chunk`` makes them."""
    size = -(-len(batch.source) // parts)
    for start in range(0, len(batch.source), size):
        place = slice(start, start + size)
        conditions = {name: value[place] for name, value in batch.conditions.items()}
        mask = None if batch.mask is None else batch.mask[place]
        yield batch._replace(source=batch.source[place], target=batch.target[place], conditions=conditions, mask=mask)
