"""Compare autoencoders on the validation pictures of a data set: error, sharpness, use of codes, and a grid.

python benchmarks/autoencoders.py edge2shoes DATA 64 vqgan.pt sharp.pt --grid grid.png
"""

from __future__ import annotations

from pathlib import Path

import torch
from PIL import Image

from bbdm.base import scripts
from bbdm.codec import Codec
from bbdm.data.pairs import Pairs
from bbdm.data.rows import DATASETS, read_rows
from bbdm.data.spec import Spec
from bbdm.execution.processes import Processes
from bbdm.files.checkpoint import load_codec
from bbdm.pictures import images
from bbdm.training.autoencoder import CodebookUse

SHOWN = 8  # targets in the grid
ENLARGED = 2
BATCH = 16


def gradient(pictures: torch.Tensor) -> float:
    """The mean magnitude of the gradient of pictures (B, C, H, W), by differences of neighbouring pixels."""
    down = pictures[:, :, 1:, :-1] - pictures[:, :, :-1, :-1]
    across = pictures[:, :, :-1, 1:] - pictures[:, :, :-1, :-1]
    return torch.hypot(down, across).mean().item()


def measure(name: str, codec: Codec, x: torch.Tensor) -> torch.Tensor:
    """Print a line about an autoencoder on pictures (B, C, H, W); returns the reconstructions."""
    latents = torch.cat([codec.latents(part) for part in x.split(BATCH)])
    made = torch.cat([codec.image(part).clamp(-1, 1) for part in latents.split(BATCH)])
    parts = [f"L1 {(made - x).abs().mean().item():.4f}", f"sharpness {gradient(made) / gradient(x):.3f}"]
    if codec.kind == "vqgan" and codec.module.config.num_codes:
        use = CodebookUse(codec.module.config.num_codes, Processes(x.device))
        use.add(codec.module.quantize.nearest(latents))
        found = use.report()
        parts += [f"codes {found['codes_used']:.3f}", f"perplexity {found['perplexity']:.0f}"]
    print(f"{name}: {', '.join(parts)}")
    return made


def main(argv: list[str] | None = None) -> None:
    parser = scripts.Parser(__doc__)
    parser.add_argument("dataset", choices=sorted(DATASETS))
    parser.add_argument("data_dir")
    parser.add_argument("image_size", type=int)
    parser.add_argument("autoencoders", type=Path, nargs="+", help="files that bbdm.load_codec reads")
    parser.add_argument("--grid", type=Path, help="picture of targets, each above its reconstructions")
    args = parser.parse_args(argv)
    pairs = Pairs(read_rows(args.dataset, args.data_dir, "val"), Spec(size=args.image_size))
    x = torch.stack([side for i in range(len(pairs)) for side in pairs[i]])
    shown = x[1::2][torch.linspace(0, len(pairs) - 1, min(SHOWN, len(pairs))).long()]
    rows = [shown]
    for path in args.autoencoders:
        codec = load_codec(path)
        measure(path.name, codec, x)
        rows.append(codec.image(codec.latents(shown)))
    if args.grid is not None:
        sheet = images.grid([[images.from_array(v.numpy()) for v in row] for row in rows])
        sheet.resize((ENLARGED * sheet.width, ENLARGED * sheet.height), Image.Resampling.NEAREST).save(args.grid)


if __name__ == "__main__":
    scripts.run(main)
