"""Seeds: the forms that are accepted and those that are refused."""

from typing import Any

import numpy as np
import pytest
import torch

from bbdm.base.seeds import resolve_seeds, seed_of


@pytest.mark.parametrize(
    "seed", [7, np.int64(7), torch.tensor(7), np.array(7)], ids=["int", "numpy", "tensor", "array"]
)
def test_one_seed_counts_up(seed: Any):
    assert resolve_seeds(seed, 3) == [7, 8, 9]


@pytest.mark.parametrize("seed", [[5, 1], (5, 1), np.array([5, 1]), torch.tensor([5, 1])])
def test_a_list_is_taken_as_it_is(seed: Any):
    seeds = resolve_seeds(seed, 2)
    assert seeds == [5, 1]
    assert {type(s) for s in seeds} == {int}


def test_none_draws_another_each_time():
    """Two draws of 32 bits are equal once in 4 billion."""
    first, second = resolve_seeds(None, 2), resolve_seeds(None, 2)
    assert first[1] == first[0] + 1
    assert first != second


@pytest.mark.parametrize(
    ("seed", "message"),
    [
        (1.5, "seed must be an integer or a list of integers, got 1.5"),
        ("12", "seed must be an integer or a list of integers, got '12'"),
        ([1, 2.5], "seed must be an integer or a list of integers"),
        ([1, 2, 3], "seed must be one integer or one for each of 2 images, got 3"),
        (-1, r"seed must be in \[0, 2\^63\), got -1"),
        (2**63 - 1, r"seed must be in \[0, 2\^63\)"),
    ],
)
def test_what_is_refused(seed: Any, message: str):
    with pytest.raises(ValueError, match=message):
        resolve_seeds(seed, 2)


def test_a_seed_by_name_is_the_start_of_a_hash():
    """The first 63 bits of ``printf '7 a/b' | sha256sum``."""
    assert seed_of("a/b", 7) == 0xE7B2032AC879BB65 >> 1
    assert seed_of("a/b") != seed_of("a/b", 7) != seed_of("a/c", 7)
