"""Recipes of training are trained for equal seconds and compared, by the commands of docs/calls.md."""

import json
from pathlib import Path

import pytest

from benchmarks import training_recipes
from tests.conftest import SavePicture, save_random_pairs


@pytest.mark.nightly
def test_recipes_are_trained_and_compared(
    tmp_path: Path, save_picture: SavePicture, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Each for a second of steps of 0.3 s."""
    monkeypatch.setattr(training_recipes, "step_seconds", lambda *_: [0.3, 0.3])
    monkeypatch.setattr(training_recipes, "keep_freed_memory", lambda: None)
    data, output = save_random_pairs(tmp_path / "data", 32, 2, save_picture), tmp_path / "recipes.json"
    training_recipes.main([str(data), str(output), "--seconds", "1", "--only", "few", "batch 32"])
    done = json.loads(output.read_text())["recipes"]
    assert {name: recipe["pairs"] / recipe["steps"] for name, recipe in done.items()} == {"few": 16, "batch 32": 32}
    assert all(len(recipe["sde-dpm2m 5"]["energy"]) == 2 for recipe in done.values())
    assert {recipe["steps"] for recipe in done.values()} == {3}
    capsys.readouterr()
    training_recipes.main(["--show", str(output)])
    shown = capsys.readouterr().out.splitlines()
    assert [line.split(" | ")[0] for line in shown] == ["| recipe", "|---|---|---|---|---|---|", "| few", "| batch 32"]
