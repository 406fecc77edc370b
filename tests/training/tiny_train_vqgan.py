"""`bbdm train-vqgan` with a tiny network as the demo preset, in processes that tests start."""

from __future__ import annotations

import torch

from bbdm import cli
from bbdm.networks.vqgan import PRESETS, VQGANConfig
from tests.networks.test_vqgan import TINY

if __name__ == "__main__":
    torch.set_num_threads(1)
    PRESETS["demo"] = VQGANConfig(**TINY)
    cli.run("train-vqgan")
