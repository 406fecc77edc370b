"""`bbdm translate-ray`: an engine in each worker every day, clusters on this machine every night."""

from __future__ import annotations

import os
import pickle
import subprocess
import sys
import threading
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from ray import cloudpickle

from bbdm import BridgeSampler, pictures, save_checkpoint
from bbdm.base.seeds import seed_of
from bbdm.bridges import ABridge
from bbdm.cli import translate
from bbdm.data.rows import BadPicturesError
from bbdm.data.spec import Spec
from bbdm.pictures.images import open_image
from bbdm.pictures.values import Values
from bbdm.serving import cluster as module
from bbdm.serving.cluster import Worker
from bbdm.serving.config import TranslateRay
from tests.conftest import ROOT, noise, tiny_unet
from tests.data.test_names import HOSTILE
from tests.serving.conftest import same, tree

STEPS = ("--steps", "2", "--quiet")


def make_sources(folder: Path, count: int) -> list[str]:
    """Pictures of noise in two levels of folders, and their names."""
    names = [f"{index % 7}/{index:04d}" for index in range(count)]
    for index, name in enumerate(names):
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        noise(index).save(folder / f"{name}.png")
    return names


def run(words: Sequence[str]) -> None:
    module.translate(TranslateRay.parse(words))


def results(folder: Path) -> dict[str, np.ndarray[Any, Any]]:
    """The pictures of a folder by name, as integers that can be subtracted."""
    paths = [path for path in folder.rglob("*.png") if path.name != "grid.png"]
    return {
        path.relative_to(folder).as_posix(): np.asarray(pictures.read(path)).astype(int)
        for path in paths
    }


@pytest.fixture
def cluster(monkeypatch: pytest.MonkeyPatch) -> Iterator[Any]:
    """A head with one core and another node with one, on the loopback."""
    monkeypatch.setenv("RAY_USAGE_STATS_ENABLED", "0")
    from ray._private import ray_constants
    from ray.cluster_utils import Cluster

    # else it replaces the loopback's address
    monkeypatch.setattr(ray_constants, "ENABLE_RAY_CLUSTER", False)
    node = {"num_cpus": 1, "object_store_memory": 200 * 2**20, "node_ip_address": "127.0.0.1"}
    cluster = Cluster(initialize_head=True, head_node_args={**node, "include_dashboard": False})
    cluster.add_node(**node)
    yield cluster
    cluster.shutdown()


@pytest.fixture
def batches(monkeypatch: pytest.MonkeyPatch) -> list[list[str]]:
    """The names of each batch that a worker in this process gets; the driver's engine comes as bytes."""
    found: list[list[str]] = []

    def outcomes(
        driver: Any, items: Sequence[Mapping[str, str]], at_once: int
    ) -> Iterator[tuple[str, str]]:
        sent = cloudpickle.dumps(driver)  # pyright: ignore[reportPrivateImportUsage]
        worker = Worker(lambda: pickle.loads(sent))
        for start in range(0, len(items), at_once):
            batch = items[start : start + at_once]
            found.append([item["name"] for item in batch])
            rows = worker(
                {key: np.array([item[key] for item in batch]) for key in ("name", "source")}
            )
            yield from zip(rows["name"].tolist(), rows["error"].tolist(), strict=True)

    monkeypatch.setattr(module, "outcomes", outcomes)
    return found


@pytest.mark.parametrize(
    ("spec", "flags", "at_once"),
    [
        (Spec(), ("--samples", "2", "--seed", "3", "--size", "10"), 2),
        (Spec(crop=8), (), 1),
    ],
    ids=["samples", "windows"],
)
def test_results_are_those_of_bbdm_translate(
    spec: Spec, flags: tuple[str, ...], at_once: int, batches: list[list[str]], tmp_path: Path
):
    """Their files, with the same seeds, but for rounding; what exists is not made again."""
    sources, ray, one = (tmp_path / name for name in ("in", "ray", "one"))
    save_checkpoint(
        tmp_path / "c.pt",
        tiny_unet(condition_channels=3),
        ABridge(50),
        image_size=16,
        pictures=spec,
    )
    sources.mkdir()
    for index, name in enumerate("abc"):
        noise(index, 12, 20).save(sources / f"{name}.png")
    words = [str(sources), str(ray), str(tmp_path / "c.pt"), *STEPS, "-b", "2", *flags]
    run(words)
    assert batches == ([["a", "b"], ["c"]] if at_once == 2 else [["a"], ["b"], ["c"]])
    translate.main(["folder", str(sources), str(tmp_path / "c.pt"), str(one), *STEPS, *flags])
    (ray / sorted(results(ray))[-1]).unlink()
    batches.clear()
    run(words)
    run(words)
    assert batches == [["c"]]
    mine, theirs = results(ray), results(one)
    assert mine.keys() == theirs.keys() != set()
    assert max(np.abs(mine[name] - theirs[name]).max() for name in mine) <= 1
    with pytest.raises(ValueError, match=r"results of other settings \(seed \d, now 9\)"):
        run([*words, "--seed", "9"])


