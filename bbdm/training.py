"""Training a bridge: the loss, the moving average of weights, and the loop.

Times, noise and flips of a sample are a function of (run seed, optimizer step, index in the batch), and the order of
an epoch of (run seed, epoch), so a run that goes on from a checkpoint sees what the undisturbed run would have seen.
"""

from __future__ import annotations

import json
import math
import time
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from tqdm.auto import tqdm

from bbdm import images
from bbdm.bridges import Bridge
from bbdm.checkpoint import Checkpoint, load_checkpoint, save_checkpoint
from bbdm.codec import Codec, Role
from bbdm.data import PairedDataset
from bbdm.ema import EMA
from bbdm.execution import keep_freed_memory
from bbdm.files import make_folder, write_atomically
from bbdm.kernels import philox
from bbdm.latents import LatentDataset
from bbdm.loading import Batches
from bbdm.networks.unet import UNet
from bbdm.sampler import BridgeSampler
from bbdm.train_config import Loss, TrainConfig

VALIDATION_STEPS = range(2**32 - 4, 2**32)  # counter values that no optimizer step reaches
PREVIEW_PAIRS = 8


def bridge_loss(
    unet: Callable[..., torch.Tensor],
    bridge: Bridge,
    x0: torch.Tensor,
    y: torch.Tensor,
    t: torch.Tensor,
    noise: torch.Tensor | None = None,
    loss: Loss = "l1",
    condition: torch.Tensor | None = None,
    *,
    seeds: torch.Tensor | None = None,
    step: int | None = None,
) -> torch.Tensor:
    """Distance between the network's prediction and the bridge's target, a scalar.

    Args:
        unet: called as unet(x_t, t, condition).
        bridge: gives x_t and the target.
        x0: (B, C, H, W) target images.
        y: (B, C, H, W) source images.
        t: (B,) integer times.
        noise: (B, C, H, W) standard normals, in place of ``seeds`` and ``step``.
        loss: ``l1`` (the papers') or ``l2``.
        condition: what the network is conditioned on; the source, where it is conditional.
        seeds: (B,) int64, one an image, from which the noise is drawn, with
        step: the optimizer step.
    """
    x_t, target = bridge.add_noise(x0, y, t, noise, seeds=seeds, step=step)
    prediction = unet(x_t, t, condition).to(target.dtype)
    return F.l1_loss(prediction, target) if loss == "l1" else F.mse_loss(prediction, target)


def _sample_seeds(run_seed: int, first: int, count: int, device: torch.device) -> torch.Tensor:
    """(count,) seeds of the samples ``first``.. of a batch: low word the run's seed, high word the sample's index."""
    return run_seed + (torch.arange(first, first + count, device=device) << 32)


