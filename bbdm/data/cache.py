"""Tensors that are computed once and stored on a disk: decoded and resized pictures, and latents.

A cache is a folder of safetensors files, the entries, and a manifest of what decides them.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import safetensors.torch
import torch
from safetensors import SafetensorError, safe_open

from bbdm.base import manifest
from bbdm.base.atomic import LOCK, locked, remove_leftovers, write_atomically

VERSION = 2
MANIFEST = "manifest.json"
ABANDONED = 24 * 3600  # seconds after which nobody writes a temporary file any more
MAPPED = 10_000  # entries at a time: a process of Linux maps 65,530 regions at most
Tensors = dict[str, torch.Tensor]


class Cache:
    """Entries by their keys, in files that are mapped into memory.

    Args:
        folder: of the cache, made where it does not exist.
        what: is stored, for messages.
        settings: what decides the entries besides their keys.

    Raises:
        ValueError: the folder holds other entries, or files of something else.
    """

    def __init__(self, folder: Path, what: str, settings: Mapping[str, Any]) -> None:
        self.folder = folder
        self.what = what
        self._mapped: dict[str, Tensors] = {}
        path = folder / MANIFEST
        settings = manifest.as_json({"version": VERSION, "what": what, **settings})
        with locked(folder):
            remove_leftovers(folder, age=ABANDONED)
            others = [path for path in folder.iterdir() if path.name != LOCK]
            if others and path not in others:
                raise ValueError(
                    f"{others[0]} is of no cache of {what}, without {path}: give another folder"
                )
            if not others:
                manifest.write(path, settings)
            with manifest.reading(path, f"delete {folder}") as content:
                differing = manifest.differences(content, settings)
            if differing:
                raise ValueError(
                    f"{path} is of other {what} ({differing}): give another folder, or delete this one"
                )

    def __call__(self, key: str, make: Callable[[], Tensors]) -> Tensors:
        """The tensors of an entry, mapped; it is written where there is none.

        Raises:
            OSError: the disk is full.
            ValueError: the entry was cut off since it was written.
        """
        if key not in self._mapped:
            path = self.path(key)
            if not path.exists():
                self.write(key, make())
            if len(self._mapped) >= MAPPED:
                self._mapped.clear()
            try:
                with safe_open(path, framework="pt") as file:
                    self._mapped[key] = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118  (not a mapping)
            except SafetensorError as error:
                raise ValueError(f"{path} has changed since it was written: delete it") from error
        return self._mapped[key]

    def path(self, key: str) -> Path:
        """The file of an entry."""
        return self.folder / f"{key}.safetensors"

    def write(self, key: str, tensors: Tensors) -> None:
        """Write an entry, whole or not at all."""
        content = safetensors.torch.save(
            {name: tensor.contiguous() for name, tensor in tensors.items()}
        )
        write_atomically(self.path(key), lambda temporary: temporary.write_bytes(content))

    def __getstate__(self) -> dict[str, Any]:
        return {**vars(self), "_mapped": {}}  # each process opens the files itself
