"""Training: the loop over optimizer steps, and its checkpoints.

What is learned is :mod:`.task`, and how is :mod:`.optimization`. The order of an epoch is a function of (run
seed, epoch), so a resumed run sees what an uninterrupted run sees. Each process has its share of each batch.
"""

from __future__ import annotations

import errno
import logging
import math
import os
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import asdict
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import torch
from PIL.Image import Image

from bbdm.base import manifest
from bbdm.base.atomic import locked
from bbdm.base.progress import Shown
from bbdm.base.scripts import StoppedError
from bbdm.bridges import Bridge
from bbdm.codec import Codec
from bbdm.data.examples import Example
from bbdm.data.loading import Batches
from bbdm.data.mapped import as_pairs
from bbdm.data.pairs import Pairs
from bbdm.data.rows import BadPicturesError
from bbdm.data.tables import MapStyle
from bbdm.data.trained import Origin
from bbdm.execution.device import keep_freed_memory
from bbdm.execution.processes import Processes
from bbdm.training.bridge import BridgeTask
from bbdm.training.callbacks import Callback, Previews, Progress, TensorBoard, after_validation
from bbdm.training.config import Every, RunConfig, compared, steps_of
from bbdm.training.initial import record
from bbdm.training.optimization import (
    DIVERGED,
    DivergedError,
    MakeOptimizer,
    Optimization,
    Schedule,
)
from bbdm.training.run import RunFolder
from bbdm.training.task import Task, mixed, sample_seeds

