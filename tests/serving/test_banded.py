"""One picture by bands: where it is cut and what it becomes every day without Ray, clusters every night."""

from __future__ import annotations

import json
import os
import signal
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import psutil
import pytest
from PIL import Image

from bbdm import ABridge, BridgeSampler, save_checkpoint
from bbdm.base.atomic import file_sha256
from bbdm.base.scripts import StoppedError
from bbdm.base.seeds import seed_of
from bbdm.cli import translate_ray
from bbdm.evaluation.results import ResultsError
from bbdm.pictures import formats
from bbdm.pictures.kind import PictureKind
from bbdm.pictures.lazy import Geometry
from bbdm.pictures.values import Values
from bbdm.serving import banded, translation
from bbdm.serving.banded import BandWorker, Layout, PictureTask, translate_bands
from bbdm.serving.workers import Call, Workers
from tests.conftest import noise, tiny_unet

FLOATS = PictureKind(Values(0, 1, dtype="float32"), Values(-1, 1, dtype="float32"))
WINDOW = ["--window", "16"]


class Local:
    """Workers in this process, whose objects are the values themselves."""

    def __init__(self, task: PictureTask, count: int) -> None:
        self.count = count
        self.worker = BandWorker(task)
        self.largest = 0  # rows of an object of the state

    def run(self, method: str, calls: dict[int, Call]) -> Iterator[tuple[int, list[Any], Any]]:
        for key, (arguments, returned) in reversed(calls.items()):
            *made, last = getattr(self.worker, method)(*arguments)
            assert len(made) + 1 == returned
            yield key, made, last


@pytest.fixture
def floats(tmp_path: Path) -> Path:
    """A checkpoint of one channel of floats."""
    path = tmp_path / "floats.pt"
    unet = tiny_unet(in_channels=1, out_channels=1, condition_channels=1)
    save_checkpoint(path, unet, ABridge(num_steps=50), pictures=FLOATS)
    return path


@pytest.fixture
def checkpoint(tmp_path: Path) -> Path:
    path = tmp_path / "c.pt"
    save_checkpoint(path, tiny_unet(condition_channels=3), ABridge(num_steps=50), image_size=16)
    return path


def picture(folder: Path, *size: int) -> Path:
    path = folder / "p.npy"
    np.save(path, np.random.default_rng(0).random(size, np.float32))
    return path


def task_of(path: Path, checkpoint: Path, *flags: str) -> PictureTask:
    config = translate_ray.parse([str(path), "out", str(checkpoint), *WINDOW, *flags])
    return PictureTask(config, file_sha256(checkpoint), path, seed_of(path.stem))


def by_bands(task: PictureTask, workers: int) -> tuple[np.ndarray[Any, Any], Layout]:
    sampler = task.config.sampler(task.config.model, "cpu")
    layout = Layout(task.opened(sampler)[1], workers)
    return np.concatenate(translate_bands(layout, Local(task, workers)), axis=1), layout


@pytest.mark.parametrize("solver", ["dpm2m", "sde-dpm2m"])
def test_bands_make_what_one_machine_makes(solver: str, floats: Path, tmp_path: Path):
    """Of a height that is no multiple of the stride, by more bands than two windows fit into."""
    path = picture(tmp_path, 61, 37)
    task = task_of(path, floats, "--solver", solver, "--steps", "3", "-b", "5")
    made, layout = by_bands(task, 3)
    assert len(layout.rows) == 3
    alone = BridgeSampler.from_checkpoint(floats, solver=solver, steps=3)
    expected = alone(path, seed_of("p"), window=16)[0]
    assert np.abs(made - np.asarray(expected)).max() <= 1e-6
    other = alone(path, seed_of("p"), window=8)[0]
    assert np.abs(made - np.asarray(other)).max() > 1e-3
