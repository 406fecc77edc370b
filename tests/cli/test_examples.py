"""The README's first command with the bundled weights, and the scripts in examples/demo and examples/web."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch

from bbdm import BridgeSampler, bridges, demo, solvers
from bbdm.cli.translate import Demo
from bbdm.pictures.images import open_image, to_array
from examples import emoji_without_pairs
from examples.demo import drawings
from examples.demo.drawings import Style
from examples.web import tables
from tests.conftest import ROOT, SavePicture, load_pairs, noise

PAIRS = 16
STUDENT = ROOT / "examples/demo/openmoji64-two.safetensors"


def by_command(sources: torch.Tensor, folder: Path) -> torch.Tensor:
    Demo.main([str(folder), "--solver", "sde-dpm2m", "--steps", "3"])
    names = sorted(path.name for path in (demo.FOLDER / "val").glob("*.png"))
    assert sorted(path.name for path in folder.glob("*.png")) == sorted([*names, "grid.png"])
    return torch.stack([torch.from_numpy(to_array(open_image(folder / name))) for name in names])


def by_student(sources: torch.Tensor, folder: Path) -> torch.Tensor:
    """With its own calls."""
    student = BridgeSampler.from_checkpoint(STUDENT)
    assert (student.solver, len(student.table)) == ("consistency", 2)
    return student(sources, seed=0)


def saturation(pictures: torch.Tensor) -> float:
    return ((pictures.amax(1) - pictures.amin(1)) / 2).mean().item()


@pytest.mark.parametrize(
    ("file", "make"), [(demo.WEIGHTS, by_command), (STUDENT, by_student)], ids=["demo", "student"]
)
def test_lines_stay_and_results_are_coloured(
    file: Path, make: Callable[..., torch.Tensor], tmp_path: Path
):
    """Black where drawings are, white outside, with half to one and a half of the artists' colour."""
    if not file.exists() and not (ROOT / ".git").exists():
        pytest.skip(f"{file.name} is in the repository, not in the source distribution")
    assert file.stat().st_size <= 20e6
    pairs = load_pairs("edge2shoes", str(demo.FOLDER), "val", size=64)
    source, target = map(torch.stack, zip(*(pairs[i] for i in range(PAIRS)), strict=True))
    results = make(source, tmp_path)
    assert results.amax(1)[source.amax(1) < -0.9].mean() < -0.6
    assert saturation(source) < 0.01
    assert 0.5 * saturation(target) < saturation(results) < 1.5 * saturation(target)
    border = torch.ones(PAIRS, 64, 64, dtype=torch.bool)
    border[:, 2:-2, 2:-2] = False
    assert results.amin(1)[border & (target.amin(1) > 0.99)].mean() > 0.9


