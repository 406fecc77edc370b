"""The objective of a pretrained denoiser: exact in pinned coordinates, on every bridge."""

from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch

from bbdm import bridges, solvers
from bbdm.bridges import DDBM, ECSI, GOUB, I2SB, ABridge, Bridge, BrownianBridge
from tests.gaussian import end_distribution, ideal_x0hat

RANGE = (0.005, 300.0)
BRIDGES: list[Any] = [ABridge(), BrownianBridge(), DDBM(), DDBM("vp"), I2SB(), GOUB(), ECSI()]


def denoising(bridge: Any, noise_range: tuple[float, float] = RANGE) -> Bridge:
    return replace(bridge, objective="denoiser", noise_range=noise_range)


def times_of(bridge: Bridge) -> np.ndarray[Any, Any]:
    times = np.linspace(bridge.low, bridge.top, 41)
    return times if bridge.continuous else np.unique(times.round().astype(int))


@pytest.mark.parametrize("bridge", BRIDGES, ids=lambda b: type(b).__name__)
def test_it_learns_the_v_of_a_diffusion_model(bridge: Any) -> None:
    """Salimans and Ho 2022: x = a x0 + s eps is shown, v = a eps - s x0 learned, at the noise level s / a."""
    path = denoising(bridge)
    path.check()
    times = times_of(path)
    known = (path.nu(times) > RANGE[0]) & (path.nu(times) < RANGE[1])
    assert known.sum() > 10
    times = times[known]
    nu = path.nu(times)
    a = 1 / np.sqrt(1 + nu**2)
    s = nu / np.sqrt(1 + nu**2)
    expected = np.stack([a, 0 * a, s, -s, 0 * a, a], axis=-1)  # of x0, y and noise in both
    np.testing.assert_allclose(path.training_weights(times), expected, rtol=1e-9, atol=1e-11)
    np.testing.assert_allclose(path.network_times(times), np.log(nu), rtol=1e-12)


@pytest.mark.parametrize("bridge", BRIDGES, ids=lambda b: type(b).__name__)
@pytest.mark.parametrize("solver", ["dpm2m", "sde-dpm2m", "ddim", "posterior"])
def test_gaussians_end_as_with_the_closed_form(bridge: Any, solver: str) -> None:
    """Through a table, with the exact v of x0 ~ N(mu, spread^2) given x, clipped to no range that matters."""
    mu, spread = 0.3, 0.4
    path = denoising(bridge, (1e-6, 1e6))
    table = solvers.build(path, solver, steps=7)
    for row, time in enumerate(table.timesteps):
        nu = float(path.nu(time))
        if not np.isfinite(nu):
            continue
        a = 1 / np.hypot(1, nu)
        s = nu * a
        p_x, _, p_f = table.prediction[row]
        i_x = table.inputs[row, 0]
        # E[v | x] = (a x - E[x0 | x]) / s, linear in the state by its weight in what is shown
        variance = a**2 * spread**2 + s**2
        gain = (a - a * spread**2 / variance) / s
        offset = -(mu - a * a * spread**2 / variance * mu) / s
        expected_gain, expected_offset = ideal_x0hat(path, time, mu, spread)
        assert p_x + p_f * gain * i_x == pytest.approx(expected_gain, abs=1e-10)
        assert p_f * offset == pytest.approx(expected_offset, abs=1e-10)
    wide = end_distribution(path, table, mu, spread)
    other = (
        replace(bridge, objective="residual") if "residual" in type(bridge).objectives else bridge
    )
    same = solvers.build(other, solver, table.timesteps) if solver != "ancestral" else table
    assert wide == pytest.approx(end_distribution(other, same, mu, spread), abs=1e-10)


