"""One picture by bands: where it is cut and what it becomes every day without Ray, clusters every night."""

from __future__ import annotations

import json
import os
import signal
import threading
from collections.abc import Callable, Iterator, Mapping
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
from bbdm.data.spec import Spec
from bbdm.pictures.lazy import Geometry
from bbdm.pictures.values import Values
from bbdm.serving import banded, translation
from bbdm.serving.banded import BandedResult, BandWorker, Layout, PictureTask, translate_bands
from bbdm.serving.workers import Call, Workers
from tests.conftest import noise, tiny_unet

FLOATS = Spec(Values(0, 1, dtype="float32"), Values(-1, 1, dtype="float32"))
WINDOW = ["--window", "16"]


class Local(Workers):
    """Workers in this process, whose objects are the values themselves."""

    def __init__(self, task: PictureTask, count: int) -> None:
        self.count = count
        self.worker = BandWorker(task)
        self.largest = 0  # rows of an object of the state

    def run(self, method: str, calls: Mapping[Any, Call]) -> Iterator[tuple[Any, list[Any], Any]]:
        for key, (arguments, returned) in reversed(list(calls.items())):
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


def test_a_picture_smaller_than_a_window_is_one_band(floats: Path, tmp_path: Path):
    path = picture(tmp_path, 13, 11)
    made, layout = by_bands(task_of(path, floats, "--steps", "2"), 4)
    assert layout.rows == [slice(0, 14)]  # padded
    expected = BridgeSampler.from_checkpoint(floats, steps=2)(path, seed_of("p"), window=None)[0]
    assert np.abs(made - np.asarray(expected)).max() <= 1e-6


def test_values_and_places_are_those_of_the_source(tmp_path: Path):
    """16 bits in a GeoTIFF with pixels without a value: the file is what one machine's result is saved as."""
    import rasterio

    kind = Spec(Values(0, 4095, dtype="uint16"), Values(0, 1000, dtype="uint16"))
    checkpoint = tmp_path / "c.pt"
    save_checkpoint(checkpoint, tiny_unet(condition_channels=3), ABridge(num_steps=50), pictures=kind)
    array = np.random.default_rng(0).integers(0, 4095, (3, 40, 24), np.uint16)
    array[:, 15:20, 3:7] = 65535
    path = tmp_path / "p.tif"
    place = {"crs": "EPSG:32632", "transform": rasterio.Affine(10, 0, 500000, 0, -10, 5500000), "nodata": 65535}
    with rasterio.open(path, "w", width=24, height=40, count=3, dtype="uint16", **place) as file:
        file.write(array)
    task = task_of(path, checkpoint, "--steps", "2")
    made, _ = by_bands(task, 2)
    sampler = BridgeSampler.from_checkpoint(checkpoint, steps=2)
    expected = sampler(path, seed_of("p"), window=16)[0]
    assert (made.dtype, made.shape) == (np.uint16, (3, 40, 24))
    assert np.abs(made.astype(int) - np.asarray(expected, int)).max() <= 1  # rounding to integers
    assert np.array_equal(made == 65535, array == 65535)
    assert task.opened(sampler)[0].geometry == expected.geometry


def test_grey_becomes_colour_and_what_is_not_known_is_refused(checkpoint: Path, floats: Path, tmp_path: Path):
    noise(0, 24, 40).convert("L").save(tmp_path / "grey.png")
    made, _ = by_bands(task_of(tmp_path / "grey.png", checkpoint, "--steps", "2"), 2)
    expected = BridgeSampler.from_checkpoint(checkpoint, steps=2)(tmp_path / "grey.png", seed_of("grey"), window=16)
    assert np.abs(made.transpose(1, 2, 0).astype(int) - np.asarray(expected[0], int)).max() <= 1
    np.save(tmp_path / "wide.npy", np.zeros((3, 20, 20), np.uint16))
    np.save(tmp_path / "bands.npy", np.zeros((4, 20, 20), np.uint8))
    np.save(tmp_path / "volume.npy", np.zeros((3, 20, 20, 20), np.uint8))
    for name, message in (
        ("wide", "must have 8 bits, as in training, got uint16"),
        ("bands", "must have 3 channels, as in training, got 4"),
        ("volume", "or what the network knows is a volume"),
    ):
        with pytest.raises(ValueError, match=rf"{name}\.npy.* {message}"):
            by_bands(task_of(tmp_path / f"{name}.npy", checkpoint), 1)
    np.save(tmp_path / "nan.npy", np.full((20, 20), np.nan, np.float32))
    with pytest.raises(ValueError, match=r"nan stands in channel 0 at \(0, 0\)"):
        by_bands(task_of(tmp_path / "nan.npy", floats, "--steps", "1"), 1)


