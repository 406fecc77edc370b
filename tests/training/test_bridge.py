"""The losses of a bridge, one way and both; what does not fit; functions and a task of the caller."""

import math
import re
from collections.abc import Callable
from dataclasses import replace
from typing import Any, NamedTuple

import pytest
import torch

from bbdm import ABridge, wrap
from bbdm.bridges import DDBM, Bridge, BrownianBridge
from bbdm.codec import VQGANCodec, wrap_codec
from bbdm.data.examples import Example, collate
from bbdm.data.latents import LatentDataset
from bbdm.data.mapped import MappedDataset
from bbdm.data.pairs import Pairs
from bbdm.data.spec import Spec
from bbdm.kernels import philox
from bbdm.training.autoencoder import AutoencoderConfig, AutoencoderTask
from bbdm.training.bridge import BridgeTask, bridge_loss
from bbdm.training.config import DistillConfig, Loss, TrainConfig
from bbdm.training.distillation import StudentTask
from bbdm.training.optimization import Optimization, over_examples
from bbdm.training.preparation import drawn_back, turned
from bbdm.training.task import sample_seeds
from bbdm.training.trainer import Trainer
from tests.conftest import BRIDGE, MakeTrainer, batch_of, metrics_of, tiny_unet
from tests.networks.test_vqgan import tiny_vqgan

CPU = torch.device("cpu")
WAYS: dict[str, Any] = {"classes": {"direction": ("AtoB", "BtoA")}}
PRECONDITIONED = DDBM(sigma_data=0.2, sigma_source=0.4, cov=0.05)


class StandIn(torch.nn.Module):
    """Predicts 2 x_t - 0.9 and remembers what it was called with."""

    def __init__(self, dtype: torch.dtype = torch.float32) -> None:
        super().__init__()
        self.dtype = dtype

    def forward(self, x: torch.Tensor, *seen: Any) -> torch.Tensor:
        self.seen = seen
        return (2 * x - 0.9).to(self.dtype)


class TestBridgeLoss:
    """T = 4, x0 = 0.2, y = 0.6, sigma eps = 0.1 at t = 2.

    Thus x_t is 0.2 / 2 + 0.6 / 2 + 0.1 = 0.5 at t = 2, where the stand-in says 0.1, and y = 0.6 at t = 4,
    where it says 0.3. The bridge's sigma(2) is sqrt(2 (1/2 - 1/4)) = sqrt(1/2), so eps = 0.1 sqrt(2)."""

    eps = 0.1 * math.sqrt(2)

    @pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
    @pytest.mark.parametrize(
        ("objective", "t", "losses"),
        [
            # residual: targets 0.5 - 0.2 and 0.6 - 0.2, errors 0.2 and 0.1
            ("residual", [2, 4], {"l1": 0.15, "l2": 0.025}),
            # noise: target eps = 0.1414, error 0.0414
            ("noise", [2, 2], {"l1": eps - 0.1, "l2": (eps - 0.1) ** 2}),
        ],
        ids=["residual", "noise"],
    )
    def test_by_hand(
        self, objective: Any, t: list[int], losses: dict[Loss, float], dtype: torch.dtype
    ) -> None:
        """Half predictions are compared in float32; the network sees t and the conditions."""
        bridge, unet = BrownianBridge(4, objective=objective), StandIn(dtype)
        x0, y, noise = (torch.full((2, 1, 2, 2), value) for value in (0.2, 0.6, self.eps))
        for kind, wanted in losses.items():
            found = bridge_loss(
                unet, bridge, x0, y, torch.tensor(t), noise, kind, conditions={"source": y}
            )
            assert found.dtype == torch.float32
            assert found.item() == pytest.approx(
                wanted, rel=1e-5 if dtype == torch.float32 else 0.05
            )
        times, seen = unet.seen
        assert times.tolist() == t
        assert seen["source"] is y

    @pytest.mark.parametrize("sides", [(2, 2), (3, 4, 5)], ids=["pictures", "volumes"])
    @pytest.mark.parametrize(("loss", "errors"), [("l1", torch.abs), ("l2", torch.square)])
    def test_it_is_the_mean_over_the_pixels_of_the_mask(
        self, sides: Any, loss: Loss, errors: Any
    ) -> None:
        """An image without any pixel has the loss 0."""
        x0, y = torch.randn(2, 3, 2, *sides)
        mask = (torch.rand(3, 1, *sides) > 0.3).float()
        mask[2] = 0
        bridge, t, noise = BrownianBridge(4), torch.tensor([2, 3, 2]), torch.zeros_like(x0)
        shown, target = bridge.add_noise(x0, y, t, noise)
        found = errors(2 * shown - 0.9 - target)
        losses = bridge_loss(StandIn(), bridge, x0, y, t, noise, loss, mask=mask, per_image=True)
        wanted = torch.stack(
            [*(found[i][:, mask[i, 0] > 0].mean() for i in range(2)), torch.tensor(0.0)]
        )
        torch.testing.assert_close(losses, wanted)
        torch.testing.assert_close(
            bridge_loss(StandIn(), bridge, x0, y, t, noise, loss, mask=mask), wanted.mean()
        )
        torch.testing.assert_close(
            bridge_loss(StandIn(), bridge, x0, y, t, noise, loss), found.mean()
        )


