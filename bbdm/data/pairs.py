"""Paired datasets: folders in, (source, target) tensors in [-1, 1] out.

A dataset is a list of :class:`Pair`; one function for each layout finds them. Pictures are turned upright
(EXIF), converted to RGB or grey, and resized with antialiased bilinear filtering.
"""

from __future__ import annotations

import hashlib
import logging
from collections.abc import Callable, Container, Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, get_args

import torch
from PIL import Image
from torch.utils.data import Dataset

from bbdm.base import images
from bbdm.base.atomic import file_sha256
from bbdm.base.images import SUFFIXES, Resize, Size, open_image
from bbdm.data.degradations import Degradation

log = logging.getLogger(__name__)
Direction = Literal["AtoB", "BtoA"]
DIRECTIONS = get_args(Direction)


@dataclass(frozen=True)
class Pair:
    """Files of one example: ``target`` is None for sources alone, and ``source`` if one file holds both."""

    name: str
    source: Path
    target: Path | None

    def load(self) -> tuple[Image.Image, Image.Image | None]:
        """Source and target as upright pictures, of the files' sizes."""
        source = open_image(self.source)
        if self.target is None:
            return source, None
        if self.target != self.source:
            return source, open_image(self.target)
        width, height = source.size
        self._check_width(width)
        return source.crop((0, 0, width // 2, height)), source.crop((width // 2, 0, width, height))

    def sizes(self) -> list[tuple[int, int]]:
        """(width, height) of the sides, upright, from the files' headers.

        Raises:
            ValueError: a file is not a picture.
        """
        sizes = [images.open_size(path) for path in dict.fromkeys((self.source, self.target)) if path]
        if self.target == self.source:
            self._check_width(sizes[0][0])
        return sizes

    def _check_width(self, width: int) -> None:
        if width % 2:
            raise ValueError(f"{self.source} is {width} pixels wide: two pictures side by side need an even width")


class PairedDataset(Dataset[tuple[torch.Tensor, torch.Tensor]]):
    """Pairs as tensors.

    Args:
        pairs: the files, as :func:`load_dataset` finds them.
        image_size: side of the square that pictures are resized to, or (height, width).
        direction: ``AtoB`` translates A into B; ``BtoA`` swaps source and target.
        channels: 3 for RGB, 1 for grey.
        resize: ``stretch`` pictures to the size; ``fit`` them inside it, so that they keep their shape; or
            ``keep`` their size.
        degradation: makes the sources of pictures without targets, after they are resized: item i is
            (degraded, original). None if the files are the pairs.

    Item i is (source, target), each (channels, height, width) float32 in [-1, 1]; :meth:`pixels` returns it
    as uint8.

    Raises:
        ValueError: a picture that cannot be read (the error names the file), an unknown direction, a size
            or a number of channels that pictures cannot have, or a degradation of pairs with targets.
    """

    def __init__(
        self,
        pairs: Iterable[Pair],
        image_size: Size,
        direction: str = "AtoB",
        channels: int = 3,
        resize: Resize = "stretch",
        degradation: Degradation | None = None,
    ) -> None:
        if direction not in DIRECTIONS:
            raise ValueError(f"direction must be one of {DIRECTIONS}, got {direction!r}")
        if channels not in (1, 3):
            raise ValueError(f"channels of pictures must be 1 or 3, got {channels}")
        self.pairs = list(pairs)
        paired = [pair.name for pair in self.pairs if pair.target is not None]
        if degradation is not None and paired:
            raise ValueError(f"degrade is for pictures without targets (the data set 'folder'), {paired[0]!r} has one")
        self.image_size = images.as_size(image_size)
        self.direction = direction
        self.channels = channels
        self.resize: Resize = resize
        self.degradation = degradation

    def __len__(self) -> int:
        return len(self.pairs)

    def digest(self) -> str:
        """SHA-256 of all names, of the content of all files, and of the degradation."""
        digest = hashlib.sha256() if self.degradation is None else hashlib.sha256(f"{self.degradation}\n".encode())
        for pair in self.pairs:
            files = [file_sha256(path) for path in dict.fromkeys((pair.source, pair.target)) if path]
            digest.update(f"{pair.name} {' '.join(files)}\n".encode())
        return digest.hexdigest()

    def description(self) -> dict[str, str]:
        """What decides the pictures, for manifests: the digest, and the degradation if there is one."""
        degraded = {} if self.degradation is None else {"degradation": str(self.degradation)}
        return {"files": self.digest(), **degraded}

    def names_digest(self) -> str:
        """SHA-256 of all names."""
        return hashlib.sha256("\n".join(pair.name for pair in self.pairs).encode()).hexdigest()

    def without(self, names: Container[str]) -> PairedDataset:
        """The data set without the pairs of some names."""
        left = [pair for pair in self.pairs if pair.name not in names]
        return PairedDataset(left, self.image_size, self.direction, self.channels, self.resize, self.degradation)

    def images(self, index: int) -> tuple[Image.Image, Image.Image | None]:
        """Source and target of example ``index`` as resized pictures, None for a missing target."""
        source, target = self.pairs[index].load()
        source, target = self._resized(source), None if target is None else self._resized(target)
        if self.degradation is not None:
            source, target = self.degradation(source, self.pairs[index].name), source
        if self.direction == "BtoA":
            if target is None:
                raise ValueError("direction 'BtoA' needs a dataset with targets")
            source, target = target, source
        return source, target

    def _resized(self, image: Image.Image) -> Image.Image:
        return images.resized(images.convert(image, self.channels), self.image_size, self.resize)

    def pixels(self, index: int) -> tuple[torch.Tensor, torch.Tensor]:
        """Source and target of example ``index``, each (channels, height, width) uint8."""
        source, target = self.images(index)
        if target is None:
            raise ValueError(f"{self.pairs[index].source} has no target: this dataset can only be translated")
        first, second = (torch.from_numpy(images.to_pixels(each, self.channels)) for each in (source, target))
        return first, second

    def __getitem__(self, index: int) -> tuple[torch.Tensor, torch.Tensor]:
        source, target = self.pixels(index)
        return images.scale(source), images.scale(target)


class Pixels(Dataset[tuple[torch.Tensor, torch.Tensor]]):
    """Pairs as uint8, for a loader: a quarter of the bytes."""

    def __init__(self, pairs: PairedDataset) -> None:
        self.pairs = pairs

    def __len__(self) -> int:
        return len(self.pairs)

    def __getitem__(self, index: int) -> tuple[torch.Tensor, torch.Tensor]:
        return self.pairs.pixels(index)


def _files(folder: Path) -> list[Path]:
    if folder.is_file():
        raise ValueError(f"{folder} is a file, not a folder of pictures")
    if not folder.is_dir():
        raise FileNotFoundError(f"there is no folder {folder}")
    files = [
        path for path in folder.rglob("*") if path.is_file() and "/." not in f"/{path.relative_to(folder).as_posix()}"
    ]
    found = sorted(path for path in files if path.suffix.lower() in SUFFIXES)
    kinds = Image.registered_extensions().keys() - SUFFIXES
    skipped = [path.suffix.lower() for path in files if path.suffix.lower() in kinds]
    if skipped:
        count = "1 picture is" if len(skipped) == 1 else f"{len(skipped)} pictures are"
        log.warning("%s skipped in %s, of kinds that are not read (%s)", count, folder, ", ".join(sorted(set(skipped))))
    if not found:
        raise ValueError(f"there are no pictures in {folder} (looked for {', '.join(sorted(SUFFIXES))})")
    return found


def _by_stem(folder: Path, ending: str = "") -> dict[str, Path]:
    """Files by their path below ``folder`` without suffix and ``ending``."""
    stems: dict[str, Path] = {}
    for path in _files(folder):
        if not path.stem.endswith(ending):
            continue
        stem = path.relative_to(folder).with_name(path.stem.removesuffix(ending)).as_posix()
        if stem in stems:
            raise ValueError(f"{stems[stem]} and {path} have the same name: rename or remove one")
        stems[stem] = path
    if not stems:
        raise ValueError(f"there are no pictures *{ending} in {folder}")
    return stems


def _match(sources: dict[str, Path], targets: dict[str, Path]) -> list[Pair]:
    single = sorted(path for stem, path in {**sources, **targets}.items() if (stem in sources) != (stem in targets))
    if single:
        others = len(single) - 1
        more = "" if not others else ", nor has 1 other" if others == 1 else f", nor have {others} others"
        other = next(iter((targets if single[0] in sources.values() else sources).values())).parent
        rule = "files are matched by name without suffix"
        raise ValueError(f"{single[0]} has no counterpart in {other}{more}: {rule}")
    return [Pair(stem, sources[stem], targets[stem]) for stem in sorted(sources)]


def _side_by_side(data_dir: str, split: str) -> list[Pair]:
    return [Pair(stem, path, path) for stem, path in sorted(_by_stem(Path(data_dir) / split).items())]


def _folders_a_b(data_dir: str, split: str) -> list[Pair]:
    root = Path(data_dir) / split
    return _match(_by_stem(root / "A"), _by_stem(root / "B"))


def _cityscapes(data_dir: str, split: str) -> list[Pair]:
    root = Path(data_dir)
    labels = _by_stem(root / "gtFine" / split, "_gtFine_color")
    return _match(labels, _by_stem(root / "leftImg8bit" / split, "_leftImg8bit"))


def _paired(data_dir: str, split: str) -> list[Pair]:
    folders = data_dir.replace("{split}", split).split(",")
    if len(folders) != 2:
        raise ValueError(f"data_dir of 'paired' must be two folders, SOURCES,TARGETS; got {data_dir!r}")
    return _match(_by_stem(Path(folders[0])), _by_stem(Path(folders[1])))


def _folder(data_dir: str, split: str) -> list[Pair]:
    root = Path(data_dir.replace("{split}", split))
    if any((root / name).is_dir() for name in ("train", "val")):
        root = root / split
    return [Pair(stem, path, None) for stem, path in sorted(_by_stem(root).items())]


DATASETS: dict[str, Callable[[str, str], list[Pair]]] = {
    "edge2shoes": _side_by_side,  # SPLIT/*.jpg, source left, target right
    "edge2handbags": _side_by_side,
    "celeba": _folders_a_b,  # SPLIT/A/*, SPLIT/B/*
    "face2comics": _folders_a_b,
    "cityscapes": _cityscapes,  # gtFine/SPLIT/*/*_gtFine_color.png -> leftImg8bit/SPLIT/*/*_leftImg8bit.png
    "paired": _paired,  # SOURCES,TARGETS; {split} in a path is filled in
    "folder": _folder,  # pictures alone: SPLIT/* where there is train/ or val/, else *; {split} is filled in
}


def load_dataset(
    name: str,
    data_dir: str,
    split: str = "train",
    image_size: Size = 256,
    direction: str = "AtoB",
    channels: int = 3,
    resize: Resize = "stretch",
    degrade: str | None = None,
    degrade_seed: int = 0,
) -> PairedDataset:
    """The dataset of a name in :data:`DATASETS`.

    Files of two folders are matched by their path without suffix (A/3.png with B/3.jpg). ``degrade``, such as
    ``sr4`` or ``jpeg:5``, makes the sources from the pictures of ``folder``:
    see :class:`~bbdm.data.degradations.Degradation`.

    Raises:
        ValueError: an unknown name, no pictures, a file without a counterpart, which is named, or an unknown
            degradation or one of pairs with targets.
        FileNotFoundError: a folder does not exist.
    """
    if name not in DATASETS:
        raise ValueError(f"dataset must be one of {sorted(DATASETS)}, got {name!r}")
    degradation = None if degrade is None else Degradation.read(degrade, degrade_seed)
    return PairedDataset(DATASETS[name](data_dir, split), image_size, direction, channels, resize, degradation)
