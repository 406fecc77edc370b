"""Convert a VQGAN of latent diffusion, or one that the public A-Bridge scripts converted, for -vq.

bbdm convert-vqgan STATE_DICT OUT.pt

Weights are matched by name; an error names each key that is missing or left over.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from bbdm.base.atomic import check_suffix
from bbdm.base.scripts import Parser


def main(argv: Sequence[str]) -> None:
    """The command; see the module."""
    parser = Parser(__doc__, prog="bbdm convert-vqgan")
    parser.add_argument("state_dict", type=Path, help="a state dict, a full checkpoint, or a pickled VQGAN")
    parser.add_argument("output", type=Path, help="the converted VQGAN: .pt or .safetensors")
    parser.add_argument("-c", "--in_channels", type=int, help="that its images must have (default: any)")
    parser.add_argument("--assert_weights_mapping", action="store_true", help="no effect: it is always checked")
    args = parser.parse_args(argv)
    from bbdm.files.checkpoint import load_vqgan, save_vqgan

    check_suffix(args.output)
    vqgan = load_vqgan(args.state_dict)
    config = vqgan.config
    if args.in_channels not in (None, config.image_channels):
        raise ValueError(
            f"{args.state_dict} is for images of {config.image_channels} channels, got -c {args.in_channels}"
        )
    save_vqgan(args.output, vqgan)
    print(
        f"{args.output}: VQ-f{config.stride}, {config.num_codes} codes of {config.latent_channels} channels, images of "
        f"{config.image_channels} channels{'' if config.projects_attention else ', as the A-Bridge scripts compute it'}"
    )