def test_sources_of_other_channels_are_trained_and_distilled() -> None:
    """The loss of a step is that of the batch by hand, with y in the target's channels."""
    batch = Example(torch.rand(4, 2, 8, 8) * 2 - 1, torch.rand(4, 3, 8, 8) * 2 - 1)
    network, seeds = tiny_unet(condition_channels=2), sample_seeds(0, 0, 4, CPU)
    task = BridgeTask(network, BRIDGE, TrainConfig(batch_size=4))
    y = batch.source.mean(1, keepdim=True).expand(-1, 3, -1, -1).contiguous()
    about: dict[str, Any] = {"conditions": {"source": batch.source}, "seeds": seeds, "step": 0}
    expected = bridge_loss(
        network, BRIDGE, batch.target, y, BRIDGE.draw_times(seeds, 0), **about
    ).item()
    assert float(Optimization(task, total=10).step(batch, 0)) == pytest.approx(expected, rel=1e-4)
    pinned, config = BrownianBridge(objective="pinned"), DistillConfig(batch_size=4)
    student = StudentTask(tiny_unet(condition_channels=2), pinned, config)
    assert float(Optimization(student, total=9).step(batch, 0)) > 0
    for each in (task, student):
        assert each.columns(batch)["result"].shape == batch.target.shape


# Both directions


def unet(**settings: Any) -> Any:
    return tiny_unet(**{"in_channels": 1, "out_channels": 1, "condition_channels": 1, **settings})


def test_half_of_each_batch_goes_back() -> None:
    """Of two neighbours one; which is drawn, and no function of how the batch is shared."""
    seeds = sample_seeds(5, 0, 8, CPU)
    drawn = torch.stack([drawn_back(seeds, step) for step in range(200)])
    assert (drawn[:, 0::2] != drawn[:, 1::2]).all()
    assert 0.4 < drawn[:, ::2].float().mean() < 0.6
    assert torch.equal(drawn_back(seeds[2:4], 7), drawn[7, 2:4])


class Twice(torch.nn.Module):
    """Predicts twice what it is shown."""

    def __init__(self) -> None:
        super().__init__()
        self.gain = torch.nn.Parameter(torch.tensor(2.0))

    def forward(self, shown: torch.Tensor, t: torch.Tensor, conditions: Any) -> torch.Tensor:
        return self.gain * shown


