"""Export a checkpoint to ONNX: bbdm export CHECKPOINT [FOLDER] [flags].

FOLDER gets unet.onnx, step.onnx, for a latent bridge encoder.onnx and decoder.onnx, and bridge.json, the
settings of the sampling loop. `python -m bbdm.runtime FOLDER PICTURE... -o OUT` runs them.

With --compiled SIZE, FOLDER gets unet.pt2 instead, the network compiled for this machine, which
BridgeSampler.from_checkpoint(CHECKPOINT, compiled="FOLDER/unet.pt2") loads in seconds.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, get_args

from bbdm import solvers
from bbdm.base.scripts import Parser
from bbdm.base.settings import add_flags, from_values
from bbdm.onnx import OPSETS
from bbdm.pictures.images import read_sides, sides
from bbdm.sampling.network_config import FileConfig

if TYPE_CHECKING:
    from bbdm.networks.base import Network

GRAPHS = ("solver", "steps", "opset", "external_data", "pipeline", "mask", "quantize", "calibrate")  # flags of ONNX


def parse(argv: Sequence[str]) -> argparse.Namespace:
    """The flags."""
    parser = Parser(__doc__, prog="bbdm export")
    parser.add_argument("checkpoint", type=Path, help="a file that bbdm.load_checkpoint reads")
    parser.add_argument("folder", type=Path, nargs="?", help="where to write (out/CHECKPOINT-onnx, or -compiled)")
    parser.add_argument("--solver", choices=get_args(solvers.Solver), help="the checkpoint's own if unset")
    parser.add_argument("--steps", type=int, help="network calls; the checkpoint's or the solver's if unset")
    parser.add_argument(
        "--dtype",
        choices=["fp16", "bf16", "fp32"],
        help="of weights and products; of graphs fp16 or fp32, the default; compiled, the fastest if unset",
    )
    parser.add_argument("--opset", type=int, help=f"{OPSETS[0]} to {OPSETS[-1]}; {OPSETS[-1]} if unset")
    parser.add_argument(
        "--external-data",
        action=argparse.BooleanOptionalAction,
        help="write weights to a second file; if unset, from 1 GB on",
    )
    parser.add_argument("--pipeline", action="store_true", help="write pipeline.onnx too: a translation in one graph")
    parser.add_argument("--mask", action="store_true", help="pipeline.onnx takes a mask: for inpainting")
    parser.add_argument("--quantize", choices=["int8"], help="the UNet, calibrated on --calibrate")
    parser.add_argument("--calibrate", type=Path, metavar="PICTURES", help="folder of sources, for --quantize")
    parser.add_argument(
        "--compiled", type=read_sides, metavar="SIZE", help="compile for one picture of a side, HxW or DxHxW"
    )
    parser.add_argument("--device", help="of --compiled: cpu, cuda, cuda:1, ...; cuda if unset and there is one")
    parser.add_argument("--check", action=argparse.BooleanOptionalAction, default=True, help="against PyTorch")
    parser.add_argument("--overwrite", action="store_true", help="replace FOLDER")
    add_flags(parser, FileConfig)
    args = parser.parse_args(argv)
    args.folder = args.folder or Path("out") / f"{args.checkpoint.stem}-{'compiled' if args.compiled else 'onnx'}"
    if args.compiled is not None:
        if taken := [f"--{name.replace('_', '-')}" for name in GRAPHS if getattr(args, name) not in (None, False)]:
            parser.error(f"--compiled writes a package alone, and takes no {', '.join(taken)}")
        return args
    if args.device is not None:
        parser.error("--device is of --compiled; graphs run anywhere")
    if args.dtype == "bf16":
        parser.error("--dtype bf16 is of --compiled; graphs are in fp16 or fp32")
    if (args.quantize is None) != (args.calibrate is None):
        parser.error("--quantize and --calibrate need each other")
    if args.mask and not args.pipeline:
        parser.error("--mask is of --pipeline; the other graphs take one anyway")
    args.dtype, args.opset = args.dtype or "fp32", args.opset or OPSETS[-1]
    if args.quantize and args.dtype != "fp32":
        parser.error("--quantize int8 leaves the rest in fp32")
    if args.opset not in OPSETS:
        parser.error(f"--opset must be in [{OPSETS[0]}, {OPSETS[-1]}], got {args.opset}")
    return args


def main(argv: Sequence[str], network: Network | None = None) -> None:
    """The command; ``network`` is the one that a file of a wrapped network is of."""
    args = parse(argv)
    if args.compiled is not None:
        compile_package(args, network)
        return
    from bbdm.onnx.exporter import export

    export(args, network)


def compile_package(args: argparse.Namespace, network: Network | None) -> None:
    """Write the package that the flags describe.

    Raises:
        ValueError: there is one in the folder and ``overwrite`` is not set, or as for
            :meth:`bbdm.BridgeSampler.from_checkpoint` and :meth:`~bbdm.BridgeSampler.save_compiled`.
    """
    import torch

    path = args.folder / "unet.pt2"
    if path.exists() and not args.overwrite:
        raise ValueError(f"{path} exists: --overwrite replaces it")
    device = args.device or ("cuda" if torch.cuda.is_available() else "cpu")
    settings = {"network": network, "device": device, "dtype": args.dtype, "compile": True}
    sampler = from_values(FileConfig, vars(args)).build_sampler(args.checkpoint, **settings)
    sampler.save_compiled(path, size=sides(args.compiled, sampler.unet.axes))
    print(f"{path}: {path.stat().st_size / 1e6:.1f} MB, for {sampler.device} in {sampler.dtype}")