def test_emoji_without_pairs(
    save_picture: SavePicture, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    """Of twelve emoji of two makers: a run that resumes, and the scores of both ways."""
    makers = [tmp_path / name for name in ("a", "b")]
    for seed, folder in enumerate(makers):
        for index in range(12):
            save_picture(folder / f"{index:04x}.png", noise(index + 100 * seed, 8, 8))
    for name, value in {"SIZE": 8, "HELD_BACK": 2, "VALIDATED": 2}.items():
        monkeypatch.setattr(emoji_without_pairs, name, value)
    flags = [
        "--epochs",
        "1",
        "--batch_size",
        "2",
        "--pairing_steps",
        "1",
        "--simulation_steps",
        "2",
        "--width",
        "8",
    ]
    monkeypatch.setattr(
        "sys.argv", ["emoji_without_pairs.py", *map(str, makers), str(tmp_path / "out"), *flags]
    )
    emoji_without_pairs.main()
    scores = json.loads((tmp_path / "out" / "scores.json").read_text())
    assert scores["step"] == 2
    for way in ("AtoB", "BtoA"):
        assert scores[way]["truth"]["distance"] == 0
        assert scores[way]["result"]["distance"] > 0


SVG = '<svg viewBox="0 0 72 72" xmlns="http://www.w3.org/2000/svg">{}</svg>'
# across the whole picture
FRAME = '<g fill="none" stroke="#000" stroke-width="2"><path d="M-9 36H81"/></g>'


@pytest.fixture
def package(tmp_path: Path) -> Path:
    colour = '<rect width="72" height="36" fill="#f00"/>'
    for kind, inside in {"black": FRAME, "color": colour + FRAME}.items():
        (tmp_path / kind / "svg").mkdir(parents=True)
        (tmp_path / kind / "svg" / "1F383.svg").write_text(SVG.format(inside))
        (tmp_path / kind / "svg" / "other.svg").write_text(
            SVG.format(inside.replace("M-9 36H81", "M36-9V81"))
        )
    return tmp_path


def draw(
    package: Path, style: Style, size: int = 64, name: str = "1F383"
) -> tuple[np.ndarray, np.ndarray]:
    """The drawing's darkness and the picture, (size, size) and (size, size, 3) in [0, 1]."""
    both = np.asarray(drawings.pair(package, name, size, style, np.random.default_rng(0))) / 255
    return 1 - both[:, :size].mean(-1), both[:, size:]


@pytest.mark.parametrize(("width", "size"), [(1.0, 128), (5.0, 64)])
def test_lines_have_the_width_that_is_asked_for_in_pixels_of_64(
    package: Path, width: float, size: int
):
    drawing, picture = draw(package, Style(width=width), size)
    # a line's darkness is its width
    np.testing.assert_allclose(drawing.sum(0) * 64 / size, width, atol=0.12)
    np.testing.assert_array_equal(picture, draw(package, Style(), size)[1])


def test_emoji_of_training_are_drawn_several_times_and_each_time_alike(
    package: Path, tmp_path: Path, monkeypatch
):
    split = tmp_path / "split.json"
    split.write_text('{"train": ["1F383"], "val": ["other"]}')
    monkeypatch.setattr(drawings, "__file__", str(tmp_path / "drawings.py"))
    for out in ("a", "b"):
        drawings.main([str(package), str(tmp_path / out), "--size", "32", "--drawings", "3"])
    files = sorted(
        path.relative_to(tmp_path / "a").as_posix() for path in (tmp_path / "a").rglob("*.png")
    )
    assert files == ["train/1F383.1.png", "train/1F383.2.png", "train/1F383.png", "val/other.png"]
    pictures = {name: (tmp_path / "a" / name).read_bytes() for name in files}
    assert pictures == {name: (tmp_path / "b" / name).read_bytes() for name in files}
    assert len(set(pictures.values())) == 4


USUAL = "dpm2m:3 dpm2m:5 dpm2m:10 dpm2m:20 sde-dpm2m:5 sde-dpm2m:10 sde-dpm2m:20 mean:1"


@pytest.mark.parametrize(
    ("words", "calls", "wanted"),
    [
        ("ddim:4 posterior:3,6", None, "ddim:4 posterior:3 posterior:6"),
        ("", None, USUAL),
        ("", 2, "consistency:1 consistency:2"),
    ],
    ids=["named", "usual", "distilled"],
)
def test_tables_are_the_solvers_own(
    exported: Path, tmp_path: Path, words: str, calls: int | None, wanted: str
):
    """A distilled network has its own solver alone."""
    folder = Path(shutil.copytree(exported, tmp_path / "onnx"))
    settings = {**json.loads((folder / "bridge.json").read_text()), "calls": calls}
    (folder / "bridge.json").write_text(json.dumps(settings))
    tables.main([str(folder), *words.split()])
    made = json.loads((folder / "tables.json").read_text())["tables"]
    assert " ".join(f"{each['solver']}:{len(each['timesteps'])}" for each in made) == wanted
    bridge = bridges.from_config(settings["bridge"])
    for each in made:
        solver, start = each.pop("solver"), tuple(each.pop("start"))
        table = solvers.StepTable(
            **{key: np.array(rows) for key, rows in each.items()}, start=start
        )
        np.testing.assert_array_equal(
            table.rows, solvers.build(bridge, solver, steps=len(table.timesteps)).rows
        )


def test_other_words_are_refused(exported: Path):
    with pytest.raises(ValueError, match=r"named SOLVER:CALLS,CALLS, got 'dpm2m'"):
        tables.main([str(exported), "dpm2m"])