class ByHand(NamedTuple):
    """x_t = alpha x0 + beta y + sigma eps; shown is c_in x_t; x0hat = c_skip x_t + c_out F."""

    alpha: float
    beta: float
    sigma: float
    c_in: float
    c_skip: float
    c_out: float


def abridge_by_hand(back: bool) -> ByHand:
    """At m = 0.3 (algorithm 1 of the A-Bridge paper): the target is x_t - x0, the same both ways."""
    return ByHand(0.7, 0.3, 2 * 0.7 * math.sqrt(-math.log(0.7)), c_in=1, c_skip=1, c_out=-1)


def ddbm_by_hand(back: bool) -> ByHand:
    """At t = 1/2 (Zhou et al. 2024, table 1 and equation 13), where the data are sources on the way back."""
    variance_0, variance_end, covariance = (0.16, 0.04, 0.05) if back else (0.04, 0.16, 0.05)
    grown, grown_end = 2 * 0.5**2 / 2 + 0.1 * 0.5, 2 / 2 + 0.1
    # of the signal-to-noise ratios at the end and at t
    ratio = math.expm1(grown) / math.expm1(grown_end)
    scale, scale_end = math.exp(-grown / 2), math.exp(-grown_end / 2)
    alpha = scale * (1 - ratio)
    beta = scale / scale_end * ratio
    variance = -math.expm1(-grown) * (1 - ratio)
    total = (
        beta**2 * variance_end + alpha**2 * variance_0 + 2 * alpha * beta * covariance + variance
    )
    kept = beta**2 * (variance_end * variance_0 - covariance**2) + variance_0 * variance
    c_skip = (alpha * variance_0 + beta * covariance) / total
    return ByHand(alpha, beta, math.sqrt(variance), total**-0.5, c_skip, math.sqrt(kept / total))


@pytest.mark.parametrize(
    ("bridge", "t", "by_hand"),
    [(ABridge(50), 15, abridge_by_hand), (PRECONDITIONED, 0.5, ddbm_by_hand)],
    ids=["A-Bridge", "DDBM"],
)
def test_losses_are_those_of_each_direction(
    bridge: Bridge, t: float, by_hand: Callable[[bool], ByHand]
) -> None:
    """By the papers' formulas, on noise that is a function of seed and step; the mean of each is reported."""
    step, seeds, back = 3, sample_seeds(0, 0, 4, CPU), torch.tensor([False, True, True, False])
    batch = Example(torch.rand(4, 1, 8, 8) - 0.5, torch.rand(4, 1, 8, 8) / 2)
    times = torch.full((4,), t, dtype=torch.float64 if bridge.continuous else torch.int64)
    task = BridgeTask(
        wrap(Twice(), 1, **WAYS),
        bridge,
        TrainConfig(batch_size=4, loss="l2"),
        times=lambda seeds, step, bridge: times,
    )
    losses, reported = task.losses(task.network, turned(batch, back), seeds, step)

    noise = philox.normal(seeds, step, (1, 8, 8), philox.TRAINING)
    expected: list[torch.Tensor] = []
    for index in range(4):
        goes_back = bool(back[index])
        x0, y = batch.target[index], batch.source[index]
        if goes_back:
            x0, y = y, x0
        weights = by_hand(goes_back)
        x_t = weights.alpha * x0 + weights.beta * y + weights.sigma * noise[index]
        target = (x0 - weights.c_skip * x_t) / weights.c_out
        expected.append((2 * weights.c_in * x_t - target).square().mean())
    torch.testing.assert_close(losses, torch.stack(expected), rtol=1e-4, atol=1e-6)
    means = over_examples(reported)
    torch.testing.assert_close(
        means["loss_AtoB"], (expected[0] + expected[3]) / 2, rtol=1e-4, atol=1e-6
    )
    torch.testing.assert_close(
        means["loss_BtoA"], (expected[1] + expected[2]) / 2, rtol=1e-4, atol=1e-6
    )


