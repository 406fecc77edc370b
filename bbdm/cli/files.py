"""The commands of networks' files: what one holds, exports, conversions."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, ClassVar, Literal

from bbdm import solvers
from bbdm.base.atomic import check_suffix
from bbdm.base.runs import BEST, files_by_step
from bbdm.base.scripts import Command
from bbdm.base.settings import check, position, setting
from bbdm.base.sizes import shown
from bbdm.files.header import read_header
from bbdm.pictures import Geometry, Header, addresses, formats
from bbdm.pictures.formats.parts import Part
from bbdm.pictures.images import Size, read_size
from bbdm.translation.config import FileConfig

if TYPE_CHECKING:
    from bbdm.files.content import Checkpoint
    from bbdm.networks.base import Network

LISTED = 20  # pictures of a file
MILLIMETRES = ("nifti", "itk")  # formats whose lengths are in mm
# settings of exports that are not compiled
GRAPHS = ("solver", "steps", "pipeline", "quantize", "calibrate")


def of_checkpoint(checkpoint: Checkpoint) -> Iterator[tuple[str, object]]:
    """Rows of a network with its bridge."""
    unet = checkpoint.unet
    pictures = checkpoint.pictures
    state = unet.ema or unet.weights or {}
    dtypes = sorted({str(value.dtype).removeprefix("torch.") for value in state.values()})
    count = sum(value.numel() for value in state.values())
    parameters = f"{count / 1e6:.1f} M parameters"
    if unet.lora is not None:
        parameters = f"{count / 1e6:.3g} M trained parameters"
    yield "network", f"{unet.kind}, {parameters} in {', '.join(dtypes)}"
    if unet.base is not None:
        yield "base", unet.base
    if unet.lora is not None:
        yield (
            "LoRA",
            f"rank {unet.lora.rank}, beside the weights in {unet.lora.base}, which are not in the file",
        )
    yield "settings", unet.config
    yield "conditions", unet.config.described
    if unet.config.two_way:
        yield "directions", "AtoB; with BtoA, the values of sources and targets change places"
    yield "bridge", checkpoint.bridge
    if checkpoint.bridge.noise_range is not None:
        low, high = checkpoint.bridge.noise_range
        yield "noise levels", f"{low:.3g} to {high:.3g}, at which the bridge uses the network"
    yield (
        "image size",
        "not stated" if checkpoint.image_size is None else shown(checkpoint.image_size),
    )
    if not pictures.eight_bit:
        values = f"{pictures.source_values} to {pictures.target_values}"
        yield "values", f"{values}, stored as {pictures.target_values.dtype}"
    for name in ("crop", "slices", "neighbours", "spacing"):
        value = getattr(pictures, name)
        if value:
            yield name, value
    yield (
        "codec",
        "none" if checkpoint.codec is None else checkpoint.codec.config.get("kind", "vqgan"),
    )
    steps = len(checkpoint.defaults.table(checkpoint.bridge))
    yield "solver", f"{checkpoint.defaults.chosen}, {steps} steps"
    yield "network calls", checkpoint.defaults.calls or "any number"
    if checkpoint.training is not None:
        yield "training", f"{checkpoint.training['step']} optimizer steps, to resume from"


def of_picture(header: Header) -> Iterator[tuple[str, object]]:
    """Rows of a picture, of what its file says before values are read."""
    geometry = header.geometry
    kept = geometry.kept
    sides = header.sides
    spacing = geometry.spacing or ()
    if kept.get("depth") == "t":  # which is an axis of no length
        yield "times", sides[0]
        sides = sides[1:]
        spacing = spacing[1:]
    yield "size", shown(sides)
    unit = f", in {header.unit}" if header.unit else ""
    yield "values", f"{header.dtype}{unit}"
    names = ", ".join(kept.get("descriptions") or ())
    yield "channels", f"{header.shape[0]}: {names}" if names else header.shape[0]
    if spacing:
        lengths = " x ".join(f"{length:.6g}" for length in spacing)
        yield "pixel", f"{lengths} {_unit_of_length(geometry)}".rstrip()
    if "seconds" in kept:
        yield "time", f"{kept['seconds']:.6g} seconds from one to the next"
    if geometry.nodata is not None:
        yield "no value", f"{geometry.nodata:g}"
    yield "reader", f"{header.reader}, {'by windows' if header.windowed else 'whole'}"


def _unit_of_length(geometry: Geometry) -> str:
    """The unit of lengths of pixels; "" where the file does not say it."""
    if geometry.format in MILLIMETRES:
        return "mm"
    in_ome_tiff = geometry.kept.get("ome", {}).get("PhysicalSizeXUnit")
    in_ome_zarr = dict(geometry.kept.get("axes", ())).get("x")
    return in_ome_tiff or in_ome_zarr or ""


@dataclass(frozen=True, kw_only=True)
class Info(Command, FileConfig):
    """What a file, a folder or a name on the Hub holds: bbdm info FILE [flags].

    FILE is a checkpoint, of bbdm or of another program; a folder that save_pretrained wrote; the folder of
    the training run of a bridge; or a picture of any format, also a part of one, such as file.czi#scene=2.

    Raises:
        FileNotFoundError: there is no such file.
        IncompleteFileError: the file of another program needs a flag.
        ValueError: it is neither a checkpoint nor a picture, or is damaged.
    """

    FIRST: ClassVar[str] = "time_steps c_lambda vqgan_path config"

    file: Path = position("a file, a folder, or a name on the Hub")

    @property
    def opening(self) -> str:
        """Which file."""
        return f"reading {self.file}"

    def run(self) -> None:
        """Print what it is, and its rows."""
        file, part = addresses.split(self.file)
        if formats.suffix_of(file) or formats.is_picture(file):
            self._describe_pictures(file, part)
        else:
            self._describe_checkpoint()

    def _describe_pictures(self, file: Path, part: Part) -> None:
        """Print what a picture is; of a file of several, which they are, and what the first is."""
        parts = [part] if part else addresses.parts(file)
        if len(parts) == 1:
            print(f"{self.file}: a picture")
        else:
            print(f"{self.file}: {len(parts)} pictures")
            for each in parts[:LISTED]:
                header = addresses.header(file, each)
                print(f"  #{each!s:24} {shown(header.shape)} of {header.dtype}")
            if len(parts) > LISTED:
                print(f"  and {len(parts) - LISTED} more")
            print(f"{file}#{parts[0]}")
        for name, value in of_picture(addresses.header(file, parts[0])):
            print(f"  {name:14}{value}")

    def _describe_checkpoint(self) -> None:
        """Print what a network is."""
        from bbdm.files.checkpoint import load_checkpoint
        from bbdm.files.repository import find_checkpoint

        title = f"{self.file}: a checkpoint"
        saved = list(files_by_step(self.file, ".pt").values())
        if saved:
            path = saved[0]
            title += f", {path.name} of a training run"
            if (self.file / BEST).is_file():
                title += f"; {BEST} has the weights of the best validation"
        else:
            path = find_checkpoint(self.file)
        checkpoint = load_checkpoint(path, **self.missing)
        print(title)
        for name, value in of_checkpoint(checkpoint):
            print(f"  {name:14}{value}")


@dataclass(frozen=True, kw_only=True)
class Export(Command, FileConfig):
    """Export a checkpoint to ONNX: bbdm export CHECKPOINT FOLDER [flags].

    FOLDER, out/CHECKPOINT-onnx if left out, gets unet.onnx, step.onnx, for a latent bridge encoder.onnx and
    decoder.onnx, and bridge.json, the settings of the sampling loop. `python -m bbdm.runtime FOLDER
    PICTURE... -o OUT` runs them.

    With --compiled SIZE, FOLDER gets unet.pt2 instead, the network compiled for this machine, which
    BridgeSampler.from_checkpoint(CHECKPOINT, compiled="FOLDER/unet.pt2") loads in seconds.
    """

    HEADING: ClassVar[str] = "export"
    FIRST: ClassVar[str] = "dtype solver steps compiled overwrite"

    checkpoint: Path = position("a file that bbdm.load_checkpoint reads")
    folder: Path | None = position(
        "where to write; out/CHECKPOINT-onnx or -compiled if left out", None
    )
    solver: str | None = setting(None, "the checkpoint's own if unset", choices=solvers.SOLVERS)
    steps: int | None = setting(
        None, "network calls; the checkpoint's or the solver's if unset", least=1
    )
    dtype: Literal["fp16", "bf16", "fp32"] | None = setting(
        None,
        "of weights and products; of graphs fp16 or fp32, the default; compiled, the fastest if unset",
    )
    pipeline: bool = setting(False, "write pipeline.onnx too: a translation in one graph")
    quantize: Literal["int8"] | None = setting(None, "the UNet, calibrated on --calibrate")
    calibrate: Path | None = setting(None, "folder of sources, for --quantize", metavar="PICTURES")
    compiled: Size | None = setting(
        None,
        "compile for one picture of a side, HxW or DxHxW, in place of graphs",
        parse=read_size,
        metavar="SIZE",
    )
    device: str | None = setting(
        None, "of --compiled: cpu, cuda, cuda:1, ...; cuda if unset and there is one"
    )
    check: bool = setting(True, "compare graphs with PyTorch")
    overwrite: bool = setting(False, "replace FOLDER")
    quiet: bool = setting(False, "print errors alone")

    def __post_init__(self) -> None:
        check(self)
        if self.compiled is not None:
            taken = [f"--{name}" for name in GRAPHS if getattr(self, name) != getattr(Export, name)]
            if taken:
                raise ValueError(
                    f"--compiled writes the network alone, and takes no {', '.join(taken)}"
                )
            return
        if self.device is not None:
            raise ValueError("--device is of --compiled; graphs run anywhere")
        if self.dtype == "bf16":
            raise ValueError("--dtype bf16 is of --compiled; graphs are in fp16 or fp32")
        if (self.quantize is None) != (self.calibrate is None):
            raise ValueError("--quantize and --calibrate need each other")
        if self.quantize and self.dtype == "fp16":
            raise ValueError("--quantize leaves the rest in fp32, got --dtype fp16")

    @property
    def opening(self) -> str:
        """What is written, of which network, and where."""
        kind = "ONNX graphs" if self.compiled is None else "a compiled network"
        return f"writing {kind} of {read_header(self.checkpoint)} to {self.written_to}"

    @property
    def written_to(self) -> Path:
        """The folder that is written."""
        ending = "onnx" if self.compiled is None else "compiled"
        return self.folder or Path("out") / f"{self.checkpoint.stem}-{ending}"

    def run(self, network: Network | None = None) -> None:
        """Write the folder.

        Args:
            network: the network that a file of a wrapped network is of.

        Raises:
            ValueError: the folder exists and ``overwrite`` is not set, the graphs differ from PyTorch, or a
                setting is refused by :meth:`bbdm.BridgeSampler.from_checkpoint`.
        """
        if self.compiled is None:
            self._write_graphs(network)
        else:
            self._write_compiled(network, self.compiled)

    def _write_graphs(self, network: Network | None) -> None:
        """Write the ONNX graphs."""
        from bbdm.onnx.exporter import export

        sampler = self.build_sampler(
            self.checkpoint, network=network, solver=self.solver, steps=self.steps
        )
        dtype = "fp16" if self.dtype == "fp16" else "fp32"
        export(
            sampler,
            self.written_to,
            dtype,
            self.pipeline,
            self.calibrate,
            self.check,
            self.overwrite,
            self.quiet,
        )

    def _write_compiled(self, network: Network | None, size: Size) -> None:
        """Write the network compiled for one picture of a size."""
        import torch

        path = self.written_to / "unet.pt2"
        if path.exists() and not self.overwrite:
            raise ValueError(f"{path} exists: --overwrite replaces it")
        device = self.device
        if device is None:
            device = "cuda" if torch.cuda.is_available() else "cpu"
        sampler = self.build_sampler(
            self.checkpoint, network=network, device=device, dtype=self.dtype, compile=True
        )
        sampler.save_compiled(path, size)
        if not self.quiet:
            print(
                f"{path}: {path.stat().st_size / 1e6:.1f} MB, for {sampler.device} in {sampler.dtype}"
            )


@dataclass(frozen=True, kw_only=True)
class ConvertVQGAN(Command):
    """Convert a VQGAN, for -vq: bbdm convert-vqgan STATE_DICT OUTPUT [flags].

    STATE_DICT is of latent diffusion. Weights are matched by name; an error names each key that is missing or
    left over.
    """

    HEADING: ClassVar[str] = "further"

    state_dict: Path = position("a state dict, a full checkpoint, or a pickled VQGAN")
    output: Path = position("the converted VQGAN: .pt or .safetensors")
    in_channels: int | None = setting(None, "that its images must have; any if unset", "-c")
    assert_weights_mapping: bool = setting(False, "no effect: it is always checked")

    @property
    def opening(self) -> str:
        """Which file becomes which."""
        return f"converting {self.state_dict} to {self.output}"

    def run(self) -> None:
        """Convert; ValueError where weights are missing or left over, or images have other channels."""
        from bbdm.files.checkpoint import load_vqgan, save_vqgan

        check_suffix(self.output)
        vqgan = load_vqgan(self.state_dict)
        config = vqgan.config
        if self.in_channels not in (None, config.image_channels):
            images = f"{self.state_dict} is for images of {config.image_channels} channels"
            raise ValueError(f"{images}, got in_channels {self.in_channels}")
        save_vqgan(self.output, vqgan)
        codes = f"{config.num_codes} codes of {config.latent_channels} channels"
        print(
            f"{self.output}: VQ-f{config.stride}, {codes}, images of {config.image_channels} channels"
        )
