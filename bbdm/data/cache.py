"""Tensors that are made once and stored on a disk: decoded pictures, resized pictures, latents.

A cache is a folder of safetensors files, the entries, and a manifest of what makes them.
"""

from __future__ import annotations

import errno
import hashlib
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import closing, contextmanager
from itertools import islice
from math import gcd
from pathlib import Path
from typing import Any

import safetensors.torch
import torch
import torch.nn.functional as F
from safetensors import SafetensorError, safe_open
from tqdm.auto import tqdm

from bbdm.base import manifest
from bbdm.base.atomic import LOCK, locked, remove_all_leftovers, write_atomically
from bbdm.data.examples import Example, Examples, trimmed
from bbdm.data.loading import Batches

VERSION = 2
MANIFEST = "manifest.json"
AT_ONCE = 64  # examples that are read and made at a time
CONDITION = "condition."  # before the name of a condition in an entry
Tensors = dict[str, torch.Tensor]


class Cache:
    """Entries by their keys, in files that are mapped into memory.

    Args:
        folder: of the cache, made where it does not exist.
        what: is stored, for messages.
        about: what decides the entries besides their keys.

    Raises:
        ValueError: the folder holds other entries, or files of something else.
    """

    def __init__(self, folder: Path, what: str, about: Mapping[str, Any]) -> None:
        self.folder, self.what = folder, what
        self._mapped: dict[str, Tensors] = {}
        path, now = folder / MANIFEST, manifest.as_json({"version": VERSION, "what": what, **about})
        with locked(folder):
            remove_all_leftovers(folder)
            if path.exists():
                with manifest.reading(path, f"delete {folder}") as content:
                    differing = manifest.differences(content, now)
                if differing:
                    raise ValueError(
                        f"{path} is of other {what} ({differing}): give another folder, or delete this one"
                    )
                return
            for other in folder.iterdir():
                if other.name != LOCK:
                    raise ValueError(f"{other} is of no cache of {what}, without {path}: give another folder")
            manifest.write(path, now)

    def __call__(self, key: str, make: Callable[[], Tensors]) -> Tensors:
        """The tensors of an entry, mapped; it is made where there is none.

        Raises:
            OSError: the disk is full.
            ValueError: the entry has changed since it was written.
        """
        if key not in self._mapped:
            path = self._path(key)
            if not path.exists():
                self.write(key, make())
            with _reading(path), safe_open(path, framework="pt") as file:
                self._mapped[key] = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
        return self._mapped[key]

    def missing(self, keys: Iterable[str]) -> list[str]:
        """The keys without an entry; those that exist are compared with their checksums.

        Raises:
            ValueError: an entry has changed since it was written.
        """
        found: list[str] = []
        for key in keys:
            path = self._path(key)
            if not path.exists():
                found.append(key)
                continue
            with _reading(path), safe_open(path, framework="pt") as file:
                stored = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
                if (file.metadata() or {}).get("sha256") != _digest(stored):
                    raise ValueError("its checksum differs")
        return found

    def write(self, key: str, tensors: Tensors) -> None:
        """Write an entry, whole or not at all."""
        tensors = {name: tensor.contiguous() for name, tensor in tensors.items()}
        content = safetensors.torch.save(tensors, {"sha256": _digest(tensors)})
        try:
            write_atomically(self._path(key), lambda temporary: temporary.write_bytes(content))
        except OSError as error:
            if error.errno not in (errno.ENOSPC, errno.EDQUOT):
                raise
            reason = (
                f"no room for {len(content) / 2**20:.0f} MiB more of {self.what}: make some, or give another folder"
            )
            raise OSError(error.errno, reason, str(self._path(key))) from error

    def _path(self, key: str) -> Path:
        return self.folder / f"{key}.safetensors"

    def __getstate__(self) -> dict[str, Any]:
        return {**vars(self), "_mapped": {}}  # each process opens the files itself


@contextmanager
def _reading(path: Path) -> Iterator[None]:
    """Errors of reading an entry become one that says what to do."""
    try:
        yield
    except (SafetensorError, ValueError) as error:
        raise ValueError(f"{path} has changed since it was written: delete it") from error


def _digest(tensors: Tensors) -> str:
    """SHA-256 of the bytes of tensors in the order of their names."""
    digest = hashlib.sha256()
    for name in sorted(tensors):
        digest.update(name.encode())
        digest.update(tensors[name].flatten().view(torch.uint8).numpy().data)
    return digest.hexdigest()