def _both_ways(v: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """A batch mirrored, and as it is: pictures (B, C, H, W), or latents of both, (B, 2, C, H, W)."""
    return (v[:, 1], v[:, 0]) if v.ndim == 5 else (v.flip(-1), v)


class Trainer:
    """A training run: what it trains, and how far it is.

    On a CPU it calls :func:`~bbdm.execution.keep_freed_memory`, which holds for the whole process.

    Args:
        unet: the network, on the device to train on.
        bridge: what to train it on.
        config: how.
        train: pairs to learn from, or their latents; the last short batch of an epoch is dropped.
        validation: pairs for the validation loss and previews, or None.
        folder: where metrics, previews and checkpoints go.
        codec: what takes pictures to the space of the bridge; None to train in image space.

    Raises:
        ValueError: fewer pairs than one batch, pictures of a size that the network cannot take, a codec of another
            number of channels, or latents of another codec or another ``flip``.
    """

    def __init__(
        self,
        unet: UNet,
        bridge: Bridge,
        config: TrainConfig,
        train: PairedDataset | LatentDataset,
        validation: PairedDataset | None,
        folder: Path,
        codec: Codec | None = None,
    ) -> None:
        if len(train) < config.batch_size:
            raise ValueError(f"batch_size {config.batch_size} is more than the number of training pairs, {len(train)}")
        channels, stride = (train.channels, 1) if codec is None else (codec.channels, codec.stride)
        if unet.config.in_channels != channels:
            kind = "pairs" if codec is None else "latents"
            raise ValueError(f"the network takes {unet.config.in_channels} channels, and the {kind} have {channels}")
        if any(side % (unet.config.stride * stride) for side in images.sides(train.image_size)):
            factors = f"the network's {unet.config.stride}"
            if codec is not None:
                factors = f"{unet.config.stride * stride}, {factors} times the VQGAN's {stride}"
            raise ValueError(f"image_size {train.image_size} is not a multiple of {factors}")
        if isinstance(train, LatentDataset):
            if codec is None or train.codec != codec.description():
                given = "none" if codec is None else "another one"
                raise ValueError(f"codec must be the one that made the latents in {train.folder}, got {given}")
            if train.flip != config.flip:
                raise ValueError(f"flip must be that of the latents in {train.folder}, {train.flip}, got {config.flip}")
        self.unet = unet.train()
        self.network = torch.compile(unet, fullgraph=True, dynamic=False) if config.compile else unet
        self.bridge = bridge
        self.config = config
        self.train = train
        self.validation = validation
        self.folder = folder
        self.device = next(unet.parameters()).device
        self.codec = None if codec is None else codec.placed(self.device, torch.float32)
        if self.device.type == "cpu":
            keep_freed_memory()
        self.ema = EMA(unet, config.ema_decay)
        self.optimizer = torch.optim.Adam(unet.parameters(), lr=config.learning_rate, fused=True)
        self.epoch = 0  # epochs done
        self.step = 0  # optimizer steps done
        self.steps_per_epoch = len(train) // config.batch_size
        loading = (config.batch_size, self.device, config.workers)
        self.train_batches = Batches(train, *loading)
        self.validation_batches = None if validation is None else Batches(validation, *loading)

    @property
    def last(self) -> Path:
        """The checkpoint to go on from, written after each epoch."""
        return self.folder / "last.pt"

    def resume(self, path: Path) -> None:
        """Go on from a checkpoint that a run of the same network and bridge wrote.

        Raises:
            ValueError: it has no training state, or is of another network, bridge, codec, number of pairs, size,
                direction or settings; only epochs, learning rate, compile, workers and previews may change.
        """
        checkpoint = load_checkpoint(path)
        self._resume_codec(checkpoint)
        state = checkpoint.training
        if state is None or checkpoint.unet.weights is None or checkpoint.unet.ema is None:
            raise ValueError(f"{path} holds no training state: training can go on only from a run's last.pt")
        if checkpoint.unet.config != self.unet.config or checkpoint.bridge != self.bridge:
            raise ValueError(
                f"{path} was trained as {checkpoint.unet.config}, {checkpoint.bridge}, "
                f"and these settings ask for {self.unet.config}, {self.bridge}"
            )
        if state["step"] != state["epoch"] * self.steps_per_epoch:
            raise ValueError(
                f"{path} made {state['step']} steps in {state['epoch']} epochs, and these pairs and batch size make "
                f"{self.steps_per_epoch} an epoch: go on with what it was trained with"
            )
        kinds = {"image_size": checkpoint.image_size, "direction": state.get("direction", self.train.direction)}
        for name, stored in kinds.items():
            if stored != getattr(self.train, name):
                raise ValueError(
                    f"{path} was trained with {name} {stored}, and these pairs have {getattr(self.train, name)}"
                )
        free = {"epochs", "learning_rate", "compile", "workers", "preview_every"}
        stored = state["config"]
        changed = [k for k, v in asdict(self.config).items() if k not in free and stored.get(k, v) != v]
        if changed:
            raise ValueError(
                f"{path} was trained with {', '.join(f'{k}={stored[k]}' for k in changed)}: go on with that"
            )
        self.unet.load_state_dict(checkpoint.unet.weights)
        self.ema.unet.load_state_dict(checkpoint.unet.ema)
        self.optimizer.load_state_dict(state["optimizer"])
        self.epoch, self.step = state["epoch"], state["step"]

    def _resume_codec(self, checkpoint: Checkpoint) -> None:
        """Take over the statistics of a run's codec, which must be the same otherwise."""
        stored = checkpoint.build_codec()
        descriptions = [None if codec is None else codec.description() for codec in (stored, self.codec)]
        normalises = [codec is not None and codec.statistics is not None for codec in (stored, self.codec)]
        if descriptions[0] != descriptions[1] or normalises[0] != normalises[1]:
            flags = "without -vq" if stored is None else "with -vq and the same VQGAN, "
            if stored is not None:
                flags += f"{'without' if stored.statistics is None else 'with'} --normalize_latents"
            raise ValueError(f"training can go on only in the space where it began: {flags}")
        if self.codec is not None and stored is not None and stored.statistics is not None:
            self.codec = self.codec.with_statistics(stored.statistics)

    def fit(self, progress: bool = False) -> None:
        """Train until ``config.epochs`` are done.

        Raises:
            ValueError: a new run's folder holds another run, or a validation picture cannot be read.
            RuntimeError: the loss is not a number any more; ``last.pt`` holds the epoch before.
        """
        if self.epoch == 0 and self.last.exists():
            raise ValueError(
                f"{self.folder} holds a run already: go on with it by --ckpt_path {self.last}, "
                "or give another --experiment folder"
            )
        if self.validation_batches is not None:
            for _ in self.validation_batches():
                pass  # read once now, so that a broken picture does not cost an epoch
        make_folder(self.folder)
        metrics = self.folder / "metrics.jsonl"
        known = metrics.read_text().splitlines(keepends=True) if metrics.exists() else []
        write_atomically(metrics, lambda temporary: temporary.write_text("".join(known[: self.epoch])))
        content = {"train": asdict(self.config), "unet": asdict(self.unet.config), "bridge": self.bridge.config()}
        content |= {} if self.codec is None else {"codec": self.codec.config()}
        (self.folder / "config.json").write_text(json.dumps(content, indent=2))
        while self.epoch < self.config.epochs:
            started = time.perf_counter()
            loss = self._run_epoch(progress)
            self.epoch += 1
            seconds = time.perf_counter() - started
            record: dict[str, Any] = {"epoch": self.epoch, "step": self.step, "loss": loss}
            if self.validation is not None:
                record["validation_loss"] = self.validate()
                if self.epoch % self.config.preview_every == 0 or self.epoch == self.config.epochs:
                    self.preview(self.validation)
            record["images_per_second"] = self.steps_per_epoch * self.config.batch_size / seconds
            record["learning_rate"] = self.optimizer.param_groups[0]["lr"]
            with metrics.open("a") as file:
                file.write(json.dumps(record) + "\n")
            if progress:
                tqdm.write("  ".join(f"{k} {v:.4g}" for k, v in record.items()))
            state = {"optimizer": self.optimizer.state_dict(), "epoch": self.epoch, "step": self.step}
            state |= {"config": asdict(self.config), "direction": self.train.direction}
            self.save(self.last, state)

    def save(self, path: Path, training: dict[str, Any] | None = None) -> None:
        """Write the weights and their average, with the state to go on from where it is given."""
        about: dict[str, Any] = {"codec": self.codec, "image_size": self.train.image_size, "training": training}
        save_checkpoint(path, self.unet, self.bridge, ema=self.ema.unet, **about)

    def _run_epoch(self, progress: bool) -> float:
        mixed = (self.config.seed * 0x9E3779B9 + self.epoch) % 2**32  # the generator reads 32 bits of its seed
        generator = torch.Generator().manual_seed(mixed)
        order = torch.randperm(len(self.train), generator=generator)
        batches = self.train_batches(order[: self.steps_per_epoch * self.config.batch_size].tolist())
        total = 0.0
        with tqdm(total=self.steps_per_epoch, desc=f"epoch {self.epoch + 1}", disable=not progress, leave=False) as bar:
            for y, x0 in batches:
                loss = self.train_step(y, x0)
                if not math.isfinite(loss):
                    start = f"go on from {self.last}" if self.epoch else "start again"
                    raise RuntimeError(f"the loss is {loss} at step {self.step}: {start} with a lower learning rate")
                total += loss
                bar.update()
                bar.set_postfix(loss=f"{loss:.4f}")
        return total / self.steps_per_epoch

    def train_step(self, y: torch.Tensor, x0: torch.Tensor) -> float:
        """One optimizer step on a batch of sources and targets as the dataset has them; the loss before the step."""
        config = self.config
        seeds = _sample_seeds(config.seed, 0, len(y), self.device)
        if config.flip:
            mirrored = philox.flips(seeds, self.step)[:, None, None, None]
            y, x0 = (torch.where(mirrored, *_both_ways(v)) for v in (y, x0))
        latents = isinstance(self.train, LatentDataset)
        y, x0 = self._encode(y, "source", latents), self._encode(x0, "target", latents)
        for group in self.optimizer.param_groups:
            group["lr"] = config.lr_at(self.step, config.epochs * self.steps_per_epoch)
        loss = self._loss(self.network, y, x0, seeds, self.step)
        loss.backward()
        self.optimizer.step()
        self.optimizer.zero_grad(set_to_none=True)
        self.ema.update(self.unet, self.step)
        self.step += 1
        return loss.item()

    def _encode(self, v: torch.Tensor, role: Role, latents: bool) -> torch.Tensor:
        """A batch of pictures, or of latents from a cache, in the space of the bridge."""
        if self.codec is None:
            return v
        v = self.codec.normalize(v, role) if latents else self.codec.encode(v, role)
        return v.contiguous(memory_format=torch.channels_last)

    def _loss(
        self, network: Callable[..., torch.Tensor], y: torch.Tensor, x0: torch.Tensor, seeds: torch.Tensor, step: int
    ) -> torch.Tensor:
        t = philox.timesteps(seeds, step, *self.bridge.train_range)
        condition = y if self.unet.config.condition_channels else None
        drawn: dict[str, Any] = {"condition": condition, "seeds": seeds, "step": step}
        with torch.autocast(self.device.type, torch.bfloat16, enabled=self.config.precision == "bf16"):
            return bridge_loss(network, self.bridge, x0, y, t, loss=self.config.loss, **drawn)

    @torch.no_grad()
    def validate(self) -> float:
        """Mean loss of the averaged weights over the validation pairs, at times and noise that never change."""
        assert self.validation_batches is not None
        total, seen = 0.0, 0
        for y, x0 in self.validation_batches():
            y, x0 = self._encode(y, "source", False), self._encode(x0, "target", False)
            seeds = _sample_seeds(0, seen, len(y), self.device)
            losses = [self._loss(self.ema.unet, y, x0, seeds, step).item() for step in VALIDATION_STEPS]
            total += len(y) * sum(losses) / len(losses)
            seen += len(y)
        return total / seen

    def preview(self, dataset: PairedDataset) -> None:
        """Write a grid of (source, result, target) of the first pairs, seed 0."""
        pairs = [dataset[i] for i in range(min(PREVIEW_PAIRS, len(dataset)))]
        y = torch.stack([source for source, _ in pairs]).to(self.device)
        results = BridgeSampler(self.ema.unet, self.bridge, codec=self.codec)(y, seed=0)
        rows = [[images.to_pil(v) for v in (s, r, t)] for (s, t), r in zip(pairs, results, strict=True)]
        path = self.folder / f"epoch_{self.epoch:04d}.png"
        write_atomically(path, lambda temporary: images.grid(rows).save(temporary, "png"))
