"""The kinds of codecs: what makes a codec of an autoencoder, and of a file's settings and weights."""

from __future__ import annotations

import copy
import inspect
import json
from collections.abc import Callable, Mapping
from dataclasses import asdict
from typing import Any

import torch
from torch import nn

from bbdm.base import optional
from bbdm.codec.base import Codec, LatentStatistics, Transform, dtype_of
from bbdm.networks.restore import fitting, restore
from bbdm.networks.vqgan import VQGAN, VQGANConfig

State = dict[str, torch.Tensor]
Make = Callable[..., Any]  # :func:`~bbdm.networks.restore.restore`, or its ``fitting``, which builds without weights
WRAPPED = "wrapped"  # the kind whose code no file holds
CLASSES = {"kl": "AutoencoderKL", "tiny": "AutoencoderTiny"}  # of diffusers, by the names in files
EITHER = " or ".join(CLASSES.values())
LEVELS = {"kl": "block_out_channels", "tiny": "encoder_block_out_channels"}  # the setting with a number for each level


def VQGANCodec(vqgan: VQGAN) -> Codec:  # noqa: N802
    """Latents of a VQGAN before quantisation, which decoding quantises; or means of a KL autoencoder.

    ``vqgan`` is frozen and not copied.
    """
    config = vqgan.config
    settings = {"kind": "vqgan", "config": asdict(config), "statistics": None}
    sizes = config.latent_channels, config.stride, config.image_channels
    return Codec(vqgan, VQGAN.encode, _vqgan_decode, *sizes, settings, _vqgan_cast)


def _vqgan_decode(vqgan: VQGAN, latents: torch.Tensor) -> torch.Tensor:
    return vqgan.decode_codes(vqgan.quantize(latents).to(dtype_of(vqgan)))


def _vqgan_cast(vqgan: VQGAN, dtype: torch.dtype) -> None:
    """Codes stay in float32: rounded, they would change which is nearest."""
    for part in (vqgan.encoder, vqgan.decoder, vqgan.post_quant_conv, vqgan.quant_conv):
        part.to(dtype)


def DiffusersCodec(module: nn.Module) -> Codec:  # noqa: N802
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
    kind = next((kind for kind in CLASSES if isinstance(module, _class_of(kind))), None)
    if kind is None:
        raise ValueError(f"module must be a diffusers {EITHER}, got a {type(module).__name__}")
    config = known_settings(kind, module.config)  # pyright: ignore[reportArgumentType]
    image_channels = config["in_channels"]
    for name, expected in (("out_channels", image_channels), ("upsampling_scaling_factor", 2)):
        if config.get(name, expected) != expected:
            raise ValueError(f"the autoencoder's {name} must be {expected}, got {config[name]}")
    scale, shift = float(config["scaling_factor"]), float(config.get("shift_factor") or 0)

    def encode(module: Any, image: torch.Tensor) -> torch.Tensor:
        encoded = module.encode(image)
        z = encoded.latents if kind == "tiny" else encoded.latent_dist.mode()
        return (z.float() - shift) * scale

    def decode(module: Any, latents: torch.Tensor) -> torch.Tensor:
        return module.decode((latents / scale + shift).to(dtype_of(module))).sample

    def cast(module: nn.Module, dtype: torch.dtype) -> None:
        module.to(torch.float32 if config.get("force_upcast") and dtype == torch.float16 else dtype)

    stride, settings = 2 ** (len(config[LEVELS[kind]]) - 1), {"kind": kind, "config": config, "statistics": None}
    return Codec(module, encode, decode, config["latent_channels"], stride, image_channels, settings, cast)


def _class_of(kind: str) -> Any:
    """The class of diffusers; ModuleNotFoundError where it is not installed."""
    return getattr(optional.package("diffusers", f"a codec of kind {kind!r}"), CLASSES[kind])


def known_settings(kind: str, config: Mapping[str, Any]) -> dict[str, Any]:
    """The entries of a config of diffusers that are arguments of a kind's class, as JSON has them."""
    names = inspect.signature(_class_of(kind)).parameters
    return json.loads(json.dumps({name: value for name, value in config.items() if name in names}))