def tensors_of(batch: Example) -> Tensors:
    """What is stored of a batch: source, target, conditions, and the mask if there is one."""
    conditions = {f"{CONDITION}{name}": value for name, value in batch.conditions.items()}
    mask = {} if batch.mask is None else {"mask": batch.mask}
    return {"source": batch.source, "target": batch.target, **conditions, **mask}


class CachedExamples(Examples):
    """Examples of another data set, made once: the same tensors, bit for bit.

    Args:
        dataset: the examples that are stored.
        folder: of the cache, made where it does not exist. An interrupted one is completed.
        make: the tensors that are stored of a batch.
        what: is stored, for messages.
        settings: what decides the tensors besides the examples.
        block: examples in an entry.
        at_once: examples in a batch; fewer where a block is no multiple of it.
        workers: processes that read examples while it is made.
        progress: show a progress bar.

    Attributes:
        dataset: the examples that it is of.
        folder: that the cache is in.

    Raises:
        ValueError: the folder holds others, or a file that has changed; examples are crops; or a picture
            cannot be read.
        OSError: the disk is full.
    """

    def __init__(
        self,
        dataset: Examples,
        folder: Path,
        make: Callable[[Example], Tensors] = tensors_of,
        what: str = "pictures",
        settings: Mapping[str, Any] | None = None,
        block: int = AT_ONCE,
        at_once: int = AT_ONCE,
        workers: int = 0,
        progress: bool = False,
    ) -> None:
        if dataset.spec.crop is not None:
            raise ValueError(f"crops are others in each epoch, and a cache of {what} would keep those of the first")
        super().__init__(dataset.spec, dataset.image_size, dataset.channels, dataset.source_channels)
        self.masked, self.further, self.left_out = dataset.masked, dataset.further, dataset.left_out
        self.dataset, self.folder, self._block = dataset, folder, block
        about = {"count": len(self), "block": block, "image_size": self.image_size, "direction": self.spec.direction}
        self._cache = Cache(folder, what, {**about, **dataset.description(), **(settings or {})})
        count = -(-len(self) // block)
        with locked(folder):
            keys = self._cache.missing(f"{i:05d}" for i in range(count))
            order = [i for key in keys for i in range(len(self))[int(key) * block :][:block]]
            at_once = gcd(at_once, block)  # no batch is of two entries
            bar = tqdm(total=len(order), desc=what, unit="pair", disable=not progress or not keys)
            with bar, closing(Batches(dataset, at_once, torch.device("cpu"), workers)) as batches:
                stored = batches.stored(order)
                for key in keys:
                    size = len(range(len(self))[int(key) * block :][:block])
                    parts: list[Tensors] = []
                    for batch in islice(stored, -(-size // at_once)):
                        parts.append(make(batch))
                        bar.update(len(batch.source))
                    self._cache.write(key, {name: _joined([part[name] for part in parts]) for name in parts[0]})

    def __len__(self) -> int:
        return len(self.dataset)

    @property
    def spacing(self) -> tuple[float, ...] | None:
        """That of the data set."""
        return self.dataset.spacing

    def settings(self) -> dict[str, Any]:
        """Those of the data set."""
        return self.dataset.settings()

    def digest(self) -> str:
        """That of the data set."""
        return self.dataset.digest()

    def names_digest(self) -> str:
        """That of the data set."""
        return self.dataset.names_digest()

    def read(self, index: Any, seed: int = 0) -> Example:
        """Example ``index`` as it is stored."""
        block, place = divmod(range(len(self))[index], self._block)
        stored = self._cache(f"{block:05d}", lambda: {})
        parts = {name: tensor[place].clone() for name, tensor in stored.items()}
        conditions = {
            name.removeprefix(CONDITION): trimmed(value) if value.ndim == 2 else value
            for name, value in parts.items()
            if name.startswith(CONDITION)
        }
        return Example(parts["source"], parts["target"], conditions, parts.get("mask"))


def _joined(parts: list[torch.Tensor]) -> torch.Tensor:
    """Batches as one; tokens (B, L, D) of several lengths get rows of zeros."""
    most = max(part.shape[1] for part in parts) if parts[0].ndim == 3 else 0
    return torch.cat([F.pad(part, (0, 0, 0, most - part.shape[1])) if most else part for part in parts])
