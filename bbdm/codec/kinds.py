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
CLASS = "AutoencoderKL"  # of diffusers


def VQGANCodec(vqgan: VQGAN) -> Codec:  # noqa: N802
    """Latents of a VQGAN before quantisation, which decoding quantises; or means of a KL autoencoder.

    ``vqgan`` is frozen and not copied.
    """
    config = vqgan.config
    settings = {"kind": "vqgan", "config": asdict(config)}
    sizes = config.latent_channels, config.stride, config.image_channels
    return Codec(vqgan, VQGAN.encode, _vqgan_decode, *sizes, settings, _vqgan_cast)


def _vqgan_decode(vqgan: VQGAN, latents: torch.Tensor) -> torch.Tensor:
    return vqgan.decode_codes(vqgan.quantize(latents).to(dtype_of(vqgan)))


def _vqgan_cast(vqgan: VQGAN, dtype: torch.dtype) -> None:
    """Codes stay in float32: rounded, they would change which is nearest."""
    for part in (vqgan.encoder, vqgan.decoder, vqgan.post_quant_conv, vqgan.quant_conv):
        part.to(dtype)


def DiffusersCodec(module: nn.Module) -> Codec:  # noqa: N802
    """Latents of diffusers' AutoencoderKL: the mean of the posterior.

    They are (z - ``shift_factor``) ``scaling_factor``, by the autoencoder's own settings; see Rombach et al.
    2022, appendix G. Its ``latents_mean`` and ``latents_std`` are not used: :class:`LatentStatistics`
    normalise. A network whose settings have ``force_upcast`` stays in float32 where float16 is asked for.

    Args:
        module: a ``diffusers.AutoencoderKL``. It is frozen and not copied.

    Raises:
        ValueError: it is of another class, or its images come out in another number of channels.
    """
    if not isinstance(module, _class()):
        raise ValueError(f"module must be a diffusers {CLASS}, got a {type(module).__name__}")
    config = known_settings(module.config)  # pyright: ignore[reportArgumentType]
    image_channels = config["in_channels"]
    if config["out_channels"] != image_channels:
        raise ValueError(f"the autoencoder's out_channels must be {image_channels}, got {config['out_channels']}")
    scale, shift = float(config["scaling_factor"]), float(config.get("shift_factor") or 0)

    def encode(module: Any, image: torch.Tensor) -> torch.Tensor:
        return (module.encode(image).latent_dist.mode().float() - shift) * scale

    def decode(module: Any, latents: torch.Tensor) -> torch.Tensor:
        return module.decode((latents / scale + shift).to(dtype_of(module))).sample

    def cast(module: nn.Module, dtype: torch.dtype) -> None:
        module.to(torch.float32 if config.get("force_upcast") and dtype == torch.float16 else dtype)

    stride, settings = 2 ** (len(config["block_out_channels"]) - 1), {"kind": "kl", "config": config}
    sizes = config["latent_channels"], stride, image_channels
    return Codec(module, encode, decode, *sizes, settings, cast)


def _class() -> Any:
    """The class of diffusers; ModuleNotFoundError where it is not installed."""
    return getattr(optional.package("diffusers", "a codec of kind 'kl'"), CLASS)


def known_settings(config: Mapping[str, Any]) -> dict[str, Any]:
    """The entries of a config of diffusers that are arguments of the class, as JSON has them."""
    names = inspect.signature(_class()).parameters
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
    settings = {"kind": WRAPPED, "config": config}

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
    try:
        built = KINDS[kind](config["config"], weights, make, codec)
        statistics = None if config["statistics"] is None else LatentStatistics(**config["statistics"])
    except (ModuleNotFoundError, ValueError):
        raise
    except Exception as error:  # settings that are wrong can raise any error
        raise ValueError(f"the codec's settings are none of kind {kind!r}: {error}") from error
    return built if statistics is None else built.with_statistics(statistics)


def _of_vqgan(settings: Any, weights: State, make: Make, codec: Codec | None) -> Codec:
    return VQGANCodec(make(VQGAN.from_config, VQGANConfig(**settings), weights, "the codec's"))


def _of_diffusers(settings: Any, weights: State, make: Make, codec: Codec | None) -> Codec:
    network, blocks = _class(), settings.get("layers_per_block", 1) * len(settings["block_out_channels"])
    if blocks > len(weights):  # a wrong number of blocks can be huge, and would be built
        raise ValueError(f"the codec's settings are of {blocks} blocks, for {len(weights)} tensors")
    return DiffusersCodec(make(lambda _: network(**settings), None, weights, "the codec's"))


def _of_wrapped(settings: Any, weights: State, make: Make, codec: Codec | None) -> Codec:
    own = None if codec is None or codec.kind != WRAPPED else codec.settings["config"]
    if codec is None or own != settings:
        raise ValueError(f"codec must be wrapped with {settings}, got {own}: no file holds its code")
    module = fitting(lambda _: copy.deepcopy(codec.module), None, weights, "the codec's")
    module.load_state_dict(weights)
    built = codec.with_module(module.float())
    built.statistics = None
    return built


# From a codec's settings and weights, what makes a network of them, and the codec that the user gave, if any:
# the codec without statistics.
KINDS: dict[str, Callable[[Any, State, Make, Codec | None], Codec]] = {
    "kl": _of_diffusers,
    "vqgan": _of_vqgan,
    WRAPPED: _of_wrapped,
}
