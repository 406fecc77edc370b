"""The bundled weights and pairs: the results of the README's first command."""

import pytest
import torch

from bbdm import BridgeSampler, demo, load_checkpoint
from bbdm.cli.translate import Demo
from bbdm.pictures.images import open_image, to_array
from tests.conftest import ROOT, load_pairs

PAIRS = 16


@pytest.fixture(scope="module")
def pairs() -> tuple[torch.Tensor, torch.Tensor]:
    dataset = load_pairs("edge2shoes", str(demo.FOLDER), "val", size=64)
    assert len(dataset) == PAIRS
    sources, targets = zip(*(dataset[i] for i in range(PAIRS)), strict=True)
    return torch.stack(sources), torch.stack(targets)


@pytest.fixture(scope="module")
def results(tmp_path_factory: pytest.TempPathFactory) -> torch.Tensor:
    folder = tmp_path_factory.mktemp("demo")
    Demo.main([str(folder), "--solver", "sde-dpm2m", "--steps", "5"])
    names = sorted(path.name for path in (demo.FOLDER / "val").glob("*.png"))
    assert sorted(path.name for path in folder.glob("*.png")) == sorted([*names, "grid.png"])
    return torch.stack([torch.from_numpy(to_array(open_image(folder / name))) for name in names])


def test_the_file_is_small_and_complete():
    assert demo.WEIGHTS.stat().st_size <= 20e6
    checkpoint = load_checkpoint(demo.WEIGHTS)
    assert checkpoint.image_size == 64
    assert checkpoint.unet.config.condition_channels == 3


def test_lines_stay(pairs: tuple[torch.Tensor, torch.Tensor], results: torch.Tensor):
    """The picture is black where the drawing is, as the artists' picture is."""
    ink = pairs[0].amax(1) < -0.9
    assert results.amax(1)[ink].mean() < -0.6


def test_paper_stays_white_outside(pairs: tuple[torch.Tensor, torch.Tensor], results: torch.Tensor):
    """The outermost pixels, where targets are white."""
    border = torch.ones(PAIRS, 64, 64, dtype=torch.bool)
    border[:, 2:-2, 2:-2] = False
    white = border & (pairs[1].amin(1) > 0.99)
    assert results.amin(1)[white].mean() > 0.9


def test_results_are_coloured(pairs: tuple[torch.Tensor, torch.Tensor], results: torch.Tensor):
    """Line art has none; results have at least half of the targets' and at most half more."""
    source, result, target = (((v.amax(1) - v.amin(1)) / 2).mean().item() for v in (pairs[0], results, pairs[1]))
    assert source < 0.01
    assert 0.5 * target < result < 1.5 * target


def test_seeds_give_other_colours(pairs: tuple[torch.Tensor, torch.Tensor], results: torch.Tensor):
    sampler = BridgeSampler.from_checkpoint(demo.WEIGHTS, solver="sde-dpm2m", steps=5)
    assert (sampler(pairs[0][:1], seed=100) - results[:1]).abs().mean() > 0.01


def test_a_seed_is_the_picture_of_the_command(pairs: tuple[torch.Tensor, torch.Tensor], results: torch.Tensor):
    """Source i has the seed i at any batch size; 8 bits and rounding at edges are what differs."""
    sampler = BridgeSampler.from_checkpoint(demo.WEIGHTS, solver="sde-dpm2m", steps=5)
    assert (sampler(pairs[0][3:4], seed=3) - results[3:4]).abs().mean() < 0.01


def test_the_student_of_two_calls(pairs: tuple[torch.Tensor, torch.Tensor]):
    """Its file brings its calls. Lines stay; the colour is half to one and a half of the artists'."""
    file = ROOT / "examples/demo/openmoji64-two.safetensors"
    assert file.stat().st_size <= 20e6
    sampler = BridgeSampler.from_checkpoint(file)
    assert (sampler.solver, len(sampler.table)) == ("consistency", 2)
    made = sampler(pairs[0], seed=0)
    assert made.amax(1)[pairs[0].amax(1) < -0.9].mean() < -0.6
    found, target = (((v.amax(1) - v.amin(1)) / 2).mean().item() for v in (made, pairs[1]))
    assert 0.5 * target < found < 1.5 * target