log = logging.getLogger(__name__)
DISK_FULL = (errno.ENOSPC, errno.EDQUOT)
LEASE = 120  # seconds: a file server keeps the lock of a lost node for some 90


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
            :class:`~bbdm.data.mapped.MappedDataset`'s items. The last short batch of an epoch is dropped.
        validation: pairs for the validation loss and previews, or None.
        folder: the folder of metrics, previews and checkpoints.
        codec: encodes pictures into the space of the bridge; None to train in image space.
        processes: the processes that share the work; None for this one alone. The first of them writes.
        callbacks: those of the caller; they are called before the library's own.
        task: what is learned: a subclass of :class:`~bbdm.training.task.Task`, or a function that returns one
            for the network, the bridge, the settings, the pairs, the processes and the codec.
        optimizer: makes the optimizer of a list of parameters, in place of the settings'.
        schedule: the factor of the learning rates at (step, total steps), in place of the settings'.
        **functions: arguments of the task by name, such as ``loss`` and ``times`` of a
            :class:`~bbdm.training.bridge.BridgeTask`.

    A checkpoint does not hold functions: a run that resumes needs the same ones, and cannot check it.

    Attributes:
        step: the number of optimizer steps done.
        total: the number of optimizer steps of the run.
        steps_per_epoch: the number of optimizer steps of an epoch.
        best: the metrics of the validation with the lowest loss, or None.
        resumed_from: the checkpoint of the last resume, or None.
        origin: of the weights, as of ``load_checkpoint(path).origin``, whose pairs are recorded too; or None.
        task: what the network learns: losses, validation, pictures and files.
        optimization: how the task is learned: rates, gradients and the average of weights.
        average: the network with the averaged weights.
        run_folder: the files of the run.
        images: pictures that callbacks show of the validation that ends, by name, for TensorBoard.

    Raises:
        ValueError: fewer pairs than one batch, processes and parts that do not share it equally, two sets for
            a task of pairs, pictures of a size that the network cannot take, a codec of another number of
            channels, or latents of another codec or another ``flip``.
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
        *,
        optimizer: MakeOptimizer | None = None,
        schedule: Schedule | None = None,
        **functions: Callable[..., Any],
    ) -> None:
        pairs = as_pairs(train)
        self.validation = None if validation is None else as_pairs(validation)
        self.config = config
        self.bridge: Any = bridge
        self.task = task(network, bridge, config, pairs, processes, codec, **functions)
        self.processes = self.task.processes
        self.device = self.task.device
        if self.task.paired and not pairs.paired:
            raise ValueError(
                "train has two sets without pairs, and the task learns from pairs: give task=UnpairedTask"
            )
        config.check_batch(len(pairs), self.processes.count)
        self.steps_per_epoch = len(pairs) // config.batch_size
        self.total = config.max_steps or config.epochs * self.steps_per_epoch
        self.optimization = Optimization(
            self.task, optimizer=optimizer, schedule=schedule, total=self.total
        )
        self.network = self.task.network
        self.average = self.task.average

        self.train = pairs.shared(self.processes.rank, self.processes.count)
        self._share = config.batch_size // self.processes.count  # of a batch, this process's
        self.batches = Batches(self.train, self._share, self.device, config.workers)
        self._validation_batches: Batches | None = None
        self._validation_indices: list[int] = []
        if self.validation is not None:
            self._validation_batches = Batches(
                self.validation, self._share, self.device, config.workers
            )
            for index in range(len(self.validation)):  # every batch of as many as processes
                if index // self._share % self.processes.count == self.processes.rank:
                    self._validation_indices.append(index)

        self.folder = Path(folder)
        self.run_folder = RunFolder(self.folder, config.keep, self.task.read)
        self.pairs: Mapping[str, Any] = {  # what a run that resumes must have too
            "image_size": self.train.image_size,
            "direction": self.train.spec.direction,
            "crops": self.train.spec.crops,
            **self.train.settings(),
            "number": len(pairs),
            "names": self.train.names_digest(),
        }
        self._validation_names = None if self.validation is None else self.validation.names_digest()
        self.callbacks: list[Callback] = list(callbacks)
        if self.device.type == "cpu":
            keep_freed_memory()

        self.step = 0
        self.best: dict[str, Any] | None = None
        self.resumed_from: Path | None = None
        self.origin: Origin | None = None
        self.images: dict[str, Image] = {}
        self._validated = 0  # the step of the last validation
        self._saved = 0  # the step of the last checkpoint
        self._began = 0.0  # when the steps since the last validation began, in seconds
        self._steps_here = 0  # those steps, of this process
        # of this library, which are called after those of the caller
        self._own: list[Callback] = []
        self._asked: Callable[[], bool] = lambda: False
        self._reason: str | None = None  # of :meth:`stop`

    @property
    def epoch(self) -> int:
        """The number of epochs done."""
        return self.step // self.steps_per_epoch

    @property
    def epochs(self) -> float:
        """The number of epochs done, with the share of one that is not."""
        return self.step / self.steps_per_epoch

    @property
    def is_last(self) -> bool:
        """Whether the run ends with this step, by its length or by :meth:`stop`."""
        return self.step == self.total or self._reason is not None

    # Resuming

    def resume(self, path: str | os.PathLike[str], checkpoint: Any = None) -> None:
        """Resume from a checkpoint of the same run; ``checkpoint`` is its content, where it is read already.

        Raises:
            ValueError: it has no training state, or is of another network, bridge, codec, number of pairs,
                size, direction or settings. Only the settings in :data:`~bbdm.training.config.FREE` may
                change; functions are not compared.
        """
        path = Path(path)
        if checkpoint is None:
            checkpoint = self.run_folder.read(path)
        network, description = self.task.stored(checkpoint)
        state = checkpoint.training
        if state is None:
            raise ValueError(
                f"{path} holds no training state: a run resumes only from one of its step_*.pt files"
            )
        before = compared(description, state["config"], state["pairs"])
        now = compared(self.task.description, asdict(self.config), self.pairs)
        changed = manifest.differences(before, now)
        if changed:
            raise ValueError(
                f"{path} was trained with {changed}: resume with the same, begin anew in another folder (experiment), "
                "or overwrite this run"
            )
        self.optimization.restore(network, state)
        self.step = state["step"]
        self.best = state["best"]
        self._validated = state["validated"]
        self._saved = self.step
        self.resumed_from = path
        self.origin = checkpoint.origin
        self.run_folder.record = checkpoint.origin.record
        if self.best is not None and state["validation"] != self._validation_names:
            best = self.run_folder.best
            log.warning(
                "the validation pairs have changed: %s is the best of validations from here on",
                best,
            )
            self.best = None

    def resume_newest(self) -> bool:
        """Resume from the newest undamaged checkpoint in the run's folder; returns False if there is none.

        Raises:
            ValueError: all are damaged, or :meth:`resume` refuses it.
        """
        newest = self.run_folder.newest()
        if newest is None:
            return False
        self.resume(*newest)
        return True

    # The loop

    def stop(self, reason: str) -> None:
        """End :meth:`fit` after the next validation, whose metrics and checkpoint are written.

        A callback may call it, in any process. The reason is logged. A run that resumes goes on.
        """
        self._reason = reason

    def fit(
        self,
        progress: Shown = False,
        stop: Callable[[], bool] = lambda: False,
        overwrite: bool = False,
    ) -> bool:
        """Train until ``config.epochs``, or ``config.max_steps``, are done.

        Args:
            progress: show the run on standard error, see :class:`~bbdm.training.callbacks.Progress`.
            stop: called before each step, and in one process before each batch of validation; once True, the
                run is saved and ends. Several processes do one more step, or on GPUs up to 10.
            overwrite: delete the later steps of a run in the folder, which is an error otherwise.

        Returns:
            Whether the run is done: False where ``stop`` ended it.

        Raises:
            ValueError: the folder holds checkpoints of later steps, a validation picture cannot be read, or
                the processes differ in the step where they begin, or in their pairs.
            StoppedError: the loss is no longer finite, a picture cannot be read, or the disk is full. The
                message says what to do next. Nothing that was saved is lost.
        """
        self._asked = stop
        self._reason = None
        with ExitStack() as ends:
            self._begin(ends, progress, overwrite)
            try:
                self._train()
            except _AskedError:
                return False
            except DivergedError as error:
                raise self._stopped(f"{error}", DIVERGED) from error
            except BadPicturesError as error:
                if self.step > self._saved:
                    # the others wait for this process, and all have the same state
                    self._save(here=True)
                raise self._stopped(f"{error}", "Repair the file") from error
            except OSError as error:
                if error.errno not in DISK_FULL:
                    raise
                raise self._stopped(f"{error}", "Make room on the disk") from error
            return True

    def _begin(self, ends: ExitStack, progress: Shown, overwrite: bool) -> None:
        """Look validation pairs over, lock and prepare the folder, and begin the callbacks."""
        first, *others = self.processes.gather({"step": self.step, **self.pairs})
        for rank, beginning in enumerate(others, 1):
            differing = manifest.differences(first, beginning)
            if differing:
                raise ValueError(
                    f"process {rank} must begin as process 0 does, and differs from it: {differing}"
                )
        ends.callback(self.batches.close)
        if self._validation_batches is not None:
            ends.callback(self._validation_batches.close)
            for _ in self._validation_batches(self._validation_indices):
                pass  # a broken picture is found now, not after an epoch
        self._own = []
        if self.validation is not None:
            self._own.append(Previews())
        if self.processes.first:
            ends.enter_context(locked(self.folder, LEASE if self.processes.count > 1 else 0))
            self.run_folder.later(self.step, overwrite)  # refused before all pairs are read
            learned = record(self.train, self.validation, self.folder, self.origin, self.step > 0)
            settings = {"train": asdict(self.config), **self.task.description, "pairs": self.pairs}
            self.run_folder.begin(self.step, settings, learned, overwrite)
            self.origin = Origin(
                self.run_folder.checkpoint(self.step), self.folder, learned.identity
            )
            if find_spec("tensorboard"):
                self._own.append(TensorBoard())
            if progress:
                self._own.append(Progress(progress))
        for callback in (*self.callbacks, *self._own):
            callback.begin(self)
            ends.callback(callback.end, self)

    def _train(self) -> None:
        """All steps that are left, with what is due after each."""
        self._began = time.perf_counter()
        if self.processes.sum(self._asked()) > 0:
            self._end()
        # it ended while it validated
        if self.step > self._validated and self._is_due(self.config.validate_every):
            self._validate_and_save()
            if self._reason is not None:
                return
        for batch in self._batches_left():
            loss = self.train_step(batch)
            for callback in (*self.callbacks, *self._own):
                callback.after_step(self, loss)
            if self._is_due(self.config.validate_every):
                self._validate_and_save()
                if self._reason is not None:
                    return
            elif self._is_due(self.config.save_every):
                self._save()
            self._check_asked()

    def train_step(self, batch: Example) -> torch.Tensor:
        """Do one optimizer step on a batch; returns its loss before, a scalar on the device."""
        asks = self.processes.count > 1 and self._asked()
        loss = self.optimization.step(batch, self.step, asks)
        self.step += 1
        self._steps_here += 1
        return loss

    def _batches_left(self) -> Iterator[Example]:
        """This process's share of the batches of the steps that are left, epoch by epoch."""
        while self.step < self.total:
            epoch, done = divmod(self.step, self.steps_per_epoch)
            until = min(self.steps_per_epoch, self.total - epoch * self.steps_per_epoch)
            drawn = mixed(self.config.seed, epoch)  # the order, and crops
            order = self.train.order(drawn)
            offset = self.processes.rank * self._share
            starts = [step * self.config.batch_size + offset for step in range(done, until)]
            indices = (index for start in starts for index in order(start, start + self._share))
            yield from self.batches(indices, drawn)

    def _is_due(self, every: Every) -> bool:
        """Whether the step is one of those, or the last."""
        return self.step == self.total or self.step % steps_of(every, self.steps_per_epoch) == 0

    def _validate_and_save(self) -> None:
        """Validation, callbacks, metrics, best weights and a checkpoint, of the steps since the last time."""
        self.optimization.check(self.step)
        seconds = time.perf_counter() - self._began
        means = self.optimization.reported.means()
        metrics: dict[str, Any] = {
            "epoch": self.epoch,
            "step": self.step,
            "loss": means.pop("loss"),
        }
        if self.validation is not None:
            metrics |= self.validate()
        metrics |= means
        metrics |= self.task.report()
        if self._steps_here:
            metrics["images_per_second"] = self._steps_here * self.config.batch_size / seconds
        metrics["learning_rate"] = self.optimization.optimizer.param_groups[0]["lr"]
        errors = after_validation(self.callbacks, self, metrics)
        self._reason = next(
            (reason for reason in self.processes.gather(self._reason) if reason is not None), None
        )
        errors += after_validation(self._own, self, metrics)
        self.images.clear()
        self.optimization.reported.clear()
        self._validated = self.step
        self._save(metrics)
        if errors:
            raise errors[0]
        if self._reason is not None and self.processes.first:
            log.info("ended after step %s: %s", self.step, self._reason)
        self._began = time.perf_counter()
        self._steps_here = 0

    def validate(self) -> dict[str, float]:
        """Mean losses of the averaged weights over the validation pairs by name, at fixed times and noise."""
        assert self.validation is not None
        return self.task.validate(self._seeded_batches(), self.validation)

    def _seeded_batches(self) -> Iterator[tuple[Example, torch.Tensor]]:
        """This process's batches of the validation pairs, with the seeds of their examples."""
        assert self._validation_batches is not None
        done = 0
        for batch in self._validation_batches(self._validation_indices):
            if self.processes.count == 1:  # several may have different numbers of batches
                self._check_asked()
            count = len(batch.source)
            yield batch, sample_seeds(0, self._validation_indices[done], count, self.device)
            done += count

    # Files

    def save(self, path: str | os.PathLike[str]) -> None:
        """Write the weights, in the first process. The others need not call this."""
        if self.processes.first:
            self.run_folder.save(path, self.task.snapshot())

    def _save(self, metrics: dict[str, Any] | None = None, here: bool = False) -> None:
        """Write a checkpoint, and of a validation its metrics and the best weights.

        The first process writes; with ``here``, this one.

        Raises:
            DivergedError: the loss, or a weight, is not finite.
        """
        self.optimization.check(self.step)
        self.optimization.check_weights(self.step)
        best = None
        if metrics is not None and self.validation is not None:
            lowest = math.inf if self.best is None else self.best["validation_loss"]
            if metrics["validation_loss"] < lowest:
                self.best = {name: metrics[name] for name in ("epoch", "step", "validation_loss")}
                best = self.task.snapshot()
        self._saved = self.step
        if not self.processes.first and not here:
            return
        state = {
            "step": self.step,
            "validated": self._validated,
            "best": self.best,
            "pairs": self.pairs,
            "validation": self._validation_names,
            **self.optimization.state(),
        }
        self.run_folder.write(self.step, self.task.snapshot(state), best, metrics)

    def _check_asked(self) -> None:
        """End the run if it was asked to end: of several processes, one before the last step."""
        if self.processes.count == 1:
            if self._asked():
                self._end()
        elif self.optimization.looks(self.step - 1) and self.optimization.asked > 0:
            self._end()

    def _end(self) -> None:
        """End the run, saved, in all processes."""
        if self.step > self._saved:
            self._save()
        # until the first has saved: a process that ends takes the others down
        self.processes.wait()
        raise _AskedError

    def _stopped(self, reason: str, todo: str) -> StoppedError:
        return StoppedError(f"{reason}. {todo}; {self.run_folder.how_to_resume()}")
