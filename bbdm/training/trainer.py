"""Training: the loop over epochs, and its checkpoints.

What is trained, and one step, is of :mod:`.task`. The order of an epoch is a function of (run seed, epoch),
so a resumed run sees what an uninterrupted run sees. Each process has its share of each batch.
"""

from __future__ import annotations

import errno
import logging
import math
import os
import time
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import asdict
from importlib.util import find_spec
from itertools import chain
from pathlib import Path
from typing import Any

import torch
from PIL.Image import Image

from bbdm.base import manifest
from bbdm.base.atomic import locked
from bbdm.base.scripts import StoppedError
from bbdm.bridges import Bridge
from bbdm.codec import Codec
from bbdm.data.examples import Example
from bbdm.data.loading import Batches
from bbdm.data.pairs import Pairs, as_pairs
from bbdm.data.rows import BadPicturesError
from bbdm.data.tables import MapStyle
from bbdm.execution.device import keep_freed_memory
from bbdm.execution.processes import Processes
from bbdm.files import weights
from bbdm.training.bridge import BridgeTask
from bbdm.training.config import FREE, RunConfig
from bbdm.training.run import Callback, Previews, Progress, RunFolder, TensorBoard
from bbdm.training.task import Task, mixed, sample_seeds

log = logging.getLogger(__name__)
DISK_FULL = (errno.ENOSPC, errno.EDQUOT)
LEASE = 120  # seconds: a file server keeps the lock of a lost node for some 90
DIVERGED = "Lower learning_rate or set grad_clip"


class _AskedError(Exception):
    """The function ``stop`` of :meth:`Trainer.fit` returned True, and the run is saved."""


