"""Convert a checkpoint of VainF's DeepLabV3Plus-Pytorch for eval_miou.py.

python examples/convert_deeplabv3.py STATE_DICT OUT.pt -n 19

The names of the weights decide the network: deeplabv3 or deeplabv3plus, on resnet50, resnet101 or mobilenet.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from bbdm.base import flags, optional, scripts
from bbdm.base.atomic import check_suffix


def main(argv: Sequence[str] | None = None) -> None:
    parser = flags.Parser(__doc__)
    parser.add_argument(
        "state_dict", type=Path, help="the checkpoint, with its weights under 'model_state'"
    )
    parser.add_argument("output", type=Path, help="the converted network: .pt or .safetensors")
    parser.add_argument(
        "-n", "--num_classes", type=int, default=19, help="that the network must have"
    )
    parser.add_argument(
        "--output_stride", type=int, choices=[8, 16], default=16, help="as it was trained"
    )
    args = parser.parse_args(argv)
    optional.package("torchvision", "convert_deeplabv3.py")
    from deeplab import load_deeplab, save_deeplab

    check_suffix(args.output)
    model = load_deeplab(args.state_dict, args.output_stride)
    config = model.config
    if config.num_classes != args.num_classes:
        raise ValueError(
            f"{args.state_dict} has {config.num_classes} classes, got -n {args.num_classes}"
        )
    save_deeplab(args.output, model)
    print(f"{args.output}: {config.head} on {config.backbone}, {config.num_classes} classes")


if __name__ == "__main__":
    scripts.run(main)
