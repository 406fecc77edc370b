"""One optimizer step: settings, rates, gradients, the average of weights, and what is drawn for a batch."""

import math
from typing import Any

import pytest
import torch
from torch._dynamo.exc import Unsupported

from bbdm.base.scripts import StoppedError
from bbdm.data.examples import Example
from bbdm.data.pairs import Pairs
from bbdm.training import optimization
from bbdm.training.bridge import BridgeTask, bridge_loss
from bbdm.training.config import FREE, TrainConfig
from bbdm.training.optimization import EMA, Optimization
from bbdm.training.preparation import dropped
from bbdm.training.task import sample_seeds
from bbdm.training.trainer import Trainer
from tests.conftest import BRIDGE, ROOT, SIZE, MakeTrainer, batch_of, metrics_of, tiny_unet

SEEDS = sample_seeds(0, 0, 64, torch.device("cpu"))


@pytest.mark.parametrize(
    ("name", "value", "reason"),
    [
        ("seed", 2**32, r"seed must be below 2\^32, got 4294967296"),
        *(
            ("learning_rate", v, f"learning_rate must be positive, got {v}")
            for v in (0.0, math.nan)
        ),
        *(("ema_decay", v, rf"ema_decay must be in \[0, 1\), got {v}") for v in (1.0, -0.1)),
        *(("shift", v, rf"shift must be in \[0, 0.5\], got {v}") for v in (-0.1, 0.6, math.nan)),
        *(("turn", v, rf"turn must be in \[0, 180\], got {v}") for v in (-1.0, 181.0, math.nan)),
        *(("zoom", v, rf"zoom must be in \[0, 1\], got {v}") for v in (-0.1, 1.5, math.nan)),
        ("epochs", 0, "epochs must be at least 1, got 0"),
        (
            "grad_accumulation",
            3,
            "batch_size 64 does not split into grad_accumulation=3 equal parts",
        ),
        ("loss", "l3", r"loss must be one of \('l1', 'l2'\), got 'l3'"),
    ],
)
def test_settings_are_refused(name: str, value: Any, reason: str) -> None:
    with pytest.raises(ValueError, match=reason):
        TrainConfig(**{name: value})


@pytest.mark.parametrize(
    ("name", "value"),
    [("ema_decay", 0.0), ("shift", 0.0), ("shift", 0.5), ("turn", 180.0), ("zoom", 1.0)],
)
def test_ends_of_the_range_of_a_setting_belong_to_it(name: str, value: float) -> None:
    settings: dict[str, Any] = {name: value}
    assert getattr(TrainConfig(**settings), name) == value


def test_the_guide_names_the_settings_that_may_change() -> None:
    guide = (
        (ROOT / "docs" / "training.md")
        .read_text()
        .split("These settings may change: ")[1]
        .split(". To")[0]
    )
    assert all(f"`--{name}`" in guide for name in FREE - {"epochs", "learning_rate"})


# Learning rates


@pytest.mark.parametrize(
    ("schedule", "warmup", "total", "rates"),
    [
        ("constant", 4, 100, {0: 2.0, 1: 4.0, 2: 6.0, 3: 8.0, 4: 8.0, 5: 8.0}),
        ("constant", 0, 100, dict.fromkeys((0, 1, 50, 99, 100), 8.0)),
        # (1 + cos) / 2 of 0, 60, 90, 120, 180 degrees
        ("cosine", 0, 12, {0: 8.0, 4: 6.0, 6: 4.0, 8: 2.0, 12: 0.0}),
        ("cosine", 10, 12, {4: 8 * 0.5 * 0.75}),  # they multiply
    ],
)
def test_learning_rates(schedule: Any, warmup: int, total: int, rates: dict[int, float]) -> None:
    config = TrainConfig(lr_schedule=schedule, warmup_steps=warmup)
    optimization = Optimization(BridgeTask(tiny_unet(), BRIDGE, config), total=total)
    assert {step: optimization.rate(step, 8.0) for step in rates} == pytest.approx(rates, abs=1e-12)


