"""The bridges' marginals against formulas derived by hand, and their errors."""

from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from bbdm import DDBM, GOUB, I2SB, ABridge, BrownianBridge
from bbdm.bridges import Bridge, from_config

ALL = [
    ABridge(),
    ABridge(num_steps=7, c_lambda=0.5),
    BrownianBridge(),
    BrownianBridge(max_variance=0.25),
    BrownianBridge.bbdm(),
    BrownianBridge.bbdm(schedule="sin"),
]


def test_abridge_marginal_by_hand():
    bridge = ABridge(num_steps=1000, c_lambda=2.0)
    assert bridge.alpha(250) == 0.75
    assert bridge.beta(250) == 0.25
    assert bridge.sigma(250) == pytest.approx(2 * 0.75 * np.sqrt(np.log(4 / 3)), rel=1e-14)
    assert bridge.nu(250) == pytest.approx(2 * np.sqrt(np.log(4 / 3)), rel=1e-14)


def test_brownian_marginal_by_hand():
    bridge = BrownianBridge(num_steps=10, max_variance=3.0)
    assert bridge.sigma(5) == pytest.approx(np.sqrt(2 * 0.25 * 3))
    assert bridge.nu(5) == pytest.approx(np.sqrt(2 * 3 * 1.0))


@pytest.mark.parametrize("bridge", [ABridge(), BrownianBridge(), ABridge(num_steps=2)], ids=repr)
def test_endpoints_are_exact(bridge: Bridge):
    T = bridge.num_steps
    for t, expected in ((0, (1.0, 0.0, 0.0)), (T, (0.0, 1.0, 0.0))):
        assert tuple(float(v) for v in bridge.marginal(t)) == expected
    assert bridge.nu(0) == 0.0
    assert np.isinf(bridge.nu(T))


def test_bbdm_schedules_stop_short_of_the_endpoints():
    linear = BrownianBridge.bbdm()
    assert (linear.low, linear.top, linear.train_range) == (0, 999, (0, 999))
    assert linear.beta([0, 999]) == pytest.approx([0.001, 0.999], rel=1e-12)
    assert linear.sigma(999) == pytest.approx(np.sqrt(2 * 0.999 * 0.001))  # 0.0447
    sin = BrownianBridge.bbdm(schedule="sin")
    assert sin.beta(999) == 0.999
    assert sin.beta(0) == pytest.approx(1.0075**-1000.0, rel=1e-12)
    assert np.all(np.diff(sin.beta(np.arange(1000))) > 0)


@pytest.mark.parametrize("bridge", ALL, ids=repr)
def test_nu_is_sigma_over_alpha_and_increases(bridge: Bridge):
    t = np.arange(bridge.low, bridge.num_steps)
    alpha, _, sigma = bridge.marginal(t)
    assert bridge.nu(t) == pytest.approx(sigma / alpha, rel=1e-9)
    assert np.all(np.diff(bridge.nu(t)) > 0)


@given(st.sampled_from(ALL), st.floats(0, 1))
def test_time_at_inverts_nu(bridge: Bridge, place: float):
    t = bridge.low + place * (bridge.num_steps - 1 - bridge.low)
    assert bridge.time_at(bridge.nu(t)) == pytest.approx(t, abs=1e-6)


@pytest.mark.parametrize("objective", ["residual", "displacement", "noise"])
@pytest.mark.parametrize("make", [ABridge, BrownianBridge, BrownianBridge.bbdm], ids=["abridge", "brownian", "bbdm"])
def test_add_noise_and_prediction_recover_x0(make: Any, objective: str):
    bridge: Bridge = make(objective=objective)
    t = torch.arange(bridge.low, bridge.top + 1)
    generator = torch.Generator().manual_seed(0)
    x0, y, noise = (torch.randn(len(t), 2, 1, 3, generator=generator, dtype=torch.float64) for _ in range(3))
    x_t, target = bridge.add_noise(x0, y, t, noise)
    alpha, beta, sigma = (torch.from_numpy(v)[:, None, None, None] for v in bridge.marginal(t.numpy()))
    assert torch.allclose(x_t, alpha * x0 + beta * y + sigma * noise, atol=1e-12)
    expected = {"residual": x_t - x0, "displacement": y - x0, "noise": noise}[objective]
    assert torch.allclose(target, expected, atol=1e-12)
    p_x, p_y, p_pred = torch.from_numpy(bridge.prediction(t.numpy()))[..., None, None, None].unbind(1)
    assert torch.allclose(p_x * x_t + p_y * y + p_pred * target, x0, atol=1e-9)


def test_noise_objective_lives_below_t_equal_to_num_steps():
    bridge = ABridge(num_steps=10, objective="noise")
    assert (bridge.top, bridge.train_range) == (9, (1, 9))
    with pytest.raises(ValueError, match="no x0hat at t = 10; use t <= 9"):
        bridge.prediction(10)


def test_sampling_starts_from_noise_of_level_1_or_more():
    bridge = BrownianBridge(max_variance=0.5)  # nu = sqrt(m / (1 - m)), which is 1 in the middle
    assert bridge.start(500) == (1.0, pytest.approx(np.hypot(0.5, 0.25)))