class Trainer:
    """A training run: how far it is, and the loop.

    On a CPU it calls :func:`~bbdm.execution.device.keep_freed_memory`, which holds for the whole process.

    Args:
        network: the network, on the device to train on; it is moved to that of ``processes``.
        bridge: the bridge to train it on; None for an autoencoder.
        config: the settings of the run.
        train: pairs to learn from, or their latents; or any map-style data set of
            :class:`~bbdm.data.pairs.MappedDataset`'s items. The last short batch of an epoch is dropped.
        validation: pairs for the validation loss and previews, or None.
        folder: the folder of metrics, previews and checkpoints.
        codec: encodes pictures into the space of the bridge; None to train in image space.
        processes: the processes that share the work; None for this one alone. The first of them writes.
        callbacks: what is called after :class:`~bbdm.training.run.Previews`, and before
            :class:`~bbdm.training.run.TensorBoard`.
        task: what is trained: a subclass of :class:`~bbdm.training.task.Task`, or a function that returns one
            for the network, the bridge, the settings, the pairs, the processes and the codec.
        **functions: in place of settings, by name: ``optimizer`` and ``schedule`` of a
            :class:`~bbdm.training.task.Task`, ``loss`` and ``times`` of a
            :class:`~bbdm.training.bridge.BridgeTask`.

    A checkpoint does not hold functions: a run that resumes needs the same ones, and cannot check it.

    Attributes:
        epoch: the number of epochs done.
        step: the number of optimizer steps done.
        best: the metrics of the epoch with the lowest validation loss, or None.
        resumed_from: the checkpoint of the last resume, or None.
        average: the network with the averaged weights.
        images: pictures that callbacks show of the epoch that ends, by name, for TensorBoard.

    Raises:
        ValueError: fewer pairs than one batch, two sets for a task of pairs, pictures of a size that the
            network cannot take, a codec of another number of channels, or latents of another codec or another
            ``flip``.
    """

    def __init__(
        self,
        network: Any,
        bridge: Bridge | None,
        config: RunConfig,
        train: Pairs | MapStyle,
        validation: Pairs | MapStyle | None,
        folder: str | os.PathLike[str],
        codec: Codec | None = None,
        processes: Processes | None = None,
        callbacks: Sequence[Callback] = (),
        task: Callable[..., Task] = BridgeTask,
        **functions: Callable[..., Any],
    ) -> None:
        train, self.validation = as_pairs(train), None if validation is None else as_pairs(validation)
        self.task = task(network, bridge, config, train, processes, codec, **functions)
        if self.task.paired and not train.paired:
            raise ValueError("train has two sets without pairs, and the task learns from pairs: give task=UnpairedTask")
        self.network, self.average = self.task.network, self.task.average
        self.bridge: Any = bridge
        self.config = config
        self.processes, self.device = self.task.processes, self.task.device
        rank, count = self.processes.rank, self.processes.count
        self.train = train.shared(rank, count)
        self.folder = Path(folder)
        self.run = RunFolder(self.folder, config.keep, self.task.read)
        self.callbacks: list[Callback] = [*([] if validation is None else [Previews()]), *callbacks]
        if self.device.type == "cpu":
            keep_freed_memory()
        self.epoch = self.step = 0
        self.steps_per_epoch = len(self.train) // config.batch_size
        self._share = config.batch_size // count  # of a batch, this process's
        loading = (self._share, self.device, config.workers)
        self.batches = Batches(self.train, *loading)
        self._validating = None if self.validation is None else Batches(self.validation, *loading)
        indices = range(0 if self.validation is None else len(self.validation))
        self._indices = [i for i in indices if i // self._share % count == rank]  # every batch of as many as processes
        spec = self.train.spec
        about = {"image_size": self.train.image_size, "direction": spec.direction, "crops": spec.crops}
        about |= {**self.train.settings(), "number": len(train), "names": self.train.names_digest()}
        self.pairs: Mapping[str, Any] = about  # what a run that resumes must have too
        self._settings = {"train": asdict(config), **self.task.description}
        self._validation_names = None if self.validation is None else self.validation.names_digest()
        self.resumed_from: Path | None = None
        self.best: dict[str, Any] | None = None
        self.images: dict[str, Image] = {}
        self._epoch_loss = 0.0  # sum over the steps of this epoch
        self._saved: int | None = None  # the step of the last checkpoint
        self._asked: Callable[[], bool] = lambda: False
        self._reason: str | None = None  # of :meth:`stop`

    def resume(self, path: str | os.PathLike[str], checkpoint: Any = None) -> None:
        """Resume from a checkpoint of the same run; ``checkpoint`` is its content, where it is read already.

        Raises:
            ValueError: it has no training state, or is of another network, bridge, codec, number of pairs,
                size, direction or settings. Only the settings in :data:`~bbdm.training.config.FREE` may
                change; functions are not compared.
        """
        path = Path(path)
        checkpoint = self.run.read(path) if checkpoint is None else checkpoint
        (network, before), state = self.task.stored(checkpoint), checkpoint.training
        if state is None:
            raise ValueError(f"{path} holds no training state: a run resumes only from one of its step_*.pt files")
        runs = ((before, state["config"], state["pairs"]), (self.task.description, asdict(self.config), self.pairs))
        stored, own = (
            {**what, **{name: value for name, value in config.items() if name not in FREE}, "pairs": dict(pairs)}
            for what, config, pairs in runs
        )
        if changed := manifest.differences(stored, own):
            raise ValueError(
                f"{path} was trained with {changed}: resume with the same, begin anew in another folder (experiment), "
                "or overwrite this run"
            )
        self.task.restore(network, state)
        self.epoch, self.step, self._saved = state["epoch"], state["step"], state["step"]
        self._epoch_loss, self.best = state["epoch_loss"], state["best"]
        self.resumed_from = path
        if self.best is not None and state["validation"] != self._validation_names:
            log.warning("the validation pairs have changed: %s is the best of epochs from here on", self.run.best)
            self.best = None

    def resume_newest(self) -> bool:
        """Resume from the newest undamaged checkpoint in the run's folder; returns False if there is none.

        Raises:
            ValueError: all are damaged, or :meth:`resume` refuses it.
        """
        newest = self.run.newest()
        if newest is not None:
            self.resume(*newest)
        return newest is not None

    def stop(self, reason: str) -> None:
        """End :meth:`fit` after the epoch that it is in, whose metrics and checkpoint are written.

        A callback may call it, in any process. The reason is logged. A run that resumes goes on.
        """
        self._reason = reason

    def fit(self, progress: bool = False, stop: Callable[[], bool] = lambda: False, overwrite: bool = False) -> bool:
        """Train until ``config.epochs`` are done.

        Args:
            progress: show the run on standard error: a bar, and lines; see
                :class:`~bbdm.training.run.Progress`.
            stop: called before each step and each batch of validation; once True, the run is saved and ends.
            overwrite: delete the later steps of a run in the folder, which is an error otherwise.

        Returns:
            Whether the run is done: False where ``stop`` ended it.

        Raises:
            ValueError: the folder holds checkpoints of later steps, a validation picture cannot be read, or
                the processes differ in the step where they begin, or in their pairs.
            StoppedError: the loss is no longer finite, a picture cannot be read, the disk is full, or a
                callback raised it. The message says what to do next. Nothing that was saved is lost.
        """
        first, *others = self.processes.gather({"step": self.step, **self.pairs})
        for rank, begins in enumerate(others, 1):
            if differing := manifest.differences(first, begins):
                raise ValueError(f"process {rank} must begin as process 0 does, and differs from it: {differing}")
        self._asked, self._reason = stop, None
        writes = self.processes.rank == 0
        shown = [*([TensorBoard()] if find_spec("tensorboard") else []), *([Progress()] if progress else [])]
        self._called: list[Callback] = [*self.callbacks, *(shown if writes else [])]
        with ExitStack() as ends:
            ends.callback(self.batches.close)
            if self._validating is not None:
                ends.callback(self._validating.close)
                for _ in self._validating(self._indices):
                    pass  # a broken picture is found now, not after an epoch
            if writes:
                ends.enter_context(locked(self.folder, LEASE if self.processes.count > 1 else 0))
                pairs = {**self.pairs, **self.train.provenance()}  # by which pairs to judge on are compared
                self.run.begin(self.step, self.epoch, {**self._settings, "pairs": pairs}, overwrite)
            for callback in self._called:
                callback.begin(self)
                ends.callback(callback.end, self)
            try:
                while self.epoch < self.config.epochs and self._reason is None:
                    self._epoch()
            except _AskedError:
                return False
            except BadPicturesError as error:
                if self.step != self._saved:
                    self._save()
                raise self._stopped(f"{error}", "Repair the file") from error
            except (OSError, ValueError) as error:
                full = isinstance(error, OSError) and error.errno in DISK_FULL
                raise self._stopped(f"{error}", "Make room on the disk" if full else "Correct this") from error
            return True

    def _epoch(self) -> None:
        """The remaining steps of an epoch, then validation, callbacks, metrics and a checkpoint."""
        started, done = time.perf_counter(), self.step - self.epoch * self.steps_per_epoch
        self._check_asked()
        self._steps(done)
        seconds, steps = time.perf_counter() - started, self.steps_per_epoch - done
        metrics = {"epoch": self.epoch + 1, "step": self.step, "loss": self._epoch_loss / self.steps_per_epoch}
        if self.validation is not None:
            if steps:
                self._save()  # validation may take long
            metrics |= self.validate()
        metrics |= self.task.report()
        metrics |= {"images_per_second": steps * self.config.batch_size / seconds} if steps else {}
        metrics["learning_rate"] = self.task.optimizer.param_groups[0]["lr"]
        self.epoch, self._epoch_loss = self.epoch + 1, 0.0
        stopped: list[StoppedError] = []  # by callbacks, once the epoch is written
        for callback in self._called:
            try:
                callback.after_epoch(self, metrics)
            except StoppedError as error:
                stopped.append(error)
        self.images.clear()
        lowest = math.inf if self.best is None else self.best["validation_loss"]
        if best := self.validation is not None and metrics["validation_loss"] < lowest:
            self.best = {name: metrics[name] for name in ("epoch", "step", "validation_loss")}
        self._save(best, metrics)
        if stopped:
            raise stopped[0]
        self._reason = next((each for each in self.processes.gather(self._reason) if each is not None), None)
        if self._reason is not None and self.processes.first:
            log.info("ended after epoch %s: %s", self.epoch, self._reason)

    def _steps(self, done: int) -> None:
        """The steps of an epoch after those that are done."""
        size, drawn = self.config.batch_size, mixed(self.config.seed, self.epoch)  # the order, and crops
        order, begin = self.train.order(drawn), self.processes.rank * self._share
        firsts = (step * size + begin for step in range(done, self.steps_per_epoch))
        indices = chain.from_iterable(order(first, first + self._share) for first in firsts)
        for batch in self.batches(indices, drawn):
            loss = self.train_step(batch)
            if not math.isfinite(loss):
                raise self._stopped(f"the loss is {loss} at step {self.step}", DIVERGED)
            self._epoch_loss += loss
            for callback in self._called:
                callback.after_step(self, loss)
            if self.step % self.config.save_every == 0 and self.step % self.steps_per_epoch:
                self._save()
            self._check_asked()

    def train_step(self, batch: Example) -> float:
        """Do one optimizer step on a batch from the data set; returns the loss before it."""
        loss = self.task(batch, self.step)
        self.step += 1
        return loss

    def validate(self) -> dict[str, float]:
        """Mean losses of the averaged weights over the validation pairs by name, at fixed times and noise."""
        assert self.validation is not None
        assert self._validating is not None
        totals, done = Counter[str](), 0
        for batch in self._validating(self._indices):
            if self.processes.count == 1:  # several may have different numbers of batches
                self._check_asked()
            seeds = sample_seeds(0, self._indices[done], len(batch.source), self.device)
            totals.update(self.task.validation_losses(batch, seeds))
            done += len(batch.source)
        names = self.processes.gather([*totals])[0]  # process 0 has the first pair, others may have none
        return {name: self.processes.sum(totals[name]) / len(self.validation) for name in names}

    def save(self, path: str | os.PathLike[str]) -> None:
        """Write the weights, in the first process. The others need not call this."""
        if self.processes.first:
            weights.write(path, self.task.snapshot())

    def _save(self, best: bool = False, metrics: dict[str, Any] | None = None) -> None:
        """Write metrics, best weights where these are, and a checkpoint, unless the weights have diverged."""
        if not torch.stack([weight.isfinite().all() for weight in self.network.parameters()]).all():
            raise self._stopped(f"weights are not finite at step {self.step}", DIVERGED)
        self._saved = self.step
        if self.processes.rank > 0:
            return
        state = {"epoch": self.epoch, "step": self.step, "epoch_loss": self._epoch_loss, "best": self.best}
        state |= {**self.task.state(), "pairs": self.pairs, "validation": self._validation_names}
        self.run.write(self.step, self.task.snapshot(state), self.task.snapshot() if best else None, metrics)

    def _check_asked(self) -> None:
        """End the run, saved, if it was asked to end.

        At a step that is saved, the checkpoint stays: while an epoch ends, it is of before that.
        """
        if self.processes.sum(self._asked()):
            if self.step != self._saved and self.step:
                self._save()
            self.processes.sum(0)  # until the first has saved: a process that ends takes the others down
            raise _AskedError

    def _stopped(self, reason: str, todo: str) -> StoppedError:
        return StoppedError(f"{reason}. {todo}; {self.run.how_to_resume()}")
