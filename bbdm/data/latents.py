"""A data set's latents, computed once and stored on disk: encoding costs more than a latent training step."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from torch.utils.data import DataLoader
from tqdm.auto import tqdm

from bbdm.codec import Codec, LatentStatistics
from bbdm.data.cache import CONDITION, CachedExamples, Tensors, tensors_of
from bbdm.data.examples import Example, Examples
from bbdm.pictures.picture import scale

PAIRS_IN_STATISTICS = 16  # in a batch
BLOCK, AT_ONCE = 256, 8  # examples in a file, and encoded at a time


class LatentDataset(CachedExamples):
    """Pairs as latents, not normalised.

    Item i is (source, target), each (C, H, W) float32; with ``flip``, each is (2, C, H, W): plain, mirrored.

    Args:
        dataset: the pairs of pictures.
        codec: encodes pictures as latents.
        folder: of the cache, made where it does not exist. An interrupted one is completed.
        flip: store the latents of mirrored pairs too, which differ from mirrored latents.
        progress: show a progress bar.

    Attributes:
        flip: whether there are latents of mirrored pairs.
        codec: the :meth:`~bbdm.codec.base.Codec.description` of the codec.

    Raises:
        ValueError: the folder holds other latents, or a file that has changed.
        OSError: the disk is full.
    """

    def __init__(
        self, dataset: Examples, codec: Codec, folder: Path, flip: bool = False, progress: bool = False
    ) -> None:
        self.flip, self.codec = flip, codec.description()

        def encode(batch: Example) -> Tensors:
            pictures = torch.stack([scale(batch.source), scale(batch.target)], dim=1)[:, :, None]
            if flip:
                pictures = torch.cat([pictures, pictures.flip(-1)], dim=2)
            latents = codec.latents(pictures.flatten(0, 2)).cpu()
            source, target = latents.unflatten(0, pictures.shape[:3]).unbind(1)
            stored = tensors_of(batch)
            if flip:
                seen = {name: v for name, v in stored.items() if name.startswith(CONDITION) and v.ndim >= 4}
                stored |= {name: torch.stack([v, v.flip(-1)], dim=1) for name, v in seen.items()}
            return {**stored, "source": source, "target": target}

        settings = {"flip": flip, "codec": self.codec}
        super().__init__(dataset, folder, encode, "latents", settings, BLOCK, AT_ONCE, progress=progress)

    def read(self, index: Any, seed: int = 0) -> Example:
        """The latents of example ``index``."""
        stored = super().read(index)
        return stored if self.flip else stored._replace(source=stored.source[0], target=stored.target[0])


def measure(dataset: Examples, codec: Codec, flip: bool = False, progress: bool = False) -> LatentStatistics:
    """Mean and spread of latents. ``flip`` adds mirrored pictures, unless the data set is of latents."""

    def batches() -> Iterator[tuple[torch.Tensor, torch.Tensor]]:
        for pair in tqdm(DataLoader(dataset, PAIRS_IN_STATISTICS), desc="statistics", disable=not progress):
            if isinstance(dataset, LatentDataset):
                source, target = (v.flatten(0, 1) if dataset.flip else v for v in pair)
            else:
                source, target = (codec.latents(torch.cat([v, v.flip(-1)]) if flip else v) for v in pair)
            yield source, target

    return LatentStatistics.of(batches())
