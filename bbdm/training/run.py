"""A training run's folder, and what a run calls at fixed points: grids, lines on a terminal, TensorBoard.

``step_N.pt`` is the whole state after N optimizer steps; the newest few are kept. ``best.pt`` has only the
weights of the lowest validation loss.
"""

from __future__ import annotations

import json
import logging
import os
import shutil
from collections.abc import Callable
from contextlib import ExitStack, suppress
from pathlib import Path
from typing import Any

import numpy as np
from tqdm.auto import tqdm
from tqdm.contrib.logging import logging_redirect_tqdm

from bbdm.base import manifest, sizes
from bbdm.base.atomic import remove_leftovers, write_atomically
from bbdm.data.examples import collate
from bbdm.files import weights
from bbdm.files.checkpoint import load_checkpoint
from bbdm.files.weights import Snapshot
from bbdm.pictures import images
from bbdm.training.task import SHOWN_EVERY

log = logging.getLogger(__name__)
LOGGER = logging.getLogger("bbdm")
PREVIEW_PAIRS = 8
BY_STEP = {"epoch", "step", "loss", "learning_rate"}  # which TensorBoard has of each step
LEFT_OUT = {"epoch", "step", "learning_rate"}  # on a terminal


class RunFolder:
    """A run's folder, which need not exist yet.

    Args:
        path: the path of the folder.
        keep: the number of newest checkpoints to keep.
        read: the content of a checkpoint; a ValueError says that it is damaged.
    """

    def __init__(self, path: str | os.PathLike[str], keep: int, read: Callable[[Path], Any] = load_checkpoint) -> None:
        self.path = path = Path(path)
        self.keep, self.read = keep, read
        self.best = path / "best.pt"  # the weights with the lowest validation loss
        self.metrics = path / "metrics.jsonl"
        self.events = path / "tensorboard"

    def checkpoint(self, step: int) -> Path:
        """The file of the state after ``step`` optimizer steps."""
        return self.path / f"step_{step:08d}.pt"

    def checkpoints(self) -> dict[int, Path]:
        """The existing checkpoints by step, the newest first; some may be damaged. Others are not a run's."""
        steps = (path.stem.removeprefix("step_") for path in self.path.glob("step_????????.pt"))
        return {step: self.checkpoint(step) for step in sorted(int(each) for each in steps if each.isdigit())[::-1]}

    def how_to_resume(self) -> str:
        """Which step is saved, and from where the same command resumes."""
        saved = next(iter(self.checkpoints()), None)
        if saved is None:
            return "nothing is saved yet, and the same command starts anew"
        return f"the same command resumes from step {saved}, which is saved in {self.path}"

    def newest(self) -> tuple[Path, Any] | None:
        """The newest undamaged checkpoint, with its content; None if there are no checkpoints.

        Damaged ones that are newer are renamed to ``*.damaged``.

        Raises:
            ValueError: all of them are damaged.
        """
        damaged: list[Path] = []
        for path in self.checkpoints().values():
            try:
                checkpoint = self.read(path)
            except ValueError as error:
                log.warning("skipped a damaged checkpoint: %s", error)
                damaged.append(path)
                continue
            for other in damaged:
                other.rename(other.with_name(f"{other.name}.damaged"))
            return path, checkpoint
        if damaged:
            raise ValueError(
                f"no checkpoint in {self.path} can be read: all {len(damaged)} are damaged: "
                "overwrite the run, or begin another in another folder"
            )
        return None

    def begin(self, step: int, epochs: int, config: dict[str, Any], overwrite: bool = False) -> None:
        """Prepare the locked folder for a run that begins at ``step``, after ``epochs`` epochs.

        Half-written files of killed processes are deleted, and metrics and grids of later epochs. To
        ``overwrite`` deletes later checkpoints too; from step 0 also best weights and TensorBoard's events.

        Raises:
            ValueError: it has later checkpoints, or the metrics are damaged.
        """
        later = {at: path for at, path in self.checkpoints().items() if at > step}
        if later and not overwrite:
            raise ValueError(
                f"{self.path} holds a run of {max(later)} steps already, and this one would begin at {step}: "
                "resume the newest step (Trainer.resume_newest(), no ckpt_path), overwrite the run, or use another "
                "folder (experiment)"
            )
        old = [self.best, *self.path.glob("step_*.damaged")] if overwrite and step == 0 else []
        for path in (*later.values(), *old):
            path.unlink(missing_ok=True)
        if old:
            shutil.rmtree(self.events, ignore_errors=True)
        remove_leftovers(self.path)
        self.metrics.touch()
        if lines := self.metrics.read_text().splitlines(keepends=True):
            with manifest.parsing(self.metrics, "repair or delete it"):
                known = [line for line in lines if line.endswith("\n") and json.loads(line)["epoch"] <= epochs]
            write_atomically(self.metrics, lambda temporary: temporary.write_text("".join(known)))
        for grid in self.path.glob("epoch_*.png"):
            epoch = grid.stem.removeprefix("epoch_")
            if epoch.isdigit() and int(epoch) > epochs:
                grid.unlink()
        text = json.dumps(config, indent=1) + "\n"
        write_atomically(self.path / "config.json", lambda temporary: temporary.write_text(text))

    def write(
        self, step: int, snapshot: Snapshot, best: Snapshot | None = None, metrics: dict[str, Any] | None = None
    ) -> None:
        """Write a line of metrics, new best weights, then the checkpoint of a step; delete the oldest ones.

        The checkpoint is last: a run that is killed before it repeats the rest.
        """
        if metrics is not None:
            with self.metrics.open("a") as file:
                file.write(json.dumps(metrics) + "\n")
        if best is not None:
            weights.write(self.best, best)
        path = self.checkpoint(step)
        again = path.exists()  # at the end of an epoch, the state is written before and after validation
        weights.write(path, snapshot)
        for old in list(self.checkpoints().values())[self.keep :]:
            old.unlink()
        if not again:
            log.info("checkpoint: %s", path)


