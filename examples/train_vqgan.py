"""Train a VQGAN on pictures: python examples/train_vqgan.py edge2shoes DATA OUTPUT_MODEL [flags].

It trains on sources and targets, with the L1 distance and the codebook's losses (van den Oord et al. 2017,
equation 3). The adversarial and perceptual losses of the paper's VQGAN are left out: results are softer than
those of LDM's weights. OUTPUT_MODEL is written after each epoch.
"""

from __future__ import annotations

import argparse
from pathlib import Path

import torch
import torch.nn.functional as F
from torch.utils.data import DataLoader, Dataset
from tqdm.auto import tqdm

from bbdm.base import images, scripts
from bbdm.base.atomic import check_suffix, write_atomically
from bbdm.data.pairs import DATASETS, load_dataset
from bbdm.execution.device import find_device, keep_freed_memory
from bbdm.files.checkpoint import save_vqgan
from bbdm.networks.vqgan import PRESETS, VQGAN

COMMITMENT = 0.25  # weight of the distance that moves latents to codes, against 1 of codes to latents
RESTARTS = 50  # of unused codes, over the first half of training
SHOWN = 8


class Pictures(Dataset[torch.Tensor]):
    """Sources and targets of pairs, one after the other."""

    def __init__(self, name: str, data_dir: str, split: str, image_size: int) -> None:
        self.pairs = load_dataset(name, data_dir, split, image_size)

    def __len__(self) -> int:
        return 2 * len(self.pairs)

    def __getitem__(self, index: int) -> torch.Tensor:
        return self.pairs[index // 2][index % 2]


def parse(argv: list[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("dataset", choices=sorted(set(DATASETS) - {"folder"}))
    parser.add_argument("data_dir", help="the data set's folder; for 'paired', SOURCES,TARGETS")
    parser.add_argument("output_model", type=Path, help="the trained weights: .pt or .safetensors")
    parser.add_argument("--preset", choices=sorted(PRESETS), default="vq-f4", help="the network (default: vq-f4)")
    parser.add_argument("-e", "--epochs", type=int, default=50, help="(default: 50)")
    parser.add_argument("-b", "--batch_size", type=int, default=16, help="(default: 16)")
    parser.add_argument("-lr", "--learning_rate", type=float, default=4e-4, help="of Adam (default: 4e-4)")
    parser.add_argument("--image_size", type=int, default=256, help="(default: 256)")
    parser.add_argument("--workers", type=int, default=0, help="processes that read pictures (default: 0)")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--show_verbose", action="store_true", help="a bar and a line for each epoch, as on a terminal")
    parser.add_argument("--quiet", action="store_true", help="none of these")
    args = parser.parse_args(argv)
    if args.epochs < 1 or args.batch_size < 1:
        parser.error("--epochs and --batch_size must be at least 1")
    return args


def restart_unused_codes(vqgan: VQGAN, used: torch.Tensor, z: torch.Tensor) -> None:
    """Move unused codes to random latents of the last batch."""
    vectors = z.detach().permute(0, 2, 3, 1).flatten(0, 2)
    unused = (~used).nonzero().flatten()
    chosen = torch.randint(len(vectors), (len(unused),), device=vectors.device)
    vqgan.quantize.embedding.weight.data[unused] = vectors[chosen]
    used.zero_()


def train_step(
    vqgan: VQGAN, optimizer: torch.optim.Optimizer, x: torch.Tensor
) -> tuple[float, torch.Tensor, torch.Tensor]:
    """One step on (B, 3, H, W) pictures; returns the L1 distance, the latents, and their codes' indices.

    Raises:
        ValueError: the loss is not finite; the weights are unchanged.
    """
    with torch.autocast(x.device.type, torch.bfloat16):
        result, z, index = vqgan(x)
    z, codes = z.float(), vqgan.quantize.look_up(index)
    distance = F.l1_loss(result.float(), x)
    loss = distance + F.mse_loss(codes, z.detach()) + COMMITMENT * F.mse_loss(z, codes.detach())
    if not loss.isfinite():
        raise ValueError(
            f"the loss is {loss.item()}: start again with a lower -lr; the saved weights are of the epoch before"
        )
    optimizer.zero_grad(set_to_none=True)
    loss.backward()
    optimizer.step()
    return distance.item(), z, index


@torch.no_grad()
def show(vqgan: VQGAN, pictures: Pictures, path: Path) -> None:
    """Write a grid of some pictures above their reconstructions."""
    chosen = torch.linspace(0, len(pictures) - 1, min(SHOWN, len(pictures))).long().tolist()
    x = torch.stack([pictures[i] for i in chosen])
    made = vqgan.eval()(x.to(next(vqgan.parameters()).device))[0]
    sheet = images.grid([[images.to_pil(v) for v in row] for row in (x, made)])
    write_atomically(path, lambda temporary: sheet.save(temporary, "png"))


def main(argv: list[str] | None = None) -> None:
    args = parse(argv)
    check_suffix(args.output_model)
    device = find_device(args.device)
    stride = PRESETS[args.preset].stride
    if args.image_size % stride:
        raise ValueError(f"image_size {args.image_size} is not a multiple of the VQGAN's {stride}")
    pictures = Pictures(args.dataset, args.data_dir, "train", args.image_size)
    if len(pictures) < args.batch_size:
        raise ValueError(f"batch_size {args.batch_size} is more than the number of training pictures, {len(pictures)}")
    try:
        shown = Pictures(args.dataset, args.data_dir, "val", args.image_size)
    except FileNotFoundError as error:
        print(f"the grid is of training pictures: {error}")
        shown = pictures
    torch.manual_seed(args.seed)
    if device.type == "cpu":
        keep_freed_memory()
    vqgan = VQGAN.from_preset(args.preset).to(device).train()
    optimizer = torch.optim.Adam(vqgan.parameters(), lr=args.learning_rate, betas=(0.5, 0.9), fused=True)
    loader = DataLoader(pictures, args.batch_size, shuffle=True, drop_last=True, num_workers=args.workers)
    total = args.epochs * len(loader)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, total)
    used = torch.zeros(vqgan.config.num_codes, dtype=torch.bool, device=device)
    step, summary = 0, ""
    verbose = scripts.is_shown(args.show_verbose, args.quiet)
    with tqdm(total=total, unit="step", disable=not verbose) as bar:
        for epoch in range(1, args.epochs + 1):
            distances: list[float] = []
            restarted = 0
            of_epoch = torch.zeros_like(used)
            for x in loader:
                distance, z, index = train_step(vqgan, optimizer, x.to(device, memory_format=torch.channels_last))
                schedule.step()
                distances.append(distance)
                used[index.flatten()] = of_epoch[index.flatten()] = True
                if step < total // 2 and step % max(1, total // (2 * RESTARTS)) == 0:
                    restarted += int((~used).sum())
                    restart_unused_codes(vqgan, used, z)
                step += 1
                bar.update()
                bar.set_postfix(l1=f"{distance:.4f}", codes=int(of_epoch.sum()))
            save_vqgan(args.output_model, vqgan)
            summary = (
                f"L1 {sum(distances) / len(distances):.4f} over epoch {epoch}, "
                f"{int(of_epoch.sum())} of {len(used)} codes used, {restarted} restarted"
            )
            if verbose:
                tqdm.write(summary)
    grid = args.output_model.with_suffix(".png")
    show(vqgan, shown, grid)
    print(f"{args.output_model}: {summary}; reconstructions: {grid}")


if __name__ == "__main__":
    scripts.run(main, "OUTPUT_MODEL has the weights of the last whole epoch, if any; the same command starts anew")
