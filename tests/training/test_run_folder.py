"""The folder of a run: its files, when a run may use it, and writes that fail."""

import errno
import json
import os
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from filelock import FileLock
from PIL import Image

from bbdm import Callback, bridges
from bbdm.base import atomic
from bbdm.base.scripts import StoppedError
from bbdm.bridges import ABridge
from bbdm.data.pairs import Pairs
from bbdm.files import weights
from bbdm.files.content import Checkpoint, NetworkState
from bbdm.networks.config import UNetConfig
from bbdm.pictures import images
from bbdm.pictures.images import NAME_HEIGHT
from bbdm.training.config import TrainConfig
from bbdm.training.run_folder import RunFolder
from bbdm.training.trainer import Trainer
from tests.conftest import BRIDGE, SIZE, MakePairs, MakeTrainer, metrics_of, newest, tiny_unet


class TestFiles:
    def test_paths_may_be_text(self, pairs: Pairs, tmp_path: Path) -> None:
        folder = f"{tmp_path}/runs/a"
        config = TrainConfig(epochs=1, batch_size=2)
        trainer = Trainer(tiny_unet(condition_channels=3), BRIDGE, config, pairs, None, folder)
        trainer.fit()
        trainer.save(f"{tmp_path}/model.safetensors")
        trainer.resume(f"{folder}/step_00000002.pt")
        assert list(RunFolder(folder, 2).checkpoints()) == [2]
        assert (tmp_path / "model.safetensors").is_file()

    def test_other_names_are_no_checkpoints(self, tmp_path: Path) -> None:
        for name in ("step_5.pt", "step_000000007.pt", "step_best.pt", "step_00000003.pt"):
            (tmp_path / name).touch()
        run = RunFolder(tmp_path, keep=1)
        assert run.checkpoints() == {3: tmp_path / "step_00000003.pt"}
        run.forget_after(0)
        assert (tmp_path / "step_5.pt").exists()

    def test_metrics_and_previews(self, make_trainer: MakeTrainer, pairs: Pairs) -> None:
        trainer = make_trainer(validation=pairs, epochs=3, learning_rate=1e-3, warmup_steps=8, preview_every=2)
        trainer.fit()
        metrics = metrics_of(trainer)
        assert [(record["epoch"], record["step"]) for record in metrics] == [(1, 2), (2, 4), (3, 6)]
        # the rate of the epoch's last step: 2/8, 4/8 and 6/8 of the way up
        assert [record["learning_rate"] for record in metrics] == pytest.approx([0.25e-3, 0.5e-3, 0.75e-3])
        assert metrics[-1]["validation_loss"] == trainer.validate()["validation_loss"]
        for record in metrics:
            assert record["loss"] > 0
            assert record["images_per_second"] > 0
        lowest = min(metrics, key=lambda record: record["validation_loss"])
        assert trainer.best == {name: lowest[name] for name in ("epoch", "step", "validation_loss")}
        assert sorted(file.name for file in trainer.folder.glob("*.png")) == ["epoch_0002.png", "epoch_0003.png"]
        with Image.open(trainer.folder / "epoch_0003.png") as sheet:
            assert sheet.size == (3 * (SIZE + 2) + 2, 4 * (SIZE + 2) + 2 + NAME_HEIGHT)
            for row in range(4):
                source, target = pairs[row]
                top = 2 + NAME_HEIGHT + row * (SIZE + 2)
                for column, wanted in ((0, source), (2, target)):
                    left = 2 + column * (SIZE + 2)
                    cell = torch.from_numpy(images.to_array(sheet.crop((left, top, left + SIZE, top + SIZE))))
                    torch.testing.assert_close(cell, wanted)

    def test_without_validation(self, make_trainer: MakeTrainer, monkeypatch: pytest.MonkeyPatch) -> None:
        """And without TensorBoard."""
        monkeypatch.setitem(sys.modules, "torch.utils.tensorboard", None)
        trainer = make_trainer(epochs=1, preview_every=1, flip=True)
        trainer.fit()
        written = {".lock", "config.json", "metrics.jsonl", "step_00000002.pt"}
        assert {file.name for file in trainer.folder.iterdir()} == written
        assert "validation_loss" not in metrics_of(trainer)[0]
        content = json.loads((trainer.folder / "config.json").read_text())  # from which the settings come back
        assert TrainConfig(**content["train"]) == trainer.config
        assert UNetConfig(**content["unet"]) == trainer.network.config
        assert bridges.from_config(content["bridge"]) == BRIDGE

    def test_damaged_metrics_are_named_and_a_half_written_line_is_dropped(self, make_trainer: MakeTrainer) -> None:
        first, second, third = make_trainer(epochs=1), make_trainer(epochs=2), make_trainer(epochs=2)
        first.fit()
        metrics = first.folder / "metrics.jsonl"
        whole = metrics.read_text()
        metrics.write_text("damaged\n")
        assert second.resume_newest()
        with pytest.raises(ValueError, match=r"cannot read .*metrics\.jsonl: repair or delete it"):
            second.fit()
        metrics.write_text(whole + '{"epoch": 2, "lo')
        assert third.resume_newest()
        third.fit()  # the folder is free again
        assert [record["epoch"] for record in metrics_of(third)] == [1, 2]

    def test_two_runs_in_one_folder_are_refused(self, make_trainer: MakeTrainer) -> None:
        other = make_trainer()

        class Second(Callback):
            def begin(self, trainer: Trainer) -> None:
                for begin in (other.fit, lambda: other.run.forget_after(0)):
                    with pytest.raises(ValueError, match=r"another run works in .*run: each needs a folder"):
                        begin()

        make_trainer(callbacks=[Second()]).fit()
        before = {file.name: file.read_bytes() for file in other.folder.glob("*.*")}
        with pytest.raises(
            ValueError,
            match=r"of 4 steps already, .* begin at 0: resume .*Trainer\.resume",
        ):
            other.fit()  # which is free again
        assert {file.name: file.read_bytes() for file in other.folder.glob("*.*")} == before

    def test_a_file_system_without_locks(
        self, make_trainer: MakeTrainer, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
    ) -> None:
        def acquire(*_: Any, **__: Any) -> None:
            raise NotImplementedError

        monkeypatch.setattr(FileLock, "acquire", acquire)
        trainer = make_trainer(epochs=1)
        trainer.fit()
        assert "run cannot be locked on its file system" in caplog.text
        assert newest(trainer).exists()

    def test_a_run_in_another_folder_than_before(self, make_trainer: MakeTrainer) -> None:
        """Lines are cut by their epochs; a run that was at its end has none."""
        first = make_trainer("first", epochs=2)
        first.fit()
        for epochs, expected in ((4, [3, 4]), (2, [])):
            second = make_trainer(f"to {epochs}", epochs=epochs)
            second.resume(newest(first))
            second.fit()
            assert [record["epoch"] for record in metrics_of(second)] == expected
            second.run.begin(3, {})
            assert [record["epoch"] for record in metrics_of(second)] == expected[:1]

    def test_forgets_later_checkpoints_and_from_step_0_the_best_one_too(self, tmp_path: Path) -> None:
        run = RunFolder(tmp_path, keep=2)
        for name in ("best.pt", "notes.txt", "step_00000002.pt", "step_00000004.pt"):
            (tmp_path / name).touch()
        run.forget_after(2)
        assert {path.name for path in tmp_path.glob("*.*")} - {".lock"} == {"best.pt", "notes.txt", "step_00000002.pt"}
        run.forget_after(0)
        assert {path.name for path in tmp_path.glob("*.*")} - {".lock"} == {"notes.txt"}


