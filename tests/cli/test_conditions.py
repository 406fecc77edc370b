"""Commands with conditions as a user runs them, with a network too small to be good."""

import json
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from torch import nn

from bbdm import ABridge, BridgeSampler, load_checkpoint, save_checkpoint
from bbdm.base.seeds import seed_of
from bbdm.cli import distill, train, translate
from bbdm.cli.eval import Calibrate
from bbdm.data.spec import Spec
from bbdm.networks.conditions import ConditionsConfig
from bbdm.pictures import Picture
from bbdm.pictures.values import Values
from bbdm.translation.results import ResultsError
from tests.conftest import SavePicture, noise, save_random_pairs, tiny_unet

SIZE = 16
TOLD = "data,sar=sar,style=labels.csv,text=text"
SEEN = ["--condition", "sar=image,style=class,text=tokens"]
TRAIN = ["edge2shoes", TOLD, "c.pt", "--preset", "demo", "-b", "2", "--image_size", str(SIZE), "--device", "cpu"]
TRAIN += ["--lr_schedule", "constant"]  # which is that of any number of epochs
DROP = ["--drop", "style:0.2,text:0.1"]
FLAGS = ["--steps", "2", "--device", "cpu"]
NETWORK: Any = {"images": {"sar": 1}, "classes": {"style": ("a", "b", "c")}, "tokens": {"text": 3}}


@pytest.fixture
def place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, save_picture: SavePicture, tiny_demo: None) -> Path:
    """Four training pairs and three for validation, with conditions."""
    save_random_pairs(tmp_path / "data", 4, 3, save_picture)
    lines: list[str] = []
    (tmp_path / "text").mkdir()
    for i in range(7):
        save_picture(tmp_path / "sar" / f"{i:02d}.png", noise(50 + i).convert("L"))
        np.save(tmp_path / "text" / f"{i:02d}.npy", np.full((1 + i, 3), 1 + i, np.float32))
        lines.append(f"{i:02d},{'cab'[i % 3]}")
    (tmp_path / "labels.csv").write_text("\n".join(lines))
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.fixture
def network(place: Path) -> Path:
    """A network whose every condition counts."""
    unet = tiny_unet(condition_channels=3, **NETWORK, drop={"text": 0.1})
    for parameter in unet.parameters():
        nn.init.normal_(parameter, std=0.3)
    save_checkpoint(place / "c.pt", unet, ABridge(num_steps=100), image_size=SIZE)
    return place / "c.pt"


def result(path: str) -> np.ndarray[Any, Any]:
    return np.asarray(Image.open(path), dtype=int)


def source(name: str) -> Image.Image:
    return Image.open(f"data/val/{name}.png").crop((0, 0, SIZE, SIZE))


def sar(name: str) -> torch.Tensor:
    return torch.from_numpy(np.asarray(Image.open(f"sar/{name}.png")) / np.float32(127.5) - 1)[None, None]


def test_a_run_has_the_conditions_of_its_pairs(place: Path) -> None:
    train.main([*TRAIN, *SEEN, *DROP, "-e", "1"])
    config = load_checkpoint("c.pt").unet.config
    assert {name: getattr(config, name) for name in NETWORK} == NETWORK
    assert config.drop == {"style": 0.2, "text": 0.1}
    train.main([*TRAIN, *SEEN, *DROP, "-e", "2"])
    Path("labels.csv").write_text(Path("labels.csv").read_text().replace("00,c", "00,a"))
    with pytest.raises(ValueError, match=r"pairs of other names"):
        train.main([*TRAIN, *SEEN, *DROP, "-e", "3"])


@pytest.mark.nightly
def test_a_run_with_conditions_resumes_exactly(place: Path) -> None:
    train.main([*TRAIN, *SEEN, *DROP, "-e", "2"])
    whole = load_checkpoint("c.pt").unet
    shutil.rmtree("c.run")
    train.main([*TRAIN, *SEEN, *DROP, "-e", "1"])
    train.main([*TRAIN, *SEEN, *DROP, "-e", "2", "--cache_images", "cache"])
    parts = load_checkpoint("c.pt").unet
    for name, weight in (whole.ema or whole.weights or {}).items():
        assert torch.equal(weight, (parts.ema or parts.weights or {})[name]), name


def test_validation_has_the_classes_of_training(place: Path) -> None:
    Path("labels.csv").write_text("00,a\n01,a\n02,b\n03,b\n04,a\n05,c\n06,b")
    with pytest.raises(ValueError, match=r"data/val/05.png: 'c' is no class of 'style', which are a, b"):
        train.main([*TRAIN, "--condition", "style=class", "-e", "1"])
    Path("labels.csv").write_text("\n".join(f"{i:02d},a" for i in range(7)))
    with pytest.raises(ValueError, match=r"drop must be of the conditions style, got 'stile'"):
        train.main([*TRAIN, "--condition", "style=class", "--drop", "stile:0.1", "-e", "1"])


def test_a_translation_is_told_what_lies_there(network: Path) -> None:
    translate.main(["edge2shoes", TOLD, "c.pt", "results", *FLAGS])
    sampler = BridgeSampler.from_checkpoint("c.pt", steps=2)
    for i, name in enumerate(("04", "05", "06")):
        tokens = np.load(f"text/{name}.npy")
        (wanted,) = sampler([source(name)], seed=i, conditions={"sar": sar(name), "style": "abc"[i], "text": tokens})
        assert abs(result(f"results/{name}.png") - np.asarray(wanted, int)).max() <= 1, name
    kept = json.loads(Path("results/settings.json").read_text())["settings"]
    assert kept["unet"]["classes"] == {"style": ["a", "b", "c"]}
    Path("labels.csv").write_text(Path("labels.csv").read_text().replace("04,a", "04,b"))
    with pytest.raises(ResultsError, match="files "):
        translate.main(["edge2shoes", TOLD, "c.pt", "results", *FLAGS])
    Path("labels.csv").write_text(Path("labels.csv").read_text().replace("04,b", "04,d"))
    with pytest.raises(ValueError, match=r"data/val/04.png: 'd' is no class of 'style', which are a, b, c"):
        translate.main(["edge2shoes", TOLD, "c.pt", "others", *FLAGS])


