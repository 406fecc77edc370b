"""`bbdm translate-ray`: an engine in each worker every day, clusters on this machine every night."""

from __future__ import annotations

import os
import pickle
import subprocess
import sys
import threading
import time
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from ray import cloudpickle

from bbdm import BridgeSampler, pictures, save_checkpoint
from bbdm.base.seeds import seed_of
from bbdm.bridges import ABridge
from bbdm.cli import translate
from bbdm.data.examples import BadPicturesError
from bbdm.data.spec import Spec
from bbdm.pictures.images import open_image
from bbdm.pictures.values import Values
from bbdm.serving import cluster as module
from bbdm.serving.cluster import Worker
from bbdm.serving.config import TranslateRay
from bbdm.translation.results import ResultsError
from tests.conftest import ROOT, noise, tiny_unet

STEPS = ("--steps", "2", "--quiet")


def make_sources(folder: Path, count: int) -> list[str]:
    """Pictures of noise in two levels of folders, and their names."""
    names = [f"{index % 7}/{index:04d}" for index in range(count)]
    for index, name in enumerate(names):
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        noise(index).save(folder / f"{name}.png")
    return names


def results(folder: Path) -> dict[str, np.ndarray[Any, Any]]:
    """The pictures of a folder by name, as integers that can be subtracted."""
    paths = [path for path in folder.rglob("*.*") if path.suffix in (".png", ".npy") and "grid" not in path.name]
    return {path.relative_to(folder).as_posix(): np.asarray(pictures.read(path)).astype(int) for path in paths}


def assert_same(one: Path, other: Path) -> None:
    """The same names and pictures; rounding differs with the batch."""
    mine, theirs = results(one), results(other)
    assert mine.keys() == theirs.keys() != set()
    assert max(np.abs(mine[name] - theirs[name]).max() for name in mine) <= 1


@pytest.fixture
def batches(monkeypatch: pytest.MonkeyPatch) -> list[list[str]]:
    """The names of each batch that a worker in this process gets."""
    found: list[list[str]] = []

    def outcomes(worker: Any, items: Sequence[Mapping[str, str]], at_once: int) -> Iterator[tuple[str, str]]:
        sent = cloudpickle.dumps(worker)  # pyright: ignore[reportPrivateImportUsage]
        made = Worker(lambda: pickle.loads(sent))
        for start in range(0, len(items), at_once):
            batch = items[start : start + at_once]
            found.append([item["name"] for item in batch])
            rows = made({key: np.array([item[key] for item in batch]) for key in ("name", "source")})
            yield from zip(rows["name"].tolist(), rows["error"].tolist(), strict=True)

    monkeypatch.setattr(module, "outcomes", outcomes)
    return found


@pytest.mark.parametrize(
    ("crop", "flags", "at_once"),
    [
        (None, (), 2),
        (8, (), 1),
        (None, ("--samples", "2", "--seed", "3", "--size", "10"), 2),
    ],
)
def test_results_are_those_of_bbdm_translate(
    crop: int | None, flags: tuple[str, ...], at_once: int, batches: list[list[str]], tmp_path: Path
):
    """Their files, with the same seeds; what exists is not made again."""
    checkpoint, sources = tmp_path / "c.pt", tmp_path / "in"
    unet = tiny_unet(condition_channels=3)
    save_checkpoint(checkpoint, unet, ABridge(num_steps=50), image_size=crop or 16, pictures=Spec(crop=crop))
    sources.mkdir()
    for index, name in enumerate("abc"):
        noise(index, 12, 20).save(sources / f"{name}.png")
    words = [str(sources), str(tmp_path / "ray"), str(checkpoint), *STEPS, "-b", "2", *flags]
    TranslateRay.main(words)
    assert batches == ([["a", "b"], ["c"]] if at_once == 2 else [["a"], ["b"], ["c"]])
    translate.main(["folder", str(sources), str(checkpoint), str(tmp_path / "one"), *STEPS, *flags])
    assert_same(tmp_path / "ray", tmp_path / "one")
    (tmp_path / "ray" / sorted(results(tmp_path / "ray"))[-1]).unlink()
    batches.clear()
    TranslateRay.main(words)
    TranslateRay.main(words)
    assert batches == [["c"]]
    assert_same(tmp_path / "ray", tmp_path / "one")
    with pytest.raises(ResultsError, match=r"results of other settings \(seed \d, now 9\)"):
        TranslateRay.main([*words, "--seed", "9"])


def test_values_of_other_kinds_are_as_in_bbdm_translate(batches: list[list[str]], tmp_path: Path):
    (tmp_path / "in").mkdir()
    values = Values(0, 4095, dtype="uint16")
    for name in "ab":
        np.save(tmp_path / "in" / name, np.random.default_rng(0).integers(0, 4096, (2, 16, 16)).astype(np.uint16))
    unet, spec = tiny_unet(in_channels=2, out_channels=2), Spec(source=values, target=values)
    save_checkpoint(tmp_path / "c.pt", unet, ABridge(num_steps=50), image_size=16, pictures=spec)
    TranslateRay.main([str(tmp_path / "in"), str(tmp_path / "ray"), str(tmp_path / "c.pt"), *STEPS])
    translate.main(["folder", str(tmp_path / "in"), str(tmp_path / "c.pt"), str(tmp_path / "one"), *STEPS])
    assert_same(tmp_path / "ray", tmp_path / "one")


