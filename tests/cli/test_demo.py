"""The bundled weights and pairs: the results of the README's first command."""

from pathlib import Path

import pytest
import torch

from bbdm import BridgeSampler, demo
from bbdm.cli.translate import Demo
from bbdm.pictures.images import open_image, to_array
from tests.conftest import ROOT, load_pairs

PAIRS = 16
FILES = [demo.WEIGHTS, ROOT / "examples/demo/openmoji64-two.safetensors"]  # the second of a student
Pairs = tuple[torch.Tensor, torch.Tensor]


@pytest.fixture(scope="module")
def pairs() -> Pairs:
    dataset = load_pairs("edge2shoes", str(demo.FOLDER), "val", size=64)
    assert len(dataset) == PAIRS
    sources, targets = zip(*(dataset[i] for i in range(PAIRS)), strict=True)
    return torch.stack(sources), torch.stack(targets)


@pytest.fixture(scope="module")
def results(pairs: Pairs, tmp_path_factory: pytest.TempPathFactory) -> dict[Path, torch.Tensor]:
    """Those of the command, and of the student with its own calls."""
    folder = tmp_path_factory.mktemp("demo")
    Demo.main([str(folder), "--solver", "sde-dpm2m", "--steps", "5"])
    names = sorted(path.name for path in (demo.FOLDER / "val").glob("*.png"))
    assert sorted(path.name for path in folder.glob("*.png")) == sorted([*names, "grid.png"])
    by_command = torch.stack([torch.from_numpy(to_array(open_image(folder / name))) for name in names])
    student = BridgeSampler.from_checkpoint(FILES[1])
    assert (student.solver, len(student.table)) == ("consistency", 2)
    return {FILES[0]: by_command, FILES[1]: student(pairs[0], seed=0)}


def saturation(pictures: torch.Tensor) -> float:
    return ((pictures.amax(1) - pictures.amin(1)) / 2).mean().item()


@pytest.mark.parametrize("file", FILES, ids=lambda file: file.stem)
def test_lines_stay_and_results_are_coloured(file: Path, pairs: Pairs, results: dict[Path, torch.Tensor]):
    """Black where drawings are, white outside, with half to one and a half of the artists' colour."""
    assert file.stat().st_size <= 20e6
    source, target = pairs
    assert results[file].amax(1)[source.amax(1) < -0.9].mean() < -0.6
    assert saturation(source) < 0.01
    assert 0.5 * saturation(target) < saturation(results[file]) < 1.5 * saturation(target)
    border = torch.ones(PAIRS, 64, 64, dtype=torch.bool)
    border[:, 2:-2, 2:-2] = False
    assert results[file].amin(1)[border & (target.amin(1) > 0.99)].mean() > 0.9
