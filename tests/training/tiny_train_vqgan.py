"""examples/train_vqgan.py with a tiny network as the demo preset, in processes that tests start."""

from __future__ import annotations

import torch

from bbdm.base import scripts
from bbdm.networks.vqgan import PRESETS, VQGANConfig
from examples import train_vqgan
from tests.networks.test_vqgan import TINY

if __name__ == "__main__":
    torch.set_num_threads(1)
    PRESETS["demo"] = VQGANConfig(**TINY)
    scripts.run(train_vqgan.main)