def test_a_plateau_halves_the_rate(
    make_trainer: MakeTrainer, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Losses stop falling, with a patience of 2: halved after 3 more, and after 2 of rest and 3."""
    monkeypatch.setattr(optimization, "PATIENCE", 2)
    settings: dict[str, Any] = {"lr_schedule": "plateau", "learning_rate": 1e-4, "batch_size": 1}
    first: Any = make_trainer(**settings).optimization
    rates: list[float] = []
    for loss in [1.0, 0.5, *[0.49999] * 3, *[0.5] * 5, 0.4]:
        first.plateau.step(loss)
        rates.append(first.rate(0, 1e-4))
    assert rates == [1e-4] * 4 + [5e-5] * 5 + [2.5e-5] * 2
    for _ in range(60):
        first.plateau.step(1.0)
    assert first.rate(0, 1e-4) == 5e-7
    assert first.rate(0, 1e-7) == 1e-7  # it never raises one
    run = make_trainer("b", epochs=1, **settings)
    assert run.optimization.plateau is not None
    run.optimization.plateau.step(0.0)  # nothing will be lower
    run.fit()
    assert metrics_of(run)[-1]["learning_rate"] == 0.5e-4


@pytest.mark.parametrize("decay", [0.0, 0.25])
def test_weights_decay_where_it_is_set(decay: float) -> None:
    optimizer = Optimization(
        BridgeTask(tiny_unet(), BRIDGE, TrainConfig(weight_decay=decay))
    ).optimizer
    assert isinstance(optimizer, torch.optim.AdamW)  # which is Adam without it
    assert optimizer.defaults["weight_decay"] == decay


# Gradients


def watched(trainer: Trainer) -> list[torch.Tensor]:
    """The gradients that the optimizer gets from here on."""
    found: list[torch.Tensor] = []

    def collect(*_: Any) -> None:
        found.append(
            torch.cat(
                [p.grad.flatten() for p in trainer.network.parameters() if p.grad is not None]
            )
        )

    trainer.optimization.optimizer.register_step_pre_hook(collect)
    return found


def test_gradients_of_parts_and_of_float16_are_those_of_a_batch(
    make_trainer: MakeTrainer, pairs: Pairs
) -> None:
    """But for rounding: of 4 pairs at once, of 4 parts of one, which may be cut, and of half precision."""
    runs = [("fp32", 1, 1e9), ("fp32", 4, 1e9), ("fp32", 4, 0.01), ("fp16", 1, 1e9)]
    losses, found = list[float](), list[torch.Tensor]()
    for precision, parts, clip in runs:
        settings = {"batch_size": 4, "flip": True, "grad_accumulation": parts, "grad_clip": clip}
        trainer = make_trainer(f"{precision} {parts} {clip}", precision=precision, **settings)
        seen = watched(trainer)
        losses.append(float(trainer.train_step(batch_of(pairs, 4))))
        found += seen
    assert losses[0] == pytest.approx(losses[1], rel=1e-5)
    torch.testing.assert_close(found[0], found[1], rtol=1e-4, atol=1e-6)
    assert found[2].norm().item() == pytest.approx(0.01, rel=1e-3)
    assert losses[3] == pytest.approx(losses[0], rel=1e-2)
    assert losses[3] != losses[0]
    assert found[3].norm().item() == pytest.approx(found[0].norm().item(), rel=2e-2)


def test_a_step_that_overflows_float16_changes_no_weights(
    make_trainer: MakeTrainer, pairs: Pairs
) -> None:
    """Losses are scaled, since gradients in float16 end at 65504 above and 6e-8 below."""
    batch, trainer = batch_of(pairs, 2), make_trainer(precision="fp16")
    scaler, before = trainer.optimization.scaler, [p.clone() for p in trainer.network.parameters()]
    for scale, same in ((2.0**60, True), (1024.0, False)):
        scaler.load_state_dict({**scaler.state_dict(), "scale": scale})
        assert math.isfinite(trainer.train_step(batch))
        assert (
            all(
                torch.equal(*pair)
                for pair in zip(before, trainer.network.parameters(), strict=True)
            )
            == same
        )
        assert scaler.get_scale() == (scale / 2 if same else scale)


@pytest.mark.nightly
def test_compiled_gradients_are_the_eager_ones(make_trainer: MakeTrainer, pairs: Pairs) -> None:
    losses, found = list[float](), list[torch.Tensor]()
    for compiles in (False, True):
        unet = tiny_unet(condition_channels=3, attention_resolutions=())
        trainer = make_trainer(f"{compiles}", unet, compile=compiles, grad_clip=1e9)
        seen = watched(trainer)
        losses.append(float(trainer.train_step(batch_of(pairs, 4))))
        found += seen
    assert losses[1] == pytest.approx(losses[0], rel=1e-5)
    assert (found[1] - found[0]).norm() <= 1e-4 * found[0].norm()


@pytest.mark.parametrize("parts", [1, 4, 5])
def test_parts_of_unequal_sizes_count_by_their_examples(parts: int) -> None:
    """Of six examples in parts of 6, of 2 and of 2 and 1: loss and gradients are means over the six."""
    network = tiny_unet(condition_channels=3)
    batch = Example(torch.rand(6, 3, SIZE, SIZE) * 2 - 1, torch.rand(6, 3, SIZE, SIZE) * 2 - 1)
    config = TrainConfig(batch_size=parts, grad_accumulation=parts, learning_rate=1.0)
    seeds = sample_seeds(0, 0, 6, torch.device("cpu"))
    about: dict[str, Any] = {"conditions": {"source": batch.source}, "seeds": seeds, "step": 0}
    expected = bridge_loss(
        network, BRIDGE, batch.target, batch.source, BRIDGE.draw_times(seeds, 0), **about
    )
    gradients = torch.autograd.grad(expected, [*network.parameters()])
    before = [weight.detach().clone() for weight in network.parameters()]
    optimization = Optimization(
        BridgeTask(network, BRIDGE, config), optimizer=lambda p: torch.optim.SGD(p, lr=1.0)
    )
    assert float(optimization.step(batch, 0)) == pytest.approx(expected.item(), rel=1e-5)
    for weight, old, gradient in zip(network.parameters(), before, gradients, strict=True):
        torch.testing.assert_close(old - weight.detach(), gradient, rtol=1e-4, atol=1e-6)


class Hides(BridgeTask):
    """Reports a finite loss of its own, whatever it minimises."""

    def losses(self, network: Any, batch: Example, seeds: torch.Tensor, step: int) -> Any:
        losses, _ = super().losses(network, batch, seeds, step)
        return losses * (math.nan if step else 1.0), {"loss": losses.mean().detach()}


def test_the_loss_that_is_minimised_is_looked_at(make_trainer: MakeTrainer, pairs: Pairs) -> None:
    trainer = make_trainer(further={"task": Hides}, learning_rate=1e-2)
    trainer.train_step(batch_of(pairs, 2))
    weights = weights_of(trainer.network)
    with pytest.raises(StoppedError, match="the loss is nan at step 2"):
        trainer.train_step(batch_of(pairs, 2))
    assert torch.equal(weights_of(trainer.network), weights)
    assert set(trainer.optimization.reported.means()) == {"loss"}


def test_what_a_task_learns_besides_is_finite_in_a_checkpoint(make_trainer: MakeTrainer) -> None:
    trainer = make_trainer(save_every=1)
    other = torch.nn.Linear(1, 1)
    trainer.task.stateful["critic"] = other
    torch.nn.init.constant_(other.weight, math.nan)
    with pytest.raises(StoppedError, match="weights are not finite at step 1"):
        trainer.fit()
    assert not trainer.run_folder.checkpoints()


def diverging(at: int) -> Any:
    """A loss that is no number from its call ``at`` on."""
    calls = iter(range(1000))
    return lambda prediction, target: (
        (prediction - target).abs() * (math.nan if next(calls) >= at else 1.0)
    )


@pytest.mark.parametrize("looks", [True, False], ids=["each step", "later, as on a card"])
def test_no_weight_moves_by_a_loss_that_is_no_number(
    looks: bool, make_trainer: MakeTrainer, pairs: Pairs, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Nor the average. Where a step does not wait for the loss, the optimizer itself skips the step."""
    trainer = make_trainer(further={"loss": diverging(1)}, learning_rate=1e-2)
    trainer.train_step(batch_of(pairs, 2))
    weights, average = weights_of(trainer.network), weights_of(trainer.average)
    monkeypatch.setattr(Optimization, "looks", lambda self, step: looks)
    if looks:
        with pytest.raises(StoppedError, match="the loss is nan at step 2"):
            trainer.train_step(batch_of(pairs, 2))
        assert torch.equal(weights_of(trainer.average), average)
    else:
        trainer.train_step(batch_of(pairs, 2))
        with pytest.raises(StoppedError, match="the loss is nan at step 2"):
            trainer.optimization.check(2)
        assert weights_of(trainer.average).isfinite().all()
    assert torch.equal(weights_of(trainer.network), weights)


def test_a_failure_to_compile_is_an_error(
    make_trainer: MakeTrainer, monkeypatch: pytest.MonkeyPatch
) -> None:
    unet = tiny_unet(condition_channels=3)
    monkeypatch.setattr(unet, "body", lambda *arguments: torch._dynamo.graph_break())
    with pytest.raises(Unsupported):
        make_trainer(unet=unet, compile=True).fit()


# The average of weights


def weights_of(network: torch.nn.Module) -> torch.Tensor:
    return torch.cat([parameter.detach().double().flatten() for parameter in network.parameters()])


@pytest.mark.parametrize(
    ("start", "every", "decays"),
    [
        (0, 1, {0: 1 / 10, 1: 2 / 11, 2: 3 / 12, 3: 0.3, 4: 0.3, 5: 0.3}),
        (4, 2, {1: 0.0, 3: 0.3, 5: 0.3}),
    ],
)
def test_training_averages_the_weights_of_its_steps(
    start: int, every: int, decays: dict[int, float], make_trainer: MakeTrainer, pairs: Pairs
) -> None:
    """The averages in float64, with the decay of each update: 4/13, 5/14 and 6/15 are above 0.3."""
    settings = {
        "ema_decay": 0.3,
        "ema_start": start,
        "ema_every": every,
        "learning_rate": 1e-2,
        "batch_size": 4,
    }
    trainer = make_trainer(**settings)
    average, batch = weights_of(trainer.network), batch_of(pairs, 4)
    for step in range(6):
        trainer.train_step(batch)
        if (decay := decays.get(step)) is not None:
            average = decay * average + (1 - decay) * weights_of(trainer.network)
    torch.testing.assert_close(weights_of(trainer.average), average, rtol=1e-6, atol=1e-6)


def test_buffers_are_copied() -> None:
    """Of integers too, at updates alone."""
    unet = tiny_unet()
    unet.register_buffer("count", torch.tensor(0))
    ema = EMA(unet, decay=0.9, every=3)
    for step, expected in enumerate([0, 0, 3, 3, 3, 6]):
        unet.get_buffer("count").fill_(step + 1)
        ema.update(unet, step)
        assert ema.network.get_buffer("count").item() == expected


def test_frozen_weights_are_not_copied_into_the_average() -> None:
    unet = tiny_unet()
    first, *others = unet.parameters()
    for weight in others:
        weight.requires_grad_(False)
    ema = EMA(unet, decay=0.9)
    average, *same = ema.network.parameters()
    before = average.clone()
    with torch.no_grad():
        first += 1
    ema.update(unet, 100)
    assert all(one is other for one, other in zip(same, others, strict=True))
    torch.testing.assert_close(average, before + 0.1)


# What is drawn

SEEN: list[tuple[int, list[int], list[float]]] = []


class Recorder(BridgeTask):
    """Keeps the number, the seeds and the sources of each step."""

    def losses(self, network: Any, batch: Example, seeds: torch.Tensor, step: int) -> Any:
        SEEN.append((step, seeds.tolist(), batch.source[:, 0, 0, 0].tolist()))
        return super().losses(network, batch, seeds, step)


# as sources
NUMBERS = [
    (torch.full((3, SIZE, SIZE), index / 8), torch.zeros(3, SIZE, SIZE)) for index in range(5)
]


def test_what_is_drawn_is_a_function_of_seed_step_and_index(make_trainer: MakeTrainer) -> None:
    """Of the seeds, times and noise are functions: see tests/bridges and tests/kernels.

    An epoch visits every pair once in an order of its own, and leaves out the last short batch.
    """

    def drawn(**settings: Any) -> list[tuple[int, list[int], list[float]]]:
        SEEN.clear()
        make_trainer(f"{settings}", train=NUMBERS, further={"task": Recorder}, **settings).fit()
        return [*SEEN]

    large, parts = (drawn(seed=11, batch_size=4, grad_accumulation=parts) for parts in (1, 2))
    assert [(step, seeds) for step, seeds, _ in large] == [
        (i, [11 + (k << 32) for k in range(4)]) for i in (0, 1)
    ]
    assert [seeds for _, seeds, _ in parts] == [large[0][1][:2], large[0][1][2:]] * 2
    orders = [
        [8 * v for *_, sources in drawn(seed=seed, batch_size=1) for v in sources]
        for seed in (0, 1)
    ]
    epochs = {tuple(order[i : i + 5]) for order in orders for i in (0, 5)}
    assert [sorted(epoch) for epoch in epochs] == [[0, 1, 2, 3, 4]] * 4
    with pytest.raises(ValueError, match="batch_size must be at most the 5 training pairs, got 6"):
        make_trainer(train=NUMBERS, batch_size=6)


def test_each_condition_is_dropped_alone_by_its_share() -> None:
    net = tiny_unet(
        classes={"a": 3}, tokens={"b": 4}, images={"c": 1}, drop={"a": 0.2, "b": 0.5, "c": 0.1}
    )
    count = 4000
    conditions = {
        "a": torch.zeros(count).long(),
        "b": torch.ones(count, 2, 4),
        "c": torch.ones(count, 1, 2, 2),
    }
    batch = Example(torch.zeros(count, 3, 2, 2), torch.zeros(count, 3, 2, 2), conditions)
    seeds = torch.arange(count) << 32
    found = dropped(batch, seeds, 7, net).conditions
    without = {
        "a": found["a"] == 3,
        "b": (found["b"] == 0).all((1, 2)),
        "c": (found["c"] == 0).all((1, 2, 3)),
    }
    for name, share in net.drop.items():
        spread = (share * (1 - share) / count) ** 0.5
        assert abs(without[name].double().mean().item() - share) < 4 * spread
    both = (without["a"] & without["b"]).double().mean().item()
    assert both == pytest.approx(0.1, abs=4 * (0.1 * 0.9 / count) ** 0.5)  # independent
    assert torch.equal(found["a"][~without["a"]], conditions["a"][~without["a"]])
    assert not torch.equal(dropped(batch, seeds, 8, net).conditions["a"], found["a"])
