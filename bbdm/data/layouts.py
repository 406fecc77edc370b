"""Where the pictures of a data set lie: a function for each layout of folders. Nothing here imports torch."""

from __future__ import annotations

import logging
from pathlib import Path

from PIL import Image

from bbdm.data.collection import Pair
from bbdm.pictures.images import SUFFIXES

log = logging.getLogger(__name__)


def _files(folder: Path) -> list[Path]:
    if folder.is_file():
        raise ValueError(f"{folder} is a file, not a folder of pictures")
    if not folder.is_dir():
        raise FileNotFoundError(f"there is no folder {folder}")
    files = [
        path for path in folder.rglob("*") if path.is_file() and "/." not in f"/{path.relative_to(folder).as_posix()}"
    ]
    found = sorted(path for path in files if path.suffix.lower() in SUFFIXES)
    others = Image.registered_extensions().keys() - SUFFIXES
    skipped = [path.suffix.lower() for path in files if path.suffix.lower() in others]
    if skipped:
        count = "1 picture is" if len(skipped) == 1 else f"{len(skipped)} pictures are"
        log.warning("%s skipped in %s, of kinds that are not read (%s)", count, folder, ", ".join(sorted(set(skipped))))
    if not found:
        raise ValueError(f"there are no pictures in {folder} (looked for {', '.join(sorted(SUFFIXES))})")
    return found


def _by_stem(folder: Path, ending: str = "") -> dict[str, Path]:
    """Files by their path below ``folder`` without suffix and ``ending``, in the order of these paths."""
    stems: dict[str, Path] = {}
    for path in _files(folder):
        if path.stem.endswith(ending):
            stem = path.relative_to(folder).with_name(path.stem.removesuffix(ending)).as_posix()
            if stem in stems:
                raise ValueError(f"{stems[stem]} and {path} have the same name: rename or remove one")
            stems[stem] = path
    if not stems:
        raise ValueError(f"there are no pictures *{ending} in {folder}")
    return dict(sorted(stems.items()))


def _match(sources: dict[str, Path], targets: dict[str, Path]) -> list[Pair]:
    single = sorted({**sources, **targets}[stem] for stem in sources.keys() ^ targets.keys())
    if single:
        others = len(single) - 1
        more = "" if not others else ", nor has 1 other" if others == 1 else f", nor have {others} others"
        other = next(iter((targets if single[0] in sources.values() else sources).values())).parent
        rule = "files are matched by name without suffix"
        raise ValueError(f"{single[0]} has no counterpart in {other}{more}: {rule}")
    return [Pair(stem, path, targets[stem]) for stem, path in sources.items()]


def side_by_side(data_dir: str, split: str) -> list[Pair]:
    """Pictures whose left half is the source, and whose right half is the target."""
    root = Path(data_dir) / split
    if (root / "A").is_dir() and (root / "B").is_dir():
        raise ValueError(
            f"{root} has the folders A and B, which is the layout of 'celeba'; here a picture holds both sides"
        )
    return [Pair(stem, path, path) for stem, path in _by_stem(root).items()]


def folders_a_b(data_dir: str, split: str) -> list[Pair]:
    """Sources in the folder A, targets in B."""
    root = Path(data_dir) / split
    return _match(_by_stem(root / "A"), _by_stem(root / "B"))


def cityscapes(data_dir: str, split: str) -> list[Pair]:
    """Colours of labels, and photographs."""
    labels, photos = Path(data_dir) / "gtFine" / split, Path(data_dir) / "leftImg8bit" / split
    return _match(_by_stem(labels, "_gtFine_color"), _by_stem(photos, "_leftImg8bit"))


def paired(data_dir: str, split: str) -> list[Pair]:
    """Sources and targets in two folders."""
    folders = data_dir.replace("{split}", split).split(",")
    if len(folders) != 2:
        raise ValueError(f"data_dir of 'paired' must be two folders, SOURCES,TARGETS; got {data_dir!r}")
    return _match(*(_by_stem(Path(folder)) for folder in folders))


def folder(data_dir: str, split: str) -> list[Pair]:
    """Pictures alone."""
    root = Path(data_dir.replace("{split}", split))
    if any((root / name).is_dir() for name in ("train", "val")):
        root = root / split
    return [Pair(stem, path, None) for stem, path in _by_stem(root).items()]
