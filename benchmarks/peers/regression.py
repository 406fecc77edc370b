"""The peer of a bridge for photographs: the same UNet, trained by L1 regression of targets from sources.

    python -m benchmarks.peers.regression DATA OUT.pt --steps 2400

DATA is as for `bbdm train folder DATA OUT.pt --preset demo --degrade photo --crop 96 -b 8`. Every training
time is the bridge's top, where the network is shown the source alone: its one call, by the solver `mean`, is
a regression network's. A step costs what one of the bridge does.
"""

from __future__ import annotations

from itertools import count
from pathlib import Path

import torch

from bbdm import BrownianBridge, UNet, bridge_loss, save_checkpoint
from bbdm.base import scripts
from bbdm.cli.setup import build_network
from bbdm.data.config import PicturesConfig
from bbdm.data.loading import Batches
from bbdm.data.pairs import load_dataset
from bbdm.execution.device import best_dtype
from bbdm.training import fitted
from bbdm.training.augmentation import augment
from bbdm.training.base import sample_seeds
from bbdm.training.config import TrainConfig
from bbdm.training.ema import EMA

CROP, BATCH = 96, 8
CONFIG = TrainConfig(batch_size=BATCH, learning_rate=4e-4, warmup_steps=200, ema_decay=0.9995, flip=True)


def train(data: str, output: Path, steps: int) -> None:
    """Train for some optimizer steps, and write the averaged weights."""
    pictures = PicturesConfig(crop=CROP, crops_per_picture=64)
    dataset = load_dataset("folder", data, degrade="photo", pictures=pictures)
    torch.manual_seed(0)
    unet = build_network("demo", 3)
    assert isinstance(unet, UNet)
    bridge = fitted(BrownianBridge(objective="pinned"), unet, dataset)
    ema, optimizer = EMA(unet, CONFIG.ema_decay), torch.optim.Adam(unet.parameters())
    device, dtype = torch.device("cpu"), best_dtype(torch.device("cpu"))
    batches, step = Batches(dataset, BATCH, device), 0
    top = torch.full((BATCH,), int(bridge.top))
    for epoch in count():
        order = dataset.order(epoch)(0, len(dataset) // BATCH * BATCH)
        for stored in batches(order, seed=epoch):
            seeds = sample_seeds(0, 0, BATCH, device)
            batch = augment(stored, seeds, step, CONFIG)
            for group in optimizer.param_groups:
                group["lr"] = CONFIG.lr_at(step, 1)
            drawn = {"conditions": {"source": batch.source}, "seeds": seeds, "step": step, "loss": "l1"}
            with torch.autocast("cpu", dtype, enabled=dtype != torch.float32):
                loss = bridge_loss(unet, bridge, batch.target, batch.source, top, **drawn)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            ema.update(unet, step)
            step += 1
            if step == steps:
                save_checkpoint(output, unet, bridge, ema=ema.unet, image_size=CROP, pictures=dataset.kind)
                return


def main(argv: list[str] | None = None) -> None:
    parser = scripts.Parser(__doc__)
    parser.add_argument("data")
    parser.add_argument("output", type=Path)
    parser.add_argument("--steps", type=int, required=True, help="of the optimizer")
    args = parser.parse_args(argv)
    train(args.data, args.output, args.steps)


if __name__ == "__main__":
    main()
