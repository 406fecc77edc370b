"""What runs record of pairs, and which weights that is of: copies, other runs in a folder, other starts."""

import os
import shutil
from pathlib import Path

import pytest

from bbdm import load_checkpoint, save_checkpoint
from bbdm.data import Pairs
from bbdm.data.provenance import Record
from bbdm.data.trained import Trained
from bbdm.training import Trainer
from tests.conftest import MakePairs, MakeTrainer, newest, tiny_unet

MISSING = "no record says which pairs were in the training of"


def trained_on(path: Path) -> list[str] | None:
    """The names of the pairs that a file's network has learned from; None where that is not known."""
    trained = Trained.of_origin(load_checkpoint(path).origin)
    return None if trained is None else [*trained.record.contents]


def record(trainer: Trainer) -> Record:
    """That of a run's newest weights."""
    trained = Trained.of_origin(load_checkpoint(newest(trainer)).origin)
    assert trained is not None
    return trained.record


def test_a_copy_is_judged_by_its_own_record(
    make_trainer: MakeTrainer,
    make_pairs: MakePairs,
    tmp_path: Path,
    caplog: pytest.LogCaptureFixture,
) -> None:
    """Whatever was trained in its run's folder later, also where that was killed."""
    first = make_trainer("w.run", epochs=1)
    first.fit()
    first.save(tmp_path / "w.pt")
    shutil.copyfile(tmp_path / "w.pt", tmp_path / "kept.pt")
    others = make_pairs(tmp_path / "others", 6).without([0, 1])
    for origin in (None, load_checkpoint(tmp_path / "kept.pt").origin):
        again = make_trainer("w.run", epochs=1, train=others)
        again.origin = origin
        with pytest.raises(KeyboardInterrupt):
            again.fit(stop=interrupt, overwrite=True)
        assert trained_on(tmp_path / "w.pt") == ["0", "1", "2", "3"]
        again.fit(overwrite=True)
        again.save(tmp_path / "w.pt")
        assert trained_on(tmp_path / "w.pt") == ["2", "3", "4", "5"]
        assert trained_on(tmp_path / "kept.pt") == ["0", "1", "2", "3"]
        shutil.copyfile(tmp_path / "kept.pt", tmp_path / "w.pt")
    assert len(record(again).earlier) == 1
    assert caplog.messages == []
    shutil.move(tmp_path / "kept.pt", tmp_path / "others/kept.pt")
    assert trained_on(tmp_path / "others/kept.pt") is None
    assert caplog.messages[-1].startswith(f"{MISSING} {tmp_path}/others/kept.pt: ")


def interrupt() -> bool:
    raise KeyboardInterrupt


def test_a_run_is_known_where_it_was_moved_with_its_weights(
    make_trainer: MakeTrainer, tmp_path: Path
) -> None:
    """Beside the weights, or in a folder there."""
    for folder in ("w.run", "runs/first"):
        trainer = make_trainer(f"here/{folder}", epochs=1)
        trainer.fit()
        trainer.save(tmp_path / "here/w.pt")
        shutil.move(tmp_path / "here", tmp_path / "there")
        assert trained_on(tmp_path / "there/w.pt") == ["0", "1", "2", "3"]
        shutil.rmtree(tmp_path / "there")


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
    for path, unknown in (
        (step, []),
        (tmp_path / "beside.pt", []),
        (tmp_path / "alone/step.pt", ["step.pt"]),
    ):
        caplog.clear()
        resumed = make_trainer(f"{path.stem}-{path.parent.name}", epochs=2)
        resumed.resume(path)
        resumed.fit()
        assert [message.startswith(f"{MISSING} {path}") for message in caplog.messages] == [
            True
        ] * len(unknown)
        assert record(resumed).unknown == unknown
    trainer.resume(tmp_path / "alone/step.pt")  # into the folder of its run
    trainer.fit()
    assert record(trainer).unknown == []
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
        assert record(trainer).unknown == ["start.pt"]
        start = tmp_path / f"{name}.pt"
        trainer.save(start)
    caplog.clear()
    assert trained_on(start) == ["0", "1", "2", "3"]
    assert caplog.messages == [
        f"{MISSING} start.pt, from which {start} goes on: they cannot be told from new ones"
    ]


def test_a_run_that_is_begun_anew_reads_all_pictures(
    make_trainer: MakeTrainer, pairs: Pairs
) -> None:
    """One that goes on trusts files of the same size and time, and one that overwrites another does not."""
    path = Path(pairs.rows[0]["source"])
    picture = path.read_bytes()
    path.write_bytes(picture + b"a")
    trainer = make_trainer(epochs=1)
    trainer.fit()
    before = record(trainer).contents["0"]
    time = path.stat().st_mtime_ns
    path.write_bytes(picture + b"b")
    os.utime(path, ns=(time, time))
    resumed = make_trainer(epochs=2)
    resumed.resume_newest()
    resumed.fit()
    assert record(resumed).contents["0"] == before
    again = make_trainer(epochs=1)
    again.fit(overwrite=True)
    assert record(again).contents["0"] != before


def test_weights_are_saved_with_their_record_before_a_run_goes_on(
    make_trainer: MakeTrainer, tmp_path: Path
) -> None:
    trainer = make_trainer("w.run", epochs=1)
    trainer.fit()
    resumed = make_trainer("w.run", epochs=1)
    resumed.resume_newest()
    resumed.save(tmp_path / "w.pt")
    assert trained_on(tmp_path / "w.pt") == ["0", "1", "2", "3"]


def test_what_a_killed_process_left_of_a_record_is_deleted(make_trainer: MakeTrainer) -> None:
    trainer = make_trainer(epochs=1)
    leftover = trainer.folder / "records/.0123456789abcdef.json.01234567.tmp"
    leftover.parent.mkdir(parents=True)
    leftover.touch()
    trainer.fit()
    assert [path.suffix for path in leftover.parent.iterdir()] == [".json"]


def test_the_best_weights_keep_their_record(
    make_trainer: MakeTrainer, pairs: Pairs, tmp_path: Path
) -> None:
    """Where the run has learned from other pairs since."""
    trainer = make_trainer("w.run", epochs=1, validation=pairs)
    trainer.fit()
    identity = trainer.run_folder.record
    trainer.run_folder.record = "0123456789abcdef"
    trainer.run_folder.save_best(tmp_path / "w.pt")
    origin = load_checkpoint(tmp_path / "w.pt").origin
    assert origin is not None
    assert origin.record == identity
