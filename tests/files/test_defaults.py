"""The solver and steps that a file keeps: who writes them, who takes them, and files that have none."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors import safe_open

from bbdm import BridgeSampler, BrownianBridge, demo, load_checkpoint, save_checkpoint
from bbdm.cli import translate
from bbdm.cli.eval import read_sweep
from bbdm.cli.files import describe
from bbdm.sampling.network_config import FileConfig
from bbdm.serving.config import AppConfig
from bbdm.solvers import Defaults
from tests.conftest import tiny_unet

BRIDGE = BrownianBridge(objective="pinned")
SOURCE = torch.rand(1, 3, 8, 8, generator=torch.Generator().manual_seed(0)) * 2 - 1
CHOSEN: dict[str, Any] = {"solver": "sde-dpm2m", "steps": 5}
Found = tuple[str, int]


def made(path: Path) -> Path:
    """A file, or the folder of a sampler, whose maker chose 5 steps of sde-dpm2m."""
    unet = tiny_unet(condition_channels=3)
    if path.suffix:
        save_checkpoint(path, unet, BRIDGE, image_size=8, **CHOSEN)
    else:
        BridgeSampler(unet, BRIDGE, **CHOSEN).save_pretrained(path)
    return path


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return made(tmp_path / "chosen.pt")


def found(sampler: Any) -> Found:
    return sampler.solver, len(sampler.table)


@pytest.mark.parametrize("name", ["a.pt", "a.safetensors", "folder"])
def test_samplers_take_them_and_a_call_may_differ(name: str, tmp_path: Path):
    path = made(tmp_path / name)
    sampler = BridgeSampler.from_pretrained(path)
    same = BridgeSampler(tiny_unet(condition_channels=3), BRIDGE, **CHOSEN)
    assert found(sampler) == found(same) == ("sde-dpm2m", 5)
    assert torch.equal(sampler(SOURCE, seed=1), same(SOURCE, seed=1))
    given: list[tuple[dict[str, Any], Found]] = [
        ({"steps": 7}, ("sde-dpm2m", 7)),
        ({"solver": "ddim"}, ("ddim", 10)),
        ({"timesteps": [1000, 500]}, ("sde-dpm2m", 2)),
    ]
    for settings, wanted in given:
        assert found(BridgeSampler.from_pretrained(path, **settings)) == wanted
        assert len(list(sampler.stream(SOURCE, seed=0, **settings))) == wanted[1]


def translated(path: Path) -> Found:
    out = path.parent / "out"
    translate.main(["folder", str(demo.DRAWINGS), str(path), str(out), "--size", "8", "--quiet"])
    settings = json.loads((out / "settings.json").read_text())["settings"]
    return settings["solver"], settings["nfe"]


def described(path: Path) -> Found:
    solver, _, steps = str(dict(describe(path, FileConfig())[1])["solver"]).partition(", ")
    return solver, int(steps.removesuffix(" steps"))


COMMANDS: dict[str, Callable[[Path], Any]] = {  # what each samples a file with, where no flag says it
    "translate": translated,
    "info": described,
    "app": lambda path: found(AppConfig(model=path).open("cpu")),
    "eval --sweep": lambda path: read_sweep(["sde-dpm2m"], BRIDGE, load_checkpoint(path).defaults)["sde-dpm2m-5"],
}


@pytest.mark.parametrize("command", COMMANDS)
def test_commands_take_them(command: str, path: Path):
    assert COMMANDS[command](path) == ("sde-dpm2m", 5)


def test_what_was_chosen_last_is_kept(path: Path, tmp_path: Path):
    """Of a file's choice, of the sampler's arguments over it, and of times in place of steps."""
    times = [1000, 600, 20]
    for settings, wanted in [
        ({}, Defaults("sde-dpm2m", 5)),
        ({"steps": np.int64(7)}, Defaults("sde-dpm2m", 7)),
        ({"solver": "ddim"}, Defaults("ddim")),
        ({"solver": "dpm2m", "timesteps": times}, Defaults("dpm2m", timesteps=times)),
        ({"timesteps": "uniform"}, Defaults("sde-dpm2m", timesteps="uniform")),
    ]:
        sampler = BridgeSampler.from_pretrained(path, **settings)
        sampler.save_pretrained(tmp_path / "again")
        again = BridgeSampler.from_pretrained(tmp_path / "again")
        assert (again.defaults, again.table.timesteps.tolist()) == (wanted, sampler.table.timesteps.tolist())
        assert again.solver == sampler.solver


def test_a_student_keeps_its_calls(tmp_path: Path):
    BridgeSampler(tiny_unet(), BRIDGE, calls=2).save_pretrained(tmp_path / "a")
    again = BridgeSampler.from_pretrained(tmp_path / "a")
    assert (again.defaults, found(again)) == (Defaults(calls=2), ("consistency", 2))


def test_nothing_chosen_is_nothing_stored(tmp_path: Path):
    """Files are those of before, and so is what they are sampled with."""
    BridgeSampler(tiny_unet(), BRIDGE).save_pretrained(tmp_path / "a")
    stored = json.loads((tmp_path / "a" / "config.json").read_text())
    assert sorted(stored) == ["bridge", "codec", "format", "image_size", "unet", "version"]
    assert found(BridgeSampler.from_pretrained(tmp_path / "a")) == ("dpm2m", 10)
    assert load_checkpoint(tmp_path / "a").defaults == Defaults()


def dtypes(path: Path) -> set[str]:
    with safe_open(path, framework="pt") as file:
        return {str(file.get_tensor(key).dtype) for key in file.keys()}  # noqa: SIM118


def test_the_bundled_weights_stay_the_same_bits(tmp_path: Path):
    BridgeSampler.from_checkpoint(demo.WEIGHTS, **CHOSEN).save_pretrained(tmp_path / "a", dtype="fp16")
    path = tmp_path / "a" / "model.safetensors"
    before, after = (load_checkpoint(each).unet.weights or {} for each in (demo.WEIGHTS, path))
    assert all(torch.equal(before[key], after[key]) and before[key].dtype == after[key].dtype for key in before)
    for weights in (demo.WEIGHTS, demo.PHOTOGRAPHS):
        assert load_checkpoint(weights).defaults == Defaults("sde-dpm2m", 5)
    assert before.keys() == after.keys()
    assert abs(path.stat().st_size - demo.WEIGHTS.stat().st_size) < 1000


@pytest.mark.parametrize(
    ("own", "loaded", "asked", "stored"),
    [
        (torch.float32, None, "fp16", "float16"),
        (torch.float16, None, None, "float32"),
        (torch.float16, "bf16", None, "bfloat16"),  # the sampler has rounded them
    ],
    ids=str,
)
def test_dtypes_of_a_sampler(own: torch.dtype, loaded: Any, asked: Any, stored: str, tmp_path: Path):
    save_checkpoint(tmp_path / "a.safetensors", tiny_unet(), BRIDGE, dtype=own)
    assert dtypes(tmp_path / "a.safetensors") == {str(own)}
    sampler = BridgeSampler.from_checkpoint(tmp_path / "a.safetensors", dtype=loaded)
    sampler.save_pretrained(tmp_path / "b", dtype=asked)
    assert dtypes(tmp_path / "b" / "model.safetensors") == {f"torch.{stored}"}
