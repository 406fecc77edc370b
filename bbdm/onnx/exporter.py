"""Export a checkpoint to ONNX: python export/to_onnx.py CHECKPOINT [FOLDER] [flags].

FOLDER gets unet.onnx, step.onnx, for a latent bridge encoder.onnx and decoder.onnx, and bridge.json, the
settings of the sampling loop. `python -m bbdm.runtime FOLDER PICTURE... -o OUT` runs them.
"""

from __future__ import annotations

import argparse
import copy
import json
import math
import secrets
import sys
import tempfile
from pathlib import Path
from typing import Any, get_args

import torch

sys.path.insert(0, str(Path(__file__).parents[1]))  # a script sees its own folder alone

from bbdm import solvers
from bbdm.base import machine, scripts
from bbdm.base.atomic import file_sha256
from bbdm.base.settings import add_flags, flag_names, from_values
from bbdm.data.pairs import load_dataset
from bbdm.files.bridge_json import FORMAT, PIPELINE, SETTINGS, VERSION
from bbdm.files.weights import IncompleteFileError
from bbdm.networks.base import Network
from bbdm.pictures.images import from_pil
from bbdm.sampling.network_config import FileConfig
from bbdm.sampling.sampler import BridgeSampler

with scripts.imports():
    import onnx

    from bbdm.onnx import check, graphs, pipeline

DTYPES = {"fp32": torch.float32, "fp16": torch.float16}
PACKAGES = ("bbdm", "torch", "onnx", "onnxscript", "onnxruntime")
EXTERNAL = 2**30  # bytes from which weights are in a second file: a protobuf holds 2 GB
CALIBRATION = 8  # pictures


def parse(argv: list[str] | None = None) -> argparse.Namespace:
    """The flags."""
    parser = scripts.Parser(__doc__)
    parser.add_argument("checkpoint", type=Path, help="a file that bbdm.load_checkpoint reads")
    parser.add_argument("folder", type=Path, nargs="?", help="where to write (out/CHECKPOINT-onnx)")
    parser.add_argument("--solver", choices=get_args(solvers.Solver), help="the checkpoint's default if unset")
    parser.add_argument("--steps", type=int, help="network evaluations; the solver's default if unset")
    parser.add_argument("--dtype", choices=sorted(DTYPES), default="fp32", help="of weights and products")
    parser.add_argument("--static", type=_static, metavar="B,H,W", help="take this batch and size only; any if unset")
    parser.add_argument("--opset", type=int, default=23, help=f"{graphs.OPSETS[0]} to {graphs.OPSETS[-1]}")
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
    if args.opset not in graphs.OPSETS:
        parser.error(f"--opset must be in [{graphs.OPSETS[0]}, {graphs.OPSETS[-1]}], got {args.opset}")
    return args


def _static(text: str) -> tuple[int, int, int]:
    numbers = tuple(int(part) for part in text.split(","))
    if len(numbers) != 3 or min(numbers) < 1:
        raise argparse.ArgumentTypeError(f"must be three positive numbers B,H,W, got {text}")
    return numbers


