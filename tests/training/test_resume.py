"""Resuming from a checkpoint: bit for bit the undisturbed run, and refused for another run."""

import copy
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch

from bbdm import BridgeSampler
from bbdm.bridges import Bridge, BrownianBridge
from bbdm.codec import VQGANCodec
from bbdm.data.pairs import Pairs
from bbdm.data.spec import Spec
from bbdm.files.checkpoint import load_checkpoint
from bbdm.training import task
from bbdm.training.trainer import Trainer
from tests.conftest import BRIDGE, SIZE, MakeTrainer, metrics_of, newest, same_weights, tiny_unet
from tests.networks.test_vqgan import tiny_vqgan


def at_7(seeds: torch.Tensor, step: int, bridge: Bridge) -> torch.Tensor:
    return seeds.new_full(seeds.shape, 7 + step)


FUNCTIONS: dict[str, Any] = {
    "optimizer": lambda parameters: torch.optim.SGD(parameters, lr=0.1, momentum=0.9),
    "schedule": lambda step, total: 1 / (1 + step),
    "loss": lambda prediction, target: (prediction - target).abs().sqrt(),
    "times": at_7,
}
RESUMED: dict[str, dict[str, Any]] = {
    "float16": {"precision": "fp16"},
    "dropout": {"network": {"dropout": 0.5}},
    "functions": {"functions": FUNCTIONS},
    "parts, moved": {"grad_accumulation": 2, "shift": 0.1, "flip": True, "lr_schedule": "plateau"},
    "compiled": {"compile": True, "precision": "bf16"},
}
NIGHTLY = [pytest.param(case, marks=[pytest.mark.nightly] * (case == "compiled")) for case in RESUMED]


