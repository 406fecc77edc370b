"""A data set's latents, computed once and kept on disk: the encoder costs more than a latent bridge's
training step.

A cache is a folder of safetensors shards, and a manifest that says what they are of and what their bytes must
be.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import safetensors.torch
import torch
from safetensors import safe_open
from torch.utils.data import DataLoader, Dataset
from tqdm.auto import tqdm

from bbdm.base.atomic import file_sha256, make_folder, short, write_atomically
from bbdm.codec import Codec, LatentStatistics
from bbdm.data.pairs import PairedDataset

VERSION = 1
SHARD = 256  # pairs in a file
PAIRS_AT_ONCE = 8  # that are encoded
MANIFEST = "manifest.json"


class LatentDataset(Dataset[tuple[torch.Tensor, torch.Tensor]]):
    """Pairs as latents, not normalised.

    Item i is (source, target), each (C, H, W) float32, or (2, C, H, W), plain and mirrored, where ``flip`` is
    set.

    Args:
        dataset: the pairs.
        codec: encodes them.
        folder: where the cache is, or is to be. A cache that was interrupted is completed.
        flip: keep the latents of mirrored pairs too: they are not mirrored latents.
        progress: show a bar.

    Attributes: ``dataset``; ``image_size``, ``direction`` and ``channels`` of its pictures; ``flip``; and
    ``codec``, which is the :meth:`~bbdm.codec.Codec.description` of what encoded them.

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
        make_folder(folder)
        shards = self._known_shards(self._description())
        missing = [i for i in range(-(-len(dataset) // SHARD)) if i not in shards]
        with tqdm(total=len(missing) * SHARD, desc="latents", unit="pair", disable=not progress or not missing) as bar:
            for index in missing:
                self._write(index, codec, bar)

    def _description(self) -> dict[str, Any]:
        """What the latents depend on, as the manifest has it: lists for tuples."""
        description = {
            "version": VERSION,
            "pictures": {"count": len(self.dataset), "files": self.dataset.digest()},
            "image_size": self.image_size,
            "direction": self.direction,
            "flip": self.flip,
            "codec": self.codec,
        }
        return json.loads(json.dumps(description))

    def _known_shards(self, description: dict[str, Any]) -> set[int]:
        """The shards that are there, each checked; begins the manifest where there is none."""
        manifest = self.folder / MANIFEST
        for leftover in self.folder.glob(".*.tmp"):
            leftover.unlink(missing_ok=True)
        if not manifest.exists():
            if any(self.folder.iterdir()):
                raise ValueError(f"{self.folder} is not empty and holds no latents: give a folder of its own")
            content = {**description, "shards": {}}
            write_atomically(manifest, lambda temporary: temporary.write_text(json.dumps(content, indent=2)))
            return set()
        content = json.loads(manifest.read_text())
        for name, value in description.items():
            if content.get(name) != value:
                raise ValueError(
                    f"{self.folder} holds other latents ({name} {short(content.get(name))}, now {short(value)}): "
                    "give another folder, or delete it"
                )
        for name, digest in content["shards"].items():
            if not (self.folder / name).is_file() or file_sha256(self.folder / name) != digest:
                raise ValueError(f"{self.folder / name} has changed since it was written: delete {self.folder}")
        return {int(Path(name).stem) for name in content["shards"]}

    def _write(self, index: int, codec: Codec, bar: tqdm[Any]) -> None:
        """Encode the pairs of a shard, write it, and enter it in the manifest."""
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
        path = self.folder / f"{index:05d}.safetensors"
        write_atomically(path, lambda temporary: safetensors.torch.save_file(tensors, temporary))
        manifest = self.folder / MANIFEST
        content = json.loads(manifest.read_text())
        content["shards"][path.name] = file_sha256(path)
        write_atomically(manifest, lambda temporary: temporary.write_text(json.dumps(content, indent=2)))

    def __len__(self) -> int:
        return len(self.dataset)

    def __getitem__(self, index: int) -> tuple[torch.Tensor, torch.Tensor]:
        shard, place = divmod(range(len(self))[index], SHARD)
        if shard not in self._files:
            self._files[shard] = safe_open(self.folder / f"{shard:05d}.safetensors", framework="pt")
        source, target = (self._files[shard].get_slice(name)[place] for name in ("source", "target"))
        return (source, target) if self.flip else (source[0], target[0])

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_files": {}}  # each process opens its own


def measure(
    dataset: PairedDataset | LatentDataset,
    codec: Codec,
    flip: bool = False,
    batch_size: int = 16,
    progress: bool = False,
) -> LatentStatistics:
    """Mean and spread of a data set's latents; with ``flip`` of mirrored pictures too. A cache has its own ``flip``."""

    def batches() -> Iterator[tuple[torch.Tensor, torch.Tensor]]:
        for pair in tqdm(DataLoader(dataset, batch_size), desc="statistics", disable=not progress):
            if isinstance(dataset, LatentDataset):
                source, target = (v.flatten(0, 1) if dataset.flip else v for v in pair)
            else:
                source, target = (codec.latents(torch.cat([v, v.flip(-1)]) if flip else v) for v in pair)
            yield source, target

    return LatentStatistics.of(batches())