class Callback:
    """Base class of the callbacks of a :class:`~bbdm.training.trainer.Trainer`: override what is needed.

    ``trainer`` is the run; it has the type Any, so that a callback may name its own. Each of several
    processes calls its own callbacks; ``trainer.processes.first`` is true in the one that writes files.
    ``trainer.stop(reason)`` ends the run after the epoch that it is in. A
    :class:`~bbdm.base.scripts.StoppedError` ends it with an error: at once, or raised in :meth:`after_epoch`,
    when the epoch is written. A resumed run calls :meth:`begin` again; the state of a callback is not in the
    checkpoint.
    """

    def begin(self, trainer: Any) -> None:
        """Called before the first step."""

    def after_step(self, trainer: Any, loss: float) -> None:
        """Called after optimizer step ``trainer.step``; ``loss`` is the loss of its batch before the step."""

    def after_epoch(self, trainer: Any, metrics: dict[str, Any]) -> None:
        """Called after an epoch's steps and validation; may add numbers to ``metrics``."""

    def end(self, trainer: Any) -> None:
        """Called when the run ends, after an error too."""


class Previews(Callback):
    """Writes grids of the first validation pairs: of a bridge (source, result, target).

    A grid is ``epoch_N.png`` and an image in TensorBoard, written each ``preview_every`` epochs and after the
    last, if there are validation pairs. The seed is 0. Of volumes, three planes through the middle are shown.
    """

    def after_epoch(self, trainer: Any, metrics: dict[str, Any]) -> None:
        """Write the grid of the epoch, if one is due."""
        pairs, config = trainer.validation, trainer.config
        due = trainer.epoch == config.epochs or trainer.epoch % config.preview_every == 0
        if pairs is None or not trainer.processes.first or not due:
            return
        examples = [pairs.read(i) for i in range(min(PREVIEW_PAIRS, len(pairs)))]
        columns = trainer.task.columns(collate(examples).map(trainer.batches.placed))
        black = -1  # in which NaN is shown
        arrays = [np.nan_to_num(column.float().cpu().numpy(), nan=black) for column in columns.values()]
        rows = [[images.from_array(array) for array in row] for row in zip(*arrays, strict=True)]
        sheet = images.grid(rows, names=list(columns))
        path = trainer.folder / f"epoch_{trainer.epoch:04d}.png"
        write_atomically(path, lambda temporary: sheet.save(temporary, "png"))
        log.info("grid: %s", path)
        trainer.images[", ".join(columns)] = sheet


