"""Writing a checkpoint as a folder of ONNX graphs."""

from __future__ import annotations

import argparse
import copy
import json
import math
import secrets
import tempfile
from pathlib import Path
from typing import Any

import onnx
import torch

from bbdm.base import machine
from bbdm.base.atomic import file_sha256
from bbdm.base.settings import from_values
from bbdm.base.sizes import shown
from bbdm.data.rows import read_rows
from bbdm.files.bridge_json import FORMAT, PIPELINE, PLAIN, SETTINGS, VALUED, VERSION, VOLUMES
from bbdm.networks.base import Network
from bbdm.networks.checks import check_pictures
from bbdm.onnx import check, graphs, pipeline
from bbdm.pictures.images import convert, open_image, resized, to_array
from bbdm.sampling.network_config import FileConfig
from bbdm.sampling.sampler import BridgeSampler

DTYPES = {"fp32": torch.float32, "fp16": torch.float16}
PACKAGES = ("bbdm", "torch", "onnx", "onnxscript", "onnxruntime")
EXTERNAL = 2**30  # bytes from which weights are in a second file: a protobuf holds 2 GB
CALIBRATION = 8  # pictures


class Exporter:
    """Writes a checkpoint as a folder of graphs, and checks it."""

    def __init__(self, args: argparse.Namespace, network: Network | None = None) -> None:
        self.args = args
        checkpoint = from_values(FileConfig, vars(args)).load(args.checkpoint)
        self.unet = checkpoint.build_unet(network=network)
        self.codec = checkpoint.build_codec()
        self.bridge = checkpoint.bridge
        settings = args.solver, args.steps
        self.sampler = BridgeSampler(self.unet, self.bridge, *settings, codec=self.codec, defaults=checkpoint.defaults)
        self.shapes = self.sampler._shapes
        self.image_size, self.pictures = checkpoint.image_size, checkpoint.pictures
        if args.quantize:
            check_pictures(self.unet.axes, "--quantize")
        others = self.unet.further
        if refused := others.each if args.quantize else others.images if self.codec is not None else {}:
            what = "int8 is calibrated on sources alone" if args.quantize else "with a codec, exports have no images"
            raise ValueError(f"{what}, and this network has {', '.join(refused)} too")

    @property
    def _stride(self) -> int | list[int]:
        """That of all axes or, where they differ, of each."""
        return self.shapes.stride[0] if len(set(self.shapes.stride)) == 1 else list(self.shapes.stride)

    def graphs(self, scratch: Path) -> dict[str, onnx.ModelProto]:
        """The graphs by file name."""
        args, dtype = self.args, DTYPES[self.args.dtype]
        sources = self.calibration() if args.quantize else []
        made = {"unet.onnx": graphs.network_graph(copy.deepcopy(self.unet).to(dtype), args.opset)}
        if args.quantize:
            from bbdm.onnx.quantize import quantized

            made["unet.onnx"] = quantized(made["unet.onnx"], self.sampler, sources, scratch)
        if self.codec is not None:  # codes and decoder stay in float32: float16 would choose other codes
            encoder = self.codec.placed(torch.device("cpu"), dtype)
            made["encoder.onnx"] = graphs.encoder_graph(encoder, args.opset)
            made["decoder.onnx"] = graphs.decoder_graph(self.codec, args.opset)
        made["step.onnx"] = graphs.step_graph(args.opset, self.unet.axes)
        if args.pipeline:
            parts = made["unet.onnx"], made.get("encoder.onnx"), made.get("decoder.onnx")
            made[PIPELINE] = pipeline.pipeline_graph(*parts, self.sampler.table, self.shapes, args.mask)
        return made

    def calibration(self) -> list[torch.Tensor]:
        """Up to ``CALIBRATION`` of the user's pictures, spread over the folder."""
        size = self.image_size or 64 * self.shapes.stride[0]
        channels = self.shapes.source_channels
        rows = read_rows("folder", str(self.args.calibrate), "val")
        chosen = [rows[i]["source"] for i in range(0, len(rows), math.ceil(len(rows) / CALIBRATION))]
        images = (to_array(resized(convert(open_image(path), channels), size), channels) for path in chosen)
        return [torch.from_numpy(image)[None] for image in images]

    def settings(self, folder: Path) -> dict[str, Any]:
        """The content of bridge.json for the files in a folder."""
        args, table, network = self.args, self.sampler.table, self.unet
        further = self.pictures.config()
        if self.shapes.source_channels != self.shapes.image_channels:
            further["source_channels"] = self.shapes.source_channels
        if network.endpoint_channels is not None:
            further["endpoint"] = list(network.endpoint_channels)
        further |= (conditions := network.further.settings())
        if network.axes != 2:
            further["axes"] = network.axes
        volumes = "axes" in further or not isinstance(self._stride, int)
        version = VOLUMES if volumes else VALUED if further else PLAIN
        version = VERSION if conditions.keys() - {"images"} else version
        return {
            "format": FORMAT,
            "version": version,
            "bridge": self.bridge.config(),
            "solver": self.sampler.solver,
            "calls": self.sampler.calls,
            **table.description(),
            "noise_rows": table.noisy,
            "channels": network.channels,
            "conditioned": network.condition_channels > 0,
            "image_channels": self.shapes.image_channels,
            **further,
            "image_size": self.image_size,
            "value_range": [-1, 1],
            "stride": self._stride,
            "latent_stride": self.shapes.cell,
            "latent_statistics": None if self.codec is None else self.codec.config()["statistics"],
            "dtype": args.quantize or args.dtype,
            "opset": args.opset,
            "versions": machine.versions(PACKAGES),
            "files": {path.name: file_sha256(path) for path in sorted(folder.iterdir())},
            "sizes": {path.name: path.stat().st_size for path in sorted(folder.iterdir())},
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
        for difference in check.differences(folder, self.sampler):
            print(
                f"{difference.graph:24}{shown(difference.shape):>20}{difference.largest:12.1e}{difference.mean:12.1e}"
            )
            # With a codec, rounding may choose a neighbouring code.
            judged = self.codec is None or not difference.graph.startswith("image")
            if limit is not None and judged and not difference.largest <= limit:
                worst = difference
        if worst is not None:
            raise ValueError(f"{worst.graph} differs by {worst.largest:.1e} from PyTorch, more than {limit:.0e}")


def export(args: argparse.Namespace, network: Network | None = None) -> None:
    """Write the folder that the flags of :mod:`bbdm.cli.export` describe, check it, and print what it holds.

    Args:
        args: the flags of the command.
        network: the network that a file of a wrapped network is of.

    Raises:
        ValueError: the folder exists, or the graphs differ from PyTorch.
    """
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
