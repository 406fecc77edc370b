"""`bbdm distill` as a user runs it, with networks too small to be good."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch

import bbdm
from bbdm.bridges import BrownianBridge
from bbdm.cli import translate
from bbdm.cli.distill import Distill
from bbdm.data.provenance import Record
from bbdm.data.trained import Trained
from bbdm.training.run import RunFolder
from tests.cli.conftest import SIZE
from tests.conftest import tiny_unet
from tests.networks.test_vqgan import tiny_vqgan
from tests.training.launching import ALONE, TORCHRUN, run

BRIDGE = BrownianBridge(1000, objective="pinned")


@pytest.fixture(autouse=True)
def teacher(world: Path) -> None:
    bbdm.save_checkpoint(
        "teacher.pt", tiny_unet(condition_channels=3, dropout=0.1), BRIDGE, image_size=SIZE
    )


def words(*flags: Any, teacher: str = "teacher.pt", data: str = "data") -> list[str]:
    return [teacher, data, "student.pt", "-b", "2", "-e", "1", "--device", "cpu", *map(str, flags)]


def test_a_student_has_its_calls_and_its_teachers_codec_and_resumes():
    """Metrics have the energy score of the validation pairs."""
    codec = bbdm.VQGANCodec(tiny_vqgan())
    bbdm.save_checkpoint(
        "teacher.pt", tiny_unet(condition_channels=3), BRIDGE, codec=codec, image_size=SIZE
    )
    flags = ["--calls", 2, "--image_size", 8, "--lr_schedule", "constant"]
    for epochs in (1, 2):
        Distill.main(words(*flags, "-e", epochs))
    metrics = [
        json.loads(line) for line in Path("student.run/metrics.jsonl").read_text().splitlines()
    ]
    assert [(m["epoch"], m["validation_loss"] > 0) for m in metrics] == [(1, True), (2, True)]
    loaded = bbdm.load_checkpoint("student.pt")
    assert (loaded.defaults.calls, loaded.bridge, loaded.image_size, loaded.training) == (
        2,
        BRIDGE,
        8,
        None,
    )
    assert (found := loaded.build_codec()) is not None
    assert found.digest() == codec.digest()
    translate.main(["edge2shoes", "data", "student.pt", "results", "--device", "cpu"])
    settings = json.loads(Path("results/settings.json").read_text())["settings"]
    assert (settings["solver"], settings["nfe"]) == ("consistency", 2)
    with pytest.raises(
        ValueError, match=r"was trained with calls 2, now 1.* or overwrite this run"
    ):
        Distill.main(words(*flags, "--calls", 1))
    bbdm.save_checkpoint("sizeless.pt", tiny_unet(condition_channels=3), BRIDGE)
    with pytest.raises(ValueError, match="give image_size"):
        Distill.main(words(teacher="sizeless.pt"))


def test_the_run_of_a_student_has_the_pairs_of_its_teacher(world: Path):
    """So that the student is not judged on them."""
    record = Record({"x": ["0", "1"]}, {}, ["film 1"])
    run_folder = RunFolder(world / "teacher.run", keep=1)
    run_folder.path.mkdir()
    run_folder.begin(0, {}, record)
    run_folder.save("teacher.pt", bbdm.load_checkpoint("teacher.pt").snapshot())
    Distill.main(words("--max_steps", 1))
    trained = Trained.of_origin(bbdm.load_checkpoint("student.pt").origin)
    assert trained is not None
    assert (len(trained.record.contents), trained.record.earlier) == (4, [{"x": ["0", "1"]}])
    assert trained.record.groups == ["film 1"]


@pytest.mark.nightly
@pytest.mark.parametrize("flags", [[], ["--compile"]], ids=["eager", "compiled"])
def test_two_processes_are_one(flags: list[str], world: Path):
    made: list[dict[str, torch.Tensor]] = []
    where = {"teacher": str(world / "teacher.pt"), "data": str(world / "data")}
    for name, start in {"one": ALONE, "two": TORCHRUN}.items():
        given = words("--experiment", world / name, "--precision", "fp32", *flags, **where)
        given[2] = str(world / "student.pt")
        done = run([*start, "examples.distill", *given])
        assert done.returncode == 0, done.stderr
        made.append(bbdm.load_checkpoint("student.pt").build_unet().state_dict())
    for key, value in made[0].items():
        torch.testing.assert_close(made[1][key], value, rtol=0, atol=1e-6)
