"""Scores of distributions against closed forms and SciPy."""

from typing import Any

import numpy as np
import pytest
import torch
from scipy.stats import energy_distance, norm

from bbdm.evaluation.distributions import DISTRIBUTION, crps, energy_score, summary
from bbdm.evaluation.scores import Scores
from bbdm.pictures.values import EIGHT_BIT, Values

UNIT = Values(-4, 4, dtype="float32")


def normals(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.from_numpy(np.random.default_rng(seed).standard_normal(shape))


def test_crps_of_normal_samples_is_the_closed_form():
    """Gneiting and Raftery 2007, equation 22; the estimate of few samples has no bias. 5 standard errors."""
    targets = torch.linspace(-2, 2, 20_000, dtype=torch.float64)
    found = crps(normals(4, 20_000), targets).numpy()
    z = targets.numpy()
    wanted = z * (2 * norm.cdf(z) - 1) + 2 * norm.pdf(z) - 1 / np.sqrt(np.pi)
    assert abs((found - wanted).mean()) < 5 * (found - wanted).std() / np.sqrt(20_000)


def test_scores_of_one_value_are_scipys_energy_distance():
    """Its square is twice the CRPS, but for the pairs of a sample with itself."""
    samples, target = normals(7, 1), torch.tensor([0.3], dtype=torch.float64)
    inner = abs(samples - samples.T).mean().item()
    wanted = energy_distance(samples[:, 0], target) ** 2 / 2 + inner / 2 - inner / 2 * 7 / 6
    assert crps(samples, target).item() == pytest.approx(wanted)
    energy, spread = energy_score(samples, target)
    assert (energy, spread) == pytest.approx((wanted, inner * 7 / 6))


def scored(
    results: torch.Tensor, targets: torch.Tensor, values: Values = UNIT, masks: torch.Tensor | None = None
) -> dict[str, Any]:
    about = {"values": values, "channels": targets.shape[1], "masked": masks is not None}
    scores = Scores({"distribution": DISTRIBUTION}, results.shape[1], **about)
    for part in range(len(targets)):
        each = slice(part, part + 1)
        scores.update(results[each], targets[each], None if masks is None else masks[each])
    found: Any = scores.compute()["distribution"]
    return found


def test_targets_that_are_as_the_samples():
    """Ranks are even, and the interval holds its share; 5 standard errors of 40,000 values."""
    found = scored(normals(4, 8, 1, 100, 100), normals(4, 1, 100, 100, seed=1))
    error = 5 * 0.5 / np.sqrt(40_000)
    assert found["ranks"] == pytest.approx([1 / 9] * 9, abs=error)
    assert found["interval"]["expected"] == pytest.approx(7 / 9)
    assert found["interval"]["coverage"] == pytest.approx(7 / 9, abs=error)


def test_intervals_of_several_spreads():
    """Two samples of a spread s are 2 s / sqrt(pi) apart, and a third of the targets is between them."""
    spreads = torch.tensor([0.001, 0.01, 0.1, 1.0], dtype=torch.float64).repeat_interleave(64)[:, None]
    found = scored(
        normals(2, 2, 1, 256, 64) * spreads, normals(2, 1, 256, 64, seed=1) * spreads, Values(-8, 8, dtype="float32")
    )
    assert found["interval"]["length"] == pytest.approx(2 / np.sqrt(np.pi) * 1.111 / 4, rel=0.05)
    assert found["interval"]["coverage"] == pytest.approx(1 / 3, abs=0.02)


def test_equal_values_share_their_ranks():
    """White paper, where all samples and the target are 255."""
    same = torch.full((1, 3, 1, 4, 4), 255, dtype=torch.uint8)
    found = scored(same, same[:, 0], EIGHT_BIT)
    assert found["ranks"] == pytest.approx([0.25] * 4)
    assert (found["energy"], found["crps"]) == (0, 0)
    assert found["interval"]["coverage"] == pytest.approx(1)
    assert "100.0 % of targets in intervals of 50.0 %, of length 0" in summary(found)


def test_masked_pixels_do_not_count():
    results, targets = normals(2, 4, 1, 8, 8), normals(2, 1, 8, 8, seed=1)
    masks = torch.zeros(2, 1, 8, 8)
    masks[..., :4] = 1
    changed = results.clone()
    changed[..., 4:] = 3
    found = scored(changed, targets, masks=masks)
    assert found == scored(results[..., :4], targets[..., :4])
    with pytest.raises(ValueError, match=r"pictures with pixels in their masks.* got 0"):
        scored(changed, targets, masks=torch.zeros_like(masks))
    with pytest.raises(ValueError, match="at least 2 results of each source, got 1"):
        scored(results[:, :1], targets)
