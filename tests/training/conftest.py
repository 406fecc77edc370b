"""The data of runs in several processes, and the same run in one."""

from pathlib import Path

import pytest

from bbdm.cli import train
from bbdm.networks.config import UNETS, UNetConfig
from tests.conftest import TINY, SavePicture, save_random_pairs
from tests.training.launching import arguments


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory, save_picture: SavePicture) -> Path:
    """20 training pairs, and 5 to validate: batches of 2, 2 and 1 in two processes."""
    return save_random_pairs(tmp_path_factory.mktemp("data"), 20, 5, save_picture)


@pytest.fixture(scope="module")
def alone(data: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The output of one process."""
    output = tmp_path_factory.mktemp("alone") / "model.pt"
    with pytest.MonkeyPatch.context() as monkeypatch:
        monkeypatch.setitem(UNETS, "demo", UNetConfig(condition_channels=3, **TINY))
        train.main(arguments(data, output))
    return output
