"""The results of a data set in a folder: their names and seeds, how they are written, and what made them."""

from __future__ import annotations

import json
from collections.abc import Collection
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from bbdm.base import manifest
from bbdm.base.places import Place
from bbdm.evaluation.files import Files
from bbdm.sampling.sampler import BridgeSampler

SETTINGS = "settings.json"


class ResultsError(ValueError):
    """A folder holds results that were made in another way."""


@dataclass(frozen=True)
class Job:
    """One result to make."""

    index: int  # of the source among the entries of the data set
    seed: int
    path: Path
    kind: str = ""  # of a map, which


def plan(files: Files, folder: Path, num_samples: int, seed: int) -> list[Job]:
    """All results of a data set. Sample j of source i has the seed seed + i + j * (number of sources)."""
    count = len(files.names)
    return [
        Job(i, seed + i + j * count, folder / f"{name}{f'_{j}' if num_samples > 1 else ''}{files.suffix(i)}")
        for i, name in enumerate(files.names)
        for j in range(num_samples)
    ]


def check_places(files: Files, paths: list[Path]) -> None:
    """Raise ValueError if one of ``paths`` is a source or a target of the data set, or occurs twice."""
    taken = {path.resolve() for index in range(len(files.names)) for path in files.paths(index)}
    for path in paths:
        if path.resolve() in taken:
            raise ValueError(f"{path} would replace another picture: give another output_dir")
        taken.add(path.resolve())


def description(sampler: BridgeSampler, weights: str) -> dict[str, Any]:
    """What of a sampler and of the SHA-256 of its weights decides the results."""
    codec = sampler.codec
    return {
        "weights": weights,
        "unet": sampler.unet.description(),
        "codec": None if codec is None else {**codec.description(), **codec.config()},
        "bridge": sampler.bridge.config(),
        "solver": sampler.solver,
        "timesteps": sampler.table.timesteps.tolist(),
        "dtype": str(sampler.dtype).removeprefix("torch."),
    }


class Record:
    """``settings.json``, the manifest of results: what made them and how long it took. One process writes it.

    Temporary files that a killed process left beside results are deleted.

    Args:
        folder: of the results, a path or an address.
        settings: all that decides the results.
        names: the files of all results, as paths below the folder.
        overwrite: delete the results that exist, and start again.

    Attributes:
        existing: the files of the results that there are, and that stay.

    Raises:
        ResultsError: there are results of other settings, or without a manifest.
        ValueError: the manifest is damaged.
    """

    def __init__(self, folder: str | Path, settings: dict[str, Any], names: Collection[str], overwrite: bool) -> None:
        self.place = Place.of(str(folder))
        self.settings = manifest.as_json(settings)
        self.pictures, self.seconds = 0, 0.0  # timed ones
        self.place.remove_leftovers(names)
        self.existing = self.place.existing(names)
        if overwrite:
            self.place.remove(self.existing)
            self.existing = set()
        elif self.place.exists(SETTINGS):
            self._resume(str(folder))
        elif self.existing:
            first = f"{folder}/{min(self.existing)}"
            raise ResultsError(f"{first} exists, but no {folder}/{SETTINGS} with the settings that made it")
        self._write()

    def _resume(self, folder: str) -> None:
        with manifest.parsing(f"{folder}/{SETTINGS}", f"give another output_dir, or delete {folder}"):
            content = json.loads(self.place.read(SETTINGS))
            before = content.get("settings", content)  # those of clusters were alone once
            differing = manifest.differences(before, self.settings)
            timing = content.get("timing", {"pictures": 0, "seconds": 0})
            self.pictures, self.seconds = int(timing["pictures"]), float(timing["seconds"])
        if differing:
            raise ResultsError(f"{folder} holds results of other settings ({differing})")

    def add(self, pictures: int, seconds: float) -> None:
        """Count pictures, and the seconds that they took."""
        self.pictures += pictures
        self.seconds += seconds
        self._write()

    def _write(self) -> None:
        timing = {"pictures": self.pictures, "seconds": self.seconds}
        content = json.dumps({"settings": self.settings, "timing": timing}, indent=1)
        self.place.write(SETTINGS, f"{content}\n".encode())
