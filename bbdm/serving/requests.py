"""What a server is asked: its settings, and the checks of a request before any work is done for it.

Nothing here needs Ray.
"""

from __future__ import annotations

import secrets
from collections.abc import Iterable
from dataclasses import dataclass, replace
from typing import get_args

from PIL import Image

from bbdm import solvers
from bbdm.data.spec import check_eight_bit
from bbdm.networks.checks import check_pictures
from bbdm.pictures import images
from bbdm.pictures.checks import UnknownFormatError
from bbdm.serving.config import ServeConfig

FORMATS = ("PNG", "JPEG", "WEBP")
HEADER_BYTES = 16 * 2**10  # at most, names and values together
QUERY = ("solver", "steps", "seed")
FAILED = "the picture could not be translated"


class RequestError(ValueError):
    """A request is refused; ``status`` is that of HTTP."""

    def __init__(self, status: int, message: str) -> None:
        super().__init__(status, message)  # both, so that it can be sent to another process
        self.status = status

    def __str__(self) -> str:
        return self.args[1]


@dataclass(frozen=True)
class Served:
    """What requests are checked against: the settings, and facts of the network."""

    config: ServeConfig
    channels: int  # of pictures
    stride: int  # heights and widths are padded to multiples of it
    solver: str  # of requests that name none
    steps: int  # as the solver


def facts(config: ServeConfig) -> Served:
    """What requests are checked against.

    Raises:
        ValueError: the network cannot be used, or requests that name no steps would take too many.
    """
    sampler = replace(config, compile=False).sampler(config.model, "cpu")
    check_eight_bit(sampler.pictures, "the server")
    check_pictures(sampler.axes, "the server")
    sampler.window_grid(config)  # before a request fails
    steps = len(sampler.table)
    if steps > config.max_steps:
        raise ValueError(f"max_steps must be at least the {steps} steps of {sampler.solver!r}, got {config.max_steps}")
    shapes = sampler._shapes
    return Served(config, shapes.source_channels, max(shapes.stride), sampler.solver, steps)


def read_query(given: Iterable[tuple[str, str]], served: Served) -> tuple[str | None, int | None, int]:
    """Solver, steps and seed of a query, each named once at most; a seed is drawn if unset.

    Solver and steps are both None where neither is named.

    Raises:
        RequestError: 422, an unknown name or a value out of range.
    """
    values: dict[str, str] = {}
    for name, value in given:
        if name not in QUERY or name in values:
            raise RequestError(422, f"the query takes {', '.join(QUERY)}, each once; got {name[:20]!r}")
        values[name] = value
    solver, known = values.get("solver"), get_args(solvers.Solver)
    if solver is not None and solver not in known:
        raise RequestError(422, f"solver must be one of {', '.join(known)}; got {solver[:20]!r}")
    steps = integer("steps", values.get("steps"), 1, served.config.max_steps)
    seed = integer("seed", values.get("seed"), 0, 2**63 - 1)
    if solver is not None or steps is not None:
        solver, steps = solver or served.solver, steps or served.steps
    return solver, steps, secrets.randbelow(2**32) if seed is None else seed


def integer(name: str, text: str | None, low: int, high: int) -> int | None:
    """An integer in a range from text, or None for None. Raises RequestError with the status 422."""
    if text is None:
        return None
    plain = text.isascii() and text.isdigit() and len(text) <= len(str(high))
    if not plain or not low <= int(text) <= high:
        raise RequestError(422, f"{name} must be an integer from {low} to {high}, got {text[:20]!r}")
    return int(text)


def check_headers(headers: Iterable[tuple[str, str]], served: Served) -> None:
    """Check a request's headers before its body is read.

    Raises:
        RequestError: 431, they are too long; 413, the body is; 400, its length is not a number.
    """
    pairs = list(headers)
    if sum(len(name) + len(value) for name, value in pairs) > HEADER_BYTES:
        raise RequestError(431, f"headers must be at most {HEADER_BYTES} bytes")
    length = next((value for name, value in pairs if name.lower() == "content-length"), "0")
    if not (length.isascii() and length.isdigit()):
        raise RequestError(400, f"content-length must be a number, got {length[:20]!r}")
    check_bytes(int(length.lstrip("0")[:18] or "0"), served)  # more digits are more bytes than anybody takes


def check_bytes(count: int, served: Served) -> None:
    """Raise RequestError with the status 413 if a body has more bytes than are taken."""
    if count > served.config.max_bytes:
        raise RequestError(413, f"a picture's file must be at most {served.config.max_bytes} bytes")


def read_picture(data: bytes, served: Served) -> Image.Image:
    """The picture of a request, upright, in the network's channels. Its size is checked before it is decoded.

    Raises:
        RequestError: 415, it is not PNG, JPEG or WebP; 422, it has too many pixels or values of no agreed
            range; 400, it cannot be decoded.
    """

    def check_size(width: int, height: int) -> None:
        padded = (height + -height % served.stride) * (width + -width % served.stride)
        if padded > served.config.max_pixels:
            bound = f"at most {served.config.max_pixels} pixels, with sides padded to multiples of {served.stride}"
            raise RequestError(422, f"a picture must have {bound}; got {width} x {height}")

    status = 400
    try:
        image = images.open_image(data, "of the request", FORMATS, check_size)
        status = 422
        return images.convert(image, served.channels)
    except RequestError:
        raise
    except UnknownFormatError as error:
        raise RequestError(415, str(error)) from error
    except ValueError as error:
        raise RequestError(status, str(error)) from error