def test_bands_are_cut_at_the_edges_of_halos():
    """Windows of 16 that begin at 0, 12, 24...: each band sees the windows that touch it, and no more."""

    def bands(count: int) -> Any:
        starts = tuple(range(0, 12 * count, 12))
        last = starts[-1] + 16

        def seen(rows: slice) -> slice:
            inside = [start for start in starts if start < rows.stop and start + 16 > rows.start]
            return slice(inside[0], inside[-1] + 16)

        return SimpleNamespace(steps=2, size=(last, 8), first_rows=starts, seen=seen)

    layout = Layout(bands(4), 2)
    assert layout.rows == [slice(0, 24), slice(24, 52)]
    assert layout.seen == [slice(0, 28), slice(12, 52)]
    assert layout.cuts == [0, 12, 24, 28, 52]
    assert [layout.objects(rows) for rows in layout.seen] == [slice(0, 3), slice(1, 4)]
    counts = [len(Layout(bands(windows), 3).rows) for windows in (1, 2, 4, 95, 96, 500)]
    assert counts == [1, 2, 3, 3, 6, 30]


class Failing:
    """An actor in this process, which is lost at a number of its calls."""

    def __init__(self, lost_at: int, error: Exception) -> None:
        self.calls: list[int] = []
        self.lost_at, self.error = lost_at, error
        self.work = self.__ray_ready__ = SimpleNamespace(remote=self._call, options=lambda **_: self.work)

    def _call(self, *arguments: int) -> Callable[[], Any]:
        self.calls.extend(arguments)
        lost = len(self.calls) >= self.lost_at

        def result() -> Any:
            if lost:
                raise self.error
            return arguments

        return result


def test_calls_of_a_lost_worker_are_sent_to_others(monkeypatch: pytest.MonkeyPatch):
    import ray
    from ray.exceptions import RayActorError

    monkeypatch.setattr(ray, "wait", lambda refs: (refs[:1], refs[1:]))
    monkeypatch.setattr(ray, "get", lambda ref: ref())
    workers: Any = object.__new__(Workers)
    actors = [Failing(3, RayActorError()), Failing(99, RayActorError())]
    workers._idle, workers._last = [], {}
    workers._sent = {actor.__ray_ready__.remote(): (actor, None) for actor in actors}
    calls = {key: Call((key,)) for key in range(4)}
    for _ in range(2):
        assert sorted((key, value) for key, _, value in workers.run("work", calls)) == [(k, (k,)) for k in range(4)]
    lost, kept = actors[0].calls, actors[1].calls
    assert (len(lost), lost[2]) == (3, lost[0])  # a key goes where it was
    assert (kept[2:4], sorted(kept[2:])) == (kept[:2], [0, 1, 2, 3])
    actors[1].lost_at = 0
    with pytest.raises(RayActorError):
        list(workers.run("work", calls))