@pytest.mark.parametrize("parts", [1, 3])
def test_the_loss_of_a_direction_is_the_mean_over_its_examples(
    parts: int, make_trainer: MakeTrainer, pairs: Pairs
) -> None:
    """Of batches of 3, where 1 or 2 go back: where each example loses 1, so does each direction."""
    further = {"loss": lambda prediction, target: 0 * prediction + 1}
    both = Pairs(pairs.rows, replace(pairs.spec, direction="both"))
    settings: dict[str, Any] = {"batch_size": 3, "epochs": 4, "grad_accumulation": parts}
    run = make_trainer(
        "run", tiny_unet(condition_channels=3, **WAYS), train=both, further=further, **settings
    )
    run.fit()
    for line in metrics_of(run):
        assert line["loss"] == pytest.approx(1)
        assert line["loss_AtoB"] == pytest.approx(1)
        assert line["loss_BtoA"] == pytest.approx(1)
        assert not any("share" in name for name in line)


# What does not fit


def pictures(
    source: int = 1, target: int = 1, *sides: int, **conditions: int
) -> list[dict[str, Any]]:
    sides = sides or (8, 8)
    images = {name: torch.zeros(count, *sides) for name, count in conditions.items()}
    return [
        {
            "source": torch.zeros(source, *sides),
            "target": torch.ones(target, *sides),
            "conditions": images,
        }
    ] * 4


CODEC = wrap_codec(
    torch.nn.Conv2d(1, 1, 1),
    channels=1,
    stride=1,
    encode=lambda m, v: m(v),
    decode=lambda m, v: m(v),
)


@pytest.mark.parametrize(
    ("network", "pairs", "codec", "reason"),
    [
        (
            {},
            pictures(3),
            None,
            "channels of sources and targets: (1, 1), and the pairs have (3, 1)",
        ),
        (
            {"images": {"sar": 2}},
            pictures(),
            None,
            "conditions besides the source: ['sar'], and the pairs have []",
        ),
        (
            {},
            pictures(sar=2),
            None,
            "conditions besides the source: [], and the pairs have ['sar']",
        ),
        ({"axes": 3}, pictures(), None, "the network has axes: 3, and the pairs have 2"),
        ({}, pictures(1, 1, 4, 8, 8), None, "the network has axes: 2, and the pairs have 3"),
        (
            {},
            pictures(1, 1, 8, 9),
            None,
            "image_size (8, 9) is not a multiple of (2, 2), strides of network and codec",
        ),
        (
            {"axes": 3},
            pictures(1, 1, 3, 8, 8),
            None,
            "image_size (3, 8, 8) is not a multiple of (2, 2, 2)",
        ),
        ({}, pictures(1, 1, 8, 9), None, "strides of network and codec: take 8 x 8 or 8 x 10"),
        ({}, pictures(1, 1, 1, 9), None, "strides of network and codec: take 2 x 10"),
        (
            {"axes": 3},
            pictures(1, 1, 4, 8, 8),
            CODEC,
            "a codec is for pictures (B, C, H, W), and this network is of",
        ),
        (
            {},
            MappedDataset(pictures(), spec=Spec(direction="both")),
            None,
            "the class 'direction': False, and the",
        ),
        (
            WAYS,
            pictures(),
            None,
            "both directions, the class 'direction': True, and the pairs have False",
        ),
    ],
)
def test_pairs_that_the_network_cannot_take_are_refused(
    network: dict[str, Any], pairs: Any, codec: Any, reason: str, tmp_path: Any
) -> None:
    with pytest.raises(ValueError, match=re.escape(reason)):
        Trainer(
            unet(**network), ABridge(50), TrainConfig(batch_size=4), pairs, None, tmp_path, codec
        )


