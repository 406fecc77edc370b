"""Training a bridge: the loop over epochs, its checkpoints and what it tells. A step is in
:mod:`bbdm.training.step`.

The order of an epoch is a function of (run seed, epoch), so a run that goes on from a checkpoint sees what
the undisturbed run would have seen.
"""

from __future__ import annotations

import errno
import logging
import math
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import AbstractContextManager, ExitStack
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
from tqdm.auto import tqdm

from bbdm.base import machine
from bbdm.base.scripts import TERMINATED, StoppedError
from bbdm.bridges import Bridge
from bbdm.codec import Codec
from bbdm.data.latents import LatentDataset
from bbdm.data.loading import Batches
from bbdm.data.pairs import PairedDataset
from bbdm.execution.device import keep_freed_memory
from bbdm.execution.processes import Processes
from bbdm.files.checkpoint import load_checkpoint, save_checkpoint
from bbdm.files.content import Checkpoint
from bbdm.networks.unet import UNet
from bbdm.training.callback import Callback
from bbdm.training.config import TrainConfig
from bbdm.training.previews import Previews
from bbdm.training.resume import check_start, stored_codec, training_state
from bbdm.training.run_folder import RunFolder
from bbdm.training.step import TrainStep, mixed, sample_seeds
from bbdm.training.tracking import Tracker

log = logging.getLogger(__name__)
VALIDATION_STEPS = range(2**32 - 4, 2**32)  # counter values that no optimizer step reaches


