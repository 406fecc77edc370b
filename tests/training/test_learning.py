"""200 optimizer steps on real pairs lower the loss, and a resumed run continues where it was."""

import json
from pathlib import Path

import pytest
import torch

from bbdm import ABridge, UNet, demo
from bbdm.data.pairs import PairedDataset, load_dataset
from bbdm.training.config import TrainConfig
from bbdm.training.trainer import Trainer
from tests.conftest import OPENMOJI64


@pytest.mark.nightly
@pytest.mark.parametrize(
    ("data_dir", "split"),
    [
        pytest.param(demo.FOLDER, "val", id="bundled pairs"),
        pytest.param(
            OPENMOJI64, "train", id="openmoji64", marks=pytest.mark.skipif(not OPENMOJI64.is_dir(), reason="no data")
        ),
    ],
)
def test_200_steps_lower_the_loss(data_dir: Path, split: str, tmp_path: Path):
    """To a fifth of the first steps' loss; the second half comes from a run resumed after 100 steps."""
    dataset = load_dataset("edge2shoes", str(data_dir), split, image_size=32)
    batch_size = 8
    epoch_steps = len(dataset) // batch_size
    epochs = max(1, 100 // epoch_steps)
    kept = list(dataset.pairs)[: batch_size * epoch_steps if epochs > 1 else batch_size * 100]
    dataset = PairedDataset(kept, 32)
    losses: list[float] = []
    for part in (1, 2):
        torch.manual_seed(0)
        unet = UNet(3, 3, condition_channels=3, model_channels=16, channel_mult=(1, 2), head_channels=16, num_groups=4)
        config = TrainConfig(epochs=part * epochs, batch_size=batch_size, learning_rate=1e-3, loss="l2")
        trainer = Trainer(unet, ABridge(), config, dataset, None, tmp_path)
        if part == 2:
            assert trainer.resume_newest()
        original = trainer.train_step

        def record(y: torch.Tensor, x0: torch.Tensor, step=original) -> float:
            losses.append(step(y, x0))
            return losses[-1]

        trainer.train_step = record
        trainer.fit()
    assert trainer.step == len(losses) == 200
    first, middle, after, last = (
        sum(part) / 10 for part in (losses[:10], losses[90:100], losses[100:110], losses[-10:])
    )
    assert last < 0.2 * first
    assert after < 1.5 * middle, "the loss jumped where the run was resumed"
    assert len([json.loads(line) for line in (tmp_path / "metrics.jsonl").open()]) == 2 * epochs
