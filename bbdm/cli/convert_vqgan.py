"""Convert a VQGAN, for -vq: bbdm convert-vqgan STATE_DICT OUTPUT [flags].

STATE_DICT is of latent diffusion, or one that the public A-Bridge scripts converted.

Weights are matched by name; an error names each key that is missing or left over.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar

from bbdm.base.atomic import check_suffix
from bbdm.base.scripts import Command
from bbdm.base.settings import position, setting


@dataclass(frozen=True, kw_only=True)
class ConvertVQGAN(Command):
    """A conversion of a VQGAN."""

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
        origin = "" if config.projects_attention else ", as the A-Bridge scripts compute it"
        codes = f"{config.num_codes} codes of {config.latent_channels} channels"
        print(f"{self.output}: VQ-f{config.stride}, {codes}, images of {channels} channels{origin}")


main = ConvertVQGAN.main
