"""The kinds of codecs: what makes a codec of an autoencoder, and of a file's settings and weights."""

from __future__ import annotations

import inspect
import json
from collections.abc import Callable
from dataclasses import asdict
from typing import Any

import torch
from torch import nn

from bbdm.base import optional
from bbdm.codec.base import Codec, LatentStatistics, Transform, dtype_of
from bbdm.networks.base import restore
from bbdm.networks.vqgan import VQGAN, VQGANConfig

State = dict[str, torch.Tensor]
# :func:`~bbdm.networks.base.restore`, or its ``fitting``, which builds without weights
Make = Callable[..., Any]
WRAPPED = "wrapped"  # the kind that files only refer to


def VQGANCodec(vqgan: VQGAN) -> Codec:  # noqa: N802  (it makes a Codec, as a class would)
    """Latents of a VQGAN before quantisation, which decoding quantises; or means of a KL autoencoder.

    ``vqgan`` is frozen and not copied.
    """
    config = vqgan.config
    return Codec(
        vqgan,
        VQGAN.encode,
        VQGAN.decode,
        channels=config.latent_channels,
        stride=config.stride,
        image_channels=config.image_channels,
        settings={"kind": "vqgan", "config": asdict(config)},
        cast=_vqgan_cast,
    )


def _vqgan_cast(vqgan: VQGAN, dtype: torch.dtype) -> None:
    """Codes stay in float32: rounded, they would change which is nearest."""
    for part in (vqgan.encoder, vqgan.decoder, vqgan.post_quant_conv, vqgan.quant_conv):
        part.to(dtype)


def DiffusersCodec(module: nn.Module) -> Codec:  # noqa: N802  (it makes a Codec, as a class would)
    """Latents of diffusers' AutoencoderKL: the mean of the posterior.

    They are (z - ``shift_factor``) ``scaling_factor``, by the autoencoder's own settings; see Rombach et al.
    2022, appendix G. Its ``latents_mean`` and ``latents_std`` are not used: :class:`LatentStatistics`
    normalise. A network whose settings have ``force_upcast`` stays in float32 where float16 is asked for.

    Args:
        module: a ``diffusers.AutoencoderKL``. It is frozen and not copied.

    Raises:
        ValueError: it is of another class, or its images come out in another number of channels.
    """
    if not isinstance(module, diffusers_class()):
        raise ValueError(f"module must be a diffusers AutoencoderKL, got a {type(module).__name__}")
    arguments = inspect.signature(diffusers_class()).parameters
    values: Any = module.config
    config = {name: value for name, value in values.items() if name in arguments}
    config = json.loads(json.dumps(config))  # as a file has it: lists, no tuples
    image_channels = config["in_channels"]
    if config["out_channels"] != image_channels:
        raise ValueError(
            f"the autoencoder's out_channels must be {image_channels}, got {config['out_channels']}"
        )
    scale = float(config["scaling_factor"])
    shift = float(config.get("shift_factor") or 0)  # None in files of some

    def encode(module: Any, image: torch.Tensor) -> torch.Tensor:
        return (module.encode(image).latent_dist.mode().float() - shift) * scale

    def decode(module: Any, latents: torch.Tensor) -> torch.Tensor:
        return module.decode((latents / scale + shift).to(dtype_of(module))).sample

    def cast(module: nn.Module, dtype: torch.dtype) -> None:
        if config.get("force_upcast") and dtype == torch.float16:
            dtype = torch.float32
        module.to(dtype)

    halvings = len(config["block_out_channels"]) - 1  # of each side, one between two blocks
    return Codec(
        module,
        encode,
        decode,
        channels=config["latent_channels"],
        stride=2**halvings,
        image_channels=image_channels,
        settings={"kind": "kl", "config": config},
        cast=cast,
    )


def diffusers_class() -> Any:
    """The class of diffusers; ModuleNotFoundError where it is not installed."""
    return optional.package("diffusers", "a codec of kind 'kl'").AutoencoderKL


def wrap_codec(
    module: nn.Module,
    encode: Transform,
    decode: Transform,
    channels: int,
    stride: int,
    image_channels: int = 3,
) -> Codec:
    """Any autoencoder as a codec, for training, sampling, compiling and exporting.

    A file refers to it by the numbers below and a hash of its weights: whoever loads one gives the codec too,
    ``load_checkpoint(path, codec=...)``.

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
    if not isinstance(module, nn.Module) or next(module.parameters(), None) is None:
        raise ValueError(
            f"module must be a torch.nn.Module with parameters, got a {type(module).__name__}"
        )
    name = f"{type(module).__module__}.{type(module).__qualname__}"
    config = {
        "module": name,
        "channels": channels,
        "stride": stride,
        "image_channels": image_channels,
    }

    def decode_latents(module: nn.Module, latents: torch.Tensor) -> torch.Tensor:
        return decode(module, latents.to(dtype_of(module)))

    settings = {"kind": WRAPPED, "config": config}
    return Codec(module, encode, decode_latents, channels, stride, image_channels, settings)


def from_config(config: dict[str, Any], weights: State, make: Make = restore) -> Codec:
    """The codec of a :meth:`Codec.config` and its weights, of one of :data:`KINDS`.

    Args:
        config: the plain values of a file.
        weights: the autoencoder's state dict.
        make: :func:`~bbdm.networks.base.restore`, or its ``fitting`` for a network without weights.

    Raises:
        ModuleNotFoundError: the kind needs diffusers, which is not installed.
        ValueError: the kind is unknown, a setting is wrong, or the weights do not fit.
    """
    kind = config.get("kind")
    if not isinstance(kind, str) or kind not in KINDS:
        raise ValueError(
            f"the codec's kind must be one of {sorted(KINDS)}, got {kind!r}: update bbdm"
        )
    try:
        statistics = None
        if config["statistics"] is not None:
            statistics = LatentStatistics(**config["statistics"])
        codec = KINDS[kind](config["config"], weights, make)
        return codec.with_statistics(statistics)
    except (ModuleNotFoundError, ValueError):
        raise
    except Exception as error:  # settings that are wrong can raise any error
        raise ValueError(f"the codec's settings are none of kind {kind!r}: {error}") from error


def _of_vqgan(settings: Any, weights: State, make: Make) -> Codec:
    vqgan = make(VQGAN.from_config, VQGANConfig(**settings), weights, "the codec's")
    return VQGANCodec(vqgan)


def _of_diffusers(settings: Any, weights: State, make: Make) -> Codec:
    autoencoder = diffusers_class()
    blocks = settings.get("layers_per_block", 1) * len(settings["block_out_channels"])
    if blocks > len(weights):  # a wrong number of blocks can be huge, and would be built
        raise ValueError(f"the codec's settings are of {blocks} blocks, for {len(weights)} tensors")
    module = make(lambda _: autoencoder(**settings), None, weights, "the codec's")
    return DiffusersCodec(module)


# From a codec's settings and weights, and what makes a network of them: the codec without statistics.
KINDS: dict[str, Callable[[Any, State, Make], Codec]] = {"kl": _of_diffusers, "vqgan": _of_vqgan}
