"""Training from shards: any place and any readers give one run, also where it is stopped and goes on."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

import bbdm
from bbdm.base.scripts import StoppedError
from bbdm.cli import distill, eval, shard, train
from bbdm.training.trainer import Trainer
from tests.cli.test_train import assert_same
from tests.conftest import ROOT, SavePicture
from tests.training import test_stopped_training as stopped
from tests.training.launching import TORCHRUN, assert_close, run
from tests.training.test_stopped_training import Terminate, assert_undisturbed

pytest.importorskip("webdataset")
pytest.importorskip("fsspec")
tiny_demo = stopped.tiny_demo
folder_of_pairs = stopped.data


@pytest.fixture(scope="module")
def data(folder_of_pairs: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """12 training pairs in 12 shards, of which 8 are mixed at a time, and 4 to validate."""
    folder = tmp_path_factory.mktemp("shards")
    shard.main(["edge2shoes", str(folder_of_pairs), str(folder), "--pairs_in_shard", "1", "--quiet"])
    return folder


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("BBDM_SHARDS", str(tmp_path / "cache"))


def arguments(place: str | Path, output: Path, *flags: str) -> list[str]:
    _, _, *others = stopped.arguments(Path(), output, *flags)
    return ["shards", str(place), *others]


@pytest.fixture(scope="module")
def undisturbed(data: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a run from the folder of shards, without readers, that nothing stopped."""
    return stopped.run_undisturbed(lambda output: arguments(data, output), tmp_path_factory.mktemp("undisturbed"))


@pytest.mark.parametrize("workers", ["0", "2"])
def test_stopped_within_an_epoch(workers: str, data: Path, undisturbed: Path, tmp_path: Path) -> None:
    """Of 6 steps each, the second epoch ends after 3, and goes on with other readers."""
    output = tmp_path / "model.pt"
    with pytest.MonkeyPatch.context() as monkeypatch:
        terminate = Terminate(Trainer.train_step, 9)
        monkeypatch.setattr(Trainer, "train_step", lambda *pair: terminate(*pair))
        with pytest.raises(StoppedError, match="the same command resumes from step 9, "):
            train.main(arguments(data, output, "--workers", workers))
    train.main(arguments(data, output, "--workers", "0" if workers == "2" else "1"))
    assert_undisturbed(tmp_path, undisturbed)


def test_shards_that_changed_are_another_run(data: Path, tmp_path: Path, folder_of_pairs: Path) -> None:
    train.main(arguments(data, tmp_path / "model.pt", "-e", "1"))
    shard.main(["edge2shoes", str(folder_of_pairs), str(tmp_path / "other"), "--pairs_in_shard", "6"])
    with pytest.raises(ValueError, match="was trained with pairs of other names"):
        train.main(arguments(tmp_path / "other", tmp_path / "model.pt"))


