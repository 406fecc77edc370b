"""Coverage of targets by intervals of results, of distributions whose coverage is known."""

import pytest
import torch

from bbdm.evaluation.coverage import coverage, expected
from bbdm.evaluation.scores import Scores
from bbdm.pictures.values import Values


def drawn(samples: int, spread: float = 1.0) -> tuple[torch.Tensor, torch.Tensor]:
    """Results (2, S, 1, 100, 100) and targets of normal distributions; those of targets have the spread 1."""
    generator = torch.Generator().manual_seed(0)
    results = torch.randn(2, samples, 1, 100, 100, generator=generator) * spread
    return results, torch.randn(2, 1, 100, 100, generator=generator)


def test_the_intervals_of_few_results() -> None:
    assert expected(1) == []
    assert expected(2) == pytest.approx([1 / 3])
    assert expected(4) == pytest.approx([3 / 5, 1 / 5])


@pytest.mark.parametrize("samples", [2, 4, 9])
def test_results_of_the_targets_own_distribution_cover_as_expected(samples: int) -> None:
    """Within four standard deviations of 20,000 values."""
    results, targets = drawn(samples)
    everywhere = torch.ones_like(targets, dtype=torch.bool)
    shares = coverage(results, targets, everywhere).mean(0)
    assert shares.tolist() == pytest.approx(expected(samples), abs=4 * 0.5 / 20_000**0.5)


@pytest.mark.parametrize("samples", [2, 4, 9])
def test_white_paper_and_few_levels_do_not_hide_how_far_results_spread(samples: int) -> None:
    """Most values of a drawing are the same in all; what is left of the others has 4 levels."""
    results, targets = drawn(samples)
    results, targets = results.round().clamp(-3, 0), targets.round().clamp(-3, 0)
    everywhere = torch.ones_like(targets, dtype=torch.bool)
    shares = coverage(results, targets, everywhere).mean(0)
    assert shares.tolist() == pytest.approx(expected(samples), abs=4 * 0.5 / 20_000**0.5)


def test_results_that_spread_too_little_cover_less() -> None:
    results, targets = drawn(4, spread=0.5)
    everywhere = torch.ones_like(targets, dtype=torch.bool)
    shares = coverage(results, targets, everywhere).mean(0)
    assert (shares < torch.tensor(expected(4)) - 0.05).all()


def test_only_pixels_inside_count_and_equal_values_as_expected() -> None:
    results = torch.zeros(1, 4, 1, 2, 2)
    targets = torch.tensor([[[[0.0, 0.0], [5.0, 5.0]]]])
    everywhere = torch.ones(1, 1, 2, 2, dtype=torch.bool)
    upper = torch.tensor([[[[True, True], [False, False]]]])
    assert coverage(results, targets, everywhere)[0].tolist() == pytest.approx([0.3, 0.1])
    assert coverage(results, targets, upper)[0].tolist() == pytest.approx([0.6, 0.2])


def test_sources_count_alike_in_any_number_of_batches() -> None:
    """Also where one has fewer pixels in its mask."""
    results = torch.tensor([-2.0, -1.0, 1.0, 2.0]).reshape(1, 4, 1, 1, 1).expand(2, 4, 1, 2, 2)
    targets = torch.tensor([[[[0.0, 0.0], [0.0, 5.0]]], [[[5.0, 5.0], [0.0, 0.0]]]])
    masks = torch.tensor([[[[1, 1], [1, 1]]], [[[1, 0], [0, 0]]]])
    scores = Scores(["mae"], 4, values=Values(-10, 10, dtype="int16"), channels=1, masked=True)
    for index in range(2):
        part = slice(index, index + 1)
        scores.update(results[part], targets[part], masks[part])
    assert scores.coverage() == [(pytest.approx(0.6), 0.375), (pytest.approx(0.2), 0.375)]
