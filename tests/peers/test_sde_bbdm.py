"""Bridges, solver rows, the sampler and the UNet against the public sde-bbdm 1.1: same inputs and noise.

All is compared in float64, which the public code is made to use. It draws its noise with
``torch.randn_like``, which is replaced here by known noise. Where the public code cannot run or is wrong, a
test shows that, and the comparison is with its formula instead.
"""

import argparse
from collections.abc import Callable, Iterator
from functools import partial
from typing import Any

import pytest
import torch
from torch import nn

from bbdm import ABridge, BridgeSampler, BrownianBridge, UNet, solvers, wrap
from bbdm.bridges import Bridge
from bbdm.cli.train import Train
from bbdm.kernels.bridge_step import bridge_step
from tests.conftest import relative_gap
from tests.peers.packages import diffusion, sde_bbdm

T = 1000
# of one step in float64; inputs are standard normals, measured differences are below 1e-13
TOLERANCE = 1e-9
ABRIDGES = [
    (ABridge(T, c), partial(sde_bbdm.nn.ABridgeModule, nn.Identity(), T, c_lambda=c))
    for c in (1.0, 2.0)
]
BROWNIAN = BrownianBridge(T)

Draw = Callable[[torch.Tensor], None]


@pytest.fixture(autouse=True)
def float64(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """The public code takes torch's default dtype, and float32 in its norms, softmax and time embedding."""
    monkeypatch.setattr(torch.Tensor, "float", torch.Tensor.double)
    before = torch.get_default_dtype()
    torch.set_default_dtype(torch.float64)
    yield
    torch.set_default_dtype(before)


@pytest.fixture
def draw(monkeypatch: pytest.MonkeyPatch) -> Draw:
    """``draw(z)`` makes z the public code's noise until the next call."""
    return lambda noise: monkeypatch.setattr(torch, "randn_like", lambda *_args, **_settings: noise)


FORWARD = [
    *((*each, T) for each in ABRIDGES),
    (BROWNIAN, partial(sde_bbdm.nn.BBDMModule, nn.Identity(), T), T - 1),
]


@pytest.mark.parametrize(("bridge", "make", "last"), FORWARD)
def test_forward_diffusion(draw: Draw, bridge: Bridge, make: Callable[[], Any], last: int) -> None:
    t = torch.arange(1, last + 1)
    x0, y, noise = torch.randn(3, last, 3, 4, 4)
    draw(noise)
    public, objective = make().forward_diffusion(x0, t, condition=y)
    x_t, target = bridge.add_noise(x0, y, t, noise)
    torch.testing.assert_close(x_t, public.x, rtol=0, atol=TOLERANCE)
    torch.testing.assert_close(target, objective, rtol=0, atol=TOLERANCE)


def test_the_defaults_of_a_training_are_the_public_ones() -> None:
    """Of the flags that both commands have."""
    parser = sde_bbdm.configs.SDEBBDMTrainingConfigs.get_arguments(argparse.ArgumentParser())
    public = parser.parse_args(["DATA", "model.pt"])
    command = Train.parse(["edge2shoes", "DATA", "model.pt"])
    bridge: Any = command.build_bridge()
    ours = command.batch_size, command.epochs, bridge.num_steps, bridge.c_lambda
    assert ours == (public.batch_size, public.epochs, public.time_steps, public.c_lambda)


def paper_times() -> list[int]:
    """The list as the public generation script forms it."""
    return torch.arange(1000, 904, -2).tolist() + torch.arange(902, 1, -6).tolist()


class TakesCondition(nn.Module):
    """A network for ``BBDMModule``, which passes a condition, and calls it even with a given prediction."""

    def forward(self, x: torch.Tensor, t: torch.Tensor, condition: torch.Tensor) -> torch.Tensor:
        return torch.zeros_like(x)


TABLES: dict[str, tuple[solvers.StepTable, Callable[[], Any]]] = {  # with the public module
    **{
        f"ancestral {i}": (solvers.build(bridge, "ancestral"), module)
        for i, (bridge, module) in enumerate(ABRIDGES)
    },
    **{
        f"fast {i}": (solvers.build(bridge, "fast"), module)
        for i, (bridge, module) in enumerate(ABRIDGES)
    },
    "brownian": (
        solvers.build(BROWNIAN, "ancestral"),
        partial(sde_bbdm.nn.SDEBBDMModule, nn.Identity(), T),
    ),
    "posterior": (solvers.build(BROWNIAN, "posterior", range(T, 0, -1)), FORWARD[-1][1]),
    "skips": (
        solvers.build(BROWNIAN, "posterior"),
        partial(sde_bbdm.nn.BBDMModule, TakesCondition(), T),
    ),
}


@pytest.mark.parametrize("name", TABLES)
def test_rows(draw: Draw, name: str) -> None:
    """|public - ours| is within the tolerance; NaN is not. Ancestral samplers subtract their noise."""
    table, make = TABLES[name]
    module, times, by_row = make(), [*table.timesteps.tolist(), 0], name.startswith("fast")
    if by_row:
        module.fast_sampling_steps = paper_times()
        assert times[:-1] == module.fast_sampling_steps
    sign = -1.0 if name.startswith(("ancestral", "brownian")) else 1.0
    rows = torch.from_numpy(table.rows)
    inputs = torch.randn(len(table), 4, 2 if name == "skips" else 1, 3, 4, 4)
    differences: dict[int, torch.Tensor] = {}
    for row, (t, (x, y, pred, z)) in enumerate(zip(times, inputs, strict=False)):
        draw(z)
        x = (y if t == T else x).clone()
        data = diffusion.DiffusionData(x.clone(), torch.full((len(x),), t), condition=y)
        if name == "skips":  # given the right pair of times, it is our default table
            public = module.fast_sampling_step(data, t, times[row + 1], predicted_obj=pred)
        else:
            public = module.sampling_step(
                data, len(table) - row if by_row else t, predicted_obj=pred
            )
        # whose weights are 0 / 0, so its full sampling from T gives NaN
        if t == T and name in ("posterior", "skips"):
            assert public.isnan().all()
            alpha, beta, sigma = (float(weight) for weight in BROWNIAN.marginal(times[1]))
            # x_T = y says nothing of x0: it is the marginal
            public = alpha * (y - pred) + beta * y + sigma * z
        number = torch.tensor([row])
        bridge_step(
            x, torch.empty_like(x), torch.empty_like(x), pred, y, rows[row], number, noise=sign * z
        )
        differences[t] = (public - x).abs()
    if name.startswith("ancestral"):
        # At t = T the public weights are printed: 0.9998552 on y, 0.0001447648 on y - p, 0.0014142 on z. Half
        # a unit of the last digit of each is the tolerance of this row, and of this row alone.
        _, y, pred, z = inputs[0]
        printed = 0.5e-7 * y.abs() + 0.5e-10 * (y - pred).abs() + 0.5e-7 * z.abs()
        assert (differences.pop(T) <= printed).all()
    assert not {t: d.max().item() for t, d in differences.items() if not (d <= TOLERANCE).all()}


class Contraction(nn.Module):
    """Its x0hat = x - p is a contraction of x that depends on the time."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, 3, 3, padding=1)

    def forward(self, x: torch.Tensor, t: torch.Tensor) -> torch.Tensor:
        return x - 0.5 * torch.tanh(self.conv(x) + t[:, None, None, None] / T)


# which takes one image only
@pytest.mark.parametrize(("solver", "batch"), [("fast", 2), ("ancestral", 1)])
def test_sampler_walks_the_public_path(
    solver: str, batch: int, draw: Draw, monkeypatch: pytest.MonkeyPatch
) -> None:
    """All states, where step k draws noise[k]; the public sampler's last is its result."""
    network = Contraction().eval()
    times = paper_times() if solver == "fast" else list(range(T, 0, -1))
    source, noise = torch.rand(batch, 3, 8, 8) * 2 - 1, torch.randn(len(times), batch, 3, 8, 8)
    module = sde_bbdm.nn.ABridgeModule(network, T, c_lambda=2)
    module.fast_sampling_steps = times if solver == "fast" else None
    step, public = module.sampling_step, list[torch.Tensor]()

    def recorded_step(*args: Any, **settings: Any) -> torch.Tensor:
        draw(noise[len(public)])
        public.append(step(*args, **settings))
        return public[-1]

    monkeypatch.setattr(module, "sampling_step", recorded_step)
    settings = {
        "condition": source,
        "noises": source,
        "sampling_range": times,
        "device": torch.device("cpu"),
    }
    public[-1:] = [torch.stack(diffusion.Manager(module).predict(batch, (3, 8, 8), **settings))]
    sampler = BridgeSampler(wrap(network), ABridge(T, 2.0), solver)
    states = [
        step.x for step in sampler.stream(source, noise=noise if solver == "fast" else -noise)
    ]
    # Ancestral states carry the rounding of the first step's printed weights, 1e-7, which later steps grow to
    # 2.7e-6.
    atol = TOLERANCE if solver == "fast" else 1e-5
    torch.testing.assert_close(torch.stack(states), torch.stack(public), rtol=0, atol=atol)


def narrow(
    attention: tuple[int, ...], mult: tuple[int, ...], condition: int = 0
) -> tuple[nn.Module, UNet]:
    """64 channels wide: two in a group of GroupNorm, so no bias has a gradient that vanishes identically."""
    shape: dict[str, Any] = {"attention_resolutions": attention, "channel_mult": mult}
    fixed = {
        "num_heads": 8,
        "num_head_channels": 64,
        "num_res_blocks": 2,
        "use_scale_shift_norm": True,
    }
    public = sde_bbdm.networks.OpenAIUNet(
        3 + condition, 64, 3, resblock_updown=True, **fixed, **shape
    )
    return public, UNet(3, 3, condition_channels=condition, model_channels=64, **shape)


def paper() -> tuple[nn.Module, UNet]:
    return sde_bbdm.networks.build(3, 3), UNet(3, 3)


def shapes(network: nn.Module) -> list[tuple[str, torch.Size]]:
    return [(key, value.shape) for key, value in network.state_dict().items()]


def test_paper_network_has_the_public_state_dict() -> None:
    with torch.device("meta"):
        public, ours = paper()
    assert shapes(public) == shapes(ours)
    assert sum(p.numel() for p in ours.parameters()) == pytest.approx(237.1e6, abs=0.05e6)


@pytest.mark.parametrize(
    ("make", "size"),
    [
        pytest.param(paper, 32, marks=pytest.mark.nightly),  # 9 GB and a minute
        # below three levels
        pytest.param(partial(narrow, (32, 16, 8), (1, 4, 8)), 16, marks=pytest.mark.nightly),
        (partial(narrow, (2, 4), (1, 2, 4)), 16),
        (partial(narrow, (1,), (1, 2)), 16),
        (partial(narrow, (2,), (1, 2), 3), 16),
    ],
    ids=["paper", "paper-levels", "attention-2-4", "attention-1", "condition"],
)
def test_network_has_the_public_outputs_and_gradients(
    make: Callable[[], tuple[nn.Module, UNet]], size: int
) -> None:
    """Each tensor, also gradients of inputs, relative to its norm. The worst measured is 1e-14.

    Zero-initialised layers would hide the layers before them, so they get random values first. In float32
    rounding alone makes 1.1e-5 in the worst tensor at the paper's size.
    """
    public, ours = make()
    assert shapes(public) == shapes(ours)
    # at the scale of torch's initialisation; norms stay near 1
    for parameter in public.parameters():
        noise = torch.randn(parameter.shape)
        one = parameter.ndim == 1
        parameter.data = (
            (parameter == 1) + 0.1 * noise if one else noise / (3 * parameter[0].numel()) ** 0.5
        )
    ours.load_state_dict(public.state_dict())
    x, weight, y = torch.randn(3, 2, 3, size, size)
    found: list[dict[str, Any]] = []
    for network in (public, ours):
        inputs = {"x": x.clone().requires_grad_()}
        if ours.condition_channels:
            inputs["source"] = y.clone().requires_grad_()
        source: Any = (
            {"source": inputs["source"]}
            if "source" in inputs and network is ours
            else inputs.get("source")
        )
        output = network(inputs["x"], torch.tensor([3, 877]), source)
        (output * weight).sum().backward()
        gradients = {
            name: value.grad
            for name, value in {**inputs, **dict(network.named_parameters())}.items()
        }
        found.append({"output": output.detach(), **gradients})
    assert found[0].keys() == found[1].keys()
    errors = {name: relative_gap(found[1][name], value) for name, value in found[0].items()}
    assert not {name: error for name, error in errors.items() if not error <= 1e-10}