class Progress(Callback):
    """Shows a run on standard error: what begins, a bar over the run, and a line for each epoch and file.

    While it runs, it shows the library's log from the level INFO on, which has a line for each grid and each
    checkpoint.
    """

    def begin(self, trainer: Any) -> None:
        """Show the device, the sizes of what is trained on what, and the step where it begins."""
        self._ends = ExitStack()
        self._ends.callback(LOGGER.setLevel, LOGGER.level)
        self._ends.enter_context(logging_redirect_tqdm([LOGGER], tqdm))
        LOGGER.setLevel(logging.INFO)
        config, train, batch = trainer.config, trainer.train, trainer.config.batch_size
        size = sum(parameter.numel() for parameter in trainer.network.parameters()) / 1e6
        team = f"device {trainer.device}, processes: {trainer.processes.count}"
        LOGGER.info("%s; network of %.1f M parameters, %s", team, size, config.precision)
        pairs = f"{len(train)} training pairs of {sizes.shown(train.image_size)}"
        LOGGER.info("%s, %s for validation", pairs, len(trainer.validation or ()))
        LOGGER.info("%s steps, batch %s; files: %s", trainer.task.total, batch, trainer.folder)
        if (resumed := trainer.resumed_from) is not None:
            LOGGER.info("resumed from %s: step %s of %s", resumed, trainer.step, trainer.task.total)
        about: dict[str, Any] = {"unit": " pairs", "unit_scale": batch, "initial": trainer.step, "leave": False}
        bar = tqdm(total=trainer.task.total, disable=None, **about)  # in a file, lines are enough
        self._bar = self._ends.enter_context(bar)

    def after_step(self, trainer: Any, loss: float) -> None:
        """Advance the bar."""
        self._bar.set_description(f"epoch {trainer.epoch + 1}/{trainer.config.epochs}, loss {loss:.4f}", refresh=False)
        self._bar.update()

    def after_epoch(self, trainer: Any, metrics: dict[str, Any]) -> None:
        """Show the metrics of an epoch."""
        shown = ", ".join(f"{name} {value:.4g}" for name, value in metrics.items() if name not in LEFT_OUT)
        LOGGER.info("epoch %s/%s: %s", trainer.epoch, trainer.config.epochs, shown)

    def end(self, trainer: Any) -> None:
        """Close the bar."""
        self._ends.close()


class TensorBoard(Callback):
    """Writes the events of a run to its folder, in the process that writes, where it is installed.

    What a step reports is written every 50 steps, and the metrics and the images of each epoch. Points that
    an earlier process wrote of later steps are not shown.
    """

    def begin(self, trainer: Any) -> None:
        """Open the folder of the events."""
        from torch.utils.tensorboard import SummaryWriter  # of an extra

        self._writer: Any = SummaryWriter(str(trainer.run.events), purge_step=trainer.step + 1)

    def after_step(self, trainer: Any, loss: float) -> None:
        """Write what the step reported, if that is due."""
        if trainer.step % SHOWN_EVERY == 0:
            for name, value in trainer.task.last.items():
                self._writer.add_scalar(name, value, trainer.step)

    def after_epoch(self, trainer: Any, metrics: dict[str, Any]) -> None:
        """Write the metrics of an epoch, except those that are written by step, and its images."""
        shown = {name: value for name, value in metrics.items() if name not in BY_STEP}
        for name, value in {**shown, "loss of the epoch": metrics["loss"]}.items():
            self._writer.add_scalar(name, value, trainer.step)
        for name, image in trainer.images.items():
            self._writer.add_image(name, np.asarray(image), trainer.step, dataformats="HWC")

    def end(self, trainer: Any) -> None:
        """Write the remaining points; a full disk loses them without an error."""
        with suppress(OSError):
            self._writer.close()
