"""A training run's folder: its checkpoints, metrics and grids.

``step_N.pt`` is the whole state after N optimizer steps; the newest few are kept. ``best.pt`` has only the
weights of the lowest validation loss.
"""

from __future__ import annotations

import json
import logging
import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

from bbdm.base import manifest
from bbdm.base.atomic import remove_leftovers, write_atomically
from bbdm.base.runs import BEST, METRICS, files_by_step
from bbdm.data.provenance import Record
from bbdm.files import weights
from bbdm.files.checkpoint import load_checkpoint
from bbdm.files.weights import Snapshot

log = logging.getLogger(__name__)


class RunFolder:
    """A run's folder, which need not exist yet.

    Args:
        path: the path of the folder.
        keep: the number of newest checkpoints to keep.
        read: the content of a checkpoint; a ValueError says that it is damaged.
    """

    def __init__(
        self, path: str | os.PathLike[str], keep: int, read: Callable[[Path], Any] = load_checkpoint
    ) -> None:
        self.path = Path(path)
        self.keep = keep
        self.read = read
        self.best = self.path / BEST  # the weights with the lowest validation loss
        self.metrics = self.path / METRICS
        self.events = self.path / "tensorboard"
        # the identity of what the network has learned from, where that is known
        self.record: str | None = None

    def checkpoint(self, step: int) -> Path:
        """The file of the state after ``step`` optimizer steps."""
        return self.path / f"step_{step:08d}.pt"

    def checkpoints(self) -> dict[int, Path]:
        """The existing checkpoints by step, the newest first; some may be damaged. Others are not a run's."""
        return files_by_step(self.path, ".pt")

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

    def grid(self, step: int) -> Path:
        """The file of the grid of validation pairs after ``step`` optimizer steps."""
        return self.path / f"step_{step:08d}.png"

    def later(self, step: int, overwrite: bool = False) -> list[Path]:
        """The checkpoints after ``step`` optimizer steps, which a run that begins there is to ``overwrite``.

        Raises:
            ValueError: there are some, and they are not to be overwritten.
        """
        later = {number: path for number, path in self.checkpoints().items() if number > step}
        if later and not overwrite:
            raise ValueError(
                f"{self.path} holds a run of {max(later)} steps already, and this one would begin at {step}: "
                "resume the newest step (Trainer.resume_newest(), no ckpt_path), overwrite the run, or use another "
                "folder (experiment)"
            )
        return list(later.values())

    def begin(
        self, step: int, config: dict[str, Any], record: Record, overwrite: bool = False
    ) -> None:
        """Prepare the locked folder for a run that begins after ``step`` optimizer steps.

        Half-written files of killed processes are deleted, and metrics and grids of later steps. To
        ``overwrite`` deletes later checkpoints too; from step 0 also best weights and TensorBoard's events.
        The ``record`` of what the network learns from is kept beside those of other weights of the folder.

        Raises:
            ValueError: it has later checkpoints, or the metrics are damaged.
        """
        for path in self.later(step, overwrite):
            path.unlink(missing_ok=True)
        if overwrite and step == 0:
            self.best.unlink(missing_ok=True)
            for path in self.path.glob("step_*.damaged"):
                path.unlink(missing_ok=True)
            shutil.rmtree(self.events, ignore_errors=True)
        remove_leftovers(self.path)
        self._cut_metrics(step)
        for number, grid in files_by_step(self.path, ".png").items():
            if number > step:
                grid.unlink()
        manifest.write(self.path / "config.json", config)
        record.write(self.path)
        self.record = record.identity

    def _cut_metrics(self, step: int) -> None:
        """Leave the whole lines of metrics up to a step; there are none yet in a new folder."""
        self.metrics.touch()
        lines = self.metrics.read_text().splitlines(keepends=True)
        kept: list[str] = []
        with manifest.parsing(self.metrics, "repair or delete it"):
            for line in lines:
                if line.endswith("\n") and json.loads(line)["step"] <= step:
                    kept.append(line)
        if kept != lines:
            write_atomically(self.metrics, lambda temporary: temporary.write_text("".join(kept)))

    def save(self, path: str | os.PathLike[str], snapshot: Snapshot) -> None:
        """Write a file of weights, which says where the run is, and which record of pairs there is of them.

        Where the run's folder is below that of the file, it is named from there, so that both may move
        together; in the run's folder, by its name, so that wherever a run is its files are the same.
        """
        run = self.path.resolve()
        place = Path(path).resolve().parent
        if place == run:
            place = run.parent
        named = run.relative_to(place).as_posix() if run.is_relative_to(place) else str(run)
        snapshot.settings["run"] = named
        if self.record is not None:
            # that of a file that is saved again is its own
            snapshot.settings.setdefault("record", self.record)
        weights.write(path, snapshot)

    def save_best(self, path: str | os.PathLike[str]) -> None:
        """Write the weights of a bridge with the lowest validation loss to another file."""
        with weights.opened(self.best, weights.FORMAT, "checkpoint") as content:
            self.save(path, content)

    def write(
        self,
        step: int,
        snapshot: Snapshot,
        best: Snapshot | None = None,
        metrics: dict[str, Any] | None = None,
    ) -> None:
        """Write a line of metrics, new best weights, then the checkpoint of a step; delete the oldest ones.

        The checkpoint is last: a run that is killed before it repeats the rest.
        """
        if metrics is not None:
            with self.metrics.open("a") as file:
                file.write(json.dumps(manifest.finite(metrics), allow_nan=False) + "\n")
        if best is not None:
            self.save(self.best, best)
        path = self.checkpoint(step)
        self.save(path, snapshot)
        for old in list(self.checkpoints().values())[self.keep :]:
            old.unlink()
        log.info("checkpoint: %s", path)
