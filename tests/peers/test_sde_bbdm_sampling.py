"""Bridges, solver rows and the whole sampler against the public sde-bbdm 1.1: same inputs, same noise.

The public code computes its schedules in torch's default dtype, so rows are compared with that set to
float64. It draws its noise with ``torch.randn_like``, which is replaced here by known noise. Where the public
code cannot run or is wrong, a test shows that, and the comparison is with its formula instead."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, NamedTuple, cast

import pytest
import torch
from torch import nn

from bbdm import ABridge, BridgeSampler, BrownianBridge, UNet, solvers
from bbdm.bridges import Bridge
from bbdm.kernels.bridge_step import bridge_step
from bbdm.networks.base import Conditions, Network

sde_bbdm = pytest.importorskip("sde_bbdm", exc_type=ImportError)
diffusion = pytest.importorskip("diffusion")

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


Public = Callable[[int, int, Inputs], torch.Tensor]


def random_inputs(rows: int, batch: int = 1) -> Inputs:
    generator = torch.Generator().manual_seed(rows)
    return Inputs(*torch.randn(4, rows, batch, 3, 4, 4, generator=generator))


def public_data(x: torch.Tensor, t: int, y: torch.Tensor) -> Any:
    return diffusion.DiffusionData(x, torch.full((len(x),), t), condition=y)


def our_step(
    table: solvers.StepTable, row: int, x: torch.Tensor, y: torch.Tensor, pred: torch.Tensor, z: torch.Tensor
) -> torch.Tensor:
    rows = torch.from_numpy(table.rows).to(x.dtype)
    x = x.clone()
    bridge_step(x, torch.empty_like(x), torch.empty_like(x), pred, y.clone(), rows, torch.tensor([row]), noise=z)
    return x


def assert_rows_agree(differences: dict[int, torch.Tensor], count: int) -> None:
    """Every |public - ours|, listed by t, is within ``TOLERANCE``; NaN is not."""
    assert len(differences) == count
    wrong = {t: d.max().item() for t, d in differences.items() if not (d <= TOLERANCE).all()}
    assert not wrong, f"{len(wrong)} rows differ, first {dict(list(wrong.items())[:5])}"


def paper_times() -> list[int]:
    """The list as the public generation script forms it."""
    return torch.arange(1000, 904, -2).tolist() + torch.arange(902, 1, -6).tolist()


FORWARD = [
    *((ABridge(T, c), sde_bbdm.nn.ABridgeModule(nn.Identity(), T, c_lambda=c), T) for c in C_LAMBDAS),
    (BrownianBridge(T), sde_bbdm.nn.BBDMModule(nn.Identity(), T), T - 1),
]


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


def compare_rows(
    draw: Draw, table: solvers.StepTable, public: Public, sign: float = 1.0, batch: int = 1
) -> tuple[dict[int, torch.Tensor], Inputs]:
    """|public - ours| of each row, by its time; ``public`` takes the row, its time, and the row's inputs."""
    inputs = random_inputs(len(table), batch)
    differences: dict[int, torch.Tensor] = {}
    for row, t in enumerate(table.timesteps.tolist()):
        each = Inputs(*(v[row] for v in inputs))
        draw(each.z)
        theirs = public(row, t, each)
        state = each.y if t == T else each.x  # whatever x it is given, the public code starts from the condition
        differences[t] = (theirs - our_step(table, row, state, each.y, each.pred, sign * each.z)).abs()
    return differences, inputs


@pytest.mark.usefixtures("float64")
@pytest.mark.parametrize("c_lambda", C_LAMBDAS)
def test_abridge_ancestral_rows(draw: Draw, c_lambda: float) -> None:
    """The public code subtracts its noise; c_z is positive in our tables."""
    module = sde_bbdm.nn.ABridgeModule(nn.Identity(), T, c_lambda=c_lambda)

    def public(row: int, t: int, each: Inputs) -> torch.Tensor:
        return module.sampling_step(public_data(each.x, t, each.y), t, predicted_obj=each.pred)

    table = solvers.build(ABridge(T, c_lambda), "ancestral")
    differences, (_, y, pred, z) = compare_rows(draw, table, public, -1.0)
    # At t = T the public weights are printed: 0.9998552 on y, 0.0001447648 on y - p, 0.0014142 on z. Half a
    # unit of the last digit of each is the tolerance of this row, and of this row alone.
    printed = 0.5e-7 * y[0].abs() + 0.5e-10 * (y[0] - pred[0]).abs() + 0.5e-7 * z[0].abs()
    assert (differences.pop(T) <= printed).all()
    assert_rows_agree(differences, T - 1)


@pytest.mark.usefixtures("float64")
@pytest.mark.parametrize("c_lambda", C_LAMBDAS)
def test_abridge_fast_rows(draw: Draw, c_lambda: float) -> None:
    module = sde_bbdm.nn.ABridgeModule(nn.Identity(), T, c_lambda=c_lambda)
    module.fast_sampling_steps = paper_times()

    def public(row: int, t: int, each: Inputs) -> torch.Tensor:
        return module.sampling_step(public_data(each.x, t, each.y), 199 - row, predicted_obj=each.pred)

    table = solvers.build(ABridge(T, c_lambda), "fast")
    assert table.timesteps.tolist() == module.fast_sampling_steps
    assert_rows_agree(compare_rows(draw, table, public)[0], 199)


