"""The tables that a page offers besides an export's own."""

import json
import shutil
from pathlib import Path

import numpy as np
import pytest

from bbdm import bridges, solvers
from examples.web import tables


@pytest.fixture
def export(exported: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(exported, tmp_path / "onnx"))


def written(folder: Path) -> dict[str, solvers.StepTable]:
    """The tables of tables.json by SOLVER:CALLS."""
    content = json.loads((folder / "tables.json").read_text())
    made: dict[str, solvers.StepTable] = {}
    for entries in content["tables"]:
        name = f"{entries.pop('solver')}:{len(entries['timesteps'])}"
        start = tuple(entries.pop("start"))
        made[name] = solvers.StepTable(**{key: np.array(rows) for key, rows in entries.items()}, start=start)
    return made


@pytest.mark.parametrize(
    ("words", "wanted"),
    [
        (["ddim:4", "posterior:3,6"], "ddim:4 posterior:3 posterior:6"),
        ([], "dpm2m:3 dpm2m:5 dpm2m:10 dpm2m:20 sde-dpm2m:5 sde-dpm2m:10 sde-dpm2m:20 mean:1"),
    ],
)
def test_tables_are_the_solvers_own(export: Path, words: list[str], wanted: str):
    tables.main([str(export), *words])
    bridge = bridges.from_config(json.loads((export / "bridge.json").read_text())["bridge"])
    made = written(export)
    assert list(made) == wanted.split()
    for name, table in made.items():
        solver, calls = name.split(":")
        np.testing.assert_array_equal(table.rows, solvers.build(bridge, solver, steps=int(calls)).rows)


def test_a_distilled_network_has_its_own_solver_alone_and_other_words_are_refused(export: Path):
    for word, message in (
        ("dpm2m", r"tables are named SOLVER:CALLS,CALLS, got 'dpm2m'"),
        ("euler:3", "solver must be"),
    ):
        with pytest.raises(ValueError, match=message):
            tables.main([str(export), word])
    path = export / "bridge.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), "calls": 2}))
    tables.main([str(export)])
    assert list(written(export)) == ["consistency:1", "consistency:2"]
