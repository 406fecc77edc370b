"""A run: what it resumes bit for bit, what it refuses, its best epoch, its folder, and writes that fail."""

import copy
import errno
import json
import os
import sys
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any
from unittest.mock import Mock

import pytest
import torch
from filelock import FileLock
from PIL import Image

from bbdm import Callback, bridges
from bbdm.base import atomic
from bbdm.base.scripts import StoppedError
from bbdm.bridges import DDBM, BrownianBridge
from bbdm.codec import VQGANCodec
from bbdm.data.pairs import Pairs
from bbdm.data.provenance import Record
from bbdm.data.spec import Spec
from bbdm.files import weights
from bbdm.files.checkpoint import load_checkpoint
from bbdm.networks.config import UNetConfig
from bbdm.pictures import images
from bbdm.pictures.images import NAME_HEIGHT
from bbdm.training import optimization
from bbdm.training.config import TrainConfig, UnpairedConfig, steps_of
from bbdm.training.run import RunFolder
from bbdm.training.trainer import Trainer
from bbdm.training.unpaired import UnpairedTask
from tests.conftest import (
    BRIDGE,
    SIZE,
    MakePairs,
    MakeTrainer,
    metrics_of,
    newest,
    same_weights,
    tiny_unet,
)
from tests.networks.test_vqgan import tiny_vqgan
from tests.training.test_bridge import at_7

# Resuming


FUNCTIONS: dict[str, Any] = {
    "optimizer": lambda parameters: torch.optim.SGD(parameters, lr=0.1, momentum=0.9),
    "schedule": lambda step, total: 1 / (1 + step),
    "loss": lambda prediction, target: (prediction - target).abs().sqrt(),
    "times": at_7,
}
WAYS: dict[str, Any] = {"condition_channels": 0, "classes": {"direction": ("AtoB", "BtoA")}}
BOTH: dict[str, Any] = {"network": {**WAYS, "condition_channels": 3}, "loss": "l2", "flip": True}
RESUMED: dict[str, dict[str, Any]] = {
    "float16": {"precision": "fp16"},
    "functions": {"functions": FUNCTIONS},
    "parts, moved": {"grad_accumulation": 2, "shift": 0.1, "flip": True, "lr_schedule": "plateau"},
    "both ways": {
        **BOTH,
        "bridge": DDBM(sigma_data=0.2, sigma_source=0.4, cov=0.05),
        "grad_accumulation": 2,
    },
    "unpaired": {
        "network": WAYS,
        "bridge": BrownianBridge(objective="preconditioned"),
        "kind": UnpairedConfig,
        "functions": {"task": UnpairedTask},
        **{"pairing_steps": 2, "simulation_steps": 3, "loss": "l2"},
    },
    "checkpointing": {"network": {"dropout": 0.5}, "ema_start": 4, "ema_every": 2},
    "compiled": {"compile": True, "precision": "bf16"},
}
NIGHTLY = [
    pytest.param(case, marks=[pytest.mark.nightly] * (case == "compiled")) for case in RESUMED
]