def test_what_cannot_go_both_ways_is_refused() -> None:
    with pytest.raises(
        ValueError,
        match="source of 3 and a target of 1 channels, and one network of direction 'both'",
    ):
        MappedDataset(pictures(3), spec=Spec(direction="both"))
    with pytest.raises(
        ValueError, match="a student of two directions takes the same steps both ways"
    ):
        StudentTask(unet(**WAYS), PRECONDITIONED, DistillConfig(batch_size=4))


def test_latents_are_trained_on_as_they_were_made(pairs: Pairs, tmp_path: Any) -> None:
    """By their codec and flips, and not moved. Of those of a picture and the mirrored one, one is drawn."""
    codec, other = (VQGANCodec(tiny_vqgan(seed=seed)) for seed in (0, 1))
    latents = LatentDataset(pairs, codec, tmp_path / "latents", flip=True)
    for its, settings, reason in (
        (
            other,
            {"flip": True},
            r"codec must be that of the stored latents \(cache_latents\), got vqgan",
        ),
        (codec, {}, r"flip must be that of the stored latents .*, True; got False"),
        (
            codec,
            {"flip": True, "shift": 0.1},
            r"shift must be 0 with stored latents \(cache_latents\), got 0\.1",
        ),
        (codec, {"flip": True, "turn": 5.0}, r"turn must be 0 with stored latents"),
    ):
        config = TrainConfig(batch_size=2, **settings)  # pyright: ignore[reportArgumentType]
        with pytest.raises(ValueError, match=reason):
            BridgeTask(tiny_unet(), BRIDGE, config, latents, codec=its)
    task = BridgeTask(
        tiny_unet(), BRIDGE, TrainConfig(batch_size=2, flip=True), latents, codec=codec
    )
    batch, seeds = collate([latents.read(i) for i in range(4)]), sample_seeds(3, 0, 4, CPU)
    flips, found = philox.flips(seeds, 5).tolist(), task.prepared(batch, seeds, 5)
    assert len(set(flips)) == 2
    for side in ("source", "target"):
        wanted = [getattr(batch, side)[i, int(flip)] for i, flip in enumerate(flips)]
        assert torch.equal(getattr(found, side), torch.stack(wanted))


class Quarter(torch.nn.Module):
    """Predicts 1/4 everywhere."""

    def __init__(self) -> None:
        super().__init__()
        self.value = torch.nn.Parameter(torch.tensor(0.25))

    def forward(self, shown: torch.Tensor, t: torch.Tensor) -> torch.Tensor:
        return self.value.expand_as(shown)


def test_validation_losses_are_of_latents() -> None:
    """The target y - x0 depends on no time and no noise; latents are halves of means over 2 x 2 pixels.

    The loss is the sum over pairs of the means over their latents.
    """
    halves = torch.nn.Conv2d(3, 3, 2, stride=2, groups=3, bias=False)
    torch.nn.init.constant_(halves.weight, 1 / 8)
    codec = wrap_codec(
        halves,
        channels=3,
        stride=2,
        encode=lambda module, pictures: module(pictures),
        decode=lambda module, latents: latents,
    )
    bridge = BrownianBridge(objective="displacement")
    task = BridgeTask(wrap(Quarter(), 3), bridge, TrainConfig(batch_size=4), codec=codec)
    batch = Example(torch.rand(4, 3, 8, 8) * 2 - 1, torch.rand(4, 3, 8, 8) * 2 - 1)
    losses = task.validation_losses(batch, sample_seeds(3, 0, 4, CPU))

    difference = (batch.source - batch.target).numpy()
    latents = difference.reshape(4, 3, 4, 2, 4, 2).mean((3, 5)) / 2
    expected = abs(0.25 - latents).mean((1, 2, 3)).sum()
    assert losses == pytest.approx({"validation_loss": float(expected)}, rel=1e-5)


# Functions of the caller