@pytest.mark.usefixtures("float64")
def test_brownian_ancestral_rows(draw: Draw) -> None:
    """At T too its state is x, which the table weighs by 1 - 1 / T."""
    module = sde_bbdm.nn.SDEBBDMModule(nn.Identity(), T)

    def public(row: int, t: int, each: Inputs) -> torch.Tensor:
        x = each.y if t == T else each.x
        return module.sampling_step(public_data(x, t, each.y), t, predicted_obj=each.pred)

    table = solvers.build(BrownianBridge(T), "ancestral")
    assert_rows_agree(compare_rows(draw, table, public, -1.0)[0], T)


def known(public: torch.Tensor, t: int, following: int, each: Inputs) -> torch.Tensor:
    """The public step of the posterior; at T its weights are 0 / 0, so its full sampling from T gives NaN.

    Given x_T = y, which has no information on x0, the posterior is the marginal.
    """
    if t < T:
        return public
    assert public.isnan().all()
    alpha, beta, sigma = (float(weight) for weight in BrownianBridge(T).marginal(following))
    return alpha * (each.y - each.pred) + beta * each.y + sigma * each.z


@pytest.mark.usefixtures("float64")
def test_brownian_posterior_rows(draw: Draw) -> None:
    module = sde_bbdm.nn.BBDMModule(nn.Identity(), T)

    def public(row: int, t: int, each: Inputs) -> torch.Tensor:
        made = module.sampling_step(public_data(each.x, t, each.y), t, predicted_obj=each.pred)
        return known(made, t, t - 1, each)

    table = solvers.build(BrownianBridge(T), "posterior", timesteps=range(T, 0, -1))
    assert_rows_agree(compare_rows(draw, table, public)[0], T)


class TakesCondition(nn.Module):
    """A network for ``BBDMModule``, which passes a condition, and calls it even with a given prediction."""

    def forward(self, x: torch.Tensor, t: torch.Tensor, condition: torch.Tensor) -> torch.Tensor:
        return torch.zeros_like(x)


@pytest.mark.usefixtures("float64")
def test_brownian_posterior_rows_with_skips(draw: Draw) -> None:
    """The public fast step, given the right pair of times, is our default ``posterior`` table."""
    module = sde_bbdm.nn.BBDMModule(TakesCondition(), T)
    table = solvers.build(BrownianBridge(T), "posterior")
    times = [*table.timesteps.tolist(), 0]

    def public(row: int, t: int, each: Inputs) -> torch.Tensor:
        data = public_data(each.y if t == T else each.x, t, each.y)
        return known(
            module.fast_sampling_step(data, t, times[row + 1], predicted_obj=each.pred), t, times[row + 1], each
        )

    assert_rows_agree(compare_rows(draw, table, public, batch=2)[0], 200)


class Contraction(Network):
    """A network that both samplers can call; x0hat = x - p is a contraction of x that depends on the time."""

    def __init__(self) -> None:
        super().__init__()
        self.channels, self.condition_channels, self.stride = 3, 0, 1
        self.conv = nn.Conv2d(3, 3, 3, padding=1)

    def embed(self, t: torch.Tensor) -> torch.Tensor:
        return t[:, None].to(self.conv.weight.dtype) / T

    def body(self, x: torch.Tensor, embedding: torch.Tensor, conditions: Conditions) -> torch.Tensor:
        return x - 0.5 * torch.tanh(self.conv(x) + embedding[:, :, None, None])

    def description(self) -> dict[str, Any]:
        return {}


def contraction() -> UNet:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        return cast(UNet, Contraction().eval())


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
    manager = diffusion.Manager(module)
    images = manager.predict(
        len(source),
        tuple(source.shape[1:]),
        condition=source,
        noises=source,
        sampling_range=times,
        device=torch.device("cpu"),
    )
    assert len(states) == len(times)
    states[-1] = torch.stack(images)
    return states


# The public full sampling takes one image only: it takes the truth value of a tensor of times.
SAMPLERS = [pytest.param("fast", 2, id="fast"), pytest.param("ancestral", 1, id="ancestral")]


def sampler_inputs(solver: str, batch: int) -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(1)
    steps = 199 if solver == "fast" else T
    source = torch.rand(batch, 3, 8, 8, generator=generator) * 2 - 1
    return source, torch.randn(steps, batch, 3, 8, 8, generator=generator)


def our_noise(noise: torch.Tensor, solver: str) -> torch.Tensor:
    return -noise if solver == "ancestral" else noise


@pytest.mark.parametrize(("solver", "batch"), SAMPLERS)
def test_sampler_walks_the_public_path_in_float64(solver: str, batch: int, monkeypatch: pytest.MonkeyPatch) -> None:
    with default_dtype(torch.float64):
        network = contraction()
        source, noise = sampler_inputs(solver, batch)
        public = public_states(network, solver, source, noise, monkeypatch)
        sampler = BridgeSampler(network, ABridge(T, 2.0), solver)
        states = [step.x for step in sampler.stream(source, noise=our_noise(noise, solver))]
    assert states[0].dtype == torch.float64
    # Ancestral states carry the rounding of the first step's printed weights, 1e-7, which later steps grow to
    # 2.7e-6.
    atol = TOLERANCE if solver == "fast" else 1e-5
    torch.testing.assert_close(torch.stack(states), torch.stack(public), rtol=0, atol=atol)