def test_a_bad_sample_stops_the_run_or_is_skipped(
    folder_of_pairs: Path, tmp_path: Path, save_picture: SavePicture, caplog: pytest.LogCaptureFixture
) -> None:
    data = tmp_path / "data"
    shard.main(["edge2shoes", str(folder_of_pairs), str(data), "--pairs_in_shard", "5", "--quiet"])
    victim = data / "train" / "000001.tar"
    content = victim.read_bytes()
    victim.write_bytes(content[: len(content) // 2])
    with pytest.raises(StoppedError, match=r"000001\.tar is a damaged tar.*Repair the file; "):
        train.main(arguments(data, tmp_path / "stopped" / "model.pt", "-e", "1"))
    train.main(arguments(data, tmp_path / "skipped" / "model.pt", "-e", "1", "--skip_bad", "--workers", "1"))
    assert "left out: " in caplog.text
    assert "000001.tar is a damaged tar" in caplog.text
    victim.write_bytes(content)
    train.main(arguments(data, tmp_path / "stopped" / "model.pt", "-e", "1"))  # from where it was
    train.main(arguments(data, tmp_path / "whole" / "model.pt", "-e", "1"))
    assert_undisturbed(tmp_path / "stopped", tmp_path / "whole")


def test_distilled_and_evaluated(data: Path, undisturbed: Path, tmp_path: Path) -> None:
    common = ["--dataset", "shards", "--device", "cpu", "-e", "1", "-b", "4", "--calls", "1", "--image_size", "16"]
    distill.main([str(undisturbed / "model.pt"), str(data), str(tmp_path / "student.pt"), *common])
    scores: list[dict[str, Any]] = []
    for name, place in (("shards", data), ("piped", f"pipe:cat {data}/val/{{000000..000003}}.tar")):
        flags = ["--metrics", "psnr", "--device", "cpu", "--steps", "2"]
        eval.main(["shards", str(place), str(undisturbed / "model.pt"), str(tmp_path / name), *flags])
        scores.append(json.loads((tmp_path / name / "scores.json").read_text())["scores"])
    assert scores[0] == scores[1]


@pytest.mark.nightly
def test_two_processes_are_one(data: Path, undisturbed: Path, tmp_path: Path) -> None:
    pytest.importorskip("accelerate")
    flags = ["--precision", "fp32", "--workers", "1"]
    train.main(arguments(data, tmp_path / "one.pt", *flags))
    done = run([*TORCHRUN, "tests.training.tiny_train", *arguments(data, tmp_path / "two.pt", *flags)])
    assert done.returncode == 0, done.stderr
    assert_close(tmp_path / "two.pt", tmp_path / "one.pt")


@pytest.mark.nightly
def test_a_command_gives_the_run_of_the_folder(data: Path, tmp_path: Path) -> None:
    """Fetched while it trains, by two readers."""
    train.main(arguments(data / "train", tmp_path / "folder.pt"))
    command = f"pipe:sleep 0.03; cat {data}/train/{{000000..000011}}.tar"
    train.main(arguments(command, tmp_path / "piped.pt", "--workers", "2"))
    assert_same(*(bbdm.load_checkpoint(tmp_path / name).unet for name in ("piped.pt", "folder.pt")))


MANY = """
import resource, sys
from pathlib import Path
from bbdm.data.loading import Batches
from bbdm.data.pairs import load_dataset
import torch
pairs = load_dataset("shards", sys.argv[1], image_size=8)
wanted = int(sys.argv[2])
assert len(pairs) == wanted
order = pairs.order(1)
def rss():
    return int(Path("/proc/self/statm").read_text().split()[1]) * resource.getpagesize() / 2**20
seen, total, sizes = 0, 0, []
batches = Batches(pairs, 500, torch.device("cpu"))
for y, x0 in batches(i for start in range(0, wanted, 500) for i in order(start, start + 500)):
    seen, total = seen + len(y), total + int(((y[:, 0, 0, 0] + 1) * 127.5).round().sum())
    if seen % (wanted // 10) == 0:
        sizes.append(rss())
print(seen, total, *sizes)
"""


@pytest.mark.nightly
@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
def test_a_million_pairs_in_flat_memory(tmp_path: Path) -> None:
    """1,000 shards of 1,000 pairs of 8 x 8 pixels, which are links to 10 files."""
    from tests.data import tars

    made = [tars.sample(i % 250, f"{i:03d}") for i in range(1000)]
    first = [tars.write(tmp_path / f"{i}.whole", made[i:] + made[:i]) for i in range(10)]
    for i in range(1000):
        (tmp_path / f"{i:06d}.tar").hardlink_to(first[i % 10])
    entries = [{"url": f"{i:06d}.tar", "nsamples": 1000} for i in range(1000)]
    (tmp_path / "index.json").write_text(json.dumps({"shardlist": entries}))
    command = [sys.executable, "-c", MANY, str(tmp_path), str(10**6)]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True)
    seen, total, *sizes = map(float, done.stdout.split())
    assert (seen, total) == (10**6, 4000 * sum(range(250)))
    print("MiB:", sizes)
    assert max(sizes) < sizes[0] * 1.05 + 5, sizes
