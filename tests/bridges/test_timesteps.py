"""The times that solvers visit."""

from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from bbdm import DDBM, I2SB, ABridge, BrownianBridge
from bbdm.bridges import Bridge, timesteps

BRIDGES = [ABridge(), BrownianBridge(), BrownianBridge.bbdm(), BrownianBridge.bbdm(schedule="sin")]


@given(
    st.sampled_from([ABridge, BrownianBridge, BrownianBridge.bbdm]),
    st.sampled_from(["residual", "noise"]),
    st.sampled_from(["karras", "uniform", "bbdm"]),
    st.integers(2, 60),
    st.data(),
)
def test_a_named_list_has_exactly_as_many_entries_as_asked(
    make: Any, objective: str, name: str, num_steps: int, data: st.DataObject
):
    bridge: Bridge = make(num_steps, objective=objective)
    steps = data.draw(st.integers(1, int(bridge.top - bridge.low) + 1))
    times = timesteps.resolve(bridge, name, steps)
    assert len(times) == steps
    assert times[0] == bridge.top
    assert times[-1] >= bridge.low
    assert np.all(np.diff(times) < 0)


def test_paper_list():
    expected = [*range(1000, 905, -2), *range(902, 1, -6)]
    assert timesteps.paper(ABridge()).tolist() == expected
    assert len(expected) == 199


@pytest.mark.parametrize(
    ("times", "expected"),
    [
        (timesteps.paper(ABridge(num_steps=2000))[:3], [2000, 1996, 1992]),
        (timesteps.paper(ABridge(num_steps=100)), list(range(100, 0, -1))),  # many fall on one time
        (timesteps.uniform(ABridge(num_steps=10), 4), [10, 7, 4, 1]),
        (timesteps.bbdm(BrownianBridge.bbdm(), 3), [999, 1, 0]),
        (timesteps.coarse(ABridge(), 1), [1000]),
        (timesteps.karras(BrownianBridge.bbdm(), 10)[[0, -1]], [999, 0]),
        (timesteps.karras(ABridge(num_steps=5), 5), [5, 4, 3, 2, 1]),  # a duplicate moves to the nearest free time
        (timesteps.karras(ABridge(num_steps=4)), [4, 3, 2, 1]),
    ],
    ids=lambda value: str(value) if isinstance(value, list) and len(value) < 6 else "",
)
def test_lists_by_hand(times: timesteps.Timesteps, expected: list[int]):
    assert times.tolist() == expected


def test_bbdm_skip_is_the_original_list():
    expected = [int(999 - k * 999 / 198) for k in range(198)] + [1, 0]
    assert timesteps.bbdm(BrownianBridge.bbdm()).tolist() == expected


def test_karras_levels_are_equally_spaced_in_the_seventh_root():
    bridge = ABridge(num_steps=10**6)
    times = timesteps.karras(bridge, 9)
    assert times[:2].tolist() == [10**6, 10**6 - 1]
    assert bridge.nu(times[-1]) == pytest.approx(0.01, rel=0.01)
    levels = np.linspace(bridge.nu(10**6 - 1) ** (1 / 7), 0.01 ** (1 / 7), 8) ** 7  # its lowest is 0.002
    for level, t in zip(levels[1:-1], times[2:-1], strict=True):  # no other time is nearer
        assert bridge.nu(t - 0.5) <= level <= bridge.nu(t + 0.5)


def test_karras_of_two_is_the_top_and_the_middle():
    bridge = ABridge()
    middle = ((bridge.nu(999) ** (1 / 7) + bridge.nu(1) ** (1 / 7)) / 2) ** 7
    top, t = timesteps.karras(bridge, 2).tolist()
    assert top == 1000
    assert abs(bridge.nu(t) - middle) <= abs(bridge.nu(t + 1) - bridge.nu(t - 1)) / 2


def test_noise_is_karras_without_the_top():
    bridge = ABridge()
    assert timesteps.noise(bridge, 9).tolist() == timesteps.karras(bridge, 10).tolist()[1:]
    assert timesteps.noise(bridge, 1).tolist() == [999]


def test_noise_of_two_ends_a_third_above_the_lowest():
    bridge = BrownianBridge()
    first, second = timesteps.noise(bridge, 2).tolist()
    assert first == 999
    level = ((bridge.nu(999) ** (1 / 7) + 2 * bridge.nu(1) ** (1 / 7)) / 3) ** 7
    assert abs(bridge.nu(second) - level) <= abs(bridge.nu(second + 1) - bridge.nu(second - 1)) / 2


