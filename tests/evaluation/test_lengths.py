"""Errors against the lengths of intervals, of values whose errors are known."""

import numpy as np
import pytest
import scipy.stats
import torch

from bbdm.evaluation.lengths import Lengths, rank_correlation
from bbdm.pictures.values import Values

VALUES = Values(-1, 1, dtype="float32")
SIDE = 100


def drawn(informed: bool) -> tuple[torch.Tensor, torch.Tensor]:
    """Maps (2, 3, 1, SIDE, SIDE) and targets; errors are uniform within intervals, or nowhere as they say."""
    generator = torch.Generator().manual_seed(0)
    lengths = torch.rand(2, 1, SIDE, SIDE, generator=generator)
    spread = lengths if informed else 0.5
    targets = (torch.rand(2, 1, SIDE, SIDE, generator=generator) - 0.5) * spread
    mean = torch.zeros_like(lengths)
    return torch.stack([mean, -lengths / 2, lengths / 2], 1), targets


def test_errors_uniform_within_intervals_grow_as_a_quarter_of_their_length() -> None:
    lengths = Lengths(VALUES)
    lengths.update(*drawn(informed=True))
    found = lengths.compute()
    assert found["coverage"] == 1
    assert found["length"] == pytest.approx(0.5, abs=0.01)
    assert len(found["by_length"]) == 10
    for place, part in enumerate(found["by_length"]):
        assert part["share"] == pytest.approx(0.1, abs=0.002)
        assert part["length"] == pytest.approx(0.05 + 0.1 * place, abs=0.01)
        assert part["error"] == pytest.approx(part["length"] / 4, rel=0.1)


def test_intervals_that_do_not_know_where_errors_are() -> None:
    """Long ones then hold more; the standard deviation of the correlation is 1 / sqrt(20,000)."""
    lengths = Lengths(VALUES)
    lengths.update(*drawn(informed=False))
    found = lengths.compute()
    assert found["rank_correlation"] == pytest.approx(0, abs=0.03)
    assert found["by_length"][0]["coverage"] < 0.2
    assert found["by_length"][-1]["coverage"] == 1


def test_short_intervals_of_mapped_values_are_told_apart() -> None:
    """Lengths from 1e-4 to 1 of a range of 1e4, evenly by their logarithm: each part has a tenth."""
    lengths = Lengths(Values(0.1, 1e4, dtype="float32", mapping="log"))
    long = 10 ** torch.linspace(-4, 0, SIDE * SIDE).reshape(1, 1, SIDE, SIDE) * 1e4
    middle = torch.full_like(long, 5e3)
    lengths.update(torch.stack([middle, middle - long / 2, middle + long / 2], 1), middle)
    shares = [part["share"] for part in lengths.compute()["by_length"]]
    assert shares == pytest.approx([0.1] * 10, abs=0.01)


def test_a_length_is_of_the_tenth_that_its_middle_lies_in() -> None:
    """Of 4, 10 and 86 values of a hundred, the middles are at 2, 9 and 57: the first two are one part."""
    lengths = Lengths(VALUES)
    length = torch.tensor([0.1] * 4 + [0.5] * 10 + [1.5] * 86).reshape(1, 1, 10, 10)
    mean = torch.zeros_like(length)
    lengths.update(torch.stack([mean, -length / 2, length / 2], 1), mean)
    first, second = lengths.compute()["by_length"]
    assert (first["share"], second["share"]) == pytest.approx((0.14, 0.86))
    assert first["length"] == pytest.approx((4 * 0.1 + 10 * 0.5) / 14)


def test_ranks_are_those_of_scipy_also_where_values_are_equal() -> None:
    generator = np.random.default_rng(0)
    first = generator.integers(0, 5, 100)
    second = first + generator.integers(0, 5, 100)
    assert rank_correlation(first, second) == pytest.approx(scipy.stats.spearmanr(first, second)[0])
    assert rank_correlation(np.zeros(100), second) is None


def test_masked_values_do_not_count_and_equal_lengths_are_one_part() -> None:
    """A source without any counts not at all; an end of the range is open."""
    maps = torch.tensor([[0.0, -1.0, 0.5]]).reshape(1, 3, 1, 1, 1).expand(2, 3, 1, 1, 4)
    targets = torch.tensor([[-3.0, 0.5, 0.75, 9.0], [9.0, 9.0, 9.0, 9.0]]).reshape(2, 1, 1, 4)
    masks = torch.tensor([[1, 1, 1, 0], [0, 0, 0, 0]]).reshape(2, 1, 1, 4)
    lengths = Lengths(VALUES)
    lengths.update(maps, targets, masks)
    found = lengths.compute()
    assert found["coverage"] == pytest.approx(2 / 3)
    assert found["rank_correlation"] is None
    (part,) = found["by_length"]
    assert part == pytest.approx({"share": 1, "length": 1.5, "error": 4.25 / 3, "coverage": 2 / 3})


def test_where_no_value_counts() -> None:
    with pytest.raises(ValueError, match="intervals need values within masks"):
        Lengths(VALUES).compute()
