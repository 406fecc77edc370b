"""The network of diffusion models that a training has: where it is, and what is read there.

It is in a folder that diffusers saved, in a file of ADM, in a file of bbdm that began with one of these, or
in the step that a run resumes from.
"""

from __future__ import annotations

import sys
from collections.abc import Mapping
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

from bbdm.base import progress
from bbdm.base.runs import files_by_step
from bbdm.base.settings import setting
from bbdm.cli.training import TrainingCommand, folder_of, report
from bbdm.networks.config import LoRA
from bbdm.networks.pretrained_config import KIND

if TYPE_CHECKING:
    from bbdm.bridges import Bridge
    from bbdm.codec import Codec
    from bbdm.data.pairs import Pairs
    from bbdm.data.trained import Origin
    from bbdm.execution.processes import Processes
    from bbdm.files.content import Checkpoint, NetworkState
    from bbdm.networks.pretrained import Pretrained


@dataclass(frozen=True, kw_only=True)
class StartCommand(TrainingCommand):
    """A training whose network may be one of diffusion models, in place of a preset's."""

    init_from: Path | None = setting(
        None,
        "begin with the weights of this checkpoint, or with the network of diffusion models in this folder or "
        "repository of diffusers or this file of ADM, in place of the preset's",
        group="network",
    )
    lora: int | None = setting(
        None,
        "train products of this rank beside the layers of the network in a folder of diffusers, and not those; "
        "16 is usual",
        least=1,
        group="network",
    )
    config: str | None = setting(
        None, "the name of its settings, if it is of another program", group="network"
    )
    vqgan_path: Path | None = setting(
        None,
        "train on the latents of this VQGAN, or of a diffusers folder",
        "-vq",
        "--codec",
        group="latents",
    )

    @cached_property
    def base(self) -> Path | None:
        """The folder or file of a network of diffusion models that the run begins with; None of another."""
        return find_base(self.init_from, self.config)

    @cached_property
    def step(self) -> Path | None:
        """The step of a network of diffusion models that the run resumes from; None of another."""
        return find_step(vars(self))

    @property
    def is_pretrained(self) -> bool:
        """Whether the network is one of diffusion models, in place of the preset's."""
        return self.step is not None or self.base is not None

    @property
    def name(self) -> Path | None:
        """What the network is called in messages."""
        return self.init_from or self.step

    def autoencoder(self) -> Path | None:
        """The folder or the file of the autoencoder in whose latents a pretrained network works; or None.

        Raises:
            ValueError: the run that resumes is of latents, and its autoencoder is not at hand.
        """
        if self.step is not None and not is_of_latents(self.step):
            return None
        autoencoder = None if self.base is None else find_autoencoder(self.base)
        if self.step is not None and autoencoder is None:
            raise ValueError(
                f"{self.step} is of latents: give vqgan_path, the autoencoder that the run began with"
            )
        return autoencoder

    def pretrained(
        self,
        team: Processes,
        pairs: Pairs,
        codec: Codec | None,
        resumed: Checkpoint | None,
        bridge: Bridge,
    ) -> tuple[Pretrained, Bridge, Origin | None]:
        """The network of diffusion models, the bridge with its objective and noise levels, and its origin."""
        if resumed is not None:
            network = resumed_network(resumed.unet, self.lora, self._beside(resumed.unet.lora))
            return (
                network,
                replace(bridge, objective="denoiser", noise_range=resumed.bridge.noise_range),
                None,
            )
        base = cast(Path, self.base)
        if is_own(base):
            network, bridge, origin = self._read_own(base, pairs, codec, bridge)
        else:
            network, bridge = self._read_foreign(team, base, pairs, codec, bridge)
            origin = None
        self._check_channels(network, pairs, codec)
        if self.lora is not None:
            from bbdm.networks.lora import add_lora

            dtype = "bf16" if self.precision == "bf16" else "fp32"
            add_lora(network, self.lora, f"{base}", dtype)
        if codec is not None:
            from bbdm.training.initial import round_trip_error

            lost = round_trip_error(pairs, codec, team.device)
            report(
                team,
                f"the autoencoder alone loses {lost:.1f} of 255 levels (RMSE), which no training can beat",
            )
        return network, bridge, origin

    def _read_own(
        self, base: Path, pairs: Pairs, codec: Codec | None, bridge: Bridge
    ) -> tuple[Pretrained, Bridge, Origin | None]:
        """The network in a file of bbdm, the bridge, and what the file says of its origin."""
        from bbdm.files.checkpoint import load_checkpoint

        checkpoint = load_checkpoint(base, codec=codec, config=self.config)
        if self.lora is not None and checkpoint.unet.lora is not None:
            raise ValueError(
                f"lora needs all weights, and {base} has only what LoRA trained: give the final ones"
            )
        network, bridge = built_of(checkpoint, bridge, endpoint_of(pairs, codec))
        return network, bridge, checkpoint.origin

    def _read_foreign(
        self, team: Processes, base: Path, pairs: Pairs, codec: Codec | None, bridge: Bridge
    ) -> tuple[Pretrained, Bridge]:
        """The network in a folder of diffusers or a file of ADM, and the bridge; notes are reported."""
        from bbdm.files.pretrained import read_pretrained

        channels = None if codec is not None else pairs.channels
        source_channels = pairs.source_channels if codec is None else codec.channels
        endpoint = endpoint_of(pairs, codec)
        network, bridge, notes = read_pretrained(
            base, bridge, source_channels, channels, self.config, endpoint, self.init_from
        )
        for note in notes:
            report(team, note)
        return network, bridge

    def _check_channels(self, network: Pretrained, pairs: Pairs, codec: Codec | None) -> None:
        """Raise ValueError where the network is of other pictures than the pairs, or of other latents."""
        if codec is not None:
            if network.channels != codec.channels:
                latents = f"{network.channels} channels, and latents of {self.vqgan_path} {codec.channels}"
                raise ValueError(f"the network of {self.init_from} has {latents}")
            return
        known = (network.source_channels, network.channels)
        wanted = (pairs.source_channels, pairs.channels)
        if known != wanted:
            raise ValueError(
                f"the network has channels of sources and targets: {known}, and the pairs have {wanted}"
            )

    def _beside(self, lora: LoRA | None) -> Path | None:
        """Where the network is that LoRA was trained beside; None for where it was, and without LoRA."""
        if lora is None:
            return None
        if self.init_from is not None and self.init_from.exists():
            return self.init_from
        # of a name on the Hub, fetched again
        return None if Path(lora.base).exists() else self.base