class TestResume:
    @pytest.mark.parametrize("case", NIGHTLY)
    def test_is_bitwise_the_undisturbed_run(
        self, case: str, make_trainer: MakeTrainer, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """Of three epochs of two steps, ended within the third. What else draws numbers changes nothing."""
        monkeypatch.setattr(task, "GradScaler", partial(torch.amp.GradScaler, growth_interval=2))
        settings = dict(RESUMED[case])
        network, functions = (settings.pop(name, {}) for name in ("network", "functions"))

        def trainer(folder: str) -> Trainer:
            unet = tiny_unet(condition_channels=3, **network)
            return make_trainer(folder, unet, further=functions, **{"epochs": 3, **settings})

        straight, broken, resumed = trainer("straight"), trainer("resumed"), trainer("resumed")
        straight.fit()
        torch.rand(3)
        assert not broken.fit(stop=lambda: broken.step == 5)
        assert resumed.resume_newest()
        assert (resumed.epoch, resumed.step) == (2, 5)
        resumed.fit()
        assert same_weights(resumed.network, straight.network)
        assert same_weights(resumed.average, straight.average)
        scales = [run.task.scaler.state_dict() for run in (resumed, straight)]
        assert scales[0] == scales[1]
        assert case != "float16" or scales[0]["scale"] != 65536  # it fell and rose

    def test_more_epochs_or_none(self, make_trainer: MakeTrainer) -> None:
        first = make_trainer(epochs=1)
        first.fit()
        before = newest(first).read_bytes()
        for epochs in (1, 3):
            again = make_trainer(epochs=epochs)
            again.resume(newest(first))
            again.fit()
            steps = [(record["epoch"], record["step"]) for record in metrics_of(again)]
            assert steps == [(1, 2), (2, 4), (3, 6)][:epochs]
            assert (newest(again).read_bytes() == before) == (epochs == 1)

    @pytest.mark.parametrize(
        ("before", "after", "reason"),
        [
            ({}, {"seed": 4}, "seed=0"),
            ({}, {"size": 2 * SIZE}, "image_size=8 of the pairs, not 16"),
            ({}, {"direction": "BtoA"}, "direction=AtoB of the pairs, not BtoA"),
            ({}, {"suffix": "-2"}, "pairs of other names"),
            ({"channels": 0}, {}, "condition_channels=0"),
            ({"bridge": BrownianBridge(50)}, {}, "kind=brownian"),
            ({}, {"bridge": replace(BRIDGE, density="high")}, "density=uniform"),  # this changes no weight
            ({}, {"dropout": 0.5}, r"dropout=0\.0"),
        ],
        ids=lambda value: value if isinstance(value, str) else "",
    )
    def test_refuses_another_run(
        self, before: Any, after: Any, reason: str, make_trainer: MakeTrainer, pairs: Pairs, tmp_path: Path
    ) -> None:
        def trainer(size: int = SIZE, direction: Any = "AtoB", suffix: str = "", channels: int = 3,
                    dropout: float = 0.0, **settings: Any) -> Trainer:  # fmt: skip
            train = Pairs(
                [{**row, "name": row["name"] + suffix} for row in pairs.rows], Spec(size=size, direction=direction)
            )
            unet = tiny_unet(condition_channels=channels, dropout=dropout)
            return make_trainer(unet=unet, train=train, epochs=1, **settings)

        trained = trainer(**before)
        trained.fit()
        other = trainer(**after)
        weights = copy.deepcopy(other.network.state_dict())
        message = rf"step_0000000\d\.pt was trained with .*{reason}.*: resume with the same"
        with pytest.raises(ValueError, match=message):
            other.resume(newest(trained))
        assert all(torch.equal(value, weights[key]) for key, value in other.network.state_dict().items())
        trained.save(tmp_path / "a.pt")
        with pytest.raises(ValueError, match=r"a\.pt holds no training state"):
            trained.resume(tmp_path / "a.pt")

    def test_other_validation_pairs_begin_a_new_best(
        self, make_trainer: MakeTrainer, pairs: Pairs, caplog: pytest.LogCaptureFixture
    ) -> None:
        make_trainer(validation=pairs, epochs=1).fit()
        for kept, best in ((4, 1), (3, None)):
            trainer = make_trainer(validation=Pairs(pairs.rows[:kept], pairs.spec), epochs=2)
            assert trainer.resume_newest()
            assert (None if trainer.best is None else trainer.best["epoch"]) == best
        assert "the validation pairs have changed" in caplog.text

    @pytest.mark.parametrize("steps", [0, 1, 2])
    def test_a_run_that_is_asked_to_end_does_no_further_step(self, steps: int, make_trainer: MakeTrainer) -> None:
        """Of 2 epochs of 2 steps. It is saved, and ends without an error."""
        run = make_trainer()
        assert not run.fit(stop=lambda: run.step >= steps)
        assert run.step == steps
        assert next(iter(run.run.checkpoints()), 0) == steps
        assert run.resume_newest() == (steps > 0)
        assert run.fit()
        assert [record["step"] for record in metrics_of(run)] == [2, 4]

    def test_the_best_epoch_is_kept_with_its_averaged_weights(
        self, make_trainer: MakeTrainer, pairs: Pairs, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """By a run that resumes too."""
        losses = iter([3.0, 1.0, 2.0, 2.0])
        monkeypatch.setattr(Trainer, "validate", lambda self: {"validation_loss": next(losses)})
        run = make_trainer(validation=pairs, epochs=4, keep=4)
        assert not run.fit(stop=lambda: run.step == 5)
        before = run.run.best.read_bytes()
        run = make_trainer(validation=pairs, epochs=4, keep=4)
        assert run.resume_newest()
        run.fit()
        assert run.run.best.read_bytes() == before
        assert [record["validation_loss"] for record in metrics_of(run)] == [3.0, 1.0, 2.0, 2.0]
        assert run.best == {"epoch": 2, "step": 4, "validation_loss": 1.0}
        best, second = (load_checkpoint(path) for path in (run.run.best, run.run.checkpoint(4)))
        assert best.training is None
        torch.testing.assert_close(best.unet.ema, second.unet.ema, rtol=0, atol=0)


class TestCodec:
    """Checkpoints of a run in latent space."""

    @pytest.fixture
    def make(self, make_trainer: MakeTrainer) -> MakeTrainer:
        """make(folder="run", vqgan seed=0): an epoch of 2 steps on latents."""

        def make(folder: str = "run", seed: int = 0, epochs: int = 1) -> Trainer:
            codec = {"codec": VQGANCodec(tiny_vqgan(seed=seed))}
            return make_trainer(folder, tiny_unet(), epochs=epochs, further=codec)

        return make

    def test_weights_of_the_codec_are_in_the_final_file_alone(self, make: MakeTrainer, tmp_path: Path) -> None:
        trainer = make()
        trainer.fit()
        trainer.save(tmp_path / "final.pt")
        step, final = load_checkpoint(newest(trainer)), load_checkpoint(tmp_path / "final.pt")
        assert step.codec is not None
        assert step.codec.weights is None
        assert step.codec.sha256 == VQGANCodec(tiny_vqgan()).digest()
        image = torch.zeros(1, 3, SIZE, SIZE)
        results = [
            BridgeSampler(loaded.build_unet(), loaded.bridge, codec=loaded.build_codec(), steps=2)(image, seed=0)
            for loaded in (final, load_checkpoint(newest(trainer), codec=VQGANCodec(tiny_vqgan())))
        ]
        assert torch.equal(*results)
        with pytest.raises(ValueError, match=r"in the space where it began: with the same codec \(vqgan_path"):
            make(seed=1, epochs=2).resume_newest()
