"""A file that was trained from a network of diffusers, without its folder: exported, served and distilled."""

import shutil
from pathlib import Path

import numpy as np
import pytest
from diffusers.schedulers.scheduling_ddpm import DDPMScheduler
from PIL import Image

from bbdm import BridgeSampler, cli, load_checkpoint
from bbdm.runtime.sampler import OnnxBridgeSampler
from bbdm.serving.config import Serve
from tests.conftest import SavePicture, noise, save_random_pairs
from tests.files.test_pretrained import save
from tests.onnx.exports import export, needs_exporter
from tests.serving.conftest import same
from tests.serving.test_server import server

TRAINING = ["--image_size", "16", "-b", "2", "--device", "cpu", "--max_steps", "2"]


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory, save_picture: SavePicture) -> Path:
    """Four pairs, and out.pt."""
    folder = tmp_path_factory.mktemp("pretrained")
    save_random_pairs(folder / "data", 4, 2, save_picture)
    save(folder / "pixels", DDPMScheduler())
    start = ["--init_from", f"{folder / 'pixels'}", "-lr", "1e-3", "--warmup_steps", "0"]
    cli.run(
        "train", ["edge2shoes", f"{folder / 'data'}", f"{folder / 'out.pt'}", *start, *TRAINING]
    )
    shutil.rmtree(folder / "pixels")
    return folder


@pytest.fixture(scope="module")
def sampler(world: Path) -> BridgeSampler:
    return BridgeSampler.from_checkpoint(world / "out.pt", steps=3)


@needs_exporter
def test_its_graphs_make_the_same_pictures(world: Path, sampler: BridgeSampler) -> None:
    runtime = OnnxBridgeSampler(export(world / "out.pt", world / "graphs", "--steps", "3"))
    for size in ((16, 16), (24, 8)):
        picture = np.asarray(noise(0, *size))
        expected = np.asarray(sampler(picture, seed=1), dtype=int)
        assert expected.std() > 10
        assert np.abs(np.asarray(runtime(picture, seed=1), dtype=int) - expected).max() <= 1


def test_a_server_makes_the_same_picture(world: Path, sampler: BridgeSampler) -> None:
    replica = Serve(model=world / "out.pt").open("cpu")
    ((status, result),) = server.translate_together(
        replica, [(np.asarray(noise(0)), server.Query(steps=3, seed=1))]
    )
    assert status == 200
    assert same(Image.fromarray(result), sampler(noise(0), 1)[0])


def test_its_student_has_two_calls(world: Path) -> None:
    student = world / "student.pt"
    cli.run(
        "distill",
        [f"{world / 'out.pt'}", f"{world / 'data'}", f"{student}", "--calls", "2", *TRAINING],
    )
    loaded = load_checkpoint(student)
    teacher = load_checkpoint(world / "out.pt")
    assert (loaded.unet.kind, loaded.defaults.calls, loaded.bridge) == (
        "pretrained",
        2,
        teacher.bridge,
    )
    assert np.asarray(BridgeSampler.from_checkpoint(student)(noise(0), seed=1)).std() > 10
