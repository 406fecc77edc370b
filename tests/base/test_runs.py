"""Weights that a run has not handed out yet are named where its folder, or OUT.pt, is given."""

from pathlib import Path

import pytest

from bbdm import load_checkpoint, save_checkpoint
from bbdm.base.runs import weights_in
from bbdm.cli.files import Info
from tests.conftest import BRIDGE, tiny_unet

BEST_AND_STEP = "the training run in {0} has {0}/best.pt and {0}/step_00000012.pt, and the command that began it"


@pytest.fixture
def run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The folder out.run of an interrupted training, in the working directory."""
    monkeypatch.chdir(tmp_path)
    folder = Path("out.run")
    folder.mkdir()
    for name in ("best.pt", "step_00000010.pt", "step_00000012.pt"):
        save_checkpoint(folder / name, tiny_unet(), BRIDGE)
    return folder


def test_a_missing_file_names_the_run_beside_it(run: Path) -> None:
    message = f"there is no checkpoint out.pt: {BEST_AND_STEP.format(run)}"
    with pytest.raises(FileNotFoundError, match=message):
        load_checkpoint("out.pt")
    with pytest.raises(FileNotFoundError, match=r"there is no checkpoint other\.pt$"):
        load_checkpoint("other.pt")


def test_a_run_in_place_of_a_file_names_its_weights(run: Path) -> None:
    with pytest.raises(
        ValueError,
        match=f"out.run is a folder, and a checkpoint is a file: {BEST_AND_STEP.format(run)}",
    ):
        load_checkpoint(run)


def test_what_a_run_has() -> None:
    assert weights_in(Path("nowhere")) == []


def test_info_of_a_run_names_its_best_weights(
    run: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    Info(file=run).run()
    title = capsys.readouterr().out.splitlines()[0]
    assert title == (
        "out.run: a checkpoint, step_00000012.pt of a training run; best.pt has the weights of the best validation"
    )
    (run / "best.pt").unlink()
    Info(file=run).run()
    title = capsys.readouterr().out.splitlines()[0]
    assert title == "out.run: a checkpoint, step_00000012.pt of a training run"