def test_what_cannot_be_read_is_named_and_the_others_are_made(
    checkpoint: Path, batches: list[list[str]], tmp_path: Path, capsys: pytest.CaptureFixture[str]
):
    make_sources(tmp_path / "in", 2)
    (tmp_path / "in" / "bad.png").write_bytes(b"no picture")
    half = (tmp_path / "in" / "1" / "0001.png").read_bytes()[:300]
    (tmp_path / "in" / "half.png").write_bytes(half)
    words = [str(tmp_path / "in"), str(tmp_path / "out"), str(checkpoint), *STEPS, "-b", "3"]
    with pytest.raises(
        BadPicturesError,
        match=r"bad\.png: .* \(2 of 4 pictures; the others .* skip_bad leaves them",
    ):
        run(words)
    assert results(tmp_path / "out").keys() == {"0/0000.png", "1/0001.png"}
    noise(3).save(tmp_path / "in" / "bad.png")
    run([*words, "--skip_bad"])
    printed = capsys.readouterr().out
    assert printed.count("left out: cannot read the picture") == 1
    assert f"1 results in {tmp_path / 'out'}, and 2 that were there" in printed


@pytest.mark.filterwarnings("ignore:.* has 8 bits")
def test_a_network_that_does_not_fit_the_sources_is_named_once(
    batches: list[list[str]], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """One that was trained within masks, on values of 12 bits."""
    values = Values(0, 4095, dtype="uint16")
    spec = Spec(source=values, target=values, masked=True)
    save_checkpoint(
        tmp_path / "c.pt", tiny_unet(in_channels=1, out_channels=1), ABridge(50), pictures=spec
    )
    (tmp_path / "in").mkdir()
    for index, name in enumerate("ab"):
        noise(index).convert("L").save(tmp_path / "in" / f"{name}.png")
    run([str(tmp_path / "in"), str(tmp_path / "out"), str(tmp_path / "c.pt"), *STEPS, "-b", "1"])
    printed = capsys.readouterr().out
    assert len(batches) == 2
    assert printed.count("a.png has 8 bits, and the network was trained on values 0:4095\n") == 1
    assert (
        printed.count("learned the pixels in masks alone, and results elsewhere are made up\n") == 1
    )


def test_a_worker_writes_below_its_folder_alone(
    checkpoint: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    make_sources(tmp_path / "in", 1)
    drivers: list[Any] = []
    monkeypatch.setattr(module, "outcomes", lambda driver, *_: drivers.append(driver) or iter(()))
    run([str(tmp_path / "in"), str(tmp_path / "out"), str(checkpoint), *STEPS])
    worker = Worker(lambda: drivers[0])
    before = tree(tmp_path)
    for name in HOSTILE:
        batch = {
            "name": np.array([name], dtype=object),
            "source": np.array([str(tmp_path / "in/0/0000.png")]),
        }
        with pytest.raises(ValueError, match="the name of a row must be a relative path"):
            worker(batch)
    assert tree(tmp_path) == before


def test_what_a_lost_worker_has_not_finished_is_made_again(
    checkpoint: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It was lost before it said what made a result; the other result has its line, and stays."""
    names = make_sources(tmp_path / "in", 2)
    drivers: list[Any] = []
    monkeypatch.setattr(module, "outcomes", lambda driver, *_: drivers.append(driver) or iter(()))
    run([str(tmp_path / "in"), str(tmp_path / "out"), str(checkpoint), *STEPS])
    sources = [str(tmp_path / "in" / f"{name}.png") for name in names]
    Worker(lambda: drivers[0])(
        {"name": np.array(names, dtype=object), "source": np.array(sources, dtype=object)}
    )
    expected = results(tmp_path / "out")
    (part,) = (tmp_path / "out").glob(".results.*.jsonl")
    part.write_text(part.read_text().splitlines(keepends=True)[0])
    first, second = (tmp_path / "out" / f"{name}.png" for name in names)
    before = first.stat().st_mtime_ns
    noise(9).save(second)
    Worker(lambda: drivers[0])(
        {"name": np.array(names, dtype=object), "source": np.array(sources, dtype=object)}
    )
    assert first.stat().st_mtime_ns == before
    found = results(tmp_path / "out")
    assert all(np.abs(found[name] - expected[name]).max() <= 1 for name in expected)


@pytest.mark.filterwarnings("ignore::DeprecationWarning:ray.data.context")
def test_what_is_refused(checkpoint: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    make_sources(tmp_path / "in", 1)
    with pytest.raises(ValueError, match="compile needs dtype"):
        run(["in", "out", "c.pt", "--compile"])
    machines = [{"CPU": 2.0}, {"CPU": 4.0}, {"GPU": 8.0}]
    monkeypatch.setattr(module, "connected", lambda _: nullcontext(machines))
    driver: Any = TranslateRay.parse(["in", "out", "c.pt", "--threads", "5"]), None, {}
    with pytest.raises(ValueError, match="threads must be at most the 4 cores of a machine, got 5"):
        next(module.outcomes(driver, [{"name": "a", "source": "a.png"}], 1))
    for where in ("in", "in/out", "."):
        with pytest.raises(ValueError, match="results must be outside of the sources"):
            run([str(tmp_path / "in"), str(tmp_path / where), str(checkpoint)])


def check_results(
    folder: Path, sources: Path, names: list[str], sampler: BridgeSampler, seed: int, **call: Any
) -> None:
    """Each result is what one process makes."""
    assert results(folder).keys() == {f"{name}.png" for name in names}
    assert not list(folder.rglob(".*"))
    paths = [sources / f"{name}.png" for name in names]
    expected = sampler(paths, [seed_of(name, seed) for name in names], **call)
    assert all(
        same(open_image(folder / f"{name}.png"), one)
        for name, one in zip(names, expected, strict=True)
    )


@pytest.mark.nightly
def test_a_node_is_lost_half_way(
    cluster: Any,
    checkpoint: Path,
    sampler: BridgeSampler,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
):
    sources, folder, count = tmp_path / "in", tmp_path / "out", 2000
    names = make_sources(sources, count)
    command = [
        str(sources),
        str(folder),
        str(checkpoint),
        "--steps",
        "4",
        "-b",
        "20",
        "--seed",
        "3",
    ]
    command += ["--address", cluster.address]

    def kill() -> None:
        while len(list(folder.rglob("*.png"))) < count // 2:
            time.sleep(0.05)
        cluster.remove_node(next(iter(cluster.worker_nodes)), allow_graceful=False)

    killer = threading.Thread(target=kill, daemon=True)
    killer.start()
    run(command)
    killer.join(1)
    assert not killer.is_alive()
    assert f"{count} results in" in capsys.readouterr().out
    run(command)  # which deletes what the node was writing
    assert f"0 results in {folder}, and {count} that were there" in capsys.readouterr().out
    check_results(folder, sources, names, sampler, 3, steps=4, batch_size=50)


@pytest.mark.nightly
def test_a_cluster_of_this_machine(
    checkpoint: Path, sampler: BridgeSampler, tmp_path: Path
) -> None:
    """Its workers know the solver of a module that the command imports."""
    sources, folder = tmp_path / "in", tmp_path / "out"
    names = make_sources(sources, 21)
    (sources / "bad.png").write_bytes(b"no picture")
    (tmp_path / "mine.py").write_text(
        "from bbdm import solvers\n"
        "solvers.register('mine')(lambda bridge, steps: solvers.build(bridge, 'ddim', [bridge.top, bridge.top // 3]))\n"
    )
    command = [str(sources), str(folder), str(checkpoint), "-b", "4", "--solver", "mine"]

    def run_alone(*flags: str) -> str:
        words = [
            sys.executable,
            "-m",
            "bbdm",
            "--import",
            "mine",
            "translate-ray",
            *command,
            *flags,
        ]
        environment = {**os.environ, "PYTHONPATH": str(ROOT)}
        return subprocess.run(
            words, cwd=tmp_path, env=environment, capture_output=True, text=True
        ).stderr

    assert "threads must be at most the" in run_alone("--threads", "1000")
    assert not folder.exists()
    assert "(1 of 22 pictures; the others are tr" in run_alone()
    check_results(folder, sources, names, sampler, 0, solver="ddim", timesteps=[100, 33])
