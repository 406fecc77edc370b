"""What runs record of pairs, and which weights that is of: copies, other runs in a folder, other starts."""

import json
import os
import shutil
from pathlib import Path
from typing import Any

import pytest

from bbdm import load_checkpoint, save_checkpoint
from bbdm.data import Pairs
from bbdm.data.trained import Trained
from bbdm.training import Trainer
from tests.conftest import MakePairs, MakeTrainer, newest, tiny_unet

MISSING = "no record says which pairs were in the training of"


def trained_on(path: Path) -> list[str] | None:
    """The names of the pairs that a file's network has learned from; None where that is not known."""
    trained = Trained.of_origin(load_checkpoint(path).origin)
    return None if trained is None else [*trained.record.contents]


def config(trainer: Trainer) -> dict[str, Any]:
    return json.loads((trainer.folder / "config.json").read_text())["pairs"]


def test_a_copy_is_not_judged_by_the_run_that_was_begun_anew(
    make_trainer: MakeTrainer, make_pairs: MakePairs, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """On other pairs; on the same, its record is as good."""
    first = make_trainer("w.run", epochs=1)
    first.fit()
    first.save(tmp_path / "w.pt")
    shutil.copyfile(tmp_path / "w.pt", tmp_path / "kept.pt")
    same = make_trainer("w.run", epochs=1)
    same.fit(overwrite=True)
    assert trained_on(tmp_path / "kept.pt") == ["0", "1", "2", "3"]
    others = make_trainer("w.run", epochs=1, train=make_pairs(tmp_path / "others", 6).without([0, 1]))
    others.fit(overwrite=True)
    others.save(tmp_path / "w.pt")
    assert trained_on(tmp_path / "w.pt") == ["2", "3", "4", "5"]
    assert caplog.messages == []
    assert trained_on(tmp_path / "kept.pt") is None
    assert caplog.messages[-1].startswith(f"{MISSING} {tmp_path}/kept.pt: ")


def test_a_run_that_goes_on_from_a_copy_says_what_it_knows(
    make_trainer: MakeTrainer, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """Beside its run, in it, or alone; files of the run before it went on are known as before."""
    trainer = make_trainer("one.run", epochs=1)
    trainer.fit()
    step = newest(trainer)
    (tmp_path / "alone").mkdir()
    for copy in ("beside.pt", "alone/step.pt"):
        shutil.copyfile(step, tmp_path / copy)
    for path, unknown in ((step, []), (tmp_path / "beside.pt", []), (tmp_path / "alone/step.pt", ["step.pt"])):
        caplog.clear()
        resumed = make_trainer(f"{path.stem}-{path.parent.name}", epochs=2)
        resumed.resume(path)
        resumed.fit()
        assert config(resumed)["unknown"] == unknown
        assert [message.startswith(f"{MISSING} {path}") for message in caplog.messages] == [True] * len(unknown)
    trainer.resume(tmp_path / "alone/step.pt")  # into the folder of its run
    trainer.fit()
    assert config(trainer)["unknown"] == []
    assert trained_on(step) == ["0", "1", "2", "3"]


def test_a_start_without_a_record_is_no_record_of_no_pairs(
    make_trainer: MakeTrainer, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """As of another program's file. What is made of the run's own weights says so, too."""
    start = tmp_path / "start.pt"
    trainer = make_trainer("w.run", epochs=1)
    save_checkpoint(start, tiny_unet(condition_channels=3), trainer.bridge)
    for name in ("w", "again"):
        trainer = make_trainer(f"{name}.run", epochs=1)
        trainer.origin = load_checkpoint(start).origin
        trainer.fit()
        assert config(trainer)["unknown"] == ["start.pt"]
        start = tmp_path / f"{name}.pt"
        trainer.save(start)
    caplog.clear()
    assert trained_on(start) == ["0", "1", "2", "3"]
    assert caplog.messages == [
        f"{MISSING} start.pt, which {start} began with: whether others were among them is not known"
    ]


def test_a_run_that_is_begun_anew_reads_all_pictures(make_trainer: MakeTrainer, pairs: Pairs) -> None:
    """One that goes on trusts files of the same size and time, and one that overwrites another does not."""
    path = Path(pairs.rows[0]["source"])
    picture = path.read_bytes()
    path.write_bytes(picture + b"a")
    trainer = make_trainer(epochs=1)
    trainer.fit()
    before = config(trainer)["contents"]["0"]
    time = path.stat().st_mtime_ns
    path.write_bytes(picture + b"b")
    os.utime(path, ns=(time, time))
    resumed = make_trainer(epochs=2)
    resumed.resume_newest()
    resumed.fit()
    assert config(resumed)["contents"]["0"] == before
    again = make_trainer(epochs=1)
    again.fit(overwrite=True)
    assert config(again)["contents"]["0"] != before


def test_weights_are_saved_with_their_record_before_a_run_goes_on(make_trainer: MakeTrainer, tmp_path: Path) -> None:
    trainer = make_trainer("w.run", epochs=1)
    trainer.fit()
    resumed = make_trainer("w.run", epochs=1)
    resumed.resume_newest()
    resumed.save(tmp_path / "w.pt")
    assert trained_on(tmp_path / "w.pt") == ["0", "1", "2", "3"]