def test_train_ranges():
    assert ABridge(num_steps=10).train_range == (1, 10)
    assert BrownianBridge(num_steps=10).train_range == (1, 9)
    assert BrownianBridge(num_steps=10).top == 10


@pytest.mark.parametrize(
    ("build", "message"),
    [
        (lambda: ABridge(num_steps=1), "num_steps must be an integer of at least 2, got 1"),
        (lambda: ABridge(num_steps=10.0), "num_steps must be an integer"),  # pyright: ignore[reportArgumentType]
        (lambda: ABridge(c_lambda=0.0), "c_lambda must be a positive number, got 0.0"),
        (lambda: ABridge(c_lambda=-1.0), "c_lambda must be a positive number"),
        (lambda: ABridge(c_lambda=float("nan")), "c_lambda must be a positive number"),
        (lambda: BrownianBridge(max_variance=-1.0), "max_variance must be 0 or a positive number"),
        (lambda: BrownianBridge(max_variance=0.0, objective="noise"), "objective 'noise' needs noise"),
        (lambda: DDBM("sde"), r"kind must be one of \('ve', 'vp'\), got 'sde'"),  # pyright: ignore[reportArgumentType]
        (lambda: DDBM(t_min=2.0), "t_min and t_max must be 0 < t_min < t_max, got 2.0 and 1.0"),
        (lambda: DDBM(cov=0.3), "cov must be below 0.25 in size"),
        (lambda: I2SB(beta_max=0.0), "beta_max must be a positive number"),
        (lambda: GOUB(gamma=0.0), "gamma must be a positive number, got 0.0"),
        (lambda: GOUB(gamma=10.0), "gamma must be larger, such as 1e4: with gamma=10 noise levels do not rise"),
        (lambda: ABridge(density="normal"), "density must be one of"),  # pyright: ignore[reportArgumentType]
        (lambda: ABridge(objective="grad"), "objective must be one of .*, got 'grad'"),  # pyright: ignore[reportArgumentType]
        (lambda: BrownianBridge.bbdm(schedule="exact"), "schedule must be 'linear' or 'sin'"),  # pyright: ignore[reportArgumentType]
        (lambda: BrownianBridge(schedule="cos"), "schedule must be"),  # pyright: ignore[reportArgumentType]
    ],
)
def test_bad_settings(build: Any, message: str):
    with pytest.raises(ValueError, match=message):
        build()


@pytest.mark.parametrize(
    ("t", "message"),
    [
        (torch.tensor([0, 1]), r"t must be in \[1, 1000\], got \[0, 1\]"),
        (torch.tensor([1, 1001]), r"t must be in \[1, 1000\]"),
        (torch.tensor([1.0, 2.0]), "t must be 2 integers"),
        (torch.tensor([1]), "t must be 2 integers"),
    ],
    ids=["low", "high", "float", "shape"],
)
def test_bad_times(t: torch.Tensor, message: str):
    image = torch.zeros(2, 3, 4, 4)
    with pytest.raises(ValueError, match=message):
        ABridge().add_noise(image, image, t, image)


@pytest.mark.parametrize("bridge", ALL, ids=repr)
@pytest.mark.parametrize("t", [-1, 1001, float("nan")])
def test_times_outside_the_bridge(bridge: Bridge, t: float):
    for function in (bridge.marginal, bridge.nu, bridge.alpha, bridge.prediction):
        with pytest.raises(ValueError, match=r"t must be in \[0, "):
            function(t)


def test_half_precision_images_meet_exact_weights():
    """At t = T - 1 the weight of x0 is 0.001, which bfloat16 rounds: summed in float32, rounded once."""
    x0 = torch.full((1, 1, 1, 1), 1000.0, dtype=torch.bfloat16)
    x_t, _ = ABridge().add_noise(x0, torch.zeros_like(x0), torch.tensor([999]), torch.zeros_like(x0))
    assert x_t.dtype == torch.bfloat16
    assert x_t.item() == 1.0


def test_shapes_must_agree():
    image = torch.zeros(2, 3, 4, 4)
    with pytest.raises(ValueError, match="x0, y and noise must have one shape"):
        ABridge().add_noise(image, image[:, :1], torch.tensor([1, 2]), image)
    none = image[:0]
    assert len(ABridge().add_noise(none, none, torch.tensor([1, 2])[:0], none)[0]) == 0  # none is a batch


class Straight(ABridge):
    """A user's own bridge."""


def test_a_bridge_of_another_class_has_no_config():
    message = r"is registered: @bbdm.bridges.register\('name'\) above Straight$"
    with pytest.raises(ValueError, match=message):
        Straight().config()


@pytest.mark.parametrize("kind", ["gbm", None, ["abridge"]], ids=str)
def test_an_unknown_kind_is_named(kind: Any):
    with pytest.raises(ValueError, match=r"bridge kind must be one of \['abridge', 'brownian', .*\], got ") as caught:
        from_config({"kind": kind})
    assert f"got {kind!r}; import the module" in str(caught.value)
