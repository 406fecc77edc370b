"""`bbdm translate --memory`: pictures that are larger than memory, and what is left of them."""

import json
import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from bbdm import ABridge, cli, pictures, save_checkpoint
from bbdm.base import scripts
from bbdm.base.atomic import file_sha256
from bbdm.cli import translate
from bbdm.data.spec import Spec
from bbdm.pictures import formats
from bbdm.pictures.values import Values
from bbdm.sampling.large import LargePicture
from bbdm.translation import large
from tests.conftest import ROOT, tiny_unet

HEIGHT, WIDTH, LITTLE = 46, 62, "600K"
WORDS, FLAGS = ["folder", "own", "c.pt"], ["--steps", "2", "--window", "16", "--size", "keep"]


@pytest.fixture(autouse=True)
def place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A folder for sources, and a checkpoint."""
    (tmp_path / "own").mkdir()
    save_checkpoint(
        tmp_path / "c.pt", tiny_unet(condition_channels=3), ABridge(num_steps=50), image_size=16
    )
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(os, "fsync", lambda _: None)


def save(name: str = "a.png", **options: Any) -> None:
    """A source of 8 bits."""
    pixels = np.random.default_rng(0).integers(0, 256, (HEIGHT, WIDTH, 3), dtype=np.uint8)
    Image.fromarray(pixels).save(f"own/{name}", **options)


def run(output: str, *flags: str) -> dict[str, Any]:
    """The settings of the results."""
    translate.main([*WORDS, output, *FLAGS, "-b", "4", *flags])
    assert not [*Path(output).glob(".*")]
    return json.loads(Path(output, "settings.json").read_text())["settings"]


@pytest.mark.parametrize("flags", [(), ("--degrade", "jpeg")], ids=["", "degraded"])
def test_little_and_much_memory_make_equal_results(
    flags: tuple[str, ...], capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
):
    """To a level. The sheet has no picture that is too large; the degradation is of the whole picture."""
    monkeypatch.setattr(large, "DRAWN", 1000)
    exif = Image.Exif()
    exif[274] = 6  # the camera was turned
    save("a.jpg", exif=exif)
    assert run("little", "--memory", LITTLE, *flags) == run("much", "--memory", "1G", *flags)
    texts = [Image.open(f"{folder}/a.png").info["Description"] for folder in ("little", "much")]
    assert texts[0] == texts[1]
    assert texts[0].startswith("made by bbdm: model ")
    little, much = (
        np.asarray(Image.open(f"{folder}/a.png"), float) for folder in ("little", "much")
    )
    assert little.shape == (WIDTH, HEIGHT, 3)
    assert little.std() > 1
    assert np.abs(little - much).max() <= 1
    shown = capsys.readouterr().out
    for part in (
        "a.png: its steps take up to",
        "in little/.a.png.steps",
        "to look at: much/grid.png",
    ):
        assert part in shown
    assert "little/grid.png" not in shown
    with pytest.raises(
        ValueError, match=r"own/a\.jpg of 62 x 46 needs about .* KB of memory, more than 400"
    ):
        run("out", "--memory", "400K", "--window", "none")


def test_pictures_that_fit_one_by_one_are_not_written_to_files(
    count: list[int], capsys: pytest.CaptureFixture[str]
):
    for i in range(5):
        save(f"{i}.png")
    run("some", "--memory", "1.6M")
    run("all", "--memory", "1G")
    assert count == [2, 2, 1, 4, 1]
    assert "steps" not in capsys.readouterr().out
    for i in range(5):
        some, whole = (
            np.asarray(Image.open(Path(folder, f"{i}.png")), int) for folder in ("some", "all")
        )
        assert np.abs(some - whole).max() <= 1


@pytest.mark.parametrize(
    ("sent", "status"), [(signal.SIGTERM, scripts.TERMINATED), (signal.SIGINT, 130)]
)
def test_an_interrupted_picture_keeps_its_steps(
    sent: signal.Signals,
    status: int,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
):
    """The message says where, and the same command makes the rest: what an undisturbed one makes."""
    save()
    run("alone", "--memory", LITTLE)
    advance, calls = LargePicture._advance, list[int]()

    def stop(self: LargePicture, count: int) -> None:
        before = sum(calls)
        calls.append(count)
        if before <= self._total // 2 < sum(calls):  # in the second of two steps
            os.kill(os.getpid(), sent)
        advance(self, count)

    monkeypatch.setattr(LargePicture, "_advance", stop)
    # a shell's background job ignores SIGINT, and so would these tests in one
    before_test = signal.signal(signal.SIGINT, signal.default_int_handler)
    try:
        with pytest.raises(SystemExit) as caught:
            cli.run("translate", [*WORDS, "out", *FLAGS, "-b", "4", "--memory", LITTLE])
    finally:
        signal.signal(signal.SIGINT, before_test)
    assert caught.value.code == status
    kept = "the steps that are done are in out/.a.png.steps, and the same command goes on from them"
    assert kept in capsys.readouterr().err
    made = sum(calls)
    run("out", "--memory", LITTLE)
    assert sum(calls) - made < made, "the first step is not made again"
    assert Path("out/a.png").read_bytes() == Path("alone/a.png").read_bytes()


PEAK = """
import resource, sys
import numpy as np
from pathlib import Path
from torch import nn
from bbdm import ABridge, BridgeSampler, pictures, wrap
from bbdm.data import Pairs
from bbdm.sampling.large import LargePicture
from bbdm.sampling.options import GuidanceOptions
path, side, memory = sys.argv[1], int(sys.argv[2]), int(sys.argv[3])
class Net(nn.Conv2d):
    def forward(self, x, t, source):
        return super().forward(x) + source
