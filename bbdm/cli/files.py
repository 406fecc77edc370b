"""The commands of networks' files: what one holds, exports, conversions."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

from bbdm.base.atomic import check_suffix
from bbdm.base.scripts import Command
from bbdm.base.settings import position, setting
from bbdm.base.sizes import shown
from bbdm.data.spec import Spec
from bbdm.onnx.config import ExportConfig
from bbdm.pictures.images import sides
from bbdm.sampling.network_config import FileConfig
from bbdm.solvers import StepTable

if TYPE_CHECKING:
    from bbdm.files.content import Checkpoint
    from bbdm.networks.base import Network

Row = tuple[str, object]


def of_checkpoint(checkpoint: Checkpoint) -> Iterator[Row]:
    """Rows of a network with its bridge."""
    unet, bridge, codec = checkpoint.unet, checkpoint.bridge, checkpoint.codec
    state = unet.ema or unet.weights or {}
    dtypes = sorted({str(value.dtype).removeprefix("torch.") for value in state.values()})
    yield "network", f"{unet.kind}, {millions(state)} M parameters in {', '.join(dtypes)}"
    yield "settings", unet.config
    yield "conditions", unet.config.described
    if unet.config.two_way:
        yield "directions", "AtoB; with BtoA, the values of sources and targets change places"
    yield "bridge", bridge
    yield from of_pictures(checkpoint.image_size, checkpoint.pictures)
    yield "codec", "none" if codec is None else codec.config.get("kind", "vqgan")
    yield "solver", f"{checkpoint.defaults.fill()[0]}, {len(checkpoint.defaults.table(bridge))} steps"
    yield "network calls", checkpoint.calls or "any number"
    if checkpoint.training is not None:
        yield "training", f"{checkpoint.training['step']} optimizer steps, to resume from"


def of_pictures(size: Any, kind: Spec) -> Iterator[Row]:
    """Rows of the pictures that a network was trained on."""
    yield "image size", "not stated" if size is None else shown(size)
    if not kind.eight_bit:
        yield "values", f"{kind.source} to {kind.target}, stored as {kind.target.dtype}"
    yield from ((name, each) for name in ("crop", "slices", "neighbours", "spacing") if (each := getattr(kind, name)))


def of_export(settings: dict[str, Any]) -> Iterator[Row]:
    """Rows of an ONNX export."""
    yield "graphs", f"{', '.join(settings['files'])}, in {settings['dtype']}"
    yield "bridge", ", ".join(f"{key}={value}" for key, value in settings["bridge"].items())
    yield from of_pictures(settings.get("image_size"), Spec.from_config(settings))
    yield "solver", f"{settings['solver']}, {len(StepTable.from_description(settings))} steps"
    yield "network calls", settings.get("calls") or "any number"
    yield "made by", ", ".join(f"{name} {version}" for name, version in settings.get("versions", {}).items())


def millions(state: dict[str, Any]) -> str:
    """The number of elements of tensors in millions."""
    return f"{sum(value.numel() for value in state.values()) / 1e6:.1f}"


def describe(path: Path, config: FileConfig) -> tuple[str, list[Row]]:
    """What a path or a name on the Hub is, and its rows.

    Raises:
        FileNotFoundError: there is no such file.
        IncompleteFileError: the file of another program needs a flag.
        ValueError: it is nothing that bbdm reads, or is damaged.
    """
    from bbdm.files import bridge_json, hub
    from bbdm.files.checkpoint import load_codec
    from bbdm.files.weights import IncompleteFileError
    from bbdm.training.run import RunFolder

    if (path / bridge_json.SETTINGS).is_file():
        return "an ONNX export", [*of_export(bridge_json.read_settings(path))]
    newest = next(iter(RunFolder(path, keep=1).checkpoints().values()), None)
    file, of_run = newest or hub.find_checkpoint(path), f", {newest.name} of a training run" if newest else ""
    try:
        exported = ", with an ONNX export" if (path / hub.ONNX / bridge_json.SETTINGS).is_file() else ""
        return f"a checkpoint{of_run}{exported}", [*of_checkpoint(config.load(file))]
    except IncompleteFileError:
        raise
    except ValueError as error:
        try:
            codec = load_codec(file)
        except (ValueError, OSError):
            takes = "info takes a file of weights, or the folder of a run, an export, save_pretrained or diffusers"
            raise (ValueError(f"{path} is a folder of other files: {takes}") if file.is_dir() else error) from None
    about = f"{type(codec.module).__name__}, {millions(codec.module.state_dict())} M parameters"
    latents = f"{codec.channels} channels, one position for {codec.stride} x {codec.stride} pixels"
    rows: list[Row] = [("autoencoder", about), ("latents", latents), ("settings", codec.config()["config"])]
    return f"an autoencoder{of_run}", rows


@dataclass(frozen=True, kw_only=True)
class Info(Command, FileConfig):
    """What a file, a folder or a name on the Hub holds: bbdm info FILE [flags].

    FILE is a checkpoint or an autoencoder, of bbdm or of another program; an ONNX export; a folder that
    save_pretrained wrote; or the folder of a training run.
    """

    file: Path = position("a file, a folder, or a name on the Hub")

    def run(self) -> None:
        """Print what it is, and its rows."""
        title, rows = describe(self.file, self)
        print(f"{self.file}: {title}")
        for name, value in rows:
            print(f"  {name:14}{value}")


@dataclass(frozen=True, kw_only=True)
class Export(Command, ExportConfig):
    """Export a checkpoint to ONNX: bbdm export CHECKPOINT FOLDER [flags].

    FOLDER, out/CHECKPOINT-onnx if left out, gets unet.onnx, step.onnx, for a latent bridge encoder.onnx and
    decoder.onnx, and bridge.json, the settings of the sampling loop. `python -m bbdm.runtime FOLDER
    PICTURE... -o OUT` runs them.

    With --compiled SIZE, FOLDER gets unet.pt2 instead, the network compiled for this machine, which
    BridgeSampler.from_checkpoint(CHECKPOINT, compiled="FOLDER/unet.pt2") loads in seconds.
    """

    FIRST: ClassVar[str] = "checkpoint folder dtype solver steps compiled overwrite"

    def run(self, network: Network | None = None) -> None:
        """Write the folder.

        Args:
            network: the network that a file of a wrapped network is of.

        Raises:
            ValueError: the folder exists and ``overwrite`` is not set, the graphs differ from PyTorch, or a
                setting is refused by :meth:`bbdm.BridgeSampler.from_checkpoint`.
        """
        if self.compiled is None:
            from bbdm.onnx.exporter import export

            return export(self, network)
        import torch

        path = self.output / "unet.pt2"
        if path.exists() and not self.overwrite:
            raise ValueError(f"{path} exists: overwrite replaces it")
        device = self.device or ("cuda" if torch.cuda.is_available() else "cpu")
        settings = {"network": network, "device": device, "dtype": self.dtype, "compile": True}
        sampler = self.build_sampler(self.checkpoint, **settings)
        sampler.save_compiled(path, size=sides(self.compiled, sampler.unet.axes))
        print(f"{path}: {path.stat().st_size / 1e6:.1f} MB, for {sampler.device} in {sampler.dtype}")


@dataclass(frozen=True, kw_only=True)
class ConvertVQGAN(Command):
    """Convert a VQGAN, for -vq: bbdm convert-vqgan STATE_DICT OUTPUT [flags].

    STATE_DICT is of latent diffusion.

    Weights are matched by name; an error names each key that is missing or left over.
    """

    HEADING: ClassVar[str] = "further"

    state_dict: Path = position("a state dict, a full checkpoint, or a pickled VQGAN")
    output: Path = position("the converted VQGAN: .pt or .safetensors")
    in_channels: int | None = setting(None, "that its images must have; any if unset", "-c")
    assert_weights_mapping: bool = setting(False, "no effect: it is always checked")

    def run(self) -> None:
        """Convert; ValueError where weights are missing or left over, or images have other channels."""
        from bbdm.files.checkpoint import load_vqgan, save_vqgan

        check_suffix(self.output)
        vqgan = load_vqgan(self.state_dict)
        config = vqgan.config
        channels = config.image_channels
        if self.in_channels not in (None, channels):
            raise ValueError(
                f"{self.state_dict} is for images of {channels} channels, got in_channels {self.in_channels}"
            )
        save_vqgan(self.output, vqgan)
        codes = f"{config.num_codes} codes of {config.latent_channels} channels"
        print(f"{self.output}: VQ-f{config.stride}, {codes}, images of {channels} channels")
