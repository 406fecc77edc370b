"""Every bridge is trained, kept in a file, and sampled; each solver has a table of it."""

from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np
import numpy.typing as npt
import pytest
import torch

from bbdm import DDBM, GOUB, I2SB, ABridge, BridgeSampler, BrownianBridge, load_checkpoint, solvers
from bbdm.bridges import ECSI, Bridge, Marginal, register
from bbdm.bridges.path import Density
from tests.conftest import MakeTrainer, newest, sweep, tiny_unet


@register("test-sine")
@dataclass(frozen=True)
class Sine(Bridge):
    """A user's own bridge, with real times."""

    continuous: ClassVar[bool] = True
    end: ClassVar[float] = 1.0  # pyright: ignore[reportIncompatibleVariableOverride]
    low: ClassVar[float] = 0.01  # pyright: ignore[reportIncompatibleVariableOverride]
    top: ClassVar[float] = 1.0  # pyright: ignore[reportIncompatibleVariableOverride]

    objective: str = "residual"
    density: Density = "log-normal"

    def marginal(self, t: npt.ArrayLike) -> Marginal:
        share = np.sin(self._time(t) * np.pi / 2) ** 2
        return Marginal(1 - share, share, 0.5 * np.sqrt(share * (1 - share)))


BRIDGES: dict[str, Bridge] = {
    "abridge": ABridge(100),
    "abridge, pinned": ABridge(100, objective="pinned", density="log-normal"),
    "abridge, preconditioned": ABridge(100, objective="preconditioned"),
    "brownian": BrownianBridge(100, objective="noise"),
    "bbdm": BrownianBridge(100, schedule="linear"),
    "flow": BrownianBridge(100, 0.0, "displacement"),
    "ecsi": ECSI(),
    "ddbm-ve": DDBM("ve"),
    "ddbm-vp": DDBM("vp"),
    "i2sb": I2SB(100),
    "i2sb, ode": I2SB(100, deterministic=True),
    "goub": GOUB(),
    "own": Sine(),
}
every_bridge = pytest.mark.parametrize("bridge", BRIDGES.values(), ids=BRIDGES.keys())
DAILY = [BRIDGES[name] for name in ("abridge, pinned", "ddbm-vp", "own")]
SOURCE = torch.rand(2, 3, 8, 8, generator=torch.Generator().manual_seed(0)) * 2 - 1


@dataclass(frozen=True)
class Own(Bridge):
    """A user's bridge of three functions of m = t / T."""

    alpha_of: Any = None
    sigma_of: Any = None
    num_steps: int = 100
    objective: str = "pinned"

    def marginal(self, t: npt.ArrayLike) -> Marginal:
        m = np.asarray(t, dtype=np.float64) / self.num_steps
        alpha = self.alpha_of(m)
        return Marginal(alpha, 1 - alpha, self.sigma_of(m))


def arc(m: Any) -> Any:
    return np.sqrt(m * (1 - m))


def test_an_end_that_is_0_but_for_rounding_is_the_source():
    bridge = Own(
        alpha_of=lambda m: np.cos(np.pi / 2 * m) ** 2, sigma_of=lambda m: np.sin(np.pi * m) / 2
    )
    assert 0 < bridge.marginal(100).alpha < 1e-30
    bridge.check()
    assert bridge.nu(100) == np.inf
    assert bridge.at(100) == (0, 1, 0)
    table = solvers.build(bridge, "dpm2m", steps=10)
    assert np.isfinite(table.rows).all()
    assert table.coefficients[0, 0] == 0  # of the source itself, not of rounding


@pytest.mark.parametrize(
    ("alpha", "sigma", "message"),
    [
        (
            lambda m: 1 - m,
            lambda m: arc(m) / (1 - m),
            "sigma of Own must be finite, got .* at t = 100",
        ),
        (lambda m: 1 - m, lambda m: 1 - m, r"must be \(1, 0, 0\) at t = 0, got \[1.0, 0.0, 1.0\]"),
        (lambda m: 1 - 0.9 * m, arc, r"must be \(0, 1, 0\) at t = 100, got \[0.0999"),
        (
            lambda m: 1 - m,
            lambda m: arc(m) * (1 + np.sin(20 * m)),
            "noise level of Own must increase, got .* at t = ",
        ),
    ],
    ids=["finite", "target", "source", "increasing"],
)
def test_a_path_that_is_none_is_refused_where_it_is_used(alpha: Any, sigma: Any, message: str):
    with pytest.raises(ValueError, match=message), np.errstate(all="ignore"):
        BridgeSampler(tiny_unet(), Own(alpha_of=alpha, sigma_of=sigma))


