"""The kinds of codecs in files."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from bbdm.codec import diffusers, vqgan, wrapped
from bbdm.codec.base import Codec, LatentStatistics, Make, State
from bbdm.networks.restore import fitting, restore

# From a codec's config and weights, what makes a network of its settings and them, and the codec that the
# user gave, if any: the codec without statistics. A ValueError says what is wrong in the config.
Build = Callable[[dict[str, Any], State, Make, Codec | None], Codec]

CODECS: dict[str, Build] = {
    "kl": diffusers.build,
    "tiny": diffusers.build,
    "vqgan": vqgan.build,
    "wrapped": wrapped.build,
}


def from_config(config: dict[str, Any], weights: State, given: Codec | None = None) -> Codec:
    """The codec of a :meth:`Codec.config` and a :meth:`Codec.state_dict`.

    ``given`` is a codec of the same settings, which a file of :func:`~bbdm.codec.wrapped.wrap_codec` needs.

    Raises:
        ModuleNotFoundError: the kind needs diffusers, which is not installed.
        ValueError: the kind is unknown, a setting is wrong, the weights do not fit, or ``given`` is missing.
    """
    return _build(config, weights, restore, given)


def check(config: dict[str, Any], weights: State, given: Codec | None = None) -> None:
    """Raise the error that :func:`from_config` would, without building the codec."""
    _build(config, weights, fitting, given)


def _build(config: dict[str, Any], weights: State, make: Make, given: Codec | None) -> Codec:
    kind = config.get("kind")
    if not isinstance(kind, str) or kind not in CODECS:
        raise ValueError(f"the codec's kind must be one of {sorted(CODECS)}, got {kind!r}: update bbdm")
    codec = CODECS[kind](config, weights, make, given)
    try:
        statistics = None if config["statistics"] is None else LatentStatistics(**config["statistics"])
    except (KeyError, TypeError) as error:
        raise ValueError(f"the codec's statistics cannot be read: {error}") from error
    return codec if statistics is None else codec.with_statistics(statistics)