def test_one_class_for_all_and_a_condition_left_out(network: Path) -> None:
    words = ["edge2shoes", "data,sar=sar", "c.pt"]
    translate.main([*words, "results", *FLAGS, "--condition", "style=b"])
    sampler = BridgeSampler.from_checkpoint("c.pt", steps=2)
    (wanted,) = sampler([source("06")], seed=2, conditions={"sar": sar("06"), "style": "b", "text": None})
    assert abs(result("results/06.png") - np.asarray(wanted, int)).max() <= 1
    translate.main([*words, "others", *FLAGS, "--condition", "style=c"])
    assert abs(result("results/06.png") - result("others/06.png")).max() > 1
    with pytest.raises(ResultsError, match=r"labels.style b, now c"):
        translate.main([*words, "results", *FLAGS, "--condition", "style=c"])
    with pytest.raises(ValueError, match=r"takes .*'style' \(3 classes: a, b, c\).*, got style=d"):
        translate.main([*words, "results", *FLAGS, "--condition", "style=d"])
    with pytest.raises(ValueError, match=r"this network takes .*: give a column 'style'"):
        translate.main([*words, "results", *FLAGS])


def test_pictures_of_several_sizes(network: Path) -> None:
    for name in ("sar", "pictures"):
        for number, size in enumerate([(16, 8), (8, 16)]):
            Path(name).mkdir(exist_ok=True)
            noise(number, *size).convert("RGB" if name == "pictures" else "L").save(f"{name}/{number}.png")
    flags = ["--condition", "style=b", "--size", "keep"]
    translate.main(["folder", "pictures,sar=sar", "c.pt", "results", *FLAGS, *flags])
    sampler = BridgeSampler.from_checkpoint("c.pt", steps=2)
    for name in "01":
        told = {"sar": sar(name), "style": "b", "text": None}
        (wanted,) = sampler([Image.open(f"pictures/{name}.png")], seed=seed_of(name), conditions=told)
        assert abs(result(f"results/{name}.png") - np.asarray(wanted, int)).max() <= 1


def test_maps_and_intervals_are_told_too(network: Path) -> None:
    words, flags = ["edge2shoes", "data,sar=sar,style=labels.csv"], ["--solver", "sde-dpm2m", "--samples", "2"]
    Calibrate.main(["c.pt", *words, "--alpha", "0.9", "--bound", "conformal", *FLAGS, *flags])
    translate.main([*words, "c.pt", "maps", *FLAGS, *flags, "--maps", "mean,low"])
    sampler = BridgeSampler.from_checkpoint("c.pt", steps=2, solver="sde-dpm2m")
    told = {"sar": sar("05"), "style": "b", "text": None}
    made = sampler.distribution([source("05")], 2, [[1, 4]], conditions=told)
    assert abs(result("maps/05_mean.png") - np.asarray(made.mean[0], int)).max() <= 1


def test_slices_of_a_volume_see_those_of_its_images(place: Path) -> None:
    unit = Values(-1, 1, dtype="float32")
    unet = tiny_unet(in_channels=1, out_channels=1, condition_channels=1, **NETWORK)
    spec = Spec(source=unit, target=unit, slices="coronal")
    save_checkpoint("v.pt", unet, ABridge(num_steps=100), image_size=8, pictures=spec)
    volume, further = np.random.default_rng(0).uniform(-1, 1, (2, 1, 8, 3, 8)).astype(np.float32)
    for name, array in {"volumes/05": volume, "further/05": further}.items():
        Path(name).parent.mkdir()
        np.save(f"{name}.npy", array)
    words = ["folder", "volumes,sar=further,text=text", "v.pt", "results"]
    translate.main([*words, *FLAGS, "--condition", "style=c"])
    sampler = BridgeSampler.from_checkpoint("v.pt", steps=2)
    slices = torch.from_numpy(further.transpose(2, 0, 1, 3))
    given = {"sar": slices, "style": "c", "text": np.load("text/05.npy")}
    (wanted,) = sampler([Picture(volume)], seed=seed_of("05"), conditions=given)
    np.testing.assert_allclose(np.load("results/05.npy"), wanted, rtol=0, atol=1e-5)


@pytest.mark.nightly
def test_a_student_is_told_what_its_teacher_is(network: Path) -> None:
    flags = ["-b", "2", "-e", "1", "--device", "cpu", "--calls", "1"]
    distill.main(["c.pt", TOLD, "student.pt", *flags])
    config = load_checkpoint("student.pt").unet.config
    assert replace(config, drop={}).settings() == ConditionsConfig(**NETWORK).settings()


def test_a_teacher_has_other_conditions(network: Path) -> None:
    flags = ["-b", "2", "-e", "1", "--device", "cpu", "--calls", "1"]
    with pytest.raises(ValueError, match=r"the network takes 'text' too"):
        distill.main(["c.pt", TOLD.removesuffix(",text=text"), "other.pt", *flags])
    with pytest.raises(ValueError, match=r"the network takes .*'sar' \(1 channels\).*, got dem"):
        distill.main(["c.pt", f"{TOLD},dem=sar", "other.pt", *flags, "--condition", "dem=image"])