@every_bridge
def test_it_passes_the_check_and_the_noise_level_has_an_inverse(bridge: Bridge):
    bridge.check()
    t = np.linspace(bridge.low, bridge.top, 9)[:-1]
    alpha, beta, sigma = bridge.marginal(t)
    assert bridge.nu(t) == pytest.approx(
        (beta if bridge.deterministic else sigma) / alpha, rel=1e-9
    )
    assert np.all(np.diff(bridge.nu(t)) > 0)
    assert bridge.time_at(bridge.nu(t)) == pytest.approx(t, rel=1e-5, abs=1e-6)


@every_bridge
def test_the_estimate_of_the_training_target_is_x0_and_has_a_gradient(bridge: Bridge):
    x0, y, noise = torch.randn(
        3, 7, 3, 8, 8, dtype=torch.float64, generator=torch.Generator().manual_seed(0)
    )
    t = torch.linspace(*bridge.train_range, 7, dtype=torch.float64)
    t = t if bridge.continuous else t.round().long()
    alpha, beta, sigma, i_x, i_y = (
        torch.from_numpy(np.broadcast_to(weight, (7,)).copy()).view(-1, 1, 1, 1)
        for weight in (*bridge.at(t.numpy()), *bridge.weights(t.numpy())[:2])
    )
    x_t, (shown, target) = bridge.state(x0, y, t, noise), bridge.add_noise(x0, y, t, noise)
    torch.testing.assert_close(x_t, alpha * x0 + beta * y + sigma * noise, rtol=1e-9, atol=1e-9)
    torch.testing.assert_close(shown, i_x * x_t + i_y * y, rtol=1e-9, atol=1e-9)
    target.requires_grad_()
    estimate = bridge.estimate(x_t, y, target, t)
    torch.testing.assert_close(estimate, x0, rtol=1e-6, atol=1e-6)
    (gradient,) = torch.autograd.grad(estimate.sum(), target)
    torch.testing.assert_close(
        gradient[:, 0, 0, 0], torch.from_numpy(bridge.prediction(t.numpy())[:, 2])
    )
    for bad in (t[:2], t.double() + 2 * bridge.end if bridge.continuous else t + int(bridge.end)):
        with pytest.raises(ValueError, match="t must be"):
            bridge.estimate(x_t, y, target, bad)


@pytest.mark.parametrize("bridge", sweep(BRIDGES.values(), DAILY), ids=BRIDGES.keys())
def test_it_is_trained_and_its_file_holds_it(bridge: Bridge, make_trainer: MakeTrainer):
    trainer = make_trainer(bridge=bridge, epochs=1)
    trainer.fit()
    assert all(parameter.isfinite().all() for parameter in trainer.network.parameters())
    assert load_checkpoint(newest(trainer)).bridge == bridge


@every_bridge
def test_the_loop_is_what_the_bridge_says(bridge: Bridge):
    """Each step written out from the bridge's own weights, in float64."""
    unet = tiny_unet(condition_channels=3).double().eval()
    source = SOURCE.double()
    noise = torch.randn(4, 2, 3, 8, 8, generator=torch.Generator().manual_seed(1)).double()
    sampler = BridgeSampler(unet, bridge, "sde-dpm2m", steps=4)
    of_y, of_z = sampler.table.start
    # the last row takes no noise
    x, before = of_y * source + of_z * noise[-1], torch.zeros_like(source)
    with torch.no_grad():
        for t, coefficients, z in zip(
            sampler.table.timesteps, sampler.table.coefficients, noise, strict=True
        ):
            i_x, i_y, p_x, p_y, p_f = (float(weight) for weight in bridge.weights(t))
            seen = torch.full((2,), float(bridge.network_time(t)))
            x0hat = (
                p_x * x
                + p_y * source
                + p_f * unet(i_x * x + i_y * source, seen, {"source": source})
            )
            terms = zip(coefficients.tolist(), (x, source, x0hat, before, z), strict=True)
            x, before = sum(weight * term for weight, term in terms if weight), x0hat
    made = list(sampler.stream(source, noise=noise))[-1].x
    torch.testing.assert_close(made, x, rtol=1e-7, atol=1e-7)


@every_bridge
def test_its_tables_are_finite_at_every_length(bridge: Bridge):
    for solver in ("dpm2m", "sde-dpm2m", "ddim", "posterior", "fast"):
        for steps in (1, 2, 3, 20):
            table = solvers.build(bridge, solver, steps=steps)
            assert len(table) == steps
            assert np.isfinite(table.rows).all()
            assert (table.coefficients[:, 4] >= 0).all()
            assert np.all(np.diff(table.timesteps) < 0)
