"""The results of a data set in a folder: which there are, how they are written, a record of what made them."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image

from bbdm.base.atomic import short, write_atomically
from bbdm.data.pairs import PairedDataset


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
    """Raise ValueError where one of ``paths`` would take the place of a source, a target or another one."""
    taken = {path.resolve() for pair in dataset.pairs for path in (pair.source, pair.target) if path}
    for path in paths:
        if path.resolve() in taken:
            raise ValueError(f"{path} would take the place of another picture: give another output_dir")
        taken.add(path.resolve())


def save(image: Image.Image, path: Path) -> None:
    """Write a PNG, atomically."""
    write_atomically(path, lambda temporary: image.save(temporary, "png"))


def save_json(content: Any, path: Path) -> None:
    """Write JSON, atomically."""
    write_atomically(path, lambda temporary: temporary.write_text(json.dumps(content, indent=1) + "\n"))


def to_tensor(image: Image.Image) -> torch.Tensor:
    """(3, H, W) uint8 of an RGB picture."""
    return torch.from_numpy(np.array(image.convert("RGB"))).permute(2, 0, 1)


class Record:
    """``settings.json`` beside results: what made them, and how long it took; kept by one process.

    Args:
        folder: of the results.
        settings: what makes them.
        jobs: all of them.
        overwrite: delete those that are there, and start anew.

    Raises:
        ValueError: results are there that other settings made, or that nobody knows of.
    """

    def __init__(self, folder: Path, settings: dict[str, Any], jobs: list[Job], overwrite: bool) -> None:
        self.path = folder / "settings.json"
        self.settings = settings
        self.pictures, self.seconds = 0, 0.0  # of those that were timed
        there = [job.path for job in jobs if job.path.exists()]
        if overwrite:
            for path in there:
                path.unlink()
        elif self.path.exists():
            self._go_on()
        elif there:
            raise ValueError(f"{there[0]} is there, but no {self.path} that tells what made it{_WAYS_OUT}")
        self._write()

    def _go_on(self) -> None:
        try:
            content = json.loads(self.path.read_text())
            before, timing = content["settings"], content["timing"]
            self.pictures, self.seconds = int(timing["pictures"]), float(timing["seconds"])
        except (ValueError, KeyError, TypeError) as error:
            raise ValueError(f"cannot read {self.path}{_WAYS_OUT}") from error
        differing = [key for key in {**before, **self.settings} if before.get(key) != self.settings.get(key)]
        if differing:
            told = ", ".join(
                f"{key} {_short(before.get(key))}, now {_short(self.settings.get(key))}" for key in differing
            )
            raise ValueError(f"{self.path.parent} holds results of other settings ({told}){_WAYS_OUT}")

    def add(self, pictures: int, seconds: float) -> None:
        """Count pictures that took so long."""
        self.pictures += pictures
        self.seconds += seconds
        self._write()

    def _write(self) -> None:
        timing = {"pictures": self.pictures, "seconds": self.seconds}
        save_json({"settings": self.settings, "timing": timing}, self.path)


_WAYS_OUT = ": give another output_dir, or --overwrite to make all results again"


def _short(value: Any) -> str:
    text = short(value)
    return text if len(text) <= 40 else f"{text[:18]}...{text[-18:]}"