def find_step(values: Mapping[str, Any]) -> Path | None:
    """The step of such a network that a run resumes from; None where it begins, or is of another network.

    Args:
        values: the fields of a :class:`~bbdm.cli.train.Train` by name, of which some may be missing.
    """
    if values.get("ckpt_path") is not None:
        path = Path(values["ckpt_path"])
        say_what_is_read(path, values)
        return path if is_own(path) else None
    if values.get("overwrite") or values.get("output_model") is None:
        return None
    folder = folder_of(values)
    if not folder.is_dir():  # so that torch is not imported
        return None
    say_what_is_read(folder, values)
    from bbdm.files.weights import settings_of

    for path in files_by_step(folder, ".pt").values():
        if settings_of(path):  # not of a damaged one
            return path if is_own(path) else None
    return None


def find_base(init_from: Path | str | None, config: str | None) -> Path | None:
    """The folder or the file of the network that a run begins with; None where it is of no such network.

    Args:
        init_from: a path, or a name on the Hugging Face Hub; None of a run that begins with no other network.
        config: the name of the settings of a file of another program; None for none.
    """
    if init_from is None:
        return None
    from bbdm.files import pretrained, repository

    path = Path(init_from)
    if is_own(path):
        return path
    network = pretrained.find_pretrained(path, config)
    if network is not None:
        return network
    file = repository.find_checkpoint(path)
    return file if is_own(file) else None


def say_what_is_read(path: Path | None, values: Mapping[str, Any]) -> None:
    """Say what a command reads before it knows all that it does, where PyTorch is imported for it first.

    Args:
        path: of what is read, or its name on the Hub; None for nothing.
        values: the fields of a command by name, of which some may be missing.
    """
    if path is not None and "torch" not in sys.modules and not values.get("quiet"):
        progress.say(f"reading {path}")


def is_own(path: Path) -> bool:
    """Whether a file is one of bbdm, whose network began as one of diffusion models."""
    from bbdm.files.weights import settings_of

    network = settings_of(path).get("unet")
    return isinstance(network, Mapping) and network.get("kind") == KIND


def find_autoencoder(base: Path) -> Path | None:
    """The folder or the file of the autoencoder in whose latents a network works; None of pictures."""
    from bbdm.files.diffusers_folders import autoencoder_folder

    if base.is_dir():
        return autoencoder_folder(base)
    return base if is_of_latents(base) else None


def is_of_latents(path: Path) -> bool:
    """Whether a file is one of bbdm, whose network works in latents."""
    from bbdm.files.weights import settings_of

    return settings_of(path).get("codec") is not None


def load_autoencoder(path: Path) -> Codec:
    """An autoencoder of its own file or folder, or that of a file of bbdm that holds a network of latents."""
    from bbdm.files.checkpoint import load_checkpoint, load_codec

    codec = load_checkpoint(path).build_codec() if is_own(path) else None
    return load_codec(path) if codec is None else codec


def resumed_network(stored: NetworkState, rank: int | None, base: Path | None) -> Pretrained:
    """The network of a step, which a run resumes from, before it takes the step's weights.

    Args:
        stored: the network in the step.
        rank: that of LoRA, by the flag; None for none.
        base: where the network is that LoRA was trained beside; None for where it was.

    Raises:
        ValueError: the step is of another network or another rank, or the base is not at hand, or another.
    """
    from bbdm.networks.pretrained import Pretrained

    if stored.kind != KIND:
        raise ValueError(
            f"the run in this folder is of another network, {stored.kind}, and begins with none of diffusion models: "
            "overwrite it, or use another folder (experiment)"
        )
    before = None if stored.lora is None else stored.lora.rank
    if rank != before:
        raise ValueError(f"lora must be {before}, with which it was trained, got {rank}")
    if stored.lora is not None:
        return stored.beside_base(base)
    network = Pretrained.from_config(stored.config)
    network.base = stored.base
    return network


def endpoint_of(pairs: Pairs, codec: Codec | None) -> tuple[int, ...] | None:
    """Which channels of the source stand at the end of the bridge; None for all, and in latents."""
    return None if codec is not None else pairs.spec.endpoint(pairs.source_channels, pairs.channels)


def built_of(
    checkpoint: Checkpoint, bridge: Bridge, endpoint: tuple[int, ...] | None
) -> tuple[Pretrained, Bridge]:
    """The network of a checkpoint, and a bridge with its objective and its range of noise levels.

    ``endpoint`` is as in :class:`~bbdm.networks.config.NetworkConfig`.
    """
    stored = checkpoint.unet
    network = replace(stored, config=replace(stored.config, endpoint=endpoint)).build()
    known = checkpoint.bridge.noise_range
    return network, replace(bridge, objective="denoiser", noise_range=known)
