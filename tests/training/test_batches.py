"""The batches of a run: order, times, noise and changes are functions of seed, step and index."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch

from bbdm.bridges import Bridge
from bbdm.data.examples import Example
from bbdm.data.pairs import Pairs
from bbdm.data.spec import Spec
from bbdm.kernels import philox_numpy
from bbdm.kernels.noise_step import noise_step
from bbdm.networks.unet import UNet
from bbdm.training import bridge as bridge_module
from bbdm.training.batches import augment, dropped, sample_seeds
from bbdm.training.bridge import bridge_loss
from bbdm.training.config import TrainConfig
from bbdm.training.trainer import Trainer
from tests.conftest import SIZE, MakeTrainer, tiny_unet

CPU = torch.device("cpu")
SEEDS = sample_seeds(0, 0, 64, CPU)


class Recorder:
    """Stands for bridge_loss and keeps, for each call in training, (x0, y, t, noise)."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.calls: list[tuple[torch.Tensor, ...]] = []
        monkeypatch.setattr(bridge_module, "bridge_loss", self)

    def __call__(
        self, unet: UNet, bridge: Bridge, x0: torch.Tensor, y: torch.Tensor, t: torch.Tensor, **keywords: Any
    ) -> torch.Tensor:
        if torch.is_grad_enabled():
            noise_alone = torch.tensor([[0.0, 0, 1, 0, 0, 1]]).expand(int(bridge.top) + 1, -1)
            noise, _ = noise_step(x0, y, t, noise_alone, seeds=keywords["seeds"], step=keywords["step"])
            self.calls.append((x0, y, t, noise))
        return bridge_loss(unet, bridge, x0, y, t, **keywords)


@pytest.fixture
def recorder(monkeypatch: pytest.MonkeyPatch) -> Recorder:
    return Recorder(monkeypatch)


