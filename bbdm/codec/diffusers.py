"""The autoencoders of diffusers as codecs: AutoencoderKL and AutoencoderTiny."""

from __future__ import annotations

import inspect
import json
from collections.abc import Mapping
from typing import Any

import torch
from torch import nn

from bbdm.base import optional
from bbdm.codec.base import Codec, Make, State

CLASSES = {"kl": "AutoencoderKL", "tiny": "AutoencoderTiny"}  # by the names in files
EITHER = " or ".join(CLASSES.values())
LEVELS = {"kl": "block_out_channels", "tiny": "encoder_block_out_channels"}  # the setting with a number for each level


class DiffusersCodec(Codec):
    """Latents of diffusers' AutoencoderKL, the mean of the posterior, or of its AutoencoderTiny.

    Latents are (z - ``shift_factor``) ``scaling_factor``, by the autoencoder's own settings; see Rombach et
    al. 2022, appendix G. Its ``latents_mean`` and ``latents_std`` are not used: :class:`LatentStatistics`
    normalise. A network whose settings have ``force_upcast`` stays in float32 where float16 is asked for.

    Args:
        module: a ``diffusers.AutoencoderKL`` or ``diffusers.AutoencoderTiny``. It is frozen and not copied.

    Raises:
        ValueError: it is of another class, or its images go in and come out in other numbers of channels or
            sizes.
    """

    def __init__(self, module: nn.Module) -> None:
        kinds = [kind for kind in CLASSES if isinstance(module, class_of(kind))]
        if not kinds:
            raise ValueError(f"module must be a diffusers {EITHER}, got a {type(module).__name__}")
        self.kind = kinds[0]
        self.settings = known_settings(self.kind, module.config)  # pyright: ignore[reportArgumentType]
        for name, wanted in (("out_channels", self.settings["in_channels"]), ("upsampling_scaling_factor", 2)):
            if self.settings.get(name, wanted) != wanted:
                raise ValueError(f"the autoencoder's {name} must be {wanted}, got {self.settings[name]}")
        self.scale = float(self.settings["scaling_factor"])
        self.shift = float(self.settings.get("shift_factor") or 0)
        stride = 2 ** (len(self.settings[LEVELS[self.kind]]) - 1)
        super().__init__(module, self.settings["in_channels"], self.settings["latent_channels"], stride)

    def _encode(self, image: torch.Tensor) -> torch.Tensor:
        made = self.module.encode(image)  # pyright: ignore[reportCallIssue]
        z = made.latent_dist.mode() if self.kind == "kl" else made.latents
        return (z.float() - self.shift) * self.scale

    def _decode(self, latents: torch.Tensor) -> torch.Tensor:
        z = latents / self.scale + self.shift
        return self.module.decode(z.to(self.dtype)).sample.float()  # pyright: ignore[reportCallIssue]

    def _cast(self, dtype: torch.dtype) -> None:
        narrow = dtype == torch.float16 and self.settings.get("force_upcast", False)
        self.module.to(torch.float32 if narrow else dtype)

    def _settings(self) -> dict[str, Any]:
        return self.settings


def class_of(kind: str) -> Any:
    """The class of diffusers.

    Raises:
        ModuleNotFoundError: diffusers is not installed.
    """
    return getattr(optional.package("diffusers", f"a codec of kind {kind!r}"), CLASSES[kind])


def known_settings(kind: str, config: Mapping[str, Any]) -> dict[str, Any]:
    """The entries of a config that are arguments of the class, as JSON has them."""
    names = inspect.signature(class_of(kind)).parameters
    return json.loads(json.dumps({name: value for name, value in config.items() if name in names}))


def build(config: dict[str, Any], weights: State, make: Make, given: Codec | None) -> DiffusersCodec:
    """See :data:`~bbdm.codec.registry.Build`."""
    kind, settings = config["kind"], config.get("config")
    if not isinstance(settings, dict):
        raise ValueError(f"the codec's settings must be those of an {CLASSES[kind]}, got {settings!r}")
    return DiffusersCodec(make(lambda _: _network(kind, settings, len(weights)), None, weights, "the codec's"))


def _network(kind: str, settings: dict[str, Any], tensors: int) -> nn.Module:
    """A network of settings in a file, which has a number of tensors; its weights are fresh."""
    network = class_of(kind)
    try:
        if kind == "kl":
            blocks = settings.get("layers_per_block", 1) * len(settings["block_out_channels"])
        else:
            blocks = sum(settings["num_encoder_blocks"]) + sum(settings["num_decoder_blocks"])
        if blocks > tensors:  # a wrong number of blocks can be huge, and would be built
            raise ValueError(f"{blocks} blocks, for {tensors} tensors")
        return network(**settings)
    except Exception as error:  # settings that are wrong can raise any error
        reason = str(error).split("\n")[0] or type(error).__name__
        raise ValueError(f"the codec's settings are none of an {CLASSES[kind]}: {reason}") from error
