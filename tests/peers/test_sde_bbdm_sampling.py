"""Bridges, solver rows and the whole sampler against the public sde-bbdm 1.1: same inputs, same noise.

The public code computes its schedules in torch's default dtype, so rows are compared with that set to
float64. It draws its noise with ``torch.randn_like``, which is replaced here by known noise. Where the public
code cannot run or is wrong, a test shows that, and the comparison is with its formula instead."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from typing import Any, NamedTuple

import pytest
import torch
from torch import nn

from bbdm import ABridge, BridgeSampler, BrownianBridge, solvers
from bbdm.bridges import Bridge
from bbdm.kernels.bridge_step import bridge_step
from bbdm.networks.base import Conditions, Network
from tests.peers.packages import diffusion, sde_bbdm

T = 1000
TOLERANCE = 1e-9  # of one step in float64; inputs are standard normals, measured differences are below 1e-13
C_LAMBDAS = [1.0, 2.0]

Draw = Callable[[torch.Tensor], None]


@contextmanager
def default_dtype(dtype: torch.dtype) -> Iterator[None]:
    before = torch.get_default_dtype()
    torch.set_default_dtype(dtype)
    try:
        yield
    finally:
        torch.set_default_dtype(before)


@pytest.fixture
def float64() -> Iterator[None]:
    with default_dtype(torch.float64):
        yield


@pytest.fixture
def draw(monkeypatch: pytest.MonkeyPatch) -> Draw:
    """``draw(z)`` makes z the public code's noise until the next call."""

    def hand_out(noise: torch.Tensor) -> None:
        monkeypatch.setattr(torch, "randn_like", lambda *_args, **_settings: noise)

    return hand_out


class Inputs(NamedTuple):
    """The arguments of a step, for each row: (rows, B, 3, 4, 4) each."""

    x: torch.Tensor
    y: torch.Tensor
    pred: torch.Tensor
    z: torch.Tensor


def random_inputs(rows: int, batch: int = 1) -> Inputs:
    generator = torch.Generator().manual_seed(rows)
    return Inputs(*torch.randn(4, rows, batch, 3, 4, 4, generator=generator))


def our_step(
    table: solvers.StepTable, row: int, x: torch.Tensor, y: torch.Tensor, pred: torch.Tensor, z: torch.Tensor
) -> torch.Tensor:
    rows = torch.from_numpy(table.rows).to(x.dtype)
    x = x.clone()
    bridge_step(x, torch.empty_like(x), torch.empty_like(x), pred, y.clone(), rows, torch.tensor([row]), noise=z)
    return x


def paper_times() -> list[int]:
    """The list as the public generation script forms it."""
    return torch.arange(1000, 904, -2).tolist() + torch.arange(902, 1, -6).tolist()


ABRIDGES = [(ABridge(T, c), partial(sde_bbdm.nn.ABridgeModule, nn.Identity(), T, c_lambda=c)) for c in C_LAMBDAS]
BROWNIAN = BrownianBridge(T)
FORWARD = [*((bridge, module(), T) for bridge, module in ABRIDGES)]
FORWARD += [(BROWNIAN, sde_bbdm.nn.BBDMModule(nn.Identity(), T), T - 1)]


@pytest.mark.usefixtures("float64")
@pytest.mark.parametrize(("bridge", "module", "last"), FORWARD)
def test_forward_diffusion(draw: Draw, bridge: Bridge, module: Any, last: int) -> None:
    t = torch.arange(1, last + 1)
    x0, y, _, noise = (v[:, 0] for v in random_inputs(len(t)))
    draw(noise)
    public, objective = module.forward_diffusion(x0, t, condition=y)
    x_t, target = bridge.add_noise(x0, y, t, noise)
    torch.testing.assert_close(x_t, public.x, rtol=0, atol=TOLERANCE)
    torch.testing.assert_close(target, objective, rtol=0, atol=TOLERANCE)


def known(public: torch.Tensor, t: int, following: int, each: Inputs) -> torch.Tensor:
    """The public step of the posterior; at T its weights are 0 / 0, so its full sampling from T gives NaN.

    Given x_T = y, which has no information on x0, the posterior is the marginal.
    """
    if t < T:
        return public
    assert public.isnan().all()
    alpha, beta, sigma = (float(weight) for weight in BrownianBridge(T).marginal(following))
    return alpha * (each.y - each.pred) + beta * each.y + sigma * each.z


class TakesCondition(nn.Module):
    """A network for ``BBDMModule``, which passes a condition, and calls it even with a given prediction."""

    def forward(self, x: torch.Tensor, t: torch.Tensor, condition: torch.Tensor) -> torch.Tensor:
        return torch.zeros_like(x)


TABLES: dict[str, tuple[solvers.StepTable, Callable[[], Any]]] = {  # with the public module
    **{f"ancestral {i}": (solvers.build(bridge, "ancestral"), module) for i, (bridge, module) in enumerate(ABRIDGES)},
    **{f"fast {i}": (solvers.build(bridge, "fast"), module) for i, (bridge, module) in enumerate(ABRIDGES)},
    "brownian": (solvers.build(BROWNIAN, "ancestral"), lambda: sde_bbdm.nn.SDEBBDMModule(nn.Identity(), T)),
    "posterior": (
        solvers.build(BROWNIAN, "posterior", range(T, 0, -1)),
        lambda: sde_bbdm.nn.BBDMModule(nn.Identity(), T),
    ),
    "skips": (solvers.build(BROWNIAN, "posterior"), lambda: sde_bbdm.nn.BBDMModule(TakesCondition(), T)),
}