def test_an_optimizer_and_a_schedule(make_trainer: MakeTrainer) -> None:
    """The optimizer's own rates, of two groups, times the factor, which is 1/2 at the last of two steps."""

    def sgd(parameters: list[torch.nn.Parameter]) -> torch.optim.Optimizer:
        return torch.optim.SGD(
            [{"params": parameters[:1], "lr": 0.1}, {"params": parameters[1:], "lr": 0.2}]
        )

    functions = {"optimizer": sgd, "schedule": lambda step, total: (step + 1) / (2 * total)}
    run = make_trainer(epochs=1, learning_rate=0.5, warmup_steps=1, further=functions)
    run.fit()
    assert isinstance(run.optimization.optimizer, torch.optim.SGD)
    assert [group["lr"] for group in run.optimization.optimizer.param_groups] == [0.05, 0.1]
    assert metrics_of(run)[0]["learning_rate"] == 0.05


def at_7(seeds: torch.Tensor, step: int, bridge: Bridge) -> torch.Tensor:
    assert bridge is BRIDGE
    return seeds.new_full(seeds.shape, 7 + step)


def test_a_loss_and_times_are_those_of_the_functions(pairs: Pairs) -> None:
    functions: dict[str, Any] = {"loss": lambda a, b: (a - b).square(), "times": at_7}
    task = BridgeTask(
        tiny_unet(condition_channels=3), BRIDGE, TrainConfig(batch_size=2), **functions
    )
    batch, seeds = batch_of(pairs, 2), torch.arange(2)
    losses, _ = task.losses(task.network, batch, seeds, 3)
    about: dict[str, Any] = {
        "conditions": {"source": batch.source},
        "seeds": seeds,
        "step": 3,
        "per_image": True,
    }
    wanted = bridge_loss(
        task.network, BRIDGE, batch.target, batch.source, torch.tensor([10, 10]), loss="l2", **about
    )
    torch.testing.assert_close(losses, wanted)


def test_functions_that_do_not_fit_are_refused(pairs: Pairs, make_trainer: MakeTrainer) -> None:
    loss: Callable[..., torch.Tensor] = torch.nn.functional.l1_loss
    with pytest.raises(
        ValueError, match=r"loss must return errors of the target's shape, \(2, 3, 8, 8\), got \(\)"
    ):
        make_trainer(further={"loss": loss}).train_step(batch_of(pairs, 2))
    with pytest.raises(ValueError, match="times must be None for a student"):
        make_trainer(kind=DistillConfig, further={"task": StudentTask, "times": at_7})
    config: Any = AutoencoderConfig(batch_size=2, adversarial_weight=0)
    with pytest.raises(TypeError, match="loss"):
        Trainer(tiny_vqgan(), None, config, pairs, None, "run", task=AutoencoderTask, loss=loss)


class Regression(BridgeTask):
    """Of the source in one call; it reports a number, and needs no times."""

    def losses(self, network: Any, batch: Any, seeds: torch.Tensor, step: int) -> Any:
        result = network(batch.source, torch.full((1,), 50.0), {"source": batch.source})
        losses = (result - batch.target).square().flatten(1).mean(1)
        return losses, {"brightness": result.mean()}


def test_a_task_of_its_own_is_a_loss(pairs: Pairs, make_trainer: MakeTrainer) -> None:
    """What it reports is a metric: the mean over the steps of an epoch."""
    network = tiny_unet(condition_channels=3)
    settings = {"learning_rate": 1e-9, "grad_accumulation": 2}
    run = make_trainer(unet=network, validation=pairs, further={"task": Regression}, **settings)
    batch = batch_of(pairs, 4)
    with torch.no_grad():
        results = network(batch.source, torch.full((1,), 50.0), {"source": batch.source})
    run.fit()
    records, error = metrics_of(run), (results - batch.target).square().mean().item()
    assert [each["brightness"] for each in records] == pytest.approx(
        [results.mean().item()] * 2, rel=1e-3
    )
    assert [records[0][name] for name in ("loss", "validation_loss")] == pytest.approx(
        [error] * 2, rel=1e-3
    )
