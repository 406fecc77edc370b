"""The folder of a training run: checkpoints to go on from, the best one, and what is told of the run.

``step_N.pt`` are whole states after N optimizer steps, the newest few of them; ``best.pt`` has the weights of
the lowest validation loss alone.
"""

from __future__ import annotations

import json
import logging
import shutil
from pathlib import Path
from typing import Any

from filelock import FileLock, Timeout

from bbdm.base.atomic import make_folder, write_atomically
from bbdm.files.checkpoint import load_checkpoint
from bbdm.files.content import Checkpoint

log = logging.getLogger(__name__)
METRICS, CONFIG, SUMMARY, BEST, EVENTS = "metrics.jsonl", "config.json", "summary.json", "best.pt", "tensorboard"
TRACE = "trace.json"


class RunFolder:
    """A run's folder.

    Args:
        path: the folder, which need not be there yet.
        keep: how many of the newest checkpoints stay.
    """

    def __init__(self, path: Path, keep: int) -> None:
        self.path = path
        self.keep = keep
        self._lock = FileLock(path / ".lock")

    @property
    def best(self) -> Path:
        """Weights of the lowest validation loss."""
        return self.path / BEST

    @property
    def events(self) -> Path:
        """TensorBoard's."""
        return self.path / EVENTS

    def checkpoint(self, step: int) -> Path:
        """Where the state after so many optimizer steps is kept."""
        return self.path / f"step_{step:08d}.pt"

    def checkpoints(self) -> dict[int, Path]:
        """Those that are there, by step, the newest first; whether they can be read is not known yet."""
        named = [path.stem.removeprefix("step_") for path in self.path.glob("step_*.pt")]
        steps = sorted((int(step) for step in named if step.isdigit()), reverse=True)
        return {step: self.checkpoint(step) for step in steps}

    def newest(self) -> tuple[Path, Checkpoint] | None:
        """The newest checkpoint that is whole, with its content; None where there are none at all.

        Damaged ones that are newer get another name, ``*.damaged``.

        Raises:
            ValueError: there are some, and all are damaged.
        """
        damaged: list[Path] = []
        for path in self.checkpoints().values():
            try:
                checkpoint = load_checkpoint(path)
            except ValueError as error:
                log.warning("skipped a damaged checkpoint: %s", error)
                damaged.append(path)
                continue
            for other in damaged:
                other.rename(other.with_name(f"{other.name}.damaged"))
            return path, checkpoint
        if damaged:
            raise ValueError(f"no checkpoint in {self.path} can be read: --overwrite starts the run anew")
        return None

    def forget_after(self, step: int) -> None:
        """Delete the checkpoints of later steps; with step 0, all but what :meth:`begin` makes anew.

        Raises:
            ValueError: another run is at work in the folder.
        """
        self._take()
        for other, path in self.checkpoints().items():
            if other > step:
                path.unlink()
        if step == 0:
            for path in (self.best, self.path / TRACE, *self.path.glob("step_*.damaged")):
                path.unlink(missing_ok=True)
            shutil.rmtree(self.events, ignore_errors=True)
        self._lock.release()

    def begin(self, epochs: int, config: dict[str, Any]) -> None:
        """Make the folder ready for a run that begins, or goes on after so many epochs.

        What a killed process left half written is removed, and what is told of later epochs: lines of the
        metrics, grids, the summary.

        Raises:
            ValueError: another run is at work in the folder.
        """
        self._take()
        for leftover in self.path.glob(".*.tmp"):
            leftover.unlink()
        metrics = self.path / METRICS
        lines = metrics.read_text().splitlines(keepends=True) if metrics.exists() else []
        known = [line for line in lines if line.endswith("\n") and json.loads(line)["epoch"] <= epochs]
        write_atomically(metrics, lambda temporary: temporary.write_text("".join(known)))
        for grid in self.path.glob("epoch_*.png"):
            epoch = grid.stem.removeprefix("epoch_")
            if epoch.isdigit() and int(epoch) > epochs:
                grid.unlink()
        (self.path / SUMMARY).unlink(missing_ok=True)
        self._write(CONFIG, config)

    def _take(self) -> None:
        """Keep other runs out of the folder."""
        make_folder(self.path)
        try:
            self._lock.acquire(blocking=False)
        except Timeout:
            raise ValueError(f"another run is at work in {self.path}: --experiment gives a folder of its own") from None
        except NotImplementedError:
            log.warning("%s cannot be locked on its file system: keep to one run in it", self.path)

    def end(self) -> None:
        """Leave the folder to other runs."""
        self._lock.release()

    def prune(self) -> None:
        """Delete the oldest checkpoints beyond those to keep."""
        for path in list(self.checkpoints().values())[self.keep :]:
            path.unlink()

    def add_metrics(self, record: dict[str, Any]) -> None:
        """Append a line to the metrics."""
        with (self.path / METRICS).open("a") as file:
            file.write(json.dumps(record) + "\n")

    def write_summary(self, about: dict[str, Any]) -> None:
        """Write what the whole run came to: the metrics of its last epoch, and more."""
        records = (self.path / METRICS).read_text().splitlines()
        self._write(SUMMARY, {**(json.loads(records[-1]) if records else {}), **about})

    def _write(self, name: str, content: dict[str, Any]) -> None:
        write_atomically(self.path / name, lambda temporary: temporary.write_text(json.dumps(content, indent=2)))
