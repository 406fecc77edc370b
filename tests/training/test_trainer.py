"""The training loop: learning, randomness, and a loss that is not finite."""

import math
from functools import partial
from typing import Any

import pytest
import torch
from torch._dynamo.exc import Unsupported

from bbdm.base.scripts import StoppedError
from bbdm.bridges import BrownianBridge
from bbdm.data.pairs import Pairs
from bbdm.data.spec import Spec
from bbdm.files.checkpoint import load_checkpoint
from bbdm.sampling.sampler import BridgeSampler
from bbdm.training import bridge as bridge_module
from bbdm.training.bridge import bridge_loss
from tests.conftest import SIZE, MakeTrainer, batch_of, metrics_of, newest, tiny_unet


@pytest.mark.nightly
def test_200_steps_halve_the_loss(make_trainer: MakeTrainer, pairs: Pairs) -> None:
    """The averaged weights' loss on the same pairs, against the untrained network's."""
    unet = tiny_unet(condition_channels=3, model_channels=16, attention_resolutions=(), head_channels=16)
    repeated = Pairs([*pairs.rows] * 50, pairs.spec)
    settings = {"batch_size": 4, "epochs": 4, "learning_rate": 3e-3, "preview_every": 4}
    trainer = make_trainer(unet=unet, train=repeated, validation=pairs, **settings)
    untrained = trainer.validate()["validation_loss"]
    trainer.fit()
    assert trainer.step == 200
    metrics = metrics_of(trainer)
    assert metrics[-1]["validation_loss"] < 0.5 * untrained
    assert metrics[-1]["loss"] < metrics[0]["loss"]


