"""From a target back to its noise, with an ideal network whose way is known in closed form."""

import numpy as np
import pytest
import torch

from bbdm import VQGAN, ABridge, BridgeSampler, BrownianBridge, VQGANCodec, wrap
from bbdm.bridges import Bridge, timesteps
from tests.conftest import tiny_unet
from tests.gaussian import Ideal

SPREAD = 0.3
SOURCE = torch.rand(2, 1, 8, 8, generator=torch.Generator().manual_seed(0)) - 0.5
NORMALS = torch.randn(2, 1, 8, 8, generator=torch.Generator().manual_seed(1))
TARGET = SOURCE / 4 + SPREAD * NORMALS
CASES: dict[str, tuple[Bridge, bool]] = {  # and whether times begin below the top, in noise
    "infinite at the top": (ABridge(), False),
    "larger noise": (BrownianBridge(), False),
    "finite at the top": (BrownianBridge(schedule="linear"), False),
    "from noise": (BrownianBridge(), True),
}


def ideal(bridge: Bridge) -> BridgeSampler:
    """Of pixels x0 ~ N(y / 4, 0.3^2): with many steps, ddim makes y / 4 + 0.3 z of the noise z."""
    network = Ideal(bridge, lambda y: y / 4, lambda y: torch.full_like(y, SPREAD))
    return BridgeSampler(wrap(network, 1, 1), bridge)


@pytest.mark.parametrize(("bridge", "from_noise"), CASES.values(), ids=CASES.keys())
def test_the_noise_of_a_target_leads_back_to_it(bridge: Bridge, from_noise: bool):
    sampler = ideal(bridge)
    errors: list[float] = []
    for steps in (10, 40):
        times = (timesteps.noise if from_noise else timesteps.karras)(bridge, steps).tolist()
        noise = sampler.encode(TARGET, SOURCE, timesteps=times)
        drawn = steps - 1 if from_noise else 0  # noise of the start has the number of the last row
        assert noise.shape == (steps, 2, 1, 8, 8)
        assert noise.abs().flatten(1).sum(1).nonzero().flatten().tolist() == [drawn]
        result = sampler(SOURCE, noise=noise, solver="ddim", timesteps=times)
        errors.append((result - TARGET).square().mean().sqrt().item() / SPREAD)
    assert errors[1] < errors[0] / 2
    assert errors[1] < 0.15
    assert (noise[drawn] - NORMALS).square().mean() < 0.02  # of variance 1


def test_the_last_call_of_the_way_back_is_the_first_of_the_way_there():
    """At the top, where the state is the source: its estimate decides which noise was drawn there."""
    times: list[float] = []

    def call(conv: torch.nn.Module, x: torch.Tensor, t: torch.Tensor, _: object) -> torch.Tensor:
        times.append(float(t[0]))
        return 0 * conv(x)

    sampler = BridgeSampler(wrap(torch.nn.Conv2d(1, 1, 1), 1, 1, call=call), ABridge(100))
    noise = sampler.encode(TARGET, SOURCE, steps=5)
    way_back = times.copy()
    times.clear()
    sampler(SOURCE, noise=noise, solver="ddim", steps=5)
    assert way_back == [*times[:1:-1], times[0]]


def test_without_noise_it_is_what_takes_the_place_of_the_source():
    """By the velocity y - x0 of targets that are the sources and 0.1."""
    shift = wrap(torch.nn.Conv2d(3, 3, 1), call=lambda conv, x, t, conditions: 0 * conv(x) - 0.1)
    sampler = BridgeSampler(shift, BrownianBridge(100, 0.0, "displacement"), "ddim", 10)
    target = torch.rand(1, 3, 8, 8, generator=torch.Generator().manual_seed(0)) / 4 - 0.5
    found = sampler.encode(target, torch.zeros(1, 3, 8, 8), steps=10)
    # 0.1 of the last step's 1 / 100
    torch.testing.assert_close(sampler(found, seed=0), target, atol=2e-3, rtol=0)


