"""Metrics on a card: the CPU's scores; pictures go there, and bbdm waits for nothing more until the end."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from bbdm.evaluation.metrics import Scores
from bbdm.evaluation.segmentation import SegmentationScore
from tests.cuda.card import DEVICE, Card, off_the_card

RESULTS = torch.randint(0, 256, (6, 2, 3, 16, 16), generator=torch.Generator().manual_seed(0), dtype=torch.uint8)
TARGETS = torch.randint(0, 256, (6, 3, 16, 16), generator=torch.Generator().manual_seed(1), dtype=torch.uint8)
MOVED = ["evaluation.metrics.update: to the card"] * 2
OF_TORCHMETRICS = ["evaluation.metrics.update: to the card", "evaluation.metrics.update: an index on the CPU"]


class Features(nn.Module):
    """Means of a picture's colours, in place of Inception."""

    num_features = 3

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        return images.float().mean((2, 3))


def scores(device: str) -> Scores:
    return Scores(["fid", "psnr", "ssim", "diversity"], 2, features=Features(), device=device)


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