@pytest.mark.usefixtures("float64")
@pytest.mark.parametrize("name", TABLES)
def test_rows(draw: Draw, name: str) -> None:
    """|public - ours| is within the tolerance; NaN is not. Ancestral samplers subtract their noise."""
    table, make = TABLES[name]
    module, times, by_row = make(), [*table.timesteps.tolist(), 0], name.startswith("fast")
    if by_row:
        module.fast_sampling_steps = paper_times()
        assert times[:-1] == module.fast_sampling_steps
    sign = -1.0 if name.startswith(("ancestral", "brownian")) else 1.0
    inputs, differences = random_inputs(len(table), batch=2 if name == "skips" else 1), dict[int, torch.Tensor]()
    for row, t in enumerate(times[:-1]):
        each = Inputs(*(v[row] for v in inputs))
        draw(each.z)
        state = each.y if t == T else each.x
        data = diffusion.DiffusionData(state, torch.full((len(state),), t), condition=each.y)
        if name == "skips":  # given the right pair of times, it is our default table
            made = module.fast_sampling_step(data, t, times[row + 1], predicted_obj=each.pred)
        else:
            made = module.sampling_step(data, len(table) - row if by_row else t, predicted_obj=each.pred)
        made = known(made, t, times[row + 1], each) if name in ("posterior", "skips") else made
        differences[t] = (made - our_step(table, row, state, each.y, each.pred, sign * each.z)).abs()
    if name.startswith("ancestral"):
        # At t = T the public weights are printed: 0.9998552 on y, 0.0001447648 on y - p, 0.0014142 on z. Half
        # a unit of the last digit of each is the tolerance of this row, and of this row alone.
        _, y, pred, z = (v[0] for v in inputs)
        printed = 0.5e-7 * y.abs() + 0.5e-10 * (y - pred).abs() + 0.5e-7 * z.abs()
        assert (differences.pop(T) <= printed).all()
    assert not {t: d.max().item() for t, d in differences.items() if not (d <= TOLERANCE).all()}


class Contraction(Network):
    """A network that both samplers can call; x0hat = x - p is a contraction of x that depends on the time."""

    channels, condition_channels, stride = 3, 0, 1

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, 3, 3, padding=1)

    def embed(self, t: torch.Tensor) -> torch.Tensor:
        return t[:, None].to(self.conv.weight.dtype) / T

    def body(self, x: torch.Tensor, embedding: torch.Tensor, conditions: Conditions) -> torch.Tensor:
        return x - 0.5 * torch.tanh(self.conv(x) + embedding[:, :, None, None])


def public_states(
    network: nn.Module, solver: str, source: torch.Tensor, noise: torch.Tensor, monkeypatch: pytest.MonkeyPatch
) -> list[torch.Tensor]:
    """The public sampler's state after each step, where step k draws noise[k]; the last is its result."""
    times = paper_times() if solver == "fast" else list(range(T, 0, -1))
    module = sde_bbdm.nn.ABridgeModule(network, T, c_lambda=2)
    module.fast_sampling_steps = times if solver == "fast" else None
    step = module.sampling_step
    states: list[torch.Tensor] = []

    def recorded_step(*args: Any, **settings: Any) -> torch.Tensor:
        with monkeypatch.context() as patch:
            patch.setattr(torch, "randn_like", lambda *_args, **_settings: noise[len(states)])
            states.append(step(*args, **settings))
        return states[-1]

    monkeypatch.setattr(module, "sampling_step", recorded_step)
    settings = {"condition": source, "noises": source, "sampling_range": times, "device": torch.device("cpu")}
    images = diffusion.Manager(module).predict(len(source), tuple(source.shape[1:]), **settings)
    assert len(states) == len(times)
    states[-1] = torch.stack(images)
    return states


@pytest.mark.parametrize(("solver", "batch"), [("fast", 2), ("ancestral", 1)])  # which takes one image only
def test_sampler_walks_the_public_path_in_float64(solver: str, batch: int, monkeypatch: pytest.MonkeyPatch) -> None:
    with default_dtype(torch.float64):
        network = Contraction().eval()
        source = torch.rand(batch, 3, 8, 8) * 2 - 1
        noise = torch.randn(199 if solver == "fast" else T, batch, 3, 8, 8)
        public = public_states(network, solver, source, noise, monkeypatch)
        sampler = BridgeSampler(network, ABridge(T, 2.0), solver)
        states = [step.x for step in sampler.stream(source, noise=noise if solver == "fast" else -noise)]
    assert states[0].dtype == torch.float64
    # Ancestral states carry the rounding of the first step's printed weights, 1e-7, which later steps grow to
    # 2.7e-6.
    atol = TOLERANCE if solver == "fast" else 1e-5
    torch.testing.assert_close(torch.stack(states), torch.stack(public), rtol=0, atol=atol)