class TestDivergence:
    @pytest.mark.parametrize(
        ("at", "kind", "message"),
        [
            (3, "nan", r"loss is nan at step 3\. Lower learning_rate or set grad_clip; .* from step 2, .* in .*run"),
            (1, "inf", r"loss is inf at step 1\. .* nothing is saved yet"),
        ],
    )
    def test_reports_its_step_and_keeps_the_last_epoch(
        self, at: int, kind: str, message: str, make_trainer: MakeTrainer, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        calls = 0

        def loss(*arguments: Any, **keywords: Any) -> torch.Tensor:
            nonlocal calls
            calls += 1
            return bridge_loss(*arguments, **keywords) * (float(kind) if calls == at else 1)

        monkeypatch.setattr(bridge_module, "bridge_loss", loss)
        trainer = make_trainer()
        with pytest.raises(StoppedError, match=message):
            trainer.fit()
        assert bool(trainer.run.checkpoints()) == (at == 3)
        if at == 3:
            kept = load_checkpoint(newest(trainer))
            assert kept.training is not None
            assert kept.training["epoch"] == 1
            for state in (kept.unet.weights, kept.unet.ema):
                assert state is not None
                assert all(value.isfinite().all() for value in state.values())


class TestTrainer:
    def test_pictures_that_are_not_square(self, make_trainer: MakeTrainer, pairs: Pairs) -> None:
        wide = Pairs(pairs.rows, Spec(size=(SIZE, 2 * SIZE)))
        trainer = make_trainer(train=wide, validation=wide, epochs=1)
        trainer.fit()
        assert load_checkpoint(newest(trainer)).image_size == (SIZE, 2 * SIZE)
        make_trainer(train=wide, epochs=2).resume(newest(trainer))
        with pytest.raises(ValueError, match=r"trained with image_size=\(8, 16\) of the pairs, not 8"):
            make_trainer(epochs=2).resume(newest(trainer))
        with pytest.raises(ValueError, match=r"image_size \(8, 9\) is not a multiple of the network's 2"):
            make_trainer(train=Pairs(pairs.rows, Spec(size=(SIZE, SIZE + 1))))

    def test_grey_pictures_without_a_condition(self, make_trainer: MakeTrainer, pairs: Pairs) -> None:
        grey = Pairs(pairs.rows, Spec(size=SIZE, channels=1))
        unet = tiny_unet(in_channels=1, out_channels=1)
        trainer = make_trainer(unet=unet, train=grey, validation=grey, epochs=1)
        trainer.fit()
        assert math.isfinite(metrics_of(trainer)[0]["validation_loss"])
        assert (trainer.folder / "epoch_0001.png").is_file()
        with pytest.raises(ValueError, match="the network takes 3 channels, and the pairs have 1"):
            make_trainer(train=grey)

    def test_validation_loss_is_the_mean_over_pairs(self, make_trainer: MakeTrainer, pairs: Pairs):
        """Whatever the batch: a last short batch counts for as many pairs as it has."""
        whole = make_trainer("a", validation=pairs, batch_size=1).validate()
        assert make_trainer("b", validation=pairs, batch_size=3).validate() == pytest.approx(whole, rel=1e-5)

    @pytest.mark.parametrize(
        ("backend", "levels"),
        [
            ("aot_eager", (1,)),
            pytest.param("inductor", (1,), marks=pytest.mark.nightly),
            pytest.param("inductor", (1, 2), marks=pytest.mark.nightly),
        ],
        ids=["traced", "one level", "two levels"],
    )
    def test_compiled_gradients_are_the_eager_ones(
        self, backend: str, levels: Any, make_trainer: MakeTrainer, pairs: Pairs, monkeypatch: Any
    ) -> None:
        monkeypatch.setattr(torch, "compile", partial(torch.compile, backend=backend))
        batch = batch_of(pairs, 4)
        seeds = torch.arange(4)
        losses: list[torch.Tensor] = []
        gradients: list[dict[str, torch.Tensor]] = []
        for compile in (False, True):
            unet = tiny_unet(condition_channels=3, channel_mult=levels, attention_resolutions=())
            trainer = make_trainer(f"compile {compile}", unet, compile=compile)
            losses.append(trainer.task.losses(trainer.task.replica, batch, seeds, 0)[0].mean())
            losses[-1].backward()
            gradients.append({name: p.grad for name, p in unet.named_parameters() if p.grad is not None})
            assert len(gradients[-1]) == len(list(unet.parameters()))
            assert math.isfinite(trainer.train_step(batch))
        torch.testing.assert_close(losses[1], losses[0], rtol=1e-5, atol=0)
        for name, expected in gradients[0].items():
            assert (gradients[1][name] - expected).norm() <= 1e-4 * expected.norm(), name

    def test_a_failure_to_compile_is_an_error(self, make_trainer: MakeTrainer, monkeypatch: pytest.MonkeyPatch) -> None:
        unet = tiny_unet(condition_channels=3)
        monkeypatch.setattr(unet, "body", lambda *arguments: torch._dynamo.graph_break())
        with pytest.raises(Unsupported):
            make_trainer(unet=unet, compile=True).fit()

    def test_validation_is_of_the_averaged_weights_at_draws_that_never_change(
        self, make_trainer: MakeTrainer, pairs: Pairs
    ) -> None:
        trainer = make_trainer(validation=pairs)
        first = trainer.validate()
        trainer.step, trainer.epoch = 7, 3
        assert trainer.validate() == first
        for unet, same in ((trainer.network, True), (trainer.average, False)):
            with torch.no_grad():
                for parameter in unet.parameters():
                    parameter.zero_()
            assert (trainer.validate() == first) == same


def test_a_network_trained_at_the_top_is_called_there(make_trainer: MakeTrainer) -> None:
    """Its file says so: what reads it makes one call, of the source alone."""
    bridge = BrownianBridge(20, objective="pinned", density="top")
    trainer = make_trainer(bridge=bridge, epochs=1)
    trainer.fit()
    assert load_checkpoint(newest(trainer)).defaults.solver == "mean"
    sampler = BridgeSampler.from_checkpoint(newest(trainer))
    source = -torch.ones(1, 3, SIZE, SIZE)
    assert sampler.table.timesteps.tolist() == [bridge.top]
    assert sampler(source, seed=0).equal(sampler(source, seed=1))