FULL = OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
ROOM = r"No space left on device\. Make room on the disk; "


def test_what_a_file_holds(tmp_path: Path) -> None:
    """Contiguous tensors, each with memory of its own, whatever they were; training state as it was."""
    unet, moment, row = tiny_unet(), torch.arange(4.0).view(2, 2).T, torch.arange(6.0)
    state = {**unet.state_dict(), "tied": row, "again": row, "part": row[2:4]}
    network = replace(NetworkState.of(unet), weights=state)
    snapshot = Checkpoint(network, ABridge(), training={"moments": (moment,), "step": 3}).snapshot()
    weights.write(tmp_path / "a.pt", snapshot)
    content = torch.load(tmp_path / "a.pt", weights_only=True)
    found = content["states"]["weights"]
    for key, value in state.items():
        assert torch.equal(found[key], value)
        assert found[key].is_contiguous()
        assert found[key].untyped_storage().nbytes() == found[key].nbytes
    assert len({value.data_ptr() for value in found.values()}) == len(found)
    assert content["training"]["moments"][0].tolist() == [[0, 2], [1, 3]]
    assert content["training"]["step"] == 3


@pytest.mark.parametrize(
    ("name", "error", "expected", "message", "saved"),
    [
        ("step_00000002.pt", FULL, StoppedError, ROOM + "nothing is saved yet", []),
        ("step_00000008.pt", FULL, StoppedError, ROOM + "the same command resumes from step 6", [2, 4, 6]),
        ("best.pt", FULL, StoppedError, ROOM + "the same command resumes from step 8", [2, 4, 6, 8]),
        ("step_00000004.pt", KeyboardInterrupt(), KeyboardInterrupt, None, [2]),
    ],
    ids=["at a step", "at the end", "of the best", "Ctrl-C"],
)
def test_a_write_that_fails_ends_the_run(
    name: str,
    error: BaseException,
    expected: Any,
    message: str | None,
    saved: list[int],
    make_trainer: MakeTrainer,
    make_pairs: MakePairs,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """At the step of that write, with the checkpoints of before it and no part of its file."""
    train, validation = make_pairs(tmp_path / "16", 16), make_pairs(tmp_path / "1", 1)
    run = make_trainer(train=train, validation=validation, epochs=1, save_every=2, keep=9)

    def write_atomically(path: Path, write: Any) -> None:
        def fail(temporary: Path) -> None:
            temporary.write_bytes(b"half")
            raise error

        atomic.write_atomically(path, fail if path.name == name else write)

    monkeypatch.setattr(weights, "write_atomically", write_atomically)
    with pytest.raises(expected, match=message):
        run.fit()
    assert run.step == (8 if name == "best.pt" else int(name[5:13]))
    assert sorted(run.run.checkpoints()) == saved
    assert sorted(path.name for path in run.folder.glob(".*")) == [".lock"]
    assert not run.run.best.exists()