def peak():
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
def make(side, name):
    pictures.write(name + ".tif", np.broadcast_to(np.arange(side, dtype=np.uint8), (3, side, side)))
    sampler = BridgeSampler(wrap(Net(3, 3, 1), 3, 3), ABridge(num_steps=100), "sde-dpm2m", 2)
    row = {"name": name, "source": Path(name + ".tif")}
    strips = Pairs([row]).reader.strips(row)
    windows = sampler.window_grid(GuidanceOptions(window=256), (side, side), 16)
    LargePicture(sampler, strips, windows, 0, memory).run(Path(name + ".npy"), {})
make(300, path + "/small")
before = peak()
make(side, path + "/large")
print(peak() - before)
"""


@pytest.mark.nightly
@pytest.mark.skipif(
    not Path("/proc").exists(), reason="the unit of the peak is another on other systems"
)
def test_the_peak_of_memory_follows_the_limit(tmp_path: Path):
    """6 million values, of which a call would take 800 MB."""
    memory = 100 * 2**20
    command = [sys.executable, "-c", PEAK, str(tmp_path), "2400", str(memory)]
    variables = {**os.environ, "PYTHONPATH": str(ROOT)}
    grown = int(
        subprocess.run(command, env=variables, capture_output=True, text=True, check=True).stdout
    )
    assert grown < memory


def digests(folder: Path) -> dict[str, str]:
    """The SHA-256 of each file of a folder, by its name."""
    files = [path for path in folder.rglob("*") if path.is_file()]
    return {path.relative_to(folder).as_posix(): file_sha256(path) for path in files}


def killed(process: subprocess.Popen[bytes], seconds: float) -> bool:
    """Whether a process ran for longer than some seconds, and was killed."""
    try:
        process.wait(seconds)
    except subprocess.TimeoutExpired:
        process.kill()
        process.wait()
        return True
    return False


@pytest.mark.nightly
@pytest.mark.skipif(sys.platform != "linux", reason="no SIGKILL there")
@pytest.mark.skipif(sys.version_info < (3, 11), reason="zarr 3 is of Python 3.11")
def test_a_zarr_that_is_killed_again_and_again_is_that_of_an_undisturbed_run():
    """210 MB of 16 bits, 8 % stored, 20 kills at random times: the same command goes on."""
    side = 10240
    blank = pictures.Picture(np.broadcast_to(np.uint16(0), (1, side, side)))
    canvas = formats.module("omezarr").create(Path("own/a.ome.zarr"), blank, 0)
    stored = np.random.default_rng(0).integers(1, 4000, (1, 2900, 2900), dtype=np.uint16)
    canvas.write((slice(0, 2900), slice(0, 2900)), stored)
    canvas.finish()
    sizes = {"channel_mult": (1, 1, 1, 1), "attention_resolutions": ()}
    network = tiny_unet(in_channels=1, out_channels=1, condition_channels=1, **sizes)
    gray = Spec(source=Values(0, 4000, dtype="uint16"), target=Values(0, 4000, dtype="uint16"))
    save_checkpoint("c.pt", network, ABridge(num_steps=50), image_size=16, pictures=gray)
    flags = [
        "--steps",
        "2",
        "--window",
        "256",
        "--size",
        "keep",
        "--memory",
        "300M",
        "--device",
        "cpu",
    ]
    command = [sys.executable, "-m", "bbdm", "translate", *WORDS]
    variables = {**os.environ, "PYTHONPATH": str(ROOT)}

    def begin(output: str) -> subprocess.Popen[bytes]:
        with Path("log").open("w") as log:
            return subprocess.Popen(
                [*command, output, *flags], env=variables, stdout=log, stderr=log
            )

    began = time.monotonic()
    assert begin("alone").wait() == 0
    seconds = time.monotonic() - began
    expected = digests(Path("alone/a.ome.zarr"))
    moments = random.Random(0)
    kills = 0
    run = 0
    while kills < 20:
        run += 1
        process = begin(f"out{run}")
        while kills < 20 and killed(process, moments.uniform(0, seconds)):
            kills += 1
            process = begin(f"out{run}")
        assert process.wait() == 0, Path("log").read_text()[-2000:]
        assert digests(Path(f"out{run}/a.ome.zarr")) == expected
        assert not [*Path(f"out{run}").glob(".*")], "nothing is left of the kills"
