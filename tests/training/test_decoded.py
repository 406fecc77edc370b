"""The loss on decoded crops: its value and gradient by the formula, its crops, and what it does not fit."""

from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import nn

from bbdm.bridges import BrownianBridge
from bbdm.codec import VQGANCodec, wrap_codec
from bbdm.data.pairs import Pairs
from bbdm.kernels import philox
from bbdm.training.bridge import BridgeTask
from bbdm.training.config import TrainConfig, read_decoded
from bbdm.training.decoded import cropped
from bbdm.training.preparation import encode
from bbdm.training.task import sample_seeds
from tests.conftest import batch_of, tiny_unet
from tests.cuda.test_training import Edges
from tests.networks.test_vqgan import tiny_vqgan

CPU = torch.device("cpu")
SEEDS = sample_seeds(3, 0, 4, CPU)
CONFIG = TrainConfig(batch_size=4, loss="l2", decoded_loss=5.0)


@pytest.fixture(autouse=True)
def without_downloads(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("bbdm.evaluation.perceptual.lpips_network", lambda *_: Edges())


def own_codec() -> Any:
    torch.manual_seed(0)
    module = nn.ModuleList([nn.Conv2d(3, 4, 2, stride=2), nn.ConvTranspose2d(4, 3, 2, stride=2)])
    return wrap_codec(
        module, lambda m, image: m[0](image), lambda m, z: m[1](z).tanh(), channels=4, stride=2
    )


@pytest.mark.parametrize("objective", ["residual", "pinned"])
def test_value_and_gradient_are_those_of_the_formula(objective: Any, pairs: Pairs) -> None:
    """Pictures smaller than a crop are compared whole: l2 of the prediction, and 5 times LPIPS of x0hat."""
    codec: Any = own_codec()
    bridge = BrownianBridge(num_steps=1000, objective=objective)
    network = tiny_unet(in_channels=4, out_channels=4, condition_channels=4)
    task = BridgeTask(network, bridge, CONFIG, pairs, codec=codec)
    batch = encode(batch_of(pairs, 4), codec)
    losses, reported = task.losses(task.network, batch, SEEDS, 7)
    gradient = torch.autograd.grad(losses.mean(), network.get_parameter("out.2.weight"))[0]

    t = bridge.draw_times(SEEDS, 7)
    x0, y = batch.target, batch.source
    x_t = bridge.state(x0, y, t, philox.normal(SEEDS, 7, tuple(x0.shape[1:]), philox.TRAINING))
    shown, target = bridge.add_noise(x0, y, t, seeds=SEEDS, step=7)
    prediction = network(shown, bridge.seen(t), {"source": y})
    decode = codec.module[1]
    estimate = decode(bridge.estimate(x_t, y, prediction, t)).tanh()
    lpips = Edges()(estimate, decode(x0).tanh())
    expected = (prediction - target).square().mean((1, 2, 3)) + 5 * lpips
    torch.testing.assert_close(losses, expected, rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(reported["lpips"], lpips.mean(), rtol=1e-4, atol=1e-5)
    wanted = torch.autograd.grad(expected.mean(), network.get_parameter("out.2.weight"))[0]
    torch.testing.assert_close(gradient, wanted, rtol=1e-3, atol=1e-5)
    assert 5 * lpips.mean() > 0.01 * expected.mean()


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_decoders_that_leave_the_range_of_float16(dtype: torch.dtype, pairs: Pairs) -> None:
    """As Stable Diffusion's does: a training in float16 decodes in float32, and one in bfloat16 as it is."""
    codec: Any = own_codec()
    up = codec.module[1]
    decoder = wrap_codec(
        codec.module,
        lambda m, image: m[0](image),
        lambda m, z: (m[1](z * 1e7) / 1e7).tanh(),
        channels=4,
        stride=2,
    )
    task = BridgeTask(
        tiny_unet(in_channels=4, out_channels=4), BrownianBridge(), CONFIG, pairs, codec=decoder
    )
    x0 = torch.randn(4, 4, 8, 8, generator=torch.Generator().manual_seed(0))
    prediction = torch.zeros_like(x0, requires_grad=True)
    times = torch.full((4,), 500)
    decoded: Any = task.decoded
    with torch.autocast("cpu", dtype):
        lpips = decoded(prediction, x0, x0, times, SEEDS, 1)
    assert up.weight.abs().max() * 1e7 > torch.finfo(torch.float16).max
    torch.testing.assert_close(
        lpips, decoded(prediction, x0, x0, times, SEEDS, 1), rtol=0.05, atol=1e-3
    )
    assert torch.autograd.grad(lpips.sum(), prediction)[0].isfinite().all()


def test_crops_are_drawn_from_seeds_and_all_places_are() -> None:
    """A crop of 2 x 2 of 3 x 5 is at one of 2 x 4 places, the same for both pictures of an example."""
    seeds = sample_seeds(0, 0, 200, CPU)
    rows = torch.arange(3.0).view(1, 1, 3, 1).expand(200, 2, 3, 5)
    columns = torch.arange(5.0).view(1, 1, 1, 5).expand(200, 2, 3, 5)
    crops = cropped(10 * rows + columns, 2, seeds, 1)
    corner = crops[:, :1, :1, :1]
    expected = corner + torch.tensor([[0.0, 1.0], [10.0, 11.0]])
    assert torch.equal(crops, expected.expand(200, 2, 2, 2))
    assert set(corner.flatten().tolist()) == {0, 1, 2, 3, 10, 11, 12, 13}
    assert torch.equal(cropped((10 * rows + columns)[50:], 2, seeds[50:], 1), crops[50:])
    assert not torch.equal(cropped(10 * rows + columns, 2, seeds, 2), crops)
    assert torch.equal(cropped(rows, 9, seeds, 1), rows)


def test_what_does_not_fit_is_refused(pairs: Pairs) -> None:
    network = tiny_unet(in_channels=4, out_channels=4)
    with pytest.raises(ValueError, match="decoded_loss is of latents: it needs vqgan_path"):
        BridgeTask(tiny_unet(), BrownianBridge(), CONFIG, pairs)
    both = tiny_unet(in_channels=4, out_channels=4, classes={"direction": ("AtoB", "BtoA")})
    two_way = Pairs(pairs.rows, replace(pairs.spec, direction="both"))
    with pytest.raises(ValueError, match="decoded_loss is of one direction, got direction 'both'"):
        BridgeTask(both, BrownianBridge(), CONFIG, two_way, codec=own_codec())
    codebook = VQGANCodec(tiny_vqgan(latent_channels=4))
    with pytest.raises(ValueError, match="decoder has a gradient, and a codebook has none"):
        BridgeTask(network, BrownianBridge(), CONFIG, pairs, codec=codebook)
    with pytest.raises(ValueError, match="decoded_loss must be a positive weight, got 0"):
        TrainConfig(decoded_loss=0)
    for text in ("5", "l1:5", "lpips:"):
        with pytest.raises(ValueError, match=f"it is written as lpips:WEIGHT, got '{text}'"):
            read_decoded(text)