def test_pictures_batches_windows_and_latents():
    sampler = BridgeSampler(tiny_unet(condition_channels=3), ABridge(100))
    source, target = (
        np.asarray((SOURCE[0].expand(3, 8, 8) + 0.5 + i / 9) * 255 / 2, np.uint8) for i in range(2)
    )
    sources, targets = ([side.transpose(1, 2, 0)] * 3 for side in (source, target))
    noise = sampler.encode(targets, sources, steps=4)
    assert noise.shape == (4, 3, 3, 8, 8)
    torch.testing.assert_close(sampler.encode(targets, sources, steps=4, batch_size=2), noise)
    assert sampler.encode(targets, sources, steps=4, window=4).shape == noise.shape
    latent = BridgeSampler(tiny_unet(), ABridge(100), codec=VQGANCodec(VQGAN.from_preset("demo")))
    assert latent.encode(torch.zeros(1, 3, 32, 32), torch.zeros(1, 3, 32, 32), steps=3).shape == (
        3,
        1,
        3,
        8,
        8,
    )


def test_noise_is_a_tensor_of_its_own():
    """Autograd takes it, and it can be changed."""
    sampler = BridgeSampler(tiny_unet(), ABridge(100))
    zeros = torch.zeros(1, 3, 8, 8)
    sampler.encode(zeros, zeros, steps=3).mul_(2)
    flow = BridgeSampler(tiny_unet(), BrownianBridge(100, 0.0, "displacement"))
    flow.encode(zeros, zeros, steps=3).mul_(2)


def test_options_of_calls_alone_are_refused():
    sampler = BridgeSampler(tiny_unet(), ABridge(100))
    zeros = torch.zeros(1, 3, 8, 8)
    for name, value in {
        "solver": "dpm2m",
        "mask": zeros[:, :1],
        "noise": zeros[None],
        "callback": print,
    }.items():
        with pytest.raises(ValueError, match=f"encode takes no {name}"):
            sampler.encode(zeros, zeros, steps=3, **{name: value})


def test_a_warning_of_a_distilled_network_names_the_solver():
    sampler = BridgeSampler(tiny_unet(), ABridge(100), calls=2)
    with pytest.warns(UserWarning, match="is asked for 3 of 'ddim'"):
        sampler.encode(torch.zeros(1, 3, 8, 8), torch.zeros(1, 3, 8, 8), steps=4)


def test_bad_calls():
    sampler = BridgeSampler(tiny_unet(), ABridge(100))
    for shape, steps, message in (
        ((1, 3, 8, 8), 4, r"as many pictures of one size, got 2 of \(8, 8\) and 1 of \(8, 8\)"),
        ((2, 3, 4, 8), 4, r"as many pictures of one size, got 2 of \(8, 8\) and 2 of \(4, 8\)"),
        ((2, 3, 8, 8), 1, "at least 2 steps, got 1"),
    ):
        with pytest.raises(ValueError, match=message):
            sampler.encode(torch.zeros(shape), torch.zeros(2, 3, 8, 8), steps=steps)
    assert (
        sampler.encode(torch.zeros(1, 3, 8, 8), torch.zeros(1, 3, 8, 8), steps=2).isfinite().all()
    )


def test_noise_is_what_seeds_draw():
    sampler = BridgeSampler(tiny_unet(condition_channels=3), ABridge(100), "sde-dpm2m", 4)
    source = torch.zeros(2, 3, 8, 8)
    for options in ({}, {"solver": "posterior", "steps": 6}):
        noise = sampler.noise(source, [5, 9], **options)
        assert noise.shape[0] == options.get("steps", 4)
        assert sampler(source, noise=noise, **options).equal(sampler(source, [5, 9], **options))
    with pytest.raises(ValueError, match="one size"):
        sampler.noise([torch.zeros(3, 8, 8), torch.zeros(3, 4, 4)])