def test_a_result_that_exists_is_kept(checkpoint: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """Without a cluster; other settings are refused."""
    noise(0, 24, 40).save(tmp_path / "p.jpg")
    out = tmp_path / "out"
    command = [str(tmp_path / "p.jpg"), str(out), str(checkpoint), "--steps", "2", *WINDOW]
    monkeypatch.setattr(translation, "connected", lambda _: threading.Lock())

    def make(task: PictureTask, bands: Any, path: Path, geometry: Geometry, progress: bool) -> None:
        result, layout = by_bands(task, 2)
        formats.write_rows(path, BandedResult(path, geometry, layout.rows, layout.rows, lambda rows: result[:, rows]))

    monkeypatch.setattr(translation, "make_picture", make)
    translate_ray.main(command)
    expected = BridgeSampler.from_checkpoint(checkpoint, steps=2)(tmp_path / "p.jpg", seed_of("p"), window=16)[0]
    with Image.open(out / "p.png") as made:
        assert np.abs(np.asarray(made, int) - np.asarray(expected, int)).max() <= 1
    before = (out / "p.png").stat().st_ino
    noise(1, 12, 12).save(tmp_path / "q.png")
    translate_ray.main([str(tmp_path / "q.png"), *command[1:]])
    monkeypatch.setattr(translation, "connected", None)
    translate_ray.main(command)
    assert (out / "p.png").stat().st_ino == before
    lines = [json.loads(line) for line in (out / "manifest.jsonl").read_text().splitlines()]
    wanted = [{"name": name, "seed": seed_of(name), "result": f"{name}.png"} for name in ("p", "q")]
    assert sorted(lines, key=lambda line: line["name"]) == wanted
    with pytest.raises(ResultsError, match="window 16, now 8"):
        translate_ray.main([*command, "--window", "8"])
    for flags, message in (
        (["--size", "8"], "one picture keeps its size, got 8"),
        (["--window", "none"], "give the size of a window"),
        (["--window", "7"], "window must be a multiple of the network's stride 2, got 7"),
    ):
        with pytest.raises(ValueError, match=message):
            translate_ray.main([*command, *flags])
    with pytest.raises(ValueError, match="results must be outside of the sources"):
        translate_ray.main([command[0], str(tmp_path), *command[2:]])


def save_picture(path: Path, height: int) -> None:
    Image.fromarray(np.random.default_rng(1).integers(0, 256, (height, 40, 3), np.uint8)).save(path)


def check_result(out: Path, source: Path, checkpoint: Path, **call: Any) -> None:
    expected = BridgeSampler.from_checkpoint(checkpoint)(source, seed_of(source.stem), window=16, **call)[0]
    with Image.open(out / f"{source.stem}.png") as made:
        assert np.abs(np.asarray(made, int) - np.asarray(expected, int)).max() <= 1


@pytest.mark.nightly
def test_a_picture_on_two_machines(cluster: Any, floats: Path, checkpoint: Path, tmp_path: Path):
    """The result is the one machine's as near as that is to float64's; what cannot be read ends the command.

    Windows of other batches are summed in other orders, and rows of the table weigh the state by up to 33.
    """
    path = picture(tmp_path, 400, 60)
    flags = ["--address", cluster.address, *WINDOW, "--steps", "4"]
    for solver in ("dpm2m", "sde-dpm2m"):
        out = tmp_path / solver
        translate_ray.main([str(path), str(out), str(floats), *flags, "--solver", solver])
        samplers = (
            BridgeSampler.from_checkpoint(floats, solver=solver, steps=4, dtype=dtype) for dtype in ("fp32", "fp64")
        )
        expected, exact = (np.asarray(sampler(path, seed_of("p"), window=16)[0]) for sampler in samplers)
        limit = 2 * np.abs(expected - exact).max()
        assert 1e-7 < limit < 1e-5
        assert np.abs(formats.open(out / "p.npy")[()] - expected).max() <= limit
    np.save(tmp_path / "nan.npy", np.full((40, 20), np.nan, np.float32))
    with pytest.raises(StoppedError, match=r"nan stands in channel 0"):
        translate_ray.main([str(tmp_path / "nan.npy"), str(tmp_path / "out"), str(floats), *flags])
    assert not list((tmp_path / "out").glob("nan*"))


def workers_of(name: str) -> list[psutil.Process]:
    """The processes of this machine's actors of a class."""
    found = [each for each in psutil.Process().children(recursive=True) if each.is_running()]
    return [each for each in found if f"ray::{name}" in " ".join(each.cmdline())]


@pytest.mark.nightly
@pytest.mark.parametrize("what", ["worker", "machine"])
def test_a_worker_or_its_machine_is_lost(
    what: str, cluster: Any, checkpoint: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    """The former's band goes on from the objects of the step before; with the latter these are lost too."""
    save_picture(tmp_path / "p.png", 600)
    shared, started = [0], [0]  # calls since both workers have bands, and attempts
    translate = banded.translate_bands

    def kill() -> None:
        if what == "worker":
            os.kill(workers_of("BandWorker")[0].pid, signal.SIGKILL)
        else:
            cluster.remove_node(next(iter(cluster.worker_nodes)), allow_graceful=False)

    def translated(layout: Layout, workers: Any, advance: Callable[[], Any]) -> list[Any]:
        def count() -> None:
            advance()
            both = len({*workers._last.values()}) == 2
            shared[0] += both
            if both and shared[0] == 6:
                kill()

        started[0] += 1
        return translate(layout, workers, count)

    monkeypatch.setattr(banded, "translate_bands", translated)
    flags = ["--address", cluster.address, *WINDOW, "--steps", "40", "--solver", "sde-dpm2m"]
    translate_ray.main([str(tmp_path / "p.png"), str(tmp_path / "out"), str(checkpoint), *flags])
    assert shared[0] >= 6
    assert started == [1 if what == "worker" else 2]
    check_result(tmp_path / "out", tmp_path / "p.png", checkpoint, steps=40, solver="sde-dpm2m")
