"""Flicker is what changes in results and not in targets, or where the source stays; by hand."""

from math import isnan

import numpy as np
import pytest

from bbdm.evaluation.flicker import flicker, flicker_of_stills


def frames(*levels: float) -> np.ndarray:
    """(T, 1, 2, 2) of one level each."""
    return np.stack([np.full((1, 2, 2), level) for level in levels])


def test_a_change_that_targets_have_too_is_no_flicker():
    assert flicker(frames(1, 5, 9), frames(11, 15, 19)) == 0
    assert flicker(frames(1, 5, 9), frames(1, 1, 1)) == 4
    assert flicker(frames(5, 1, 5), frames(1, 5, 5)) == (8 + 4) / 2


def test_only_pixels_in_both_masks_count():
    results = frames(0, 0)
    results[1, 0, 0, 0] = 6
    results[1, 0, 1, 1] = 100
    inside = np.ones((2, 1, 2, 2))
    inside[0, 0, 1, 1] = 0
    assert flicker(results, frames(0, 0), inside) == 2
    assert isnan(flicker(results, frames(0, 0), 0 * inside))


def test_without_targets_what_stays_in_the_source_must_stay():
    source = frames(0, 0.5)
    source[1, 0, 0, :] = 9
    results = frames(0, 3)
    results[1, 0, 0, :] = 50
    assert flicker_of_stills(results, source) == 3
    assert isnan(flicker_of_stills(results, frames(0, 9)))
    assert flicker_of_stills(results, frames(0, 9), level=10) == (3 + 3 + 50 + 50) / 4


def test_other_shapes_are_refused():
    with pytest.raises(ValueError, match=r"results and targets must be \(T, C, H, W\)"):
        flicker(frames(1, 2), frames(1, 2, 3))
    with pytest.raises(ValueError, match=r"results and sources must be \(T, C, H, W\) of one size"):
        flicker_of_stills(frames(1, 2), frames(1))