class Trainer:
    """A training run: what it trains, and how far it is.

    On a CPU it calls :func:`~bbdm.execution.device.keep_freed_memory`, which holds for the whole process.

    Args:
        unet: the network, on the device to train on.
        bridge: what to train it on.
        config: how.
        train: pairs to learn from, or their latents; the last short batch of an epoch is dropped.
        validation: pairs for the validation loss and previews, or None.
        folder: where metrics, previews and checkpoints go.
        codec: what takes pictures to the space of the bridge; None to train in image space.
        processes: those that share the work; None for this one alone. The first of them writes.
        callbacks: what else is done, after :class:`~bbdm.training.previews.Previews`.

    Raises:
        ValueError: fewer pairs than one batch, pictures of a size that the network cannot take, a codec of
            another number of channels, or latents of another codec or another ``flip``.
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
        processes: Processes | None = None,
        callbacks: Sequence[Callback] = (),
    ) -> None:
        self.device = next(unet.parameters()).device
        self.processes = Processes(self.device) if processes is None else processes
        check_start(unet.config, config, train, codec, self.processes.count)
        self.unet = unet.train()
        self.bridge = bridge
        self.config = config
        self.train = train
        self.validation = validation
        self.folder = folder
        self.run = RunFolder(folder, config.keep)
        self.callbacks: list[Callback] = [Previews(), *callbacks]
        if self.device.type == "cpu":
            keep_freed_memory()
        codec = None if codec is None else codec.placed(self.device, torch.float32)
        self.steps_per_epoch = len(train) // config.batch_size
        total = config.epochs * self.steps_per_epoch
        self.update = TrainStep(unet, bridge, config, codec, self.processes, isinstance(train, LatentDataset), total)
        self.ema = self.update.ema
        self.epoch = 0  # epochs done
        self.step = 0  # optimizer steps done
        self.share = config.batch_size // self.processes.count  # pairs of a batch that this process has
        loading = (self.share, self.device, config.workers)
        self.train_batches = Batches(train, *loading)
        self.validation_batches = None if validation is None else Batches(validation, *loading)
        self.best: dict[str, Any] | None = None  # metrics of the epoch with the lowest validation loss
        self._epoch_loss = 0.0  # sum over the steps of this epoch
        self._stop: Callable[[], bool] = lambda: False

    @property
    def codec(self) -> Codec | None:
        """What takes pictures to the space of the bridge, on the device; None in image space."""
        return self.update.codec

    @property
    def tracker(self) -> Tracker | None:
        """TensorBoard, while the run is on, in the process that writes."""
        return self.update.tracker

    def measure_parts(self, around: Callable[[str], AbstractContextManager[None]]) -> None:
        """Enter ``around(name)`` around each part of a step from now on."""
        self.update.part = around

    def resume(self, path: Path, checkpoint: Checkpoint | None = None) -> None:
        """Go on from a checkpoint that a run of the same network and bridge wrote, where ``checkpoint`` is
        its content.

        Raises:
            ValueError: it has no training state, or is of another network, bridge, codec, number of pairs,
                size, direction or settings; only those in :data:`~bbdm.training.config.FREE` may change.
        """
        checkpoint = load_checkpoint(path) if checkpoint is None else checkpoint
        codec = stored_codec(checkpoint, self.codec)
        state = training_state(path, checkpoint, self.unet.config, self.bridge, self.config, self._pairs())
        assert checkpoint.unet.weights is not None  # checked with the state
        assert checkpoint.unet.ema is not None
        self.update.codec = codec
        self.unet.load_state_dict(checkpoint.unet.weights)
        self.ema.unet.load_state_dict(checkpoint.unet.ema)
        self.update.load(state)
        self.epoch, self.step = state["epoch"], state["step"]
        self._epoch_loss, self.best = state["epoch_loss"], state["best"]
        if self.best is not None and state["validation"] != self._validation_names():
            log.warning("the validation pairs have changed: %s is the best of epochs from here on", self.run.best)
            self.best = None

    def resume_newest(self) -> bool:
        """Go on from the newest whole checkpoint in the run's folder; False where there is none.

        Raises:
            ValueError: as for :meth:`resume`, or all are damaged.
        """
        newest = self.run.newest()
        if newest is not None:
            self.resume(*newest)
        return newest is not None

    def fit(self, progress: bool = False, stop: Callable[[], bool] = lambda: False) -> None:
        """Train until ``config.epochs`` are done.

        Args:
            progress: show a bar.
            stop: asked after each step and each batch of validation; once it says True, the run is saved and
                ends.

        Raises:
            ValueError: the folder holds checkpoints of later steps, or a validation picture cannot be read.
            StoppedError: the loss is not a number any more, a picture cannot be read, the disk is full, or
                ``stop`` said so. The message says what to do next. Nothing that was saved is lost.
        """
        later = [step for step in self.run.checkpoints() if step > self.step]
        if later:
            raise ValueError(
                f"{self.folder} holds a run of {max(later)} steps already, and this one would begin at {self.step}: "
                "Trainer.resume_newest(), or the command without --ckpt_path, goes on from there; --overwrite deletes "
                "it, and --experiment gives another folder"
            )
        self._stop = stop
        with ExitStack() as ends:
            ends.callback(self.train_batches.close)
            if self.validation_batches is not None:
                ends.callback(self.validation_batches.close)
                for _ in self.validation_batches(self.validation_share()):
                    pass  # read once now, so that a broken picture does not cost an epoch
            if self.processes.first:
                self.run.begin(self.epoch, self._settings())
                ends.callback(self.run.end)
                self.update.tracker = Tracker(self.run.events, self.step, self.bridge.train_range, self.device)
                ends.callback(self._close_tracker)
            for callback in self.callbacks:
                callback.begin(self)
                ends.callback(callback.end, self)
            self._run_epochs(progress)

    def _settings(self) -> dict[str, Any]:
        """What the run is, as ``config.json`` has it."""
        settings = {"train": asdict(self.config), "unet": asdict(self.unet.config), "bridge": self.bridge.config()}
        settings |= {} if self.codec is None else {"codec": self.codec.config()}
        counts = {"training": len(self.train), "validation": 0 if self.validation is None else len(self.validation)}
        kind = {"image_size": self.train.image_size, "direction": self.train.direction, "channels": self.train.channels}
        return {**settings, "pairs": {**counts, **kind}}

    def _close_tracker(self) -> None:
        if self.tracker is not None:
            self.tracker.close()
        self.update.tracker = None

    def _run_epochs(self, progress: bool) -> None:
        try:
            while self.epoch < self.config.epochs:
                self._run_epoch(progress)
            if self.processes.first:
                about = {"best": self.best, "machine": machine.describe(self.device, ["bbdm", "torch"])}
                self.run.write_summary(about)
        except (OSError, ValueError) as error:
            full = isinstance(error, OSError) and error.errno in (errno.ENOSPC, errno.EDQUOT)
            todo = "Make room on the disk" if full else "Mend that"
            raise StoppedError(f"{error}. {todo}; {self.how_to_go_on()}") from error

    @property
    def learning_rate(self) -> float:
        """Of the last optimizer step."""
        return self.update.optimizer.param_groups[0]["lr"]

    def how_to_go_on(self) -> str:
        """What is saved, and what the same command will do."""
        saved = next(iter(self.run.checkpoints()), None)
        if saved is None:
            return "nothing is saved yet, and the same command starts anew"
        return f"the same command goes on from step {saved}, which is saved in {self.folder}"

    def save(self, path: Path, training: dict[str, Any] | None = None) -> None:
        """Write the weights and their average, with the state to go on from where it is given."""
        about: dict[str, Any] = {"codec": self.codec, "image_size": self.train.image_size, "training": training}
        save_checkpoint(path, self.unet, self.bridge, ema=self.ema.unet, **about)

    def _save(self) -> None:
        """Write a checkpoint to go on from, unless the weights have diverged."""
        if not torch.stack([p.isfinite().all() for p in self.unet.parameters()]).all():
            raise self._diverged("weights are not finite")
        if not self.processes.first:
            return
        state = {"epoch": self.epoch, "step": self.step, "epoch_loss": self._epoch_loss, "best": self.best}
        state |= self.update.state()
        state |= {"config": asdict(self.config), "pairs": self._pairs(), "validation": self._validation_names()}
        self.save(self.run.checkpoint(self.step), state)
        self.run.prune()

    def _pairs(self) -> dict[str, Any]:
        """What of the pairs must stay the same while a run goes on."""
        kind = {"image_size": self.train.image_size, "direction": self.train.direction, "number": len(self.train)}
        pairs = self.train.dataset if isinstance(self.train, LatentDataset) else self.train
        return {**kind, "names": pairs.names_digest()}

    def _validation_names(self) -> str | None:
        return None if self.validation is None else self.validation.names_digest()

    def _diverged(self, what: str) -> StoppedError:
        return StoppedError(f"{what} at step {self.step}. Lower -lr or set --grad_clip; {self.how_to_go_on()}")

    def check_stop(self) -> None:
        """Save and end the run where it was asked to end.

        Raises:
            StoppedError: it was.
        """
        if self.processes.sum(self._stop()):
            self._save()
            self.processes.sum(0)  # until the first has saved: a process that ends takes the others down
            raise StoppedError(f"asked to end; {self.how_to_go_on()}", TERMINATED)

    def _run_epoch(self, progress: bool) -> None:
        """The steps that are left of an epoch, then validation, metrics and a checkpoint."""
        done = self.step - self.epoch * self.steps_per_epoch
        started, size = time.perf_counter(), self.config.batch_size
        batches = self._readable(self.train_batches(self._order(done)))
        with tqdm(
            desc=f"epoch {self.epoch + 1}",
            total=self.steps_per_epoch,
            initial=done,
            unit=" pairs",
            unit_scale=size,
            disable=not (progress and self.processes.first),
            leave=False,
        ) as bar:
            while (batch := self._next(batches)) is not None:
                loss = self.train_step(*batch)
                if not math.isfinite(loss):
                    raise self._diverged(f"the loss is {loss}")
                self._epoch_loss += loss
                bar.update()
                bar.set_postfix(loss=f"{loss:.4f}", lr=f"{self.learning_rate:.2g}")
                for callback in self.callbacks:
                    callback.after_step(self, loss)
                if self.step % self.config.save_every == 0 and self.step % self.steps_per_epoch:
                    self._save()
                self.check_stop()
        seconds, made = time.perf_counter() - started, self.steps_per_epoch - done
        record: dict[str, Any] = {"epoch": self.epoch + 1, "step": self.step}
        record["loss"] = self._epoch_loss / self.steps_per_epoch
        if self.validation is not None:
            if made:
                self._save()  # what comes now may take long
            record["validation_loss"] = self.validate()
        if made:
            record["images_per_second"] = made * size / seconds
        record["learning_rate"] = self.learning_rate
        self._end_epoch(record)
        if progress and self.processes.first:
            tqdm.write("  ".join(f"{k} {v:.4g}" for k, v in record.items()))

    def _end_epoch(self, record: dict[str, Any]) -> None:
        """Keep what an epoch came to. The checkpoint is last: whoever is killed before it does the end anew."""
        self.epoch += 1
        self._epoch_loss = 0.0
        first = self.processes.first
        for callback in self.callbacks:
            callback.after_epoch(self, record)
        words = [name for name, value in record.items() if not isinstance(value, int | float)]
        if words:
            raise ValueError(f"metrics must be numbers, and a callback made {words[0]!r} {record[words[0]]!r}")
        lowest = math.inf if self.best is None else self.best["validation_loss"]
        if self.validation is not None and record["validation_loss"] < lowest:
            self.best = {name: record[name] for name in ("epoch", "step", "validation_loss")}
            if first:
                self.save(self.run.best)
        if first:
            self.run.add_metrics(record)
        if self.tracker is not None:
            shown = record.keys() - {"epoch", "step", "loss", "learning_rate"}  # the latter two have points of steps
            numbers = {name: record[name] for name in sorted(shown)}
            self.tracker.write(self.step, **numbers, **{"loss of the epoch": record["loss"]})
        self._save()

    def _order(self, done: int) -> list[int]:
        """This process's pairs of this epoch's batches after the first ``done``; those of a last short one are out."""
        generator = torch.Generator().manual_seed(mixed(self.config.seed, self.epoch))
        order = torch.randperm(len(self.train), generator=generator)[: self.steps_per_epoch * self.config.batch_size]
        return order.view(self.steps_per_epoch, self.processes.count, -1)[done:, self.processes.rank].flatten().tolist()

    def validation_share(self) -> list[int]:
        """This process's validation pairs: every so manieth batch."""
        assert self.validation is not None
        number, rank, count = len(self.validation), self.processes.rank, self.processes.count
        return [i for i in range(number) if i // self.share % count == rank]

    def _next(self, batches: Iterator[tuple[torch.Tensor, ...]]) -> tuple[torch.Tensor, ...] | None:
        with self.update.part("waiting for pairs"):
            return next(batches, None)

    def _readable(self, batches: Iterable[tuple[torch.Tensor, ...]]) -> Iterator[tuple[torch.Tensor, ...]]:
        """The batches; where one cannot be read, what is trained so far is saved."""
        try:
            yield from batches
            return
        except (OSError, ValueError) as error:
            self._save()
            raise StoppedError(f"{error}. Mend that; {self.how_to_go_on()}") from error

    def train_step(self, y: torch.Tensor, x0: torch.Tensor) -> float:
        """One optimizer step on a batch of sources and targets as the data set has them; the loss before the step."""
        loss = self.update(y, x0, self.step)
        self.step += 1
        return loss

    @torch.no_grad()
    def validate(self) -> float:
        """Mean loss of the averaged weights over the validation pairs, at times and noise that never change."""
        assert self.validation is not None
        assert self.validation_batches is not None
        total, first, stride = 0.0, self.processes.rank * self.share, self.config.batch_size
        for y, x0 in self._readable(self.validation_batches(self.validation_share())):
            if self.processes.count == 1:  # several have not all the same number of batches
                self.check_stop()
            y, x0 = self.update.encode(y, "source"), self.update.encode(x0, "target")
            seeds = sample_seeds(0, first, len(y), self.device)
            losses = [self.update.losses(self.ema.unet, y, x0, seeds, step).sum().item() for step in VALIDATION_STEPS]
            total += sum(losses) / len(losses)
            first += stride
        return self.processes.sum(total) / len(self.validation)
