"""Make a file for -vq of a VQGAN of latent diffusion, or of one that the public A-Bridge scripts converted.

python examples/convert_vqgan.py STATE_DICT OUT.pt

Weights are matched by name; every key that is missing or left over is an error that names it.
"""

from __future__ import annotations

import argparse
from pathlib import Path

from bbdm.base import scripts
from bbdm.base.atomic import check_suffix
from bbdm.files.checkpoint import load_vqgan, save_vqgan


def main(argv: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("state_dict", type=Path, help="a state dict, a full checkpoint, or a pickled VQGAN")
    parser.add_argument("output", type=Path, help="the converted VQGAN: .pt or .safetensors")
    parser.add_argument("-c", "--in_channels", type=int, help="that its images must have (default: what they have)")
    parser.add_argument("--assert_weights_mapping", action="store_true", help="always so; for old command lines")
    args = parser.parse_args(argv)
    check_suffix(args.output)
    vqgan = load_vqgan(args.state_dict)
    config = vqgan.config
    if args.in_channels not in (None, config.image_channels):
        raise ValueError(
            f"{args.state_dict} is of {config.image_channels} channels, and -c {args.in_channels} was given"
        )
    save_vqgan(args.output, vqgan)
    print(
        f"{args.output}: VQ-f{config.stride}, {config.num_codes} codes of {config.latent_channels} channels, images of "
        f"{config.image_channels} channels{'' if config.projects_attention else ', as the A-Bridge scripts compute it'}"
    )


if __name__ == "__main__":
    scripts.run(main)