@pytest.mark.parametrize("case", NIGHTLY)
def test_a_resumed_run_is_bitwise_the_undisturbed_one(
    case: str, make_trainer: MakeTrainer, pairs: Pairs, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Of three epochs of two steps, ended within the third. What else draws numbers changes nothing."""
    monkeypatch.setattr(
        optimization, "GradScaler", partial(torch.amp.GradScaler, growth_interval=2)
    )
    settings = dict(RESUMED[case])
    network, functions = (settings.pop(name, {}) for name in ("network", "functions"))
    train = Pairs(
        pairs.rows, replace(pairs.spec, direction="both" if "classes" in network else "AtoB")
    )

    def trainer(folder: str) -> Trainer:
        unet = tiny_unet(**{"condition_channels": 3, **network})
        unet.gradient_checkpointing = case == "checkpointing"
        return make_trainer(
            folder, unet, train=train, further=functions, **{"epochs": 3, **settings}
        )

    straight, broken, resumed = trainer("straight"), trainer("resumed"), trainer("resumed")
    straight.fit()
    torch.rand(3)
    assert not broken.fit(stop=lambda: broken.step == 5)
    assert resumed.resume_newest()
    assert (resumed.epoch, resumed.step) == (2, 5)
    resumed.fit()
    assert same_weights(resumed.network, straight.network)
    assert same_weights(resumed.average, straight.average)
    scales = [run.optimization.scaler.state_dict() for run in (resumed, straight)]
    assert scales[0] == scales[1]
    assert case != "float16" or scales[0]["scale"] != 65536  # it fell and rose


@pytest.mark.parametrize(
    ("before", "after", "reason"),
    [
        ({}, {"seed": 4}, "seed 0, now 4"),
        ({}, {"spec": Spec(size=(SIZE, 2 * SIZE))}, r"pairs\.image_size 8, now \(8, 16\)"),
        ({}, {"spec": Spec(size=SIZE, direction="BtoA")}, r"pairs\.direction AtoB, now BtoA"),
        ({}, {"suffix": "-2"}, r"pairs\.names \w{8}, now \w{8}"),
        ({"network": {"condition_channels": 0}}, {}, r"unet\.condition_channels 0, now 3"),
        ({"bridge": BrownianBridge(50)}, {}, r"bridge\.kind brownian, now abridge"),
        # changes no weight
        ({}, {"bridge": replace(BRIDGE, density="high")}, r"bridge\.density uniform, now high"),
        ({}, {"network": {"dropout": 0.5}}, r"unet\.dropout 0\.0, now 0\.5"),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_another_run_is_refused(
    before: Any, after: Any, reason: str, make_trainer: MakeTrainer, pairs: Pairs, tmp_path: Path
) -> None:
    def trainer(
        spec: Any = None, suffix: str = "", network: Any = None, **settings: Any
    ) -> Trainer:
        train = Pairs(
            [{**row, "name": row["name"] + suffix} for row in pairs.rows], spec or Spec(size=SIZE)
        )
        unet = tiny_unet(**{"condition_channels": 3, **(network or {})})
        return make_trainer(unet=unet, train=train, **settings)

    trained, other = trainer(**before), trainer(**after)
    trained.fit(stop=lambda: trained.step == 1)
    weights = copy.deepcopy(other.network.state_dict())
    with pytest.raises(
        ValueError, match=rf"step_00000001\.pt was trained with .*{reason}.*: resume with the same"
    ):
        other.resume(newest(trained))
    assert all(
        torch.equal(value, weights[key]) for key, value in other.network.state_dict().items()
    )
    trained.save(tmp_path / "a.pt")
    with pytest.raises(ValueError, match=r"a\.pt holds no training state"):
        trained.resume(tmp_path / "a.pt")


def test_weights_of_a_codec_are_in_the_final_file_alone(
    make_trainer: MakeTrainer, tmp_path: Path
) -> None:
    def make(seed: int = 0, epochs: int = 1) -> Trainer:
        return make_trainer(
            "run", tiny_unet(), epochs=epochs, further={"codec": VQGANCodec(tiny_vqgan(seed=seed))}
        )

    trainer = make()
    trainer.fit()
    trainer.save(tmp_path / "final.pt")
    step, final = load_checkpoint(newest(trainer)), load_checkpoint(tmp_path / "final.pt")
    assert step.codec is not None
    assert (step.codec.weights, step.codec.sha256) == (None, VQGANCodec(tiny_vqgan()).digest())
    codecs = [
        each.build_codec()
        for each in (final, load_checkpoint(newest(trainer), codec=VQGANCodec(tiny_vqgan())))
    ]
    assert all(codec is not None and codec.digest() == step.codec.sha256 for codec in codecs)
    with pytest.raises(
        ValueError, match=r"only with the weights of the codec \(vqgan_path\) that it began with"
    ):
        make(seed=1, epochs=2).resume_newest()


@pytest.mark.parametrize(
    ("folder", "epochs", "steps"),
    [("run", 1, [2]), ("other", 1, []), ("run", 2, [2, 4]), ("other", 2, [4])],
    ids=["none", "none in another folder", "one more", "one more in another folder"],
)
def test_more_epochs_or_none_in_any_folder(
    folder: str, epochs: int, steps: list[int], make_trainer: MakeTrainer
) -> None:
    """The metrics are of the epochs that a folder has seen, and the first checkpoint stays as it was."""
    first = make_trainer("run", epochs=1)
    first.fit()
    file = newest(first)
    before = file.read_bytes()
    again = make_trainer(folder, epochs=epochs)
    again.resume(file)
    again.fit()
    assert [record["step"] for record in metrics_of(again)] == steps
    assert file.read_bytes() == before
    assert sorted(again.run_folder.checkpoints()) == steps


def test_an_epoch_that_is_trained_again_has_one_line_of_metrics(make_trainer: MakeTrainer) -> None:
    first = make_trainer(epochs=2)
    first.fit()
    first.run_folder.checkpoint(4).unlink()  # as where a run was killed before it was written
    again = make_trainer(epochs=2)
    assert again.resume_newest()
    again.fit()
    assert [record["step"] for record in metrics_of(again)] == [2, 4]


def test_a_run_that_is_asked_to_end_before_its_first_step_saves_nothing(
    make_trainer: MakeTrainer,
) -> None:
    run = make_trainer()
    assert not run.fit(stop=lambda: True)
    assert (run.step, [*run.run_folder.checkpoints()], run.resume_newest()) == (0, [], False)


# By steps


def test_validations_checkpoints_and_the_length_go_by_steps_or_epochs(
    make_trainer: MakeTrainer, pairs: Pairs, caplog: pytest.LogCaptureFixture
) -> None:
    """Of epochs of two steps: one checkpoint at each moment, whatever falls together."""
    caplog.set_level("INFO", "bbdm")
    settings: dict[str, Any] = {
        "epochs": 9,
        "max_steps": 7,
        "validate_every": 3,
        "save_every": "2e",
        "preview_every": 2,
        "keep": 9,
    }
    run = make_trainer(validation=pairs, **settings)
    assert run.fit()
    assert [(record["step"], record["epoch"]) for record in metrics_of(run)] == [
        (3, 1),
        (6, 3),
        (7, 3),
    ]
    written = [
        int(message[-11:-3]) for message in caplog.messages if message.startswith("checkpoint: ")
    ]
    assert written == [3, 4, 6, 7]
    assert sorted(path.name for path in run.folder.glob("*.png")) == [
        "step_00000006.png",
        "step_00000007.png",
    ]
    means = [record["loss"] for record in metrics_of(run)]
    every = make_trainer("each", validation=pairs, **{**settings, "validate_every": 1})
    every.fit()
    losses = [record["loss"] for record in metrics_of(every)]
    assert means == pytest.approx([sum(losses[:3]) / 3, sum(losses[3:6]) / 3, losses[6]])


@pytest.mark.parametrize("text", ["0", "e", "1.5e", "-2", "3s", ""])
def test_steps_that_are_none(text: str) -> None:
    for name in ("validate_every", "save_every"):
        setting: dict[str, Any] = {name: text}
        with pytest.raises(
            ValueError, match=rf"{name}: it is optimizer steps, .*, or epochs, .*; got '{text}'"
        ):
            TrainConfig(**setting)


def test_a_run_that_ends_while_it_validates_validates_again(
    make_trainer: MakeTrainer, pairs: Pairs
) -> None:
    straight = make_trainer("straight", validation=pairs)
    straight.fit()
    run, again = (make_trainer(validation=pairs) for _ in range(2))
    calls = iter(range(100))
    # in the second of two batches
    assert not run.fit(stop=lambda: run.step == 2 and next(calls) == 1)
    assert ([*run.run_folder.checkpoints()], metrics_of(run)) == ([2], [])
    assert again.resume_newest()
    again.fit()
    for one, other in zip(metrics_of(again), metrics_of(straight), strict=True):
        assert {**one, "images_per_second": 0} == {**other, "images_per_second": 0}


def test_steps_as_text_are_steps() -> None:
    config = TrainConfig(validate_every="5000", save_every="2e")
    assert (config.validate_every, config.save_every) == (5000, "2e")
    assert steps_of(config.validate_every, 7) == 5000


def test_a_stop_in_a_validation_that_is_repeated_ends_the_run(
    make_trainer: MakeTrainer, pairs: Pairs
) -> None:
    class Ends(Callback):
        def after_validation(self, trainer: Any, metrics: dict[str, Any]) -> None:
            trainer.stop("enough")

    run = make_trainer(validation=pairs)
    calls = iter(range(100))
    assert not run.fit(stop=lambda: run.step == 2 and next(calls) == 1)
    again = make_trainer(validation=pairs, callbacks=[Ends()])
    assert again.resume_newest()
    assert again.fit()
    assert again.step == 2


def test_a_checkpoint_of_another_version_is_refused_in_words(make_trainer: MakeTrainer) -> None:
    run = make_trainer()
    run.fit(stop=lambda: run.step == 1)
    checkpoint = load_checkpoint(newest(run))
    assert checkpoint.training is not None
    del checkpoint.training["reported"]
    with pytest.raises(
        ValueError, match=r"another version of bbdm, without 'reported': begin anew"
    ):
        make_trainer().resume(newest(run), checkpoint)


# Validation


def test_the_best_epoch_is_kept_with_its_averaged_weights(
    make_trainer: MakeTrainer,
    pairs: Pairs,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    """By a run that resumes too, with the same validation pairs."""
    losses = iter([3.0, 1.0, 2.0])
    monkeypatch.setattr(Trainer, "validate", lambda self: {"validation_loss": next(losses)})
    about = {"epochs": 3, "keep": 4, "preview_every": 9}
    run, again = (make_trainer(validation=pairs, **about) for _ in range(2))
    assert not run.fit(stop=lambda: run.step == 5)
    before = run.run_folder.best.read_bytes()
    other = make_trainer(validation=Pairs(pairs.rows[:3], pairs.spec), **about)
    assert other.resume_newest()
    assert other.best is None
    assert "the validation pairs have changed" in caplog.text
    assert again.resume_newest()
    again.fit()
    assert run.run_folder.best.read_bytes() == before
    assert [record["validation_loss"] for record in metrics_of(run)] == [3.0, 1.0, 2.0]
    assert again.best == {"epoch": 2, "step": 4, "validation_loss": 1.0}
    best, second = (
        load_checkpoint(path) for path in (run.run_folder.best, run.run_folder.checkpoint(4))
    )
    assert best.training is None
    torch.testing.assert_close(best.unet.ema, second.unet.ema, rtol=0, atol=0)


def test_validation_is_of_the_averaged_weights_at_draws_that_never_change(
    make_trainer: MakeTrainer, pairs: Pairs
) -> None:
    """The mean over pairs: a last short batch counts for as many pairs as it has."""
    trainer = make_trainer(validation=pairs)
    first = trainer.validate()
    assert make_trainer("b", validation=pairs, batch_size=3).validate() == pytest.approx(
        first, rel=1e-5
    )
    trainer.step = 7
    assert trainer.validate() == first
    for unet, same in ((trainer.network, True), (trainer.average, False)):
        with torch.no_grad():
            for parameter in unet.parameters():
                parameter.zero_()
        assert (trainer.validate() == first) == same


# The folder


def test_metrics_and_previews(make_trainer: MakeTrainer, pairs: Pairs) -> None:
    trainer = make_trainer(
        validation=pairs, epochs=3, learning_rate=1e-3, warmup_steps=5, preview_every=2
    )
    trainer.fit()
    metrics = metrics_of(trainer)
    # the rate of the epoch's last step: 2/5, 4/5 of the way up, and all of it
    assert [record["learning_rate"] for record in metrics] == pytest.approx([0.4e-3, 0.8e-3, 1e-3])
    assert metrics[-1]["validation_loss"] == trainer.validate()["validation_loss"]
    assert all(record["loss"] > 0 and record["images_per_second"] > 0 for record in metrics)
    assert sorted(file.name for file in trainer.folder.glob("*.png")) == [
        "step_00000004.png",
        "step_00000006.png",
    ]
    with Image.open(trainer.folder / "step_00000006.png") as sheet:
        assert sheet.size == (3 * (SIZE + 2) + 2, 4 * (SIZE + 2) + 2 + NAME_HEIGHT)
        for column, wanted in zip((0, 2), pairs[3], strict=True):
            left, top = 2 + column * (SIZE + 2), 2 + NAME_HEIGHT + 3 * (SIZE + 2)
            cell = torch.from_numpy(
                images.to_array(sheet.crop((left, top, left + SIZE, top + SIZE)))
            )
            torch.testing.assert_close(cell, wanted)


def test_a_path_that_is_text_without_validation_and_tensorboard(
    pairs: Pairs, tmp_path: Path, monkeypatch: Any
):
    """config.json has the settings."""
    monkeypatch.setitem(sys.modules, "tensorboard", None)
    config, folder = TrainConfig(epochs=1, batch_size=2, preview_every=1), f"{tmp_path}/runs/a"
    trainer = Trainer(tiny_unet(), BRIDGE, config, pairs, None, folder)
    trainer.fit()
    trainer.save(f"{tmp_path}/model.safetensors")
    trainer.resume(f"{folder}/step_00000002.pt")
    assert load_checkpoint(tmp_path / "model.safetensors").image_size == SIZE
    assert list(RunFolder(folder, 2).checkpoints()) == [2]
    written = {".lock", "config.json", "metrics.jsonl", "records", "step_00000002.pt"}
    assert {file.name for file in trainer.folder.iterdir()} == written
    assert "validation_loss" not in metrics_of(trainer)[0]
    content = json.loads((trainer.folder / "config.json").read_text())
    assert TrainConfig(**content["train"]) == config
    assert UNetConfig(**content["unet"]) == trainer.network.config
    assert bridges.from_config(content["bridge"]) == BRIDGE


def test_damaged_metrics_are_named_and_a_half_written_line_is_dropped(
    make_trainer: MakeTrainer,
) -> None:
    run = make_trainer()
    run.fit(stop=lambda: run.step == 3)
    metrics = run.folder / "metrics.jsonl"
    whole = metrics.read_text()
    metrics.write_text("damaged\n")
    with pytest.raises(ValueError, match=r"cannot read .*metrics\.jsonl: repair or delete it"):
        run.fit()
    metrics.write_text(whole + '{"epoch": 2, "lo')
    run.fit()  # the folder is free again
    assert [record["epoch"] for record in metrics_of(run)] == [1, 2]


def test_two_runs_in_one_folder_are_refused(make_trainer: MakeTrainer) -> None:
    other = make_trainer()

    class Second(Callback):
        def begin(self, trainer: Trainer) -> None:
            with pytest.raises(
                ValueError, match=r"another process works in .*run: wait for it, or give another"
            ):
                other.fit(overwrite=True)

    make_trainer(callbacks=[Second()]).fit()
    before = {file.name: file.read_bytes() for file in other.folder.glob("*.*")}
    with pytest.raises(
        ValueError, match=r"of 4 steps already, .* begin at 0: resume .*Trainer\.resume"
    ):
        other.fit()  # which is free again
    assert {file.name: file.read_bytes() for file in other.folder.glob("*.*")} == before


def test_a_file_system_without_locks(
    make_trainer: MakeTrainer, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(FileLock, "acquire", Mock(side_effect=NotImplementedError))
    assert make_trainer(epochs=1).fit()


def test_which_files_are_checkpoints_and_are_deleted(tmp_path: Path) -> None:
    """Those after a step; from step 0 on the best one too."""
    run = RunFolder(tmp_path, keep=2)
    foreign = {"notes.txt", "step_5.pt", "step_000000007.pt", "step_best.pt"}
    for name in (*foreign, "best.pt", "step_00000002.pt", "step_00000004.pt"):
        (tmp_path / name).touch()
    for step, left in ((2, {"best.pt", "step_00000002.pt"}), (0, set[str]())):
        run.begin(step, {}, Record({}, {}, []), overwrite=True)
        assert {path.name for path in tmp_path.glob("*.*")} == foreign | left | {
            "config.json",
            "metrics.jsonl",
        }
        assert [*run.checkpoints()] == [2] * (step == 2)


# Failures


@pytest.mark.parametrize("kind", ["nan", "inf"])
def test_a_loss_that_is_no_number_ends_the_run(kind: str, make_trainer: MakeTrainer) -> None:
    """With the last epoch's checkpoint."""
    factors = iter([1, 1, float(kind)])
    trainer = make_trainer(further={"loss": lambda a, b: (a - b).abs() * next(factors)})
    message = rf"loss is {kind} at step 3\. Lower learning_rate or set grad_clip; .* from step 2, .* in .*run"
    with pytest.raises(StoppedError, match=message):
        trainer.fit()
    assert [*trainer.run_folder.checkpoints()] == [2]
    state: Any = load_checkpoint(newest(trainer)).unet
    assert all(value.isfinite().all() for value in (*state.weights.values(), *state.ema.values()))


FULL = OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
ROOM = r"No space left on device: .*\.pt.\. Make room on the disk; "
# the file, its error, and what is saved
WRITES: dict[str, tuple[str, BaseException, str | None, list[int]]] = {
    "at a step": ("step_00000002.pt", FULL, ROOM + "nothing is saved yet", []),
    "at the end": ("step_00000004.pt", FULL, ROOM + "the same command resumes from step 2", [2]),
    "of the best": ("best.pt", FULL, ROOM + "the same command resumes from step 2", [2]),
    "Ctrl-C": ("step_00000002.pt", KeyboardInterrupt(), None, []),
}


@pytest.mark.parametrize("case", WRITES)
def test_a_write_that_fails_ends_the_run(
    case: str,
    make_trainer: MakeTrainer,
    make_pairs: MakePairs,
    pairs: Pairs,
    tmp_path: Path,
    monkeypatch: Any,
) -> None:
    """At the step of that write, with the checkpoints of before it and no part of its file."""
    name, error, message, saved = WRITES[case]
    run = make_trainer(
        train=make_pairs(tmp_path / "8", 8), validation=pairs, epochs=1, save_every=2, keep=9
    )

    def write_atomically(path: Path, write: Any) -> None:
        def fail(temporary: Path) -> None:
            temporary.write_bytes(b"half")
            raise error

        atomic.write_atomically(path, fail if path.name == name else write)

    monkeypatch.setattr(weights, "write_atomically", write_atomically)
    with pytest.raises(StoppedError if message else KeyboardInterrupt, match=message):
        run.fit()
    assert run.step == (4 if name == "best.pt" else int(name[5:13]))
    assert sorted(run.run_folder.checkpoints()) == saved
    assert sorted(path.name for path in run.folder.glob(".*")) == [".lock"]
    # it is written before that checkpoint
    assert run.run_folder.best.exists() == (case == "at the end")