class Exporter:
    """Writes a checkpoint as a folder of graphs, and checks it."""

    def __init__(self, args: argparse.Namespace, network: Network | None = None) -> None:
        self.args = args
        checkpoint = from_values(FileConfig, vars(args)).load(args.checkpoint)
        self.unet = checkpoint.build_unet(network=network)
        codec = checkpoint.build_codec()
        self.codec = codec
        self.bridge = checkpoint.bridge
        self.sampler = BridgeSampler(
            self.unet, self.bridge, args.solver, args.steps, codec=codec, calls=checkpoint.calls
        )
        self.latent_stride = 1 if codec is None else codec.stride
        self.stride = self.unet.stride * self.latent_stride
        self.image_size = checkpoint.image_size
        if args.static and (args.static[1] % self.stride or args.static[2] % self.stride):
            raise ValueError(f"--static needs height and width that are multiples of {self.stride}, got {args.static}")

    def graphs(self, scratch: Path) -> dict[str, onnx.ModelProto]:
        """The graphs by file name."""
        args, dtype = self.args, DTYPES[self.args.dtype]
        static = args.static
        sources = self.calibration() if args.quantize else []
        latent = static and (static[0], static[1] // self.latent_stride, static[2] // self.latent_stride)
        made = {"unet.onnx": graphs.network_graph(copy.deepcopy(self.unet).to(dtype), latent, args.opset)}
        if args.quantize:
            from bbdm.onnx.quantize import quantized

            made["unet.onnx"] = quantized(made["unet.onnx"], self.sampler, sources, scratch)
        if self.codec is not None:  # codes and decoder stay in float32: float16 would choose other codes
            encoder = self.codec.placed(torch.device("cpu"), dtype)
            made["encoder.onnx"] = graphs.encoder_graph(encoder, static, args.opset)
            made["decoder.onnx"] = graphs.decoder_graph(self.codec, static, args.opset)
        made["step.onnx"] = pipeline.step_graph(args.opset)
        if args.pipeline:
            ends = made.get("encoder.onnx"), made.get("decoder.onnx")
            made[PIPELINE] = pipeline.pipeline_graph(
                made["unet.onnx"], *ends, self.sampler.table, args.mask, self.latent_stride
            )
        return made

    def calibration(self) -> list[torch.Tensor]:
        """Up to ``CALIBRATION`` of the user's pictures, spread over the folder."""
        size = self.args.static[1:] if self.args.static else self.image_size or 64 * self.stride
        channels = self.sampler.unet.channels if self.codec is None else self.codec.image_channels
        pictures = load_dataset("folder", str(self.args.calibrate), "val", size, channels=channels)
        chosen = range(0, len(pictures), math.ceil(len(pictures) / CALIBRATION))
        return [from_pil(pictures.images(i)[0], channels)[None] for i in chosen]

    def settings(self, folder: Path) -> dict[str, Any]:
        """The content of bridge.json for the files in a folder."""
        args, table, network = self.args, self.sampler.table, self.unet
        return {
            "format": FORMAT,
            "version": VERSION,
            "bridge": self.bridge.config(),
            "solver": self.sampler.solver,
            "calls": self.sampler.calls,
            **table.description(),
            "noise_rows": table.noisy,
            "channels": network.channels,
            "conditioned": network.condition_channels > 0,
            "image_channels": network.channels if self.codec is None else self.codec.image_channels,
            "image_size": self.image_size,
            "value_range": [-1, 1],
            "stride": self.stride,
            "latent_stride": self.latent_stride,
            "latent_statistics": None if self.codec is None else self.codec.config()["statistics"],
            "static": args.static,
            "dtype": args.quantize or args.dtype,
            "opset": args.opset,
            "versions": machine.versions(PACKAGES),
            "files": {path.name: file_sha256(path) for path in sorted(folder.iterdir())},
        }

    def write(self, folder: Path) -> None:
        """Write all files into an empty folder."""
        with tempfile.TemporaryDirectory(dir=folder.parent) as scratch:
            made = self.graphs(Path(scratch))
        for name, model in made.items():
            external = self.args.external_data
            external = model.ByteSize() > EXTERNAL if external is None else external and name != "step.onnx"
            onnx.save_model(model, folder / name, save_as_external_data=external, location=f"{name}.data")
            onnx.checker.check_model(folder / name, full_check=True)
        (folder / SETTINGS).write_text(json.dumps(self.settings(folder), indent=1) + "\n")

    def check(self, folder: Path) -> None:
        """Print the export's differences from PyTorch.

        Raises:
            ValueError: a difference is above the limit of its dtype.
        """
        limit = None if self.args.quantize else check.LIMITS[self.args.dtype]
        print(f"{'against PyTorch float32':24}{'input':>20}{'largest':>12}{'mean':>12}")
        worst: check.Difference | None = None
        for difference in check.differences(folder, self.sampler, 4 * self.stride):
            shape = " x ".join(map(str, difference.shape))
            print(f"{difference.graph:24}{shape:>20}{difference.largest:12.1e}{difference.mean:12.1e}")
            # With a codec, rounding may choose a neighbouring code.
            judged = self.codec is None or not difference.graph.startswith("image")
            if limit is not None and judged and not difference.largest <= limit:
                worst = difference
        if worst is not None:
            raise ValueError(f"{worst.graph} differs by {worst.largest:.1e} from PyTorch, more than {limit:.0e}")


def main(argv: list[str] | None = None, network: Network | None = None) -> None:
    """The command; ``network`` is the one that a file of a wrapped network is of."""
    args = parse(argv)
    if args.folder.exists() and not (args.folder / SETTINGS).is_file():
        raise ValueError(f"{args.folder} exists and is not an export: give another folder")
    if args.folder.exists() and not args.overwrite:
        raise ValueError(f"{args.folder} exists: --overwrite replaces it")
    exporter = Exporter(args, network)
    args.folder.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=args.folder.parent, prefix=f".{args.folder.name}.") as temporary:
        made = Path(temporary) / "made"
        made.mkdir()
        exporter.write(made)
        if args.check:
            exporter.check(made)
        if args.folder.exists():
            args.folder.rename(Path(temporary) / f"replaced-{secrets.token_hex(4)}")
        made.rename(args.folder)
    size = sum(path.stat().st_size for path in args.folder.iterdir())
    print(f"{args.folder}: {', '.join(sorted(path.name for path in args.folder.iterdir()))}; {size / 1e6:.1f} MB")


if __name__ == "__main__":
    scripts.run(main, hints={IncompleteFileError: f"the flags are {flag_names(FileConfig)}"})
