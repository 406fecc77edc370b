"""The tables that a page offers besides an export's own."""

import json
import shutil
from pathlib import Path

import numpy as np
import pytest

from bbdm import bridges, solvers
from bbdm.bridges import step_table
from examples.web import tables
from tests.conftest import ROOT

BUNDLED = ROOT / "examples/demo/onnx"


@pytest.fixture
def export(tmp_path: Path) -> Path:
    return Path(shutil.copytree(BUNDLED, tmp_path / "onnx"))


def change(folder: Path, **entries: object) -> None:
    """Change entries of bridge.json."""
    path = folder / "bridge.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), **entries}))


def written(folder: Path) -> dict[str, solvers.StepTable]:
    """The tables of tables.json by SOLVER:CALLS."""
    content = json.loads((folder / "tables.json").read_text())
    made: dict[str, solvers.StepTable] = {}
    for entries in content["tables"]:
        name = f"{entries.pop('solver')}:{len(entries['timesteps'])}"
        start = tuple(entries.pop("start"))
        made[name] = solvers.StepTable(**{key: np.array(rows) for key, rows in entries.items()}, start=start)
    return made


def test_the_bundled_tables_are_of_the_bundled_export(export: Path):
    """If it fails, run: python examples/web/tables.py examples/demo/onnx."""
    tables.main([str(export)])
    made, bundled = written(export), written(BUNDLED)
    assert made.keys() == bundled.keys()
    for name, table in made.items():  # processors differ in the last digits of a logarithm
        for values in step_table.ARRAYS:
            assert np.allclose(getattr(table, values), getattr(bundled[name], values), rtol=1e-12, atol=1e-12)


def test_tables_are_the_solvers_own(export: Path):
    tables.main([str(export), "ddim:4", "posterior:3,6"])
    bridge = bridges.from_config(json.loads((export / "bridge.json").read_text())["bridge"])
    made = written(export)
    assert list(made) == ["ddim:4", "posterior:3", "posterior:6"]
    for name, table in made.items():
        solver, calls = name.split(":")
        np.testing.assert_array_equal(table.rows, solvers.build(bridge, solver, steps=int(calls)).rows)


def test_a_distilled_network_has_its_own_solver_alone(export: Path):
    change(export, calls=2)
    tables.main([str(export)])
    assert list(written(export)) == ["consistency:1", "consistency:2"]


def test_words_of_another_form_are_refused(export: Path):
    with pytest.raises(ValueError, match=r"tables are named SOLVER:CALLS,CALLS, got 'dpm2m'"):
        tables.main([str(export), "dpm2m"])
    with pytest.raises(ValueError, match="solver must be one of"):
        tables.main([str(export), "euler:3"])
