"""The script that distils."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch

import bbdm
from bbdm.base import scripts
from bbdm.bridges import BrownianBridge
from bbdm.cli import distill, translate
from bbdm.runtime import OnnxBridgeSampler
from tests.conftest import SavePicture, save_random_pairs, tiny_unet
from tests.networks.test_vqgan import tiny_vqgan
from tests.onnx.exports import export
from tests.training.launching import ALONE, TORCHRUN, run

BRIDGE = BrownianBridge(1000, objective="pinned")


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory, save_picture: SavePicture) -> Path:
    """Four training pairs and two validation pairs, side by side."""
    return save_random_pairs(tmp_path_factory.mktemp("edges"), 4, 2, save_picture)


@pytest.fixture
def teacher(tmp_path: Path) -> Path:
    unet = tiny_unet(condition_channels=3, dropout=0.1)
    bbdm.save_checkpoint(tmp_path / "teacher.pt", unet, BRIDGE, image_size=16)
    return tmp_path / "teacher.pt"


def words(teacher: Path, data: Path, *flags: Any) -> list[str]:
    common = ["-b", "2", "-e", "1", "--device", "cpu", *map(str, flags)]
    return [str(teacher), str(data), str(teacher.parent / "student.pt"), *common]


def refusal(arguments: list[str]) -> str:
    with pytest.raises(SystemExit) as error:
        scripts.run(lambda: distill.main(arguments))
    return f"{error.value} {type(error.value.__cause__).__name__}"


def averaged(student: Path) -> dict[str, torch.Tensor]:
    weights = bbdm.load_checkpoint(student).unet.ema
    assert weights is not None
    return weights


def test_there_is_no_loss_to_choose(teacher: Path, data: Path, capsys: pytest.CaptureFixture[str]):
    """A student's is the energy score."""
    with pytest.raises(SystemExit):
        distill.main(words(teacher, data, "--loss", "l2"))
    assert "--loss" in capsys.readouterr().err


@pytest.mark.parametrize("calls", [pytest.param(1, marks=pytest.mark.nightly), 2])
def test_a_student_is_sampled_with_its_calls_by_every_program(calls: int, teacher: Path, data: Path, tmp_path: Path):
    distill.main(words(teacher, data, "--calls", calls))
    student = tmp_path / "student.pt"
    loaded = bbdm.load_checkpoint(student)
    assert (loaded.calls, loaded.bridge, loaded.image_size, loaded.training) == (calls, BRIDGE, 16, None)
    explicit = ["--solver", "consistency", "--steps", str(calls)]
    for name, flags in (("results", []), ("again", explicit)):
        translate.main(["edge2shoes", str(data), str(student), str(tmp_path / name), "--device", "cpu", *flags])
    assert (tmp_path / "again" / "04.png").read_bytes() == (tmp_path / "results" / "04.png").read_bytes()
    if calls == 2:  # of weights that other tests export too
        bbdm.save_checkpoint(student, tiny_unet(condition_channels=3), BRIDGE, image_size=16, calls=calls)
    exported = OnnxBridgeSampler(export(student, tmp_path / "onnx", "--pipeline", "--check"))
    assert len(exported.table) == calls
    with pytest.warns(UserWarning, match=f"distilled for calls={calls}"):
        exported(torch.full((1, 3, 16, 16), -0.5).numpy(), seed=0, steps=9)


def test_the_same_command_goes_on(teacher: Path, data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    """And metrics have the energy score of the validation pairs."""

    def run_until(epochs: int, folder: str) -> dict[str, torch.Tensor]:
        flags = ["-e", epochs, "--experiment", tmp_path / folder, "--lr_schedule", "constant"]
        distill.main(words(teacher, data, *flags))
        return averaged(tmp_path / "student.pt")

    expected = run_until(2, "whole")
    run_until(1, "parts")
    made = run_until(2, "parts")
    assert all(torch.equal(made[key], expected[key]) for key in expected)
    metrics = [json.loads(line) for line in (tmp_path / "parts" / "metrics.jsonl").read_text().splitlines()]
    assert [m["epoch"] for m in metrics] == [1, 2]
    assert all(m["validation_loss"] > 0 for m in metrics)
    run_until(2, "parts")
    assert "nothing is left to train" in capsys.readouterr().out


@pytest.mark.nightly
@pytest.mark.parametrize("flags", [[], ["--compile"]], ids=["eager", "compiled"])
def test_two_processes_are_one(flags: list[str], teacher: Path, data: Path, tmp_path: Path):
    made: list[dict[str, torch.Tensor]] = []
    for name, start in {"one": ALONE, "two": TORCHRUN}.items():
        folder = ["--experiment", tmp_path / name, "--precision", "fp32", *flags]
        done = run([*start, "examples.distill", *words(teacher, data, *folder)])
        assert done.returncode == 0, done.stderr
        made.append(averaged(tmp_path / "student.pt"))
    for key, value in made[0].items():
        torch.testing.assert_close(made[1][key], value, rtol=0, atol=1e-6)


def test_in_latents_the_codec_is_the_teachers(data: Path, tmp_path: Path):
    codec = bbdm.VQGANCodec(tiny_vqgan())
    unet = tiny_unet(condition_channels=3)
    bbdm.save_checkpoint(tmp_path / "teacher.pt", unet, BRIDGE, codec=codec, image_size=16)
    distill.main(words(tmp_path / "teacher.pt", data))
    made = bbdm.load_checkpoint(tmp_path / "student.pt").build_codec()
    assert made is not None
    assert made.digest() == codec.digest()


def test_what_is_refused(teacher: Path, data: Path, tmp_path: Path):
    unet = tiny_unet(condition_channels=3)
    bbdm.save_checkpoint(tmp_path / "sizeless.pt", unet, BRIDGE)
    for arguments, message in (
        (words(tmp_path / "sizeless.pt", data), "give image_size"),
        (words(teacher, data, "--calls", 0), "calls must be at least 1, got 0"),
        (words(teacher, tmp_path / "none"), "no folder"),
        (words(teacher, data, "-lr", "1e30", "-e", "3", "--lr_schedule", "constant"), "1 DivergedError"),
    ):
        assert message in refusal(arguments)
    distill.main(words(teacher, data, "--overwrite"))
    message = refusal(words(teacher, data, "--calls", 1))
    assert "was trained with calls=2" in message
    assert "or overwrite this run" in message
