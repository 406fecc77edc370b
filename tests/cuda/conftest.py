"""The card as a fixture."""

from __future__ import annotations

import sys
from collections.abc import Iterator

import pytest
import torch

from tests.cuda.card import Card
from tests.cuda.runtime import a_card


@pytest.fixture
def card() -> Iterator[Card]:
    """A card that isn't there."""
    if torch.cuda.is_available() or sys.platform != "linux":
        pytest.skip("needs PyTorch on Linux without a card")
    with a_card() as card:
        yield card