def ended(path: Bridge, mu: float, spread: float) -> tuple[float, float]:
    """Mean and deviation after 5 steps with the exact network of x0 ~ N(mu, spread^2), at its own levels."""
    table = solvers.build(path, "sde-dpm2m", steps=5)
    level = path.denoiser_level(table.timesteps)
    a = 1 / np.hypot(1, level)
    s = level * a
    known = a * spread**2 / (a**2 * spread**2 + s**2)  # E[x0 | x] = mu + known (x - a mu)
    p_x, _, p_f = table.prediction.T
    gains = p_x + p_f * (a - known) / s * table.inputs[:, 0]
    offsets = -p_f * mu * (1 - known * a) / s
    mean = np.zeros(2)
    covariance = np.diag([table.start[1] ** 2, 0.0])  # of (x, x0hat before)
    for gain, offset, (c_x, _, c_0, c_h, c_z) in zip(
        gains, offsets, table.coefficients, strict=True
    ):
        step = np.array([[c_x + c_0 * gain, c_h], [gain, 0.0]])
        mean = step @ mean + np.array([c_0 * offset, offset])
        covariance = step @ covariance @ step.T + np.diag([c_z**2, 0.0])
    return float(mean[0]), float(covariance[0, 0]) ** 0.5


@pytest.mark.parametrize(
    "bridge", [ABridge(), BrownianBridge(), DDBM(), I2SB()], ids=lambda b: type(b).__name__
)
@pytest.mark.parametrize(("top", "most"), [(14.6, 0.003), (5.0, 0.004), (2.0, 0.02)])
def test_a_network_that_is_exact_loses_little_by_a_clipped_range(
    bridge: Any, top: float, most: float
) -> None:
    """Before it is trained, in [-1, 1]: the levels of Stable Diffusion, and those of networks of epsilon."""
    for mu, spread in ((1.0, 0.5), (0.3, 0.4), (-0.5, 0.1)):
        full = ended(denoising(bridge), mu, spread)
        assert full == pytest.approx(
            end_distribution(bridge, solvers.build(bridge, "sde-dpm2m", steps=5), mu, spread)
        )
        clipped = ended(denoising(bridge, (0.005, top)), mu, spread)
        assert clipped == pytest.approx(full, abs=most)


def test_where_noise_is_infinite_it_is_shown_zeros_and_told_the_top() -> None:
    path = denoising(BrownianBridge(), (0.03, 14.6))
    assert path.input(path.top).tolist() == [0, 0]
    assert path.network_times(path.top) == pytest.approx(np.log(14.6))
    p_x, p_y, p_f = path.prediction(path.top).tolist()
    assert (p_x, p_y) == (0, 0)
    assert p_f == pytest.approx(-14.6 / np.hypot(1, 14.6))
    drawn = path.draw_times(torch.arange(50_000) << 32, 0)
    share = float((drawn == path.top).double().mean())
    # 0.006 % of seeds fail
    assert share == pytest.approx(0.02, abs=4 * (0.02 * 0.98 / 50_000) ** 0.5)
    assert path.seen(drawn).dtype == torch.float64


def test_settings_are_kept_and_refused() -> None:
    path = denoising(ABridge(), (0.03, 14.6))
    assert bridges.from_config({**path.config(), "noise_range": [0.03, 14.6]}) == path
    assert "noise_range" not in ABridge().config()
    for settings, reason in (
        ({"objective": "denoiser"}, "noise_range is of the objective 'denoiser' alone, got None"),
        (
            {"noise_range": (1.0, 2.0)},
            r"noise_range is of the objective 'denoiser' alone, got \(1.0, 2.0\)",
        ),
        (
            {"objective": "denoiser", "noise_range": (2.0, 1.0)},
            "must be two numbers, 0 < low < high",
        ),
    ):
        arguments: dict[str, Any] = settings
        with pytest.raises(ValueError, match=reason):
            ABridge(**arguments)
    with pytest.raises(ValueError, match="objective 'denoiser' needs noise"):
        BrownianBridge(max_variance=0.0, objective="denoiser", noise_range=(0.1, 1.0))
