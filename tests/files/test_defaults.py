"""The solver and steps that a file keeps: who writes them, who takes them, and files that have none."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors import safe_open

from bbdm import BridgeSampler, BrownianBridge, demo, load_checkpoint, save_checkpoint
from bbdm.cli import translate
from bbdm.cli.eval import read_sweep
from bbdm.cli.files import Info
from bbdm.defaults import Defaults
from tests.conftest import tiny_unet

BRIDGE = BrownianBridge(objective="pinned")
SOURCE = torch.rand(1, 3, 8, 8, generator=torch.Generator().manual_seed(0)) * 2 - 1
CHOSEN: dict[str, Any] = {"solver": "sde-dpm2m", "steps": 5}
Found = tuple[str, int]


@pytest.fixture
def path(tmp_path: Path) -> Path:
    """A file whose maker chose 5 steps of sde-dpm2m."""
    save_checkpoint(
        tmp_path / "chosen.pt", tiny_unet(condition_channels=3), BRIDGE, image_size=8, **CHOSEN
    )
    return tmp_path / "chosen.pt"


def found(sampler: Any) -> Found:
    return sampler.solver, len(sampler.table)


@pytest.mark.parametrize("name", ["a.pt", "a.safetensors", "folder"])
def test_samplers_take_and_keep_them_and_a_call_may_differ(name: str, tmp_path: Path):
    """What was chosen last is kept: the file's, the sampler's arguments over it, times in place of steps."""
    path, unet = tmp_path / name, tiny_unet(condition_channels=3)
    same = BridgeSampler(unet, BRIDGE, **CHOSEN)
    if path.suffix:
        save_checkpoint(path, unet, BRIDGE, **CHOSEN)
    else:
        same.save_pretrained(path)
    sampler, times = BridgeSampler.from_pretrained(path), [1000, 600, 20]
    assert torch.equal(sampler(SOURCE, seed=1), same(SOURCE, seed=1))
    assert len(list(sampler.stream(SOURCE, seed=0, solver="ddim"))) == 10
    cases: list[tuple[dict[str, Any], Found, Defaults]] = [
        ({}, ("sde-dpm2m", 5), Defaults("sde-dpm2m", 5)),
        ({"steps": np.int64(7)}, ("sde-dpm2m", 7), Defaults("sde-dpm2m", 7)),
        ({"solver": "ddim"}, ("ddim", 10), Defaults("ddim")),
        ({"solver": "dpm2m", "timesteps": times}, ("dpm2m", 3), Defaults("dpm2m", timesteps=times)),
        ({"timesteps": "uniform"}, ("sde-dpm2m", 200), Defaults("sde-dpm2m", timesteps="uniform")),
    ]
    for settings, wanted, defaults in cases:
        other = BridgeSampler.from_pretrained(path, **settings)
        other.save_pretrained(tmp_path / "again")
        again = BridgeSampler.from_pretrained(tmp_path / "again")
        assert (again.defaults, found(again), found(other)) == (defaults, wanted, wanted)
        assert again.table.timesteps.tolist() == other.table.timesteps.tolist()


@pytest.mark.parametrize("calls", [True, "4", 2.5, 0])
def test_calls_that_are_no_number_of_calls_are_refused(calls: Any):
    with pytest.raises(ValueError, match="calls must be a positive integer, got"):
        Defaults(calls=calls)


def test_commands_take_them(path: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    translate.main(
        ["folder", str(demo.DRAWINGS), str(path), str(tmp_path / "out"), "--size", "8", "--quiet"]
    )
    settings = json.loads((tmp_path / "out" / "settings.json").read_text())["settings"]
    assert (settings["solver"], settings["nfe"]) == ("sde-dpm2m", 5)
    Info.main([str(path)])
    assert "  solver        sde-dpm2m, 5 steps\n" in capsys.readouterr().out
    assert read_sweep(["sde-dpm2m"], BRIDGE, load_checkpoint(path).defaults)["sde-dpm2m-5"] == (
        "sde-dpm2m",
        5,
    )


@pytest.mark.parametrize(("calls", "taken"), [(2, ("consistency", 2)), (None, ("dpm2m", 10))])
def test_a_student_keeps_its_calls_and_nothing_chosen_is_nothing_stored(
    calls: Any, taken: Found, tmp_path: Path
):
    BridgeSampler(tiny_unet(), BRIDGE, calls=calls).save_pretrained(tmp_path / "a")
    again = BridgeSampler.from_pretrained(tmp_path / "a")
    assert (again.defaults, found(again)) == (Defaults(calls=calls), taken)
    stored = json.loads((tmp_path / "a" / "config.json").read_text())
    expected = {"bridge", "codec", "format", "image_size", "unet", "version"}
    assert stored.keys() - expected == ({"calls"} if calls else set())


def dtypes(path: Path) -> set[str]:
    with safe_open(path, framework="pt") as file:
        return {str(file.get_tensor(key).dtype) for key in file.keys()}  # noqa: SIM118


def test_the_bundled_weights_stay_the_same_bits(tmp_path: Path):
    BridgeSampler.from_checkpoint(demo.WEIGHTS, **CHOSEN).save_pretrained(
        tmp_path / "a", dtype="fp16"
    )
    path = tmp_path / "a" / "model.safetensors"
    before, after = (load_checkpoint(each).unet.weights or {} for each in (demo.WEIGHTS, path))
    assert all(
        torch.equal(before[key], after[key]) and before[key].dtype == after[key].dtype
        for key in before
    )
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
def test_dtypes_of_a_sampler(
    own: torch.dtype, loaded: Any, asked: Any, stored: str, tmp_path: Path
):
    save_checkpoint(tmp_path / "a.safetensors", tiny_unet(), BRIDGE, dtype=own)
    assert dtypes(tmp_path / "a.safetensors") == {str(own)}
    sampler = BridgeSampler.from_checkpoint(tmp_path / "a.safetensors", dtype=loaded)
    sampler.save_pretrained(tmp_path / "b", dtype=asked)
    assert dtypes(tmp_path / "b" / "model.safetensors") == {f"torch.{stored}"}
