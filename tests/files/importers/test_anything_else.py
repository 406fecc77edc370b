"""Files that no importer knows, or that would fill memory or run code."""

import argparse
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from bbdm.files.checkpoint import load_checkpoint, load_vqgan
from bbdm.networks.config import VQGANS, UNetConfig
from bbdm.networks.unet import UNet
from bbdm.networks.vqgan import VQGAN
from tests.files.importers.common import expected, refused, save


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ([1, 2], "it is a list with no UNets in it; wanted: a checkpoint, module or network of sde-bbdm"),
        (None, "it is a NoneType with no UNets"),
        (torch.ones(2), "it is a tensor with no UNets"),
        ({"a": torch.ones(2), "b": 1}, r"it is a dict of 2 entries \('a', 'b'\) with no UNets"),
        ({"model": {"a": 1}, "optimizer": 3}, r"it is a dict of 2 entries \('model', 'optimizer'\) with no UNets"),
        (nn.Linear(1, 1), "it is a torch.nn.modules.linear.Linear with no UNets"),
        (argparse.Namespace(a=1), "it is a argparse.Namespace with no UNets"),
        (dict.fromkeys("abcdefghij"), r"a dict of 10 entries \('a', .*'h', \.\.\.\)"),
        ({"input_blocks.0.0.weight": 1}, r"it is a dict of 1 entries \('input_blocks\.0\.0\.weight'\) with no UNets"),
        ({"input_blocks.0.0.weight": torch.ones(3)}, "does not state its num_steps or c_lambda"),
        ({f"{p}.input_blocks.0.0.weight": torch.ones(1) for p in "ab"}, "with 2 UNets in it"),
        ({"m_t": torch.ones(3)}, "give config="),
    ],
)
def test_something_else(content: Any, message: str, tmp_path: Path):
    refused(save(content, tmp_path / "a.pt"), message)


def test_weights_that_are_not_floating_point(tmp_path: Path):
    state = {key: value.long() for key, value in UNet(channel_mult=(2,), model_channels=32).state_dict().items()}
    refused(save(state, tmp_path / "a.pt"), "weights must be floating point", num_steps=100, c_lambda=1.0)


@pytest.mark.parametrize("reader", [load_checkpoint, load_vqgan])
def test_tensors_that_share_their_storage(reader: Any, tmp_path: Path):
    """A small file that would build a network many times its size."""
    unet = UNet, UNetConfig(model_channels=64, channel_mult=(1,), num_res_blocks=50)
    wanted = expected(*(unet if reader is load_checkpoint else (VQGAN, VQGANS["demo"])))
    shared = torch.zeros(max(value.numel() for value in wanted.values()))
    path = save({k: shared[: v.numel()].view(v.shape) for k, v in wanted.items()}, tmp_path / "a.pt")
    arguments = {"num_steps": 100, "c_lambda": 1.0} if reader is load_checkpoint else {}
    refused(path, r"its tensors are of \d+ bytes, and only \d+ are stored", reader, **arguments)
