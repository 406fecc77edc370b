"""Export a checkpoint to ONNX: bbdm export CHECKPOINT [FOLDER] [flags].

FOLDER gets unet.onnx, step.onnx, for a latent bridge encoder.onnx and decoder.onnx, and bridge.json, the
settings of the sampling loop. `python -m bbdm.runtime FOLDER PICTURE... -o OUT` runs them.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, get_args

from bbdm import solvers
from bbdm.base.scripts import Parser
from bbdm.base.settings import add_flags
from bbdm.onnx.opsets import OPSETS
from bbdm.sampling.network_config import FileConfig

if TYPE_CHECKING:
    from bbdm.networks.base import Network


def parse(argv: Sequence[str]) -> argparse.Namespace:
    """The flags."""
    parser = Parser(__doc__, prog="bbdm export")
    parser.add_argument("checkpoint", type=Path, help="a file that bbdm.load_checkpoint reads")
    parser.add_argument("folder", type=Path, nargs="?", help="where to write (out/CHECKPOINT-onnx)")
    parser.add_argument("--solver", choices=get_args(solvers.Solver), help="the checkpoint's own if unset")
    parser.add_argument("--steps", type=int, help="network calls; the checkpoint's or the solver's if unset")
    parser.add_argument("--dtype", choices=["fp16", "fp32"], default="fp32", help="of weights and products")
    parser.add_argument(
        "--static", type=_static, metavar="B,[D,]H,W", help="take this batch and size only; any if unset"
    )
    parser.add_argument("--opset", type=int, default=23, help=f"{OPSETS[0]} to {OPSETS[-1]}")
    parser.add_argument(
        "--external-data",
        action=argparse.BooleanOptionalAction,
        help="write weights to a second file; if unset, from 1 GB on",
    )
    parser.add_argument("--pipeline", action="store_true", help="write pipeline.onnx too: a translation in one graph")
    parser.add_argument("--mask", action="store_true", help="pipeline.onnx takes a mask: for inpainting")
    parser.add_argument("--quantize", choices=["int8"], help="the UNet, calibrated on --calibrate")
    parser.add_argument("--calibrate", type=Path, metavar="PICTURES", help="folder of sources, for --quantize")
    parser.add_argument("--check", action=argparse.BooleanOptionalAction, default=True, help="against PyTorch")
    parser.add_argument("--overwrite", action="store_true", help="replace FOLDER")
    add_flags(parser, FileConfig)
    args = parser.parse_args(argv)
    args.folder = args.folder or Path("out") / f"{args.checkpoint.stem}-onnx"
    if (args.quantize is None) != (args.calibrate is None):
        parser.error("--quantize and --calibrate need each other")
    if args.mask and not args.pipeline:
        parser.error("--mask is of --pipeline; the other graphs take one anyway")
    if args.quantize and args.dtype != "fp32":
        parser.error("--quantize int8 leaves the rest in fp32")
    if args.opset not in OPSETS:
        parser.error(f"--opset must be in [{OPSETS[0]}, {OPSETS[-1]}], got {args.opset}")
    return args


def _static(text: str) -> tuple[int, ...]:
    numbers = tuple(int(part) for part in text.split(","))
    if len(numbers) not in (3, 4) or min(numbers) < 1:
        raise argparse.ArgumentTypeError(f"must be three positive numbers B,H,W, of volumes four, got {text}")
    return numbers


def main(argv: Sequence[str], network: Network | None = None) -> None:
    """The command; ``network`` is the one that a file of a wrapped network is of."""
    args = parse(argv)
    from bbdm.onnx.exporter import export

    export(args, network)
