"""The plot of quality against seconds, of files as benchmarks/demo_quality.py writes them."""

import json
from pathlib import Path
from typing import Any

import pytest

from benchmarks.quality_plot import lines_of, main

RUNS: dict[str, dict[str, Any]] = {
    "dpm2m:20": {"energy": [10.0, 14.0], "seconds_per_image": 2.0},
    "dpm2m:5": {"energy": [11.0, 15.0], "seconds_per_image": 0.5},
    "ancestral:1000:1": {"energy": [9.0, 9.0], "seconds_per_image": 90.0},
}


def write(path: Path, pairs: int) -> str:
    path.write_text(json.dumps({"setting": {"pairs": pairs}, "runs": RUNS}))
    return str(path)


def test_a_line_for_each_solver_by_seconds():
    lines = dict(lines_of("teacher", RUNS))
    assert list(lines) == ["teacher, dpm2m", "teacher, ancestral"]
    assert [(p.calls, p.seconds, p.energy) for p in lines["teacher, dpm2m"]] == [(5, 0.5, 13.0), (20, 2.0, 12.0)]
    assert lines["teacher, dpm2m"][0].error == pytest.approx(2.0)  # spread sqrt(8) of two, by sqrt(2)


def test_files_of_other_pairs_are_refused(tmp_path: Path):
    one, other = write(tmp_path / "a.json", 154), write(tmp_path / "b.json", 20)
    main([str(tmp_path / "q.png"), f"teacher={one}"])
    assert (tmp_path / "q.png").read_bytes().startswith(b"\x89PNG")
    with pytest.raises(SystemExit, match=r"different data sets: numbers of pairs \{'teacher': 154, 'b': 20\}"):
        main([str(tmp_path / "q.png"), f"teacher={one}", other])
