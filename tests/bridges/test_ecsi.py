"""ECSI's bridge against its formulas."""

from typing import Any

import numpy as np
import pytest

from bbdm import ECSI, BrownianBridge
from bbdm.bridges import from_config


def test_marginal_and_times_by_hand():
    bridge = ECSI(gamma_max=0.25)
    assert [float(v) for v in bridge.marginal(0.2)] == pytest.approx([0.8, 0.2, 2 * 0.25 * 0.4])
    assert float(bridge.marginal(0.5).sigma) == 0.25  # the most
    assert (bridge.low, bridge.top, bridge.end) == (1e-4, 1.0, 1.0)
    assert bridge.network_time([0.1, 1.0]) == pytest.approx([250 * np.log(0.1), 0.0])
    times = np.array([0.1, 0.9])
    same = BrownianBridge(1000, 2 * 0.25**2).marginal(1000 * times)
    assert np.allclose(bridge.marginal(times), same)


def test_preconditioning_by_hand():
    """At t = 0.5, without and with a covariance, whose square is in c_skip."""
    _, _, p_x, p_y, p_f = ECSI(gamma_max=0.5).weights(0.5)
    total = 0.25 / 4 + 0.25 / 4 + 0.25
    assert [p_x, p_y, p_f] == pytest.approx([0.125 / total, 0, np.sqrt((0.25 / 16 + 0.25 / 4) / total)])
    i_x, _, p_x, _, p_f = ECSI(gamma_max=0.5, cov=0.125).weights(0.5)
    total += 2 * 0.25 * 0.125
    assert i_x == pytest.approx(total**-0.5)
    assert p_x == pytest.approx((0.125 + 0.5 * 0.125**2) / total)
    assert p_f == pytest.approx(np.sqrt((0.25 * (1 / 16 - 1 / 64) + 0.25 / 4) / total))


def test_config_and_errors():
    for bridge in (ECSI(), ECSI(0.25, 1e-3, cov=0.125)):
        assert from_config(bridge.config()) == bridge
    cases: list[tuple[dict[str, Any], str]] = [
        ({"gamma_max": 0.0}, "gamma_max must be a positive number, got 0.0"),
        ({"t_min": 1.0}, r"t_min must be in \(0, 1\), got 1.0"),
        ({"cov": 0.25}, "cov must be below 0.25 in size"),
        ({"sigma_source": float("nan")}, "sigma_source must be a positive number, got nan"),
    ]
    for settings, message in cases:
        with pytest.raises(ValueError, match=message):
            ECSI(**settings)
