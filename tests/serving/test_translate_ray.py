"""`bbdm translate-ray`: names, seeds and checks every day, clusters on this machine every night."""

from __future__ import annotations

import json
import os
import threading
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow
import pytest
from PIL import Image
from pyarrow import parquet

from bbdm import ABridge, BridgeSampler, save_checkpoint
from bbdm.base import scripts
from bbdm.base.atomic import file_sha256
from bbdm.base.places import Place
from bbdm.base.seeds import seed_of
from bbdm.cli import translate_ray
from bbdm.data.examples import BadPicturesError
from bbdm.data.spec import Spec
from bbdm.evaluation.results import ResultsError
from bbdm.pictures.images import open_image
from bbdm.serving import translation
from bbdm.serving.sources import Sources, Where, blocks, find, name_of, read_group
from bbdm.serving.translation import Task, Worker
from tests.conftest import noise, tiny_unet

SIZE = 16
COLUMNS = ("name", "image")


def make_sources(folder: Path, count: int) -> list[str]:
    """Pictures of noise in two levels of folders, and their names."""
    names = [f"{index % 7}/{index:04d}" for index in range(count)]
    for index, name in enumerate(names):
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        noise(index).save(folder / f"{name}.png")
    return names


class Watch:
    """Looks at a folder's pictures all the time: which file each name was, so that a second write is seen."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.seen: dict[str, set[tuple[int, int]]] = {}
        self._end = threading.Event()
        self._thread = threading.Thread(target=self._look, daemon=True)

    def __enter__(self) -> Watch:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._end.set()
        self._thread.join()
        self.look()

    def _look(self) -> None:
        while not self._end.wait(0.1):
            self.look()

    def look(self) -> None:
        for path in list(self.folder.rglob("*.png")):
            about = path.stat()
            name = path.relative_to(self.folder).with_suffix("").as_posix()
            self.seen.setdefault(name, set()).add((about.st_ino, about.st_mtime_ns))


def test_names_are_paths_without_a_pictures_suffix():
    paths, names = ("a.png", "a/b.JPG", "a/b.c.webp", "x", "x.txt"), ["a", "a/b", "a/b.c", "x", "x.txt"]
    assert [name_of(path) for path in paths] == names
    for path in ("../a.png", "/etc/passwd", "a//b", "a/../../b.png", ".hidden.png", "a\\..\\b", "", "a/\0"):
        with pytest.raises(ValueError, match="must be a relative path without parts that begin with a dot"):
            name_of(path)


def test_settings_are_checked():
    places = ["in", "out", "c.pt"]
    assert translate_ray.parse(places).image_size is None
    assert translate_ray.parse([*places, "--size", "20x8", "--workers", "3"]).image_size == (20, 8)
    for flag in ("-b", "--workers", "--threads"):
        with pytest.raises(ValueError, match="must be at least 1, got 0"):
            translate_ray.parse([*places, flag, "0"])
    with pytest.raises(ValueError, match="compile needs dtype"):
        translate_ray.parse([*places, "--compile"])
    with pytest.raises(ValueError, match="means the solver 'fast', got solver 'ddim' too"):
        translate_ray.parse([*places, "--fast_sampling", "--solver", "ddim"])


def test_sources_are_found_by_name(tmp_path: Path):
    for path in ("b.png", "a/c.jpg", ".thumbnails/d.png", "notes.txt"):
        (tmp_path / "in" / path).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / "in" / path).write_bytes(b"")
    place = Place.of(str(tmp_path / "in"))
    assert find(place, COLUMNS) == {"a/c": ("a/c.jpg", None), "b": ("b.png", None)}
    (tmp_path / "in" / "b.webp").write_bytes(b"")
    with pytest.raises(ValueError, match=r"b\.png and b\.webp both have a picture named 'b'"):
        find(place, COLUMNS)
    with pytest.raises(ValueError, match=r"must hold pictures .* or \.parquet: neither"):
        find(Place.of(str(tmp_path / "nowhere")), COLUMNS)


def test_rows_of_parquet_files_have_names(tmp_path: Path):
    table = pyarrow.table({"name": ["x/1.png", "2", "3"], "image": [b"one", b"two", None]})
    parquet.write_table(table, tmp_path / "t.parquet", row_group_size=2)
    place = Place.of(str(tmp_path))
    sources = find(place, COLUMNS)
    assert sources == {"x/1": ("t.parquet", 0), "2": ("t.parquet", 0), "3": ("t.parquet", 1)}
    assert [list(block) for block in blocks(sources, ["x/1", "2", "3"], 1)] == [["x/1", "2"], ["3"]]
    assert read_group(place, Where("t.parquet", 0), COLUMNS) == {"x/1": b"one", "2": b"two"}
    assert read_group(place, Where("t.parquet", 1), COLUMNS) == {"3": b""}
    with pytest.raises(ValueError, match=r"t\.parquet has no column 'picture', but name, image"):
        find(place, ("name", "picture"))
    parquet.write_table(pyarrow.table({"name": ["../../x"], "image": [b""]}), tmp_path / "t.parquet")
    with pytest.raises(ValueError, match="must be a relative path"):
        find(place, COLUMNS)


def test_a_worker_makes_what_has_no_result(checkpoint: Path, tmp_path: Path):
    """Of files and of a table, where the call of one process makes the same."""
    names = make_sources(tmp_path / "in", 3)
    (tmp_path / "in" / "bad.png").write_bytes(b"no picture")
    (tmp_path / "tables").mkdir()
    rows = {name: (tmp_path / "in" / f"{name}.png").read_bytes() for name in names}
    columns = {"name": [*rows, "bad"], "image": [*rows.values(), None]}
    parquet.write_table(pyarrow.table(columns), tmp_path / "tables" / "a.parquet")
    alone = BridgeSampler.from_checkpoint(checkpoint, steps=2)
    pictures = [noise(index).resize((8, 8), Image.Resampling.BILINEAR) for index in (1, 2)]
    wanted = alone(pictures, seed=[seed_of(name, 0) for name in names[1:]])
    for folder, file in (("in", "bad.png"), ("tables", "bad of a.parquet")):
        results = tmp_path / f"made of {folder}"
        (results / "0").mkdir(parents=True)
        (results / "0" / "0000.png").write_bytes(b"")
        config = translate_ray.parse([folder, "out", str(checkpoint), "--steps", "2", "-b", "2"])
        place = Place.of(str(tmp_path / folder))
        sha256 = file_sha256(checkpoint)
        worker = Worker(Task(config, sha256, place, Place.of(str(results)), 3, 8, "stretch", 2))
        (block,) = blocks(find(place, COLUMNS), [*names, "bad"], 8)
        assert worker.make(block) == {"bad": f"cannot read the picture {file}: it is not a picture"}
        made = [open_image(results / f"{name}.png") for name in names[1:]]
        assert [np.array_equal(np.asarray(a), np.asarray(b)) for a, b in zip(made, wanted, strict=True)] == [True, True]
        assert (results / "0" / "0000.png").read_bytes() == b""
    with pytest.raises(ValueError, match=r"c\.pt differs from machine to machine"):
        Worker(replace(worker.task, sha256="", results=Place.of(str(tmp_path / "none")))).make(block)


@pytest.mark.parametrize(
    ("crop", "flags", "size"),
    [
        (None, ["--window", "8"], (20, 12)),
        (8, [], (20, 12)),
        (None, ["--window", "8", "--size", "10"], (10, 10)),
        (None, [], (16, 10)),
    ],
)
def test_pictures_of_a_folder_keep_their_size_with_windows(
    crop: int | None,
    flags: list[str],
    size: tuple[int, int],
    sent: list[Sources],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
):
    checkpoint, kind = tmp_path / "c.pt", Spec(crop=crop)
    unet = tiny_unet(condition_channels=3)
    save_checkpoint(checkpoint, unet, ABridge(num_steps=50), image_size=crop or SIZE, pictures=kind)
    (tmp_path / "in").mkdir()
    noise(0, 12, 20).save(tmp_path / "in" / "a.png")
    noise(1, 12, 20).save(tmp_path / "in" / "b.png")
    command = [str(tmp_path / "in"), str(tmp_path / "out"), str(checkpoint), "--steps", "2", *flags]
    translate_ray.main(command)
    windows = crop or flags
    assert [list(block) for block in sent] == ([["a"], ["b"]] if windows else [["a", "b"]])
    alone = BridgeSampler.from_checkpoint(checkpoint, steps=2)
    height, width = size
    source = open_image(tmp_path / "in" / "b.png").resize((width, height), Image.Resampling.BILINEAR)
    expected = alone(source, seed_of("b"), window=8 if windows else None)[0]
    result = open_image(tmp_path / "out" / "b.png")
    assert (result.height, result.width) == size
    assert np.abs(np.asarray(result, int) - np.asarray(expected, int)).max() <= 1
    if size == (20, 12):
        whole = alone(source, seed_of("b"), window=None)[0]
        assert np.abs(np.asarray(result, int) - np.asarray(whole, int)).max() > 1
        monkeypatch.setattr(translation, "connected", None)
        translate_ray.main(command)  # makes nothing, without a cluster


def test_a_picture_that_stays_bad_needs_no_cluster(
    checkpoint: Path,
    sent: list[Sources],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
):
    make_sources(tmp_path / "in", 1)
    (tmp_path / "in" / "bad.png").write_bytes(b"no picture")
    command = [str(tmp_path / "in"), str(tmp_path / "out"), str(checkpoint), "--steps", "2", "--skip_bad"]
    translate_ray.main(command)
    manifest = (tmp_path / "out" / "manifest.jsonl").read_text()
    monkeypatch.setattr(translation, "connected", None)
    capsys.readouterr()
    translate_ray.main(command)
    reason = "cannot read the picture bad.png: it is not a picture"
    assert capsys.readouterr().out == f"left out: {reason}\n0 results in {tmp_path / 'out'}, and 1 that were there\n"
    assert (tmp_path / "out" / "manifest.jsonl").read_text() == manifest
    with pytest.raises(BadPicturesError, match=r"bad\.png: .* \(1 of 2 pictures; the others are translated"):
        translate_ray.main(command[:-1])
    monkeypatch.setattr(translation, "connected", lambda _: threading.Lock())
    noise(3).save(tmp_path / "in" / "bad.png")
    translate_ray.main(command)
    assert [list(block) for block in sent] == [["0/0000", "bad"], ["bad"]]
    assert "1 results in" in capsys.readouterr().out


def test_results_are_outside_of_the_sources(checkpoint: Path, tmp_path: Path):
    make_sources(tmp_path / "in", 1)
    for results in ("in", "in/out", "."):
        with pytest.raises(ValueError, match="results must be outside of the sources"):
            translate_ray.main([str(tmp_path / "in"), str(tmp_path / results), str(checkpoint)])


def check_results(folder: Path, sources: Path, names: list[str], checkpoint: Path, seed: int, **call: Any) -> None:
    """Each result is what one process makes, and the manifest has a line for each."""
    assert sorted(path.relative_to(folder).as_posix() for path in folder.rglob("*.png")) == sorted(
        f"{name}.png" for name in names
    )
    assert not list(folder.rglob(".*"))
    seeds = [seed_of(name, seed) for name in names]
    alone = BridgeSampler.from_checkpoint(checkpoint)
    made = alone([sources / f"{name}.png" for name in names], seed=seeds, batch_size=50, **call)
    for name, expected in zip(names, made, strict=True):
        result = np.asarray(open_image(folder / f"{name}.png"), dtype=int)
        assert np.abs(result - np.asarray(expected, dtype=int)).max() <= 1  # rounding differs with the batch
    lines = [json.loads(line) for line in (folder / "manifest.jsonl").read_text().splitlines()]
    wanted = zip(names, seeds, strict=True)
    assert lines == sorted(({"name": n, "seed": s, "result": f"{n}.png"} for n, s in wanted), key=lambda x: x["name"])


@pytest.mark.nightly
def test_a_node_is_lost_half_way(cluster: Any, checkpoint: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    count = int(os.environ.get("PICTURES", "2000"))
    sources, results = tmp_path / "in", tmp_path / "out"
    names = make_sources(sources, count)
    command = [str(sources), str(results), str(checkpoint), "--steps", "4", "-b", "20", "--seed", "3"]
    command += ["--address", cluster.address]
    killed = threading.Event()

    def kill() -> None:
        while len(list(results.rglob("*.png"))) < count // 2:
            time.sleep(0.05)
        cluster.remove_node(next(iter(cluster.worker_nodes)), allow_graceful=False)
        killed.set()

    with Watch(results) as watch:
        killer = threading.Thread(target=kill, daemon=True)
        killer.start()
        translate_ray.main(command)
        killer.join()
    assert killed.is_set()
    assert f"{count} results in" in capsys.readouterr().out
    assert sorted(watch.seen) == sorted(names)
    assert {name for name, files in watch.seen.items() if len(files) > 1} == set()
    check_results(results, sources, names, checkpoint, 3, steps=4)
    with Watch(results) as again:
        translate_ray.main(command)
    assert f"0 results in {results}, and {count} that were there" in capsys.readouterr().out
    assert again.seen == watch.seen


@pytest.mark.nightly
def test_what_cannot_be_read_or_written(cluster: Any, checkpoint: Path, tmp_path: Path) -> None:
    sources, results = tmp_path / "in", tmp_path / "out"
    names = make_sources(sources, 21)
    command = [str(sources), str(results), str(checkpoint), "--steps", "2", "-b", "4", "--address", cluster.address]
    results.mkdir()
    (results / "3").write_text("")  # where a folder is needed
    with pytest.raises(scripts.StoppedError, match="3 is a file, and a folder is needed there"):
        translate_ray.main(command)
    (results / "3").unlink()
    with pytest.raises(ValueError, match="threads must be at most the 1 cores of a machine, got 2"):
        translate_ray.main([*command, "--threads", "2"])
    before = {path: path.stat().st_ino for path in results.rglob("*.png")}
    (sources / "bad.png").write_bytes(b"no picture")
    with pytest.raises(BadPicturesError, match=r"bad\.png: .* \(1 of 22 pictures; the others are tr"):
        translate_ray.main(command)
    assert all(path.stat().st_ino == number for path, number in before.items())
    translate_ray.main([*command, "--skip_bad"])
    assert {path.relative_to(results).with_suffix("").as_posix() for path in results.rglob("*.png")} == set(names)
    lines = [json.loads(line) for line in (results / "manifest.jsonl").read_text().splitlines()]
    assert [line["name"] for line in lines if "error" in line] == ["bad"]
    with pytest.raises(ResultsError, match=r"results of other settings \(seed 0, now 1\)"):
        translate_ray.main([*command, "--seed", "1"])


@pytest.mark.nightly
def test_pictures_in_parquet_files(cluster: Any, checkpoint: Path, tmp_path: Path) -> None:
    sources, results, tables = tmp_path / "in", tmp_path / "out", tmp_path / "tables"
    names = make_sources(sources, 30)
    tables.mkdir()
    for part in range(3):
        chosen = names[part::3]
        files = [{"bytes": (sources / f"{name}.png").read_bytes(), "path": None} for name in chosen]
        table = pyarrow.table({"file": [f"{name}.png" for name in chosen], "picture": files})
        parquet.write_table(table, tables / f"{part}.parquet", row_group_size=4)
    command = [str(tables), str(results), str(checkpoint), "--steps", "2", "-b", "8", "--address", cluster.address]
    command += ["--name_column", "file", "--image_column", "picture"]
    translate_ray.main(command)
    (results / f"{names[0]}.png").unlink()
    with Watch(results) as watch:
        translate_ray.main(command)
    assert {name for name, files in watch.seen.items() if len(files) > 1} == set()
    check_results(results, sources, names, checkpoint, 0, steps=2)


@pytest.mark.nightly
def test_a_folder_by_windows(cluster: Any, checkpoint: Path, tmp_path: Path) -> None:
    names = [str(index) for index in range(5)]
    (tmp_path / "in").mkdir()
    for index, name in enumerate(names):
        noise(index, 40, 24 + 4 * index).save(tmp_path / "in" / f"{name}.png")
    command = [str(tmp_path / "in"), str(tmp_path / "out"), str(checkpoint), "--steps", "2", "--window", "16"]
    translate_ray.main([*command, "--overlap", "0.5", "--margin", "2", "--address", cluster.address])
    check_results(tmp_path / "out", tmp_path / "in", names, checkpoint, 0, steps=2, window=16, overlap=0.5, margin=2)
