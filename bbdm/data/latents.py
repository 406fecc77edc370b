"""A data set's latents, computed once and stored on disk: encoding costs more than a latent training step.

A cache is a folder of safetensors shards, and a manifest with each shard's SHA-256.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import safetensors.torch
import torch
from safetensors import safe_open
from torch.utils.data import DataLoader, Dataset
from tqdm.auto import tqdm

from bbdm.base import manifest
from bbdm.base.atomic import LOCK, file_sha256, locked, remove_all_leftovers, write_atomically
from bbdm.codec import Codec, LatentStatistics
from bbdm.data.collection import Order
from bbdm.data.pairs import PairedDataset

VERSION = 1
SHARD = 256  # pairs in a file
PAIRS_AT_ONCE = 8  # pairs in a call of the encoder
PAIRS_IN_STATISTICS = 16  # in a batch
MANIFEST = "manifest.json"


class LatentDataset(Dataset[tuple[torch.Tensor, torch.Tensor]]):
    """Pairs as latents, not normalised.

    Item i is (source, target), each (C, H, W) float32; with ``flip``, each is (2, C, H, W): plain, mirrored.

    Args:
        dataset: the pairs.
        codec: encodes them.
        folder: the cache, which is made if it does not exist. An interrupted one is completed.
        flip: store the latents of mirrored pairs too, which differ from mirrored latents.
        progress: show a progress bar.

    Attributes: ``dataset``; ``image_size``, ``direction`` and ``channels`` of its pictures; ``flip``; and
    ``codec``, the :meth:`~bbdm.codec.base.Codec.description` of the codec.

    Raises:
        ValueError: the folder holds latents of other pictures or of another codec, or a file that has
            changed.
    """

    def __init__(
        self, dataset: PairedDataset, codec: Codec, folder: Path, flip: bool = False, progress: bool = False
    ) -> None:
        self.dataset = dataset
        self.image_size = dataset.image_size
        self.channels = dataset.channels
        self.direction = dataset.direction
        self.folder = folder
        self.flip = flip
        self.codec = codec.description()
        self._files: dict[int, Any] = {}
        pictures = {"count": len(dataset), **dataset.description()}
        description = {"version": VERSION, "pictures": pictures, "image_size": self.image_size}
        description = manifest.as_json({**description, "direction": self.direction, "flip": flip, "codec": self.codec})
        with locked(folder):
            self._complete(description, codec, progress)

    def _complete(self, description: dict[str, Any], codec: Codec, progress: bool) -> None:
        """Write the shards that are missing."""
        shards = self._checked_shards(description)
        missing = [i for i in range(-(-len(self) // SHARD)) if self._shard(i).name not in shards]
        with tqdm(total=len(missing) * SHARD, desc="latents", unit="pair", disable=not progress or not missing) as bar:
            for index in missing:
                self._write(index, codec, bar)
                shards[self._shard(index).name] = file_sha256(self._shard(index))
                manifest.write(self.folder / MANIFEST, {**description, "shards": shards})

    def _shard(self, index: int) -> Path:
        return self.folder / f"{index:05d}.safetensors"

    def _checked_shards(self, description: dict[str, Any]) -> dict[str, str]:
        """SHA-256 of the shards that exist, by name, all checked; writes the manifest of a new cache."""
        remove_all_leftovers(self.folder)
        path = self.folder / MANIFEST
        if not path.exists():
            if any(each.name != LOCK for each in self.folder.iterdir()):
                raise ValueError(f"{self.folder} is not empty and holds no latents: give a folder of its own")
            manifest.write(path, {**description, "shards": {}})
            return {}
        with manifest.reading(path, f"delete {self.folder}") as content:
            shards = dict(content.pop("shards"))
            differing = manifest.differences(content, description)
        if differing:
            raise ValueError(f"{self.folder} holds other latents ({differing}): give another folder, or delete it")
        for name, digest in shards.items():
            if not (self.folder / name).is_file() or file_sha256(self.folder / name) != digest:
                raise ValueError(f"{self.folder / name} has changed since it was written: delete {self.folder}")
        return shards

    def _write(self, index: int, codec: Codec, bar: tqdm[Any]) -> None:
        """Encode the pairs of a shard and write it."""
        end = min((index + 1) * SHARD, len(self.dataset))
        parts: list[torch.Tensor] = []
        for start in range(index * SHARD, end, PAIRS_AT_ONCE):
            pairs = [torch.stack(self.dataset[i]) for i in range(start, min(start + PAIRS_AT_ONCE, end))]
            pictures = torch.stack(pairs)[:, :, None]
            if self.flip:
                pictures = torch.cat([pictures, pictures.flip(-1)], dim=2)
            latents = codec.latents(pictures.flatten(0, 2)).cpu().contiguous()
            parts.append(latents.unflatten(0, pictures.shape[:3]))
            bar.update(len(pairs))
        source, target = torch.cat(parts).unbind(1)
        tensors = {"source": source.contiguous(), "target": target.contiguous()}
        write_atomically(self._shard(index), lambda temporary: safetensors.torch.save_file(tensors, temporary))

    def __len__(self) -> int:
        return len(self.dataset)

    def order(self, seed: int) -> Order:
        """The order of an epoch: that of the pictures."""
        return self.dataset.order(seed)

    def __getitem__(self, index: int) -> tuple[torch.Tensor, torch.Tensor]:
        shard, place = divmod(range(len(self))[index], SHARD)
        if shard not in self._files:
            self._files[shard] = safe_open(self._shard(shard), framework="pt")
        source, target = (self._files[shard].get_slice(name)[place] for name in ("source", "target"))
        return (source, target) if self.flip else (source[0], target[0])

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_files": {}}  # each process opens the files itself


def measure(
    dataset: PairedDataset | LatentDataset, codec: Codec, flip: bool = False, progress: bool = False
) -> LatentStatistics:
    """Mean and spread of latents. ``flip`` adds mirrored pictures, unless the data set is a cache."""

    def batches() -> Iterator[tuple[torch.Tensor, torch.Tensor]]:
        for pair in tqdm(DataLoader(dataset, PAIRS_IN_STATISTICS), desc="statistics", disable=not progress):
            if isinstance(dataset, LatentDataset):
                source, target = (v.flatten(0, 1) if dataset.flip else v for v in pair)
            else:
                source, target = (codec.latents(torch.cat([v, v.flip(-1)]) if flip else v) for v in pair)
            yield source, target

    return LatentStatistics.of(batches())