def test_noise_of_a_continuous_bridge_begins_where_nothing_can_be_seen():
    bridge = DDBM("ve")
    assert bridge.nu(timesteps.noise(bridge, 3)) == pytest.approx([50, 2.4, 0.01], rel=0.01)  # equal steps in nu^(1/7)


@pytest.mark.parametrize("steps", [4, 5, 12])
@pytest.mark.parametrize("bridge", [DDBM("vp"), I2SB()], ids=["ddbm", "i2sb"])
def test_midpoint_is_every_second_time_midway(bridge: Bridge, steps: int):
    """Midway in ln rho; the others are equally spaced in rho^(1/7), but for rounding of integers."""
    times = timesteps.midpoint(bridge, steps)
    assert len(times) == steps
    rho = (bridge.nu(times) ** -2.0 + 2.6**-2) ** -0.5
    pairs = rho[1:]
    firsts = pairs[::2] if len(pairs) % 2 else [*pairs[:-1:2], pairs[-1]]
    assert np.diff(np.array(firsts) ** (1 / 7), 2) == pytest.approx(0, abs=2e-3)
    for i in range(1, len(pairs) - 1, 2):
        assert pairs[i] == pytest.approx(np.sqrt(pairs[i - 1] * pairs[i + 1]), rel=1e-9 if bridge.continuous else 0.1)


@pytest.mark.parametrize(
    ("bridge", "levels"),
    [
        (DDBM("ve"), [np.inf, 50, 10, 2, 0.4]),  # a factor of 5 each
        (BrownianBridge(), [np.inf, 44.7, 9.27, 1.93, 0.4]),  # a factor of (44.7 / 0.4)^(1/3) = 4.82
        (I2SB(), [14.1, 5.79, 2.375, 0.974, 0.4]),  # its top is of a finite level: (14.1 / 0.4)^(1/4) = 2.437
    ],
    ids=repr,
)
def test_coarse_falls_by_one_factor_to_a_level_of_two_fifths(bridge: Bridge, levels: list[float]):
    assert bridge.nu(timesteps.coarse(bridge)) == pytest.approx(levels, rel=0.01)


@pytest.mark.parametrize("bridge", BRIDGES, ids=repr)
@pytest.mark.parametrize(
    ("given_times", "message"),
    [
        ([], "non-empty list of integers"),
        ([10.5, 3], "non-empty list of integers"),
        (["top"], "non-empty list of integers"),
        (10, "timesteps must be a name or a list of times, got 10"),
        ("cosine", "timesteps must be one of .*, got 'cosine'"),
        ([5, 3], "must start at the bridge's top .*, or where the noise level is at least 1, got 5"),
        ("above", r"timesteps must be in \["),
        (None, "must strictly decrease"),
        ("below", r"timesteps must be in \["),
    ],
    ids=["empty", "float", "text", "number", "name", "top", "above", "increasing", "range"],
)
def test_bad_lists(bridge: Bridge, given_times: Any, message: str):
    if given_times is None:
        given_times = [bridge.top, 7, 7]
    if given_times == "above":
        given_times = [bridge.top + 1, bridge.low]
    if given_times == "below":
        given_times = [bridge.top, bridge.low - 1]
    with pytest.raises(ValueError, match=message):
        timesteps.resolve(bridge, given_times)


def test_real_times_are_finite():
    with pytest.raises(ValueError, match="timesteps must be a non-empty list of numbers, got"):
        timesteps.resolve(DDBM(), [1.0, np.nan])


@pytest.mark.parametrize("name", ["paper", "bbdm"])
def test_published_lists_are_of_integers(name: str):
    with pytest.raises(ValueError, match=f"timesteps '{name}' are integers, and DDBM has real times"):
        timesteps.resolve(DDBM(), name)


@pytest.mark.parametrize("steps", [0, -1, 1001, 2.5, True], ids=repr)
@pytest.mark.parametrize("name", ["karras", "uniform", "bbdm"])
def test_bad_steps(steps: Any, name: str):
    with pytest.raises(ValueError, match=r"steps must be an integer in \[1, 1000\]"):
        timesteps.resolve(ABridge(), name, steps)


def test_paper_takes_no_steps():
    with pytest.raises(ValueError, match="steps must be None with the 'paper' timesteps"):
        timesteps.resolve(ABridge(), "paper", 10)
