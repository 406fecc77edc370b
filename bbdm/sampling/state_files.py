"""The files of a picture that is larger than memory: its states between steps, in a folder beside the result.

The folder is of one process at a time, and says which step is done: the same work goes on after a kill.
"""

from __future__ import annotations

import errno
import json
import math
import os
import shutil
from collections.abc import Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from filelock import FileLock, Timeout

from bbdm.base import manifest
from bbdm.base.atomic import LOCK, make_folder
from bbdm.base.sizes import amount

MARKER = "done.json"
FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)


class ResultInUseError(ValueError):
    """Another process makes the same result."""


class DiskFullError(OSError):
    """The disk of a folder is full."""


class StateFolder:
    """The states of a picture between steps; what there is of other work is deleted.

    Args:
        path: of the folder, which exists.
        about: plain values, all that decides the states.

    Attributes: ``done``, the number of steps that are done, or None where not even the first state is there.
    """

    def __init__(self, path: Path, about: Mapping[str, Any]) -> None:
        self.path, self._about, self.done = path, manifest.as_json(about), None
        with suppress(OSError, ValueError, LookupError, TypeError):
            found = json.loads((path / MARKER).read_text())
            self.done = int(found["done"]) if found["about"] == self._about else None
        if self.done is None:
            self._delete([])

    def finish(self, done: int, names: Collection[str]) -> None:
        """Say that a number of steps is done, and delete all files but those of some names."""
        manifest.write(self.path / MARKER, {"about": self._about, "done": done})
        self.done = done
        self._delete([MARKER, *names])

    def _delete(self, kept: Collection[str]) -> None:
        for file in self.path.iterdir():
            if file.is_dir():  # of a write that was killed
                shutil.rmtree(file, ignore_errors=True)
            elif file.name not in (LOCK, *kept):
                file.unlink()

    def check_free(self, needed: int, what: str) -> None:
        """Raise DiskFullError where the disk has less than some bytes besides the files of the folder."""
        free = shutil.disk_usage(self.path).free + sum(file.stat().st_size for file in self.path.iterdir())
        if needed > free:
            raise DiskFullError(
                f"{what} in {self.path} needs {amount(needed)}, and the disk has {amount(free)}: "
                f"free {amount(needed - free)} there, or give another output_dir"
            )


def folder_of(result: Path) -> Path:
    """The folder of the states of a result."""
    return result.with_name(f".{result.name}.steps")


@contextmanager
def state_folder(result: Path, about: Mapping[str, Any]) -> Iterator[StateFolder]:
    """The folder of states of a result, beside it; deleted when the context ends, in whatever way.

    A process that is killed at once leaves it, and the next one with the same ``about`` goes on.

    Raises:
        DiskFullError: the disk became full.
        ResultInUseError: another process has the folder.
    """
    path = folder_of(result)
    make_folder(path)
    lock = FileLock(path / LOCK)
    try:
        with suppress(NotImplementedError):  # a file system without locks
            lock.acquire(timeout=0)
    except Timeout:
        raise ResultInUseError(f"another process makes {result}: wait for it, or give another output_dir") from None
    try:
        yield StateFolder(path, about)
    except OSError as error:
        if error.errno not in FULL:
            raise
        raise DiskFullError(f"the disk of {path} became full: free some of it, or give another output_dir") from error
    finally:
        lock.release()
        shutil.rmtree(path, ignore_errors=True)


class FileArray:
    """An array in a file: indexing reads a tensor, and what is assigned is written."""

    def __init__(self, path: Path, shape: Sequence[int], dtype: npt.DTypeLike) -> None:
        self.path, self.shape, self.ndim, self.dtype = path, tuple(shape), len(shape), np.dtype(dtype)
        self.nbytes = math.prod(shape) * self.dtype.itemsize

    def __len__(self) -> int:
        return self.shape[0]

    def create(self) -> FileArray:
        """The file anew, of zeros that take their space: OSError where the disk is full."""
        with self.path.open("wb") as file:
            for start in range(0, self.nbytes, 2**24):
                file.write(bytes(min(2**24, self.nbytes - start)))
        return self

    def mapped(self, mode: Any = "r") -> npt.NDArray[Any]:
        """The array, mapped into memory. Pages stay in memory as long as the mapping."""
        return np.memmap(self.path, self.dtype, mode, shape=self.shape)

    def __getitem__(self, index: Any) -> torch.Tensor:
        return torch.from_numpy(np.array(self.mapped()[index]))

    def __setitem__(self, index: Any, values: Any) -> None:
        self.mapped("r+")[index] = values.cpu().numpy() if isinstance(values, torch.Tensor) else values

    def sync(self) -> None:
        """Return when the file is on the disk."""
        with self.path.open("rb+") as file:
            os.fsync(file.fileno())
