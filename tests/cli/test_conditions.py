"""Commands with conditions and directions as a user runs them, with a network too small to be good."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from torch import nn

from bbdm import ABridge, BridgeSampler, load_checkpoint, save_checkpoint
from bbdm.base.seeds import seed_of
from bbdm.cli import eval, train, translate
from bbdm.cli.distill import Distill
from bbdm.cli.eval import Calibrate
from bbdm.data.spec import Spec
from bbdm.pictures import Picture
from bbdm.pictures.values import Values
from tests.cli.conftest import SIZE, pixels, sides
from tests.conftest import SavePicture, noise, tiny_unet

COLUMNS = "data,sar=sar,style=labels.csv,text=text"
SEEN = ["--condition", "sar=image@0:51,style=class,text=tokens", "--drop", "style:0.2,text:0.1"]
SMALL = [
    "--preset",
    "demo",
    "-b",
    "2",
    "--image_size",
    str(SIZE),
    "--device",
    "cpu",
    "--lr_schedule",
    "constant",
]
STUDENT = ["-b", "2", "-e", "1", "--device", "cpu", "--calls", "1"]
FLAGS = ["--steps", "2", "--device", "cpu", "--quiet"]
NETWORK: Any = {"images": {"sar": 1}, "classes": {"style": ("a", "b", "c")}, "tokens": {"text": 3}}


@pytest.fixture(autouse=True)
def place(world: Path, save_picture: SavePicture, tiny_demo: None) -> None:
    """Columns of conditions; networks whose conditions count, c.pt, and whose direction counts, both.pt."""
    lines: list[str] = []
    (world / "text").mkdir()
    for i in range(7):
        save_picture(world / "sar" / f"{i:02d}.png", noise(50 + i).convert("L"))
        np.save(world / "text" / f"{i:02d}.npy", np.full((1 + i, 3), 1 + i, np.float32))
        lines.append(f"{i:02d},{'cab'[i % 3]}")
    (world / "labels.csv").write_text("\n".join(lines))
    settings: dict[str, Any] = {"c": NETWORK | {"drop": {"text": 0.1}}}
    settings["both"] = {"classes": {"direction": ("AtoB", "BtoA")}}
    for name, each in settings.items():
        unet = tiny_unet(condition_channels=3, **each)
        for parameter in unet.parameters():
            nn.init.normal_(parameter, std=0.3)
        save_checkpoint(world / f"{name}.pt", unet, ABridge(num_steps=100), image_size=SIZE)


def fit(*words: str, data: str = COLUMNS) -> None:
    train.main(["edge2shoes", data, "t.pt", *SMALL, *words])


def relabel(old: str, new: str) -> None:
    Path("labels.csv").write_text(Path("labels.csv").read_text().replace(old, new))


def sar(name: str) -> torch.Tensor:
    return torch.from_numpy(pixels(f"sar/{name}.png") / np.float32(127.5) - 1)[None, None]


def expected(
    source: Any, seed: int, style: str, text: Any = None, name: str = ""
) -> np.ndarray[Any, Any]:
    """The result of Python for a source."""
    sampler = BridgeSampler.from_checkpoint("c.pt", steps=2)
    conditions = {"sar": sar(name), "style": style, "text": text}
    return np.asarray(sampler([source], seed=seed, conditions=conditions)[0], dtype=int)


def test_a_run_has_the_conditions_of_its_pairs() -> None:
    """And validation has the classes of training, and a student what its teacher has learned of them."""
    fit(*SEEN, "-e", "1")
    Distill.main(["t.pt", COLUMNS, "s.pt", *STUDENT])
    conditions = load_checkpoint("t.pt").pictures.conditions
    assert load_checkpoint("s.pt").pictures.conditions == conditions
    assert conditions["sar"].values == Values(0, 51)
    config = load_checkpoint("t.pt").unet.config
    assert {name: getattr(config, name) for name in NETWORK} == NETWORK
    assert config.drop == {"style": 0.2, "text": 0.1}
    relabel("00,c", "00,a")
    with pytest.raises(ValueError, match=r"was trained with pairs\.names \w{8}, now \w{8}"):
        fit(*SEEN, "-e", "2")


def test_a_translation_takes_its_columns(capsys: pytest.CaptureFixture[str]) -> None:
    words = ["edge2shoes", COLUMNS, "c.pt"]
    translate.main([*words, "results", *FLAGS])
    for i, name in enumerate(("04", "05", "06")):
        wanted = expected(sides(name)[0], i, "abc"[i], np.load(f"text/{name}.npy"), name)
        assert abs(pixels(f"results/{name}.png") - wanted).max() <= 1, name
    relabel("04,a", "04,b")
    translate.main([*words, "results", *FLAGS])
    assert "1 results are made anew" in capsys.readouterr().out
    wanted = expected(sides("04")[0], 0, "b", np.load("text/04.npy"), "04")
    assert abs(pixels("results/04.png") - wanted).max() <= 1


def test_one_class_for_all_and_a_condition_left_out(save_picture: SavePicture) -> None:
    """Of pictures of several sizes."""
    for name, size in (("0", (16, 8)), ("1", (8, 16))):
        save_picture(Path("sar", f"{name}.png"), noise(int(name), *size).convert("L"))
        save_picture(Path("pictures", f"{name}.png"), noise(int(name), *size))
    words = ["folder", "pictures,sar=sar", "c.pt", "results", "--size", "keep", *FLAGS]
    translate.main([*words, "--condition", "style=b"])
    for name in "01":
        wanted = expected(Image.open(f"pictures/{name}.png"), seed_of(name), "b", name=name)
        assert abs(pixels(f"results/{name}.png") - wanted).max() <= 1
    with pytest.raises(ValueError, match=r"labels.style b, now c"):
        translate.main([*words, "--condition", "style=c"])


def test_maps_and_intervals_have_conditions_too() -> None:
    words = ["edge2shoes", "data,sar=sar,style=labels.csv"]
    flags = ["--solver", "sde-dpm2m", "--samples", "2"]
    Calibrate.main(["c.pt", *words, "--alpha", "0.9", "--bound", "conformal", *FLAGS, *flags])
    translate.main([*words, "c.pt", "maps", *FLAGS, *flags, "--maps", "mean,low"])
    sampler = BridgeSampler.from_checkpoint("c.pt", steps=2, solver="sde-dpm2m")
    conditions = {"sar": sar("05"), "style": "b", "text": None}
    made = sampler.distribution([sides("05")[0]], 2, [[1, 4]], conditions=conditions)
    assert abs(pixels("maps/05_mean.png") - np.asarray(made.mean[0], int)).max() <= 1


def test_slices_of_a_volume_see_those_of_its_images() -> None:
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
    slices = torch.from_numpy(further.transpose(2, 0, 1, 3))
    given = {"sar": slices, "style": "c", "text": np.load("text/05.npy")}
    sampler = BridgeSampler.from_checkpoint("v.pt", steps=2)
    (wanted,) = sampler([Picture(volume)], seed=seed_of("05"), conditions=given)
    np.testing.assert_allclose(np.load("results/05.npy"), wanted, rtol=0, atol=1e-5)


def test_results_go_the_way_of_the_flag() -> None:
    """Of scores and of intervals too."""
    sampler, (source, target) = BridgeSampler.from_checkpoint("both.pt", steps=2), sides("04")
    words, back = ["edge2shoes", "data", "both.pt"], ["--direction", "BtoA"]
    for way, given in {"AtoB": np.asarray(source), "BtoA": target.astype(np.uint8)}.items():
        translate.main([*words, way, *FLAGS, "--direction", way])
        assert abs(pixels(f"{way}/04.png") - sampler(given, 0, direction=way)).max() <= 1
    eval.main([*words, "scores", "--metrics", "psnr", *back, *FLAGS])
    assert json.loads(Path("scores/scores.json").read_text())["settings"]["direction"] == "BtoA"
    calibrated = ["--samples", "2", "--bound", "conformal", "--alpha", "0.5"]
    Calibrate.main(["both.pt", *words[:2], *calibrated, *back, *FLAGS])
    translate.main([*words, "low", "--device", "cpu", "--maps", "low", *back])
    for flags, message in (
        ([*words, "AtoB", *back, *FLAGS], r"holds results of other settings \(direction"),
        (
            [*words, "x", "--condition", "direction=BtoA", *FLAGS],
            "the direction is --direction, and no --condition",
        ),
    ):
        with pytest.raises(ValueError, match=message):
            translate.main(flags)


def test_both_directions_are_trained_resumed_and_distilled() -> None:
    """A student has the conditions of its teacher."""
    fit("--direction", "both", "-e", "1", data="data")
    fit("--direction", "both", "-e", "2", data="data")
    assert load_checkpoint("t.pt").unet.config.two_way
    assert len(Path("t.run/metrics.jsonl").read_text().splitlines()) == 2
    Distill.main(["t.pt", "data", "s.pt", *STUDENT, "--direction", "both"])
    assert load_checkpoint("s.pt").unet.config.two_way
    other = "the network has two directions, and trains on both; got direction 'AtoB'"
    with pytest.raises(ValueError, match=other):
        fit("-e", "2", data="data")
    with pytest.raises(ValueError, match=other):
        Distill.main(["t.pt", "data", "other.pt", *STUDENT])
    with pytest.raises(ValueError, match=r"the network takes .*'sar' \(1 .*, got dem"):
        Distill.main(
            ["c.pt", f"{COLUMNS},dem=sar", "other.pt", *STUDENT, "--condition", "dem=image"]
        )