def test_what_cannot_be_read_is_named_and_the_others_are_made(
    checkpoint: Path, batches: list[list[str]], tmp_path: Path, capsys: pytest.CaptureFixture[str]
):
    make_sources(tmp_path / "in", 2)
    (tmp_path / "in" / "bad.png").write_bytes(b"no picture")
    half = (tmp_path / "in" / "1" / "0001.png").read_bytes()[:300]
    (tmp_path / "in" / "half.png").write_bytes(half)
    words = [str(tmp_path / "in"), str(tmp_path / "out"), str(checkpoint), *STEPS, "-b", "3"]
    with pytest.raises(BadPicturesError, match=r"bad\.png: .* \(2 of 4 pictures; the others are tr") as caught:
        TranslateRay.main(words)
    assert "skip_bad" in str(caught.value)
    assert results(tmp_path / "out").keys() == {"0/0000.png", "1/0001.png"}
    TranslateRay.main([*words, "--skip_bad"])
    printed = capsys.readouterr().out
    assert printed.count("left out: cannot read the picture") == 2
    assert f"0 results in {tmp_path / 'out'}, and 2 that were there" in printed
    noise(3).save(tmp_path / "in" / "bad.png")
    TranslateRay.main([*words, "--skip_bad"])
    assert "1 results in" in capsys.readouterr().out


def test_what_is_refused(checkpoint: Path, batches: list[list[str]], tmp_path: Path):
    names = make_sources(tmp_path / "in", 1)
    for flags, message in ((("--threads", "0"), "threads must be at least 1"), (("--compile",), "compile needs dtype")):
        with pytest.raises(ValueError, match=message):
            TranslateRay.main(["in", "out", "c.pt", *flags])
    for where in ("in", "in/out", "."):
        with pytest.raises(ValueError, match="results must be outside of the sources"):
            TranslateRay.main([str(tmp_path / "in"), str(tmp_path / where), str(checkpoint)])
    with pytest.raises(ValueError, match=r"0000\.png is a file"):
        TranslateRay.main([str(tmp_path / "in" / f"{names[0]}.png"), str(tmp_path / "out"), str(checkpoint)])


def check_results(folder: Path, sources: Path, names: list[str], checkpoint: Path, seed: int, **call: Any) -> None:
    """Each result is what one process makes."""
    assert results(folder).keys() == {f"{name}.png" for name in names}
    assert not list(folder.rglob(".*"))
    alone = BridgeSampler.from_checkpoint(checkpoint)
    paths, seeds = [sources / f"{name}.png" for name in names], [seed_of(name, seed) for name in names]
    for name, expected in zip(names, alone(paths, seed=seeds, batch_size=50, **call), strict=True):
        result = np.asarray(open_image(folder / f"{name}.png"), dtype=int)
        assert np.abs(result - np.asarray(expected, dtype=int)).max() <= 1


@pytest.mark.nightly
def test_a_node_is_lost_half_way(cluster: Any, checkpoint: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    count = 2000
    sources, folder = tmp_path / "in", tmp_path / "out"
    names = make_sources(sources, count)
    command = [str(sources), str(folder), str(checkpoint), "--steps", "4", "-b", "20", "--seed", "3"]
    command += ["--address", cluster.address]
    killed = threading.Event()

    def kill() -> None:
        while len(list(folder.rglob("*.png"))) < count // 2:
            time.sleep(0.05)
        cluster.remove_node(next(iter(cluster.worker_nodes)), allow_graceful=False)
        killed.set()

    killer = threading.Thread(target=kill, daemon=True)
    killer.start()
    TranslateRay.main(command)
    killer.join()
    assert killed.is_set()
    assert f"{count} results in" in capsys.readouterr().out
    check_results(folder, sources, names, checkpoint, 3, steps=4)
    before = {path: path.stat().st_mtime_ns for path in folder.rglob("*.png")}
    TranslateRay.main(command)
    assert f"0 results in {folder}, and {count} that were there" in capsys.readouterr().out
    assert {path: path.stat().st_mtime_ns for path in before} == before


@pytest.mark.nightly
def test_a_cluster_of_this_machine(checkpoint: Path, tmp_path: Path) -> None:
    """Its workers know the solver of a module that the command imports."""
    sources, folder = tmp_path / "in", tmp_path / "out"
    names = make_sources(sources, 21)
    (sources / "bad.png").write_bytes(b"no picture")
    (tmp_path / "mine.py").write_text(
        "from bbdm import solvers\n"
        "solvers.register('mine')(lambda bridge, steps: solvers.build(bridge, 'ddim', [bridge.top, bridge.top // 3]))\n"
    )
    command = [str(sources), str(folder), str(checkpoint), "-b", "4", "--workers", "2", "--solver", "mine"]

    def run(*flags: str) -> str:
        words = [sys.executable, "-m", "bbdm", "--import", "mine", "translate-ray", *command, *flags]
        environment = {**os.environ, "PYTHONPATH": str(ROOT)}
        return subprocess.run(words, cwd=tmp_path, env=environment, capture_output=True, text=True).stderr

    assert "threads must be at most the" in run("--threads", "1000")
    assert not folder.exists()
    assert "(1 of 22 pictures; the others are tr" in run()
    check_results(folder, sources, names, checkpoint, 0, solver="ddim", timesteps=[50, 16])
    for path in sorted(folder.rglob("*.png"))[:2]:
        path.unlink()
    run("--skip_bad")
    check_results(folder, sources, names, checkpoint, 0, solver="ddim", timesteps=[50, 16])
