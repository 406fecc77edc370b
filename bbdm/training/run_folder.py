"""The folder of a training run: checkpoints, metrics, settings and previews.

``step_N.pt`` is the whole state after N optimizer steps; the newest few are kept. ``best.pt`` has only the
weights of the lowest validation loss.
"""

from __future__ import annotations

import json
import logging
import os
import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from filelock import FileLock, Timeout

from bbdm.base import manifest
from bbdm.base.atomic import LOCK, make_folder, remove_leftovers, write_atomically
from bbdm.files import weights
from bbdm.files.checkpoint import load_checkpoint
from bbdm.files.weights import Snapshot

log = logging.getLogger(__name__)
LEASE = 120  # seconds: a file server keeps the lock of a lost node for some 90


class RunFolder:
    """A run's folder, which need not exist yet.

    Args:
        path: the path of the folder.
        keep: the number of newest checkpoints to keep.
        read: the content of a checkpoint; a ValueError says that it is damaged.
        patience: seconds to wait for another run to leave the folder.
    """

    def __init__(
        self,
        path: str | os.PathLike[str],
        keep: int,
        read: Callable[[Path], Any] = load_checkpoint,
        patience: float = 0,
    ) -> None:
        self.path = path = Path(path)
        self.keep, self.read, self.patience = keep, read, patience
        self.best = path / "best.pt"  # the weights with the lowest validation loss
        self.metrics = path / "metrics.jsonl"
        self.events = path / "tensorboard"
        self._lock = FileLock(path / LOCK)

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

    @contextmanager
    def locked(self) -> Iterator[None]:
        """Keeps other runs out of the folder; ValueError where one works in it."""
        make_folder(self.path)
        try:
            self._lock.acquire(timeout=self.patience)
        except Timeout:
            raise ValueError(f"another run works in {self.path}: each needs a folder (experiment) of its own") from None
        except NotImplementedError:
            log.warning("%s cannot be locked on its file system: start only one run in it", self.path)
        try:
            yield
        finally:
            self._lock.release()

    def forget_after(self, step: int) -> None:
        """Delete the checkpoints after a step; with step 0 also the best weights, the trace and the events.

        Raises:
            ValueError: another run works in the folder.
        """
        with self.locked():
            for other, path in self.checkpoints().items():
                if other > step:
                    path.unlink()
            if step == 0:
                for path in (self.best, *self.path.glob("step_*.damaged")):
                    path.unlink(missing_ok=True)
                shutil.rmtree(self.events, ignore_errors=True)

    def begin(self, step: int, epochs: int, config: dict[str, Any]) -> None:
        """Prepare the locked folder for a run that begins at ``step``, after ``epochs`` epochs.

        Half-written files of killed processes are deleted, and metrics and grids of later epochs.

        Raises:
            ValueError: it has later checkpoints, or the metrics are damaged.
        """
        later = next(iter(self.checkpoints()), step)
        if later > step:
            raise ValueError(
                f"{self.path} holds a run of {later} steps already, and this one would begin at {step}: "
                "resume the newest step (Trainer.resume_newest(), no ckpt_path), overwrite the run, or use another "
                "folder (experiment)"
            )
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
