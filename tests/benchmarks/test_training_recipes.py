"""Recipes of training are trained for equal seconds and compared, by the commands of docs/calls.md."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

from tests.conftest import ROOT, SavePicture, save_random_pairs


def recipes(*arguments: object) -> str:
    command = [sys.executable, "-m", "benchmarks.training_recipes", *map(str, arguments)]
    return subprocess.run(command, cwd=ROOT, check=True, capture_output=True, text=True, timeout=300).stdout


@pytest.mark.nightly
def test_recipes_are_trained_and_compared(tmp_path: Path, save_picture: SavePicture) -> None:
    data, output = save_random_pairs(tmp_path / "data", 32, 2, save_picture), tmp_path / "recipes.json"
    recipes(data, output, "--seconds", 1, "--only", "few", "batch 32")
    done = json.loads(output.read_text())["recipes"]
    assert {name: recipe["pairs"] / recipe["steps"] for name, recipe in done.items()} == {"few": 16, "batch 32": 32}
    assert all(len(recipe["sde-dpm2m 5"]["energy"]) == 2 for recipe in done.values())
    shown = recipes("--show", output).splitlines()
    assert [line.split(" | ")[0] for line in shown] == ["| recipe", "|---|---|---|---|---|---|", "| few", "| batch 32"]