class TestRandomness:
    def draws(self, recorder: Recorder, trainer: Trainer) -> list[tuple[torch.Tensor, torch.Tensor]]:
        recorder.calls.clear()
        trainer.fit()
        return [(t, noise) for _, _, t, noise in recorder.calls]

    def test_times_and_noise_are_a_function_of_seed_step_and_index(
        self, make_trainer: MakeTrainer, recorder: Recorder, pairs: Pairs
    ) -> None:
        small = self.draws(recorder, make_trainer("small", batch_size=2, epochs=2))
        backwards = Pairs(pairs.rows[::-1], Spec(size=SIZE, direction="BtoA"))
        large = self.draws(recorder, make_trainer("large", train=backwards, batch_size=4, epochs=4, flip=True))
        assert len(small) == len(large) == 4
        for (t, noise), (t_large, noise_large) in zip(small, large, strict=True):
            assert torch.equal(t, t_large[:2])
            assert torch.equal(noise, noise_large[:2])

    def test_contract(self, make_trainer: MakeTrainer, recorder: Recorder) -> None:
        """Stream 1 of the published generator, a key for each sample; times are lane 1, scaled to 1..T."""
        keys = [11, 11 + 2**32]
        for step, (t, noise) in enumerate(self.draws(recorder, make_trainer(seed=11))):
            np.testing.assert_allclose(noise, philox_numpy.normal(keys, step, (3, SIZE, SIZE), stream=1), atol=1e-5)
            words = philox_numpy.random_words(keys, step, 1, stream=1, lane=1)[:, 0]
            assert t.tolist() == [1 + int(word) * 50 // 2**32 for word in words]

    def test_epoch_visits_every_pair_once_in_an_order_of_its_own(
        self, make_trainer: MakeTrainer, recorder: Recorder, pairs: Pairs
    ) -> None:
        sources, orders = [pairs[i][0] for i in range(4)], set[tuple[int, ...]]()
        for seed in (0, 1, 2):
            recorder.calls.clear()
            make_trainer(f"order {seed}", seed=seed, batch_size=1, epochs=3).fit()
            visited = [next(i for i, s in enumerate(sources) if torch.equal(s, y[0])) for _, y, _, _ in recorder.calls]
            epochs = [tuple(visited[i : i + 4]) for i in (0, 4, 8)]
            assert [sorted(epoch) for epoch in epochs] == [[0, 1, 2, 3]] * 3
            assert len(set(epochs)) > 1
            orders.add(tuple(visited))
        assert len(orders) == 3

    def test_flip_mirrors_source_and_target_together(
        self, make_trainer: MakeTrainer, recorder: Recorder, pairs: Pairs
    ) -> None:
        make_trainer(batch_size=4, epochs=4, flip=True).fit()
        plain = [pairs[i] for i in range(4)]
        mirrored = [(source.flip(-1), target.flip(-1)) for source, target in plain]

        def seen(y: torch.Tensor, x0: torch.Tensor, among: list[tuple[torch.Tensor, torch.Tensor]]) -> bool:
            return any(torch.equal(y, source) and torch.equal(x0, target) for source, target in among)

        samples = [(y, x0) for x0s, ys, _, _ in recorder.calls for y, x0 in zip(ys, x0s, strict=True)]
        flipped = [seen(y, x0, mirrored) for y, x0 in samples]
        assert [seen(y, x0, plain) for y, x0 in samples] == [not f for f in flipped]
        assert 3 <= sum(flipped) <= 13  # of 16 fair coins, but for 4 in 1000 seeds

    def test_drops_the_last_short_batch(self, make_trainer: MakeTrainer, recorder: Recorder) -> None:
        trainer = make_trainer(batch_size=3, epochs=1)
        trainer.fit()
        assert [len(t) for _, _, t, _ in recorder.calls] == [3]
        assert trainer.step == 1
        with pytest.raises(ValueError, match="batch_size must be at most the 4 training pairs, got 5"):
            make_trainer(batch_size=5)


def test_pictures_and_volumes_are_moved_together_by_whole_pixels() -> None:
    """One pixel of each goes somewhere within the shift along each axis; flips mirror the last one."""
    for sides in ((16, 12), (8, 12, 16)):
        pictures = torch.full((64, 3, *sides), -1.0)
        middle = torch.tensor(sides) // 2
        pictures[(..., *middle)] = 1.0
        y, x0, *_ = augment(Example(pictures, pictures), SEEDS, 0, TrainConfig(shift=0.25))
        assert torch.equal(y, x0)
        found = (y[:, 0] == 1).nonzero()
        assert len(found) == 64  # the pixel is there once
        assert (y == 1).sum() + (y == -1).sum() == y.numel()
        most = torch.tensor(sides) // 4
        moved = found[:, 1:] - middle
        assert moved.abs().amax(0).tolist() == most.tolist()
        assert len(moved.unique(dim=0)) > 20
        mirrored = augment(Example(pictures, pictures), SEEDS, 0, TrainConfig(flip=True)).source
        columns = {tuple(place) for place in (mirrored[:, 0] == 1).nonzero()[:, 1:].tolist()}
        assert columns == {(*middle.tolist()[:-1], sides[-1] // 2 - each) for each in (0, 1)}


def test_beyond_a_side_pictures_go_on_as_at_it() -> None:
    white = torch.ones(64, 3, 8, 8)
    torch.testing.assert_close(augment(Example(white, white), SEEDS, 0, TrainConfig(shift=0.5)).source, white)


def test_changes_are_a_function_of_seed_and_step() -> None:
    config, v = TrainConfig(shift=0.3, flip=True), torch.rand(64, 3, 8, 8)
    whole = augment(Example(v, v), SEEDS, 5, config).source
    assert torch.equal(whole[32:], augment(Example(v[32:], v[32:]), SEEDS[32:], 5, config).source)
    assert not torch.equal(whole, augment(Example(v, v), SEEDS, 6, config).source)


def test_conditions_and_masks_are_changed_with_the_pair():
    """Columns are numbered, so that each image says where its pixels were."""
    ramp = torch.linspace(-1, 1, 12).expand(32, 1, 16, 12).contiguous()
    batch = Example(ramp, ramp.expand(-1, 3, -1, -1).contiguous(), {"sar": ramp, "season": torch.arange(32)}, ramp)
    outputs = augment(batch, SEEDS[:32], 0, TrainConfig(flip=True, shift=0.25))
    assert not torch.equal(outputs.source, ramp)
    for image in (outputs.target[:, :1], outputs.conditions["sar"], outputs.mask):
        assert torch.equal(image, outputs.source)
    assert outputs.conditions["season"] is batch.conditions["season"]


def test_each_condition_is_dropped_alone_by_its_share():
    net = tiny_unet(classes={"a": 3}, tokens={"b": 4}, images={"c": 1}, drop={"a": 0.2, "b": 0.5, "c": 0.1})
    count = 4000
    conditions = {"a": torch.zeros(count).long(), "b": torch.ones(count, 2, 4), "c": torch.ones(count, 1, 2, 2)}
    batch = Example(torch.zeros(count, 3, 2, 2), torch.zeros(count, 3, 2, 2), conditions)
    seeds = torch.arange(count) << 32
    found = dropped(batch, seeds, 7, net).conditions
    without = {"a": found["a"] == 3, "b": (found["b"] == 0).all((1, 2)), "c": (found["c"] == 0).all((1, 2, 3))}
    for name, share in net.drop.items():
        spread = (share * (1 - share) / count) ** 0.5
        assert abs(without[name].double().mean().item() - share) < 4 * spread
    both = (without["a"] & without["b"]).double().mean().item()
    assert both == pytest.approx(0.1, abs=4 * (0.1 * 0.9 / count) ** 0.5)  # independent
    assert torch.equal(found["a"][~without["a"]], conditions["a"][~without["a"]])
    again = dropped(batch, seeds, 7, net).conditions
    assert all(torch.equal(again[name], found[name]) for name in found)
    assert not torch.equal(dropped(batch, seeds, 8, net).conditions["a"], found["a"])
