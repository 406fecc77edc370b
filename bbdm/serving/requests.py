"""Pictures of ``bbdm serve``: what is refused, and what is translated together. Nothing here needs Ray."""

from __future__ import annotations

import logging
from contextlib import suppress
from dataclasses import dataclass, replace
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt
from fastapi import HTTPException
from PIL import Image
from pydantic import BaseModel, Field

from bbdm import solvers
from bbdm.data.spec import check_eight_bit
from bbdm.networks.arrays import check_pictures
from bbdm.networks.conditions import DIRECTION, Direction
from bbdm.pictures import images
from bbdm.pictures.formats import UnknownFormatError
from bbdm.sampling.options import Options
from bbdm.serving.config import ServeConfig

log = logging.getLogger(__name__)
FORMATS = ("PNG", "JPEG", "WEBP")
FAILED = "the picture could not be translated"
Answer = tuple[int, Any]  # HTTP's status, with a result or why there is none
Pixels = npt.NDArray[np.uint8]  # (H, W) or (H, W, 3)


@dataclass(frozen=True)
class Facts:
    """The network that is served, and what a request may ask for."""

    name: str
    channels: int  # of pictures
    stride: int  # heights and widths are padded to multiples of it
    image_size: images.Size | None  # of training pictures
    solver: str  # of requests that name none
    steps: dict[str, int]  # of requests that name none, by solver
    max_steps: int
    max_pixels: int  # of a padded picture
    max_bytes: int  # of its file


class Query(BaseModel, extra="forbid"):
    """What a request's query may say."""

    solver: solvers.Solver | None = None
    steps: int | None = Field(None, ge=1)
    seed: int | None = Field(None, ge=0, lt=2**63)
    direction: Direction | None = None


class Item(NamedTuple):
    """A picture to translate, and how."""

    pixels: Pixels
    solver: str | None
    steps: int | None
    seed: int
    direction: Direction | None = None  # of a network of two


def facts(config: ServeConfig) -> Facts:
    """The network that is served, and what a request may ask for.

    Raises:
        ValueError: the network cannot be used, or requests that name no steps would take too many.
    """
    sampler = replace(config, compile=False).sampler(config.model, "cpu")
    check_eight_bit(sampler.pictures, "the server")
    check_pictures(sampler.axes, "the server")
    sampler.window_grid(config)  # before a request fails
    if names := ", ".join(
        name for name in sampler.unet.network_config.each if name != DIRECTION or not sampler.direction
    ):
        raise ValueError(f"the server is for networks without conditions, and this one has {names}: use bbdm translate")
    name, own = sampler.solver, len(sampler.table)
    if own > config.max_steps:
        raise ValueError(f"max_steps must be at least the {own} steps of {name!r}, got {config.max_steps}")
    steps = {name: own}
    for each in solvers.choices(sampler.bridge, sampler.calls):
        with suppress(ValueError):  # it does not take the settings' steps
            steps[each] = len(sampler._plan(Options(solver=each)).table)
    shapes, most = sampler._shapes, (config.max_steps, config.max_pixels, config.max_bytes)
    return Facts(config.model.name, shapes.source_channels, max(shapes.stride), sampler.image_size, name, steps, *most)


def decode(data: bytes, known: Facts) -> Pixels:
    """A picture, upright, in the network's channels. Its size is checked before it is decoded.

    Raises:
        HTTPException: 415, it is not PNG, JPEG or WebP; 422, it has too many pixels; 400, it cannot be
            decoded.
    """

    def check_size(width: int, height: int) -> None:
        if (height + -height % known.stride) * (width + -width % known.stride) > known.max_pixels:
            bound = f"at most {known.max_pixels} pixels, with sides padded to multiples of {known.stride}"
            raise HTTPException(422, f"a picture must have {bound}; got {width} x {height}")

    try:
        image = images.open_image(data, "of the request", FORMATS, check_size)
        return np.asarray(images.convert(image, known.channels))
    except UnknownFormatError as error:
        raise HTTPException(415, str(error)) from error
    except ValueError as error:
        bomb = isinstance(error.__cause__, Image.DecompressionBombError)
        raise HTTPException(422 if bomb else 400, str(error)) from error


def translate_together(sampler: Any, items: list[Item], **settings: Any) -> list[Pixels | Answer]:
    """Translate pictures: those of one solver, steps, direction and size in one batch, others apart.

    ``settings`` are further arguments of the sampler's calls.
    An error of some is theirs alone: a ValueError with the status 422, any other with 500, and logged.
    """
    groups: dict[Any, list[int]] = {}
    for index, item in enumerate(items):
        groups.setdefault((item.pixels.shape, item.solver, item.steps, item.direction), []).append(index)
    answers: dict[int, Pixels | Answer] = {}
    for (_, solver, steps, direction), indices in groups.items():
        sources, seeds = [items[i].pixels for i in indices], [items[i].seed for i in indices]
        try:
            way = sampler if direction is None else sampler.towards(direction)
            results = way(sources, seeds, solver=solver, steps=steps, **settings)
            answers |= zip(indices, results, strict=True)
        except ValueError as error:
            answers |= dict.fromkeys(indices, (422, str(error)))
        except Exception:  # such as a lack of memory for pictures of this size
            log.exception("%d pictures could not be translated", len(indices))
            answers |= dict.fromkeys(indices, (500, FAILED))
    return [answers[index] for index in range(len(items))]
