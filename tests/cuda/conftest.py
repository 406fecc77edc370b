"""The card as a fixture, and a group of one process on it."""

import sys
from collections.abc import Iterator
from typing import Any

import pytest
import torch
import torch.distributed as dist
from torch.nn.parallel import DistributedDataParallel

from bbdm.execution.processes import Processes
from tests.cuda.card import DEVICE, Card, off_the_card
from tests.cuda.runtime import a_card


@pytest.fixture
def card() -> Iterator[Card]:
    """A card that isn't there."""
    if torch.cuda.is_available() or sys.platform != "linux":
        pytest.skip("needs PyTorch on Linux without a card")
    with a_card() as card:
        yield card


class Alone:
    """Stands in for accelerate's Accelerator, with one process."""

    def prepare_model(self, network: Any) -> Any:
        return DistributedDataParallel(network)

    def no_sync(self, network: Any) -> Any:
        return network.no_sync()

    def reduce(self, total: torch.Tensor, how: str) -> torch.Tensor:
        return total


@pytest.fixture
def processes() -> Iterator[Processes]:
    """One process of gloo. Its reducer is C++, which sees the CPU: what that does is not checked."""
    with off_the_card():
        dist.init_process_group(
            "gloo",
            store=dist.HashStore(),  # pyright: ignore[reportPrivateImportUsage]
            rank=0,
            world_size=1,
        )
    yield Processes(DEVICE, 0, 1, Alone())  # pyright: ignore[reportArgumentType]
    dist.destroy_process_group()
