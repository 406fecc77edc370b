"""The results of a data set in a folder: their names and seeds, how they are written, and what made them."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from PIL import Image

from bbdm.base import manifest
from bbdm.base.atomic import remove_all_leftovers, write_atomically
from bbdm.data.pairs import PairedDataset


class ResultsError(ValueError):
    """A folder holds results that were made in another way."""


@dataclass(frozen=True)
class Job:
    """One result to make."""

    index: int  # of the source in the sorted data set
    seed: int
    path: Path


def plan(dataset: PairedDataset, folder: Path, num_samples: int, seed: int) -> list[Job]:
    """All results of a data set. Sample j of source i has the seed seed + i + j * (number of sources)."""
    return [
        Job(i, seed + i + j * len(dataset), folder / f"{pair.name}{f'_{j}' if num_samples > 1 else ''}.png")
        for i, pair in enumerate(dataset.pairs)
        for j in range(num_samples)
    ]


def check_places(dataset: PairedDataset, paths: list[Path]) -> None:
    """Raise ValueError if one of ``paths`` is a source or a target of the data set, or occurs twice."""
    taken = {path.resolve() for pair in dataset.pairs for path in pair.files}
    for path in paths:
        if path.resolve() in taken:
            raise ValueError(f"{path} would replace another picture: give another output_dir")
        taken.add(path.resolve())


def save(image: Image.Image, path: Path) -> None:
    """Write a PNG, atomically."""
    write_atomically(path, lambda temporary: image.save(temporary, "png"))


class Record:
    """``settings.json``, the manifest of results: what made them and how long it took. One process writes it.

    Temporary files that a killed process left in the folders of results are deleted.

    Args:
        folder: of the results.
        settings: all that decides the results.
        jobs: all results.
        overwrite: delete the results that exist, and start again.

    Raises:
        ResultsError: there are results of other settings, or without a manifest.
        ValueError: the manifest is damaged.
    """

    def __init__(self, folder: Path, settings: dict[str, Any], jobs: list[Job], overwrite: bool) -> None:
        self.path = folder / "settings.json"
        self.settings = settings
        self.pictures, self.seconds = 0, 0.0  # timed ones
        for place in {folder, *(job.path.parent for job in jobs)}:
            remove_all_leftovers(place)
        existing = [job.path for job in jobs if job.path.exists()]
        if overwrite:
            for path in existing:
                path.unlink()
        elif self.path.exists():
            self._resume()
        elif existing:
            raise ResultsError(f"{existing[0]} exists, but no {self.path} with the settings that made it")
        self._write()

    def _resume(self) -> None:
        remedy = f"give another output_dir, or delete {self.path.parent}"
        with manifest.reading(self.path, remedy) as content:
            differing = manifest.differences(content["settings"], self.settings)
            timing = content["timing"]
            self.pictures, self.seconds = int(timing["pictures"]), float(timing["seconds"])
        if differing:
            raise ResultsError(f"{self.path.parent} holds results of other settings ({differing})")

    def add(self, pictures: int, seconds: float) -> None:
        """Count pictures, and the seconds that they took."""
        self.pictures += pictures
        self.seconds += seconds
        self._write()

    def _write(self) -> None:
        timing = {"pictures": self.pictures, "seconds": self.seconds}
        manifest.write(self.path, {"settings": self.settings, "timing": timing})
