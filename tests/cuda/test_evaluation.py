"""Metrics on a card: the CPU's scores; pictures go there, and bbdm waits for nothing more until the end."""

from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from torch import nn

from bbdm.bridges import ABridge
from bbdm.evaluation.metrics import Scores
from bbdm.evaluation.segmentation import SegmentationScore
from bbdm.evaluation.translate import TranslateConfig, Translator
from bbdm.files.checkpoint import save_checkpoint
from tests.conftest import SIZE, MakePairs, tiny_unet
from tests.cuda.card import DEVICE, Card, off_the_card
from tests.cuda.runtime import NAME
from tests.cuda.test_sampler import CALL
from tests.evaluation.test_metrics import backbone_file
from tests.training.watched_script import Features

RESULTS = torch.randint(0, 256, (6, 2, 3, 16, 16), generator=torch.Generator().manual_seed(0), dtype=torch.uint8)
TARGETS = torch.randint(0, 256, (6, 3, 16, 16), generator=torch.Generator().manual_seed(1), dtype=torch.uint8)
MOVED = ["evaluation.scores.update: to the card"] * 2
OF_TORCHMETRICS = ["evaluation.scores.update: to the card", "evaluation.scores.update: an index on the CPU"]


def scores(device: str) -> Scores:
    return Scores(["fid", "psnr", "ssim", "diversity"], 2, features=Features(), device=device)


def test_lpips(card: Card, tmp_path: Path):
    """Its network has random weights."""
    weights = backbone_file("squeeze", tmp_path / "weights.pth")
    large = [v.repeat_interleave(3, -1).repeat_interleave(3, -2)[:2] for v in (RESULTS, TARGETS)]
    with off_the_card():
        wanted = Scores(["lpips"], 2, lpips_net="squeeze", lpips_weights=weights)
        wanted.update(*large)
    found = Scores(["lpips"], 2, lpips_net="squeeze", lpips_weights=weights, device="cuda:0")
    card.waits.clear()
    found.update(*large)
    assert card.waits == MOVED + ["evaluation.scores.update: item"] * 4  # torchmetrics checks the ranges of both
    assert found.compute() == pytest.approx(wanted.compute(), rel=1e-4)


def test_a_data_set_is_translated(card: Card, make_pairs: MakePairs, tmp_path: Path):
    """Pictures from files to files, as scripts do; a batch goes to the card and its results come back."""
    make_pairs(tmp_path / "data", 3)
    unet = tiny_unet(condition_channels=3).eval()
    save_checkpoint(tmp_path / "a.pt", unet, ABridge(num_steps=50), image_size=SIZE)

    def pictures(device: str) -> list[Image.Image]:
        config = TranslateConfig(
            dataset="paired",
            data_dir=f"{tmp_path}/data/A,{tmp_path}/data/B",
            model=tmp_path / "a.pt",
            output_dir=tmp_path / device,
            batch_size=2,
            device=device,
        )
        jobs, report = Translator(config).run("dpm2m", 3, tmp_path / device / "results")
        assert report["environment"]["gpu"] == (NAME if device == "cuda" else None)
        return [Image.open(job.path) for job in jobs]

    with off_the_card():
        wanted = pictures("cpu")
    card.waits.clear()
    found = pictures("cuda")
    assert [
        wait for wait in card.waits if wait.startswith(("sampling.sampler", "sampling.inputs"))
    ] == CALL * 2  # batches
    for mine, theirs in zip(found, wanted, strict=True):
        assert np.abs(np.asarray(mine, int) - np.asarray(theirs, int)).max() <= 1


def test_scores(card: Card):
    with off_the_card():
        wanted = scores("cpu")
        wanted.update(RESULTS, TARGETS)
    found = scores("cuda:0")
    card.waits.clear()
    found.update(RESULTS, TARGETS)
    assert card.waits == MOVED + OF_TORCHMETRICS
    assert found.compute() == pytest.approx(wanted.compute(), rel=1e-4)


def test_segmentation(card: Card):
    torch.manual_seed(0)
    network, labels = nn.Conv2d(3, 4, 3, padding=1), torch.randint(0, 4, (6, 16, 16))
    settings = {"classes": ["a", "b", "c", "d"], "window": 12, "stride": 8}
    with off_the_card():
        wanted = SegmentationScore(network, **settings).count(TARGETS, labels)
    found = SegmentationScore(network.to(DEVICE), **settings, device=DEVICE)
    card.waits.clear()
    assert torch.equal(found.count(TARGETS, labels), wanted)
    assert {wait for wait in card.waits if "to the CPU" in wait} == {"evaluation.segmentation.count: to the CPU"}