def wrap_codec(
    module: nn.Module, encode: Transform, decode: Transform, channels: int, stride: int, image_channels: int = 3
) -> Codec:
    """Any autoencoder as a codec, for training, sampling, compiling, exporting and files.

    A file holds its weights and the numbers below, not its code: whoever loads one gives the codec too,
    ``load_checkpoint(path, codec=...)``, whose weights the file's replace.

    Args:
        module: the autoencoder. It is frozen and used, not copied.
        encode: encode(module, image) gives the latents, (B, channels, H / stride, W / stride), of images
            (B, image_channels, H, W) in [-1, 1], without noise.
        decode: decode(module, latents) gives the images.
        channels: the channels of a latent.
        stride: image pixels along one side of a latent pixel.
        image_channels: the channels of an image.

    Raises:
        ValueError: ``module`` is no module or has no weights, or a number is no integer or below 1.
    """
    if not isinstance(module, nn.Module):
        raise ValueError(f"module must be a torch.nn.Module, got {type(module).__name__}")
    if next(module.parameters(), None) is None:
        raise ValueError(f"module must have parameters, got a {type(module).__name__} without any")
    name = f"{type(module).__module__}.{type(module).__qualname__}"
    config = {"module": name, "channels": channels, "stride": stride, "image_channels": image_channels}
    settings = {"kind": WRAPPED, "config": config, "statistics": None}

    def decode_latents(module: nn.Module, latents: torch.Tensor) -> torch.Tensor:
        return decode(module, latents.to(dtype_of(module)))

    return Codec(module, encode, decode_latents, channels, stride, image_channels, settings)


def from_config(config: dict[str, Any], weights: State, codec: Codec | None = None, make: Make = restore) -> Codec:
    """The codec of a :meth:`Codec.config` and a :meth:`Codec.state_dict`.

    Args:
        config: the plain values of a file.
        weights: the autoencoder's state dict.
        codec: one of the same settings, which a file of :func:`wrap_codec` needs. It is copied.
        make: :func:`~bbdm.networks.restore.restore`, or its ``fitting`` for a network without weights.

    Raises:
        ModuleNotFoundError: the kind needs diffusers, which is not installed.
        ValueError: the kind is unknown, a setting is wrong, the weights do not fit, or ``codec`` is missing.
    """
    kind = config.get("kind")
    if not isinstance(kind, str) or kind not in KINDS:
        raise ValueError(f"the codec's kind must be one of {sorted(KINDS)}, got {kind!r}: update bbdm")
    built = KINDS[kind](config, weights, make, codec)
    try:
        statistics = None if config["statistics"] is None else LatentStatistics(**config["statistics"])
    except (KeyError, TypeError) as error:
        raise ValueError(f"the codec's statistics cannot be read: {error}") from error
    return built if statistics is None else built.with_statistics(statistics)


def _of_vqgan(config: dict[str, Any], weights: State, make: Make, codec: Codec | None) -> Codec:
    try:
        settings = VQGANConfig(**config["config"])
    except (KeyError, TypeError) as error:
        raise ValueError(f"the codec's settings are none of a VQGAN's: {error}") from error
    return VQGANCodec(make(VQGAN.from_config, settings, weights, "the codec's"))


def _of_diffusers(config: dict[str, Any], weights: State, make: Make, codec: Codec | None) -> Codec:
    kind, settings = config["kind"], config.get("config")
    if not isinstance(settings, dict):
        raise ValueError(f"the codec's settings must be those of an {CLASSES[kind]}, got {settings!r}")
    return DiffusersCodec(
        make(lambda _: _diffusers_network(kind, settings, len(weights)), None, weights, "the codec's")
    )


def _diffusers_network(kind: str, settings: dict[str, Any], tensors: int) -> nn.Module:
    """A network of settings in a file, which has a number of tensors; its weights are fresh."""
    network = _class_of(kind)
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


def _of_wrapped(config: dict[str, Any], weights: State, make: Make, codec: Codec | None) -> Codec:
    if codec is None or codec.settings != {**config, "statistics": None}:
        got = None if codec is None else codec.settings["config"]
        raise ValueError(f"codec must be wrapped with {config.get('config')}, got {got}: no file holds its code")
    module = fitting(lambda _: copy.deepcopy(codec.module), None, weights, "the codec's")
    module.load_state_dict(weights)
    built = codec.with_module(module.float())
    built.statistics = None
    return built


# From a codec's config and weights, what makes a network of its settings and them, and the codec that the
# user gave, if any: the codec without statistics. A ValueError says what is wrong in the config.
KINDS: dict[str, Callable[[dict[str, Any], State, Make, Codec | None], Codec]] = {
    "kl": _of_diffusers,
    "tiny": _of_diffusers,
    "vqgan": _of_vqgan,
    WRAPPED: _of_wrapped,
}
