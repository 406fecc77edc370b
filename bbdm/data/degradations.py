"""Degradations of pictures: sources of training pairs from targets alone.

A degradation is a row of :data:`DEGRADATIONS`: a function of a picture of mode L or RGB and a random
generator to a picture of the same size and mode.
"""

from __future__ import annotations

import io
import math
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np
import numpy.typing as npt
from PIL import Image

from bbdm.base.seeds import keyed
from bbdm.pictures import images

Array = npt.NDArray[Any]
# of an example's arrays (C, *S) by column, and a key
Prepare = Callable[[dict[str, Array], str], dict[str, Array]]
FACTOR = 4  # of sr4
BLOCK = 8  # side of the squares of JPEG
ONLY_JPEG = 0.5  # probabilities, in photo: of nothing but JPEG
ENDS_AS_JPEG = 0.9  # that JPEG is the last step
EACH = 0.4  # of each step of a round
QUALITIES = 5, 95  # of JPEG in photo; these and the next are the strengths of the first round
LARGEST_BLUR, LARGEST_NOISE, SMALLEST = 1.5, 15.0, 0.4  # in pixels, in steps of 8 bits, of the side
# the first of pictures in colour alone
KINDS_OF_ANY = ("grey", "edges", "blurred", "small", "masked")
BLURS = 1.0, 4.0  # standard deviations in pixels, of any
SCALES = 0.125, 0.5  # of the side, of any
MASKED = 0.25, 0.75  # of the side
MIDDLE = 128  # of the levels 0 to 255
FILTERS = (
    Image.Resampling.BOX,
    Image.Resampling.BILINEAR,
    Image.Resampling.BICUBIC,
    Image.Resampling.LANCZOS,
)


def sr4(picture: Image.Image, random: np.random.Generator) -> Image.Image:
    """A quarter of the width and height and back, by antialiased bicubic filtering."""
    small = [max(1, round(side / FACTOR)) for side in picture.size]
    return picture.resize((small[0], small[1]), Image.Resampling.BICUBIC).resize(
        picture.size, Image.Resampling.BICUBIC
    )


def jpeg(
    picture: Image.Image, random: np.random.Generator, quality: int, subsampling: str = "4:2:0"
) -> Image.Image:
    """Written as JPEG of a quality, with colour of half the resolution unless given, and read back."""
    file = io.BytesIO()
    picture.save(file, "jpeg", quality=quality, subsampling=subsampling)
    with Image.open(file) as decoded:
        return decoded.convert(picture.mode)


def blur(picture: Image.Image, random: np.random.Generator, sigma: float) -> Image.Image:
    """Gaussian blur with a standard deviation in pixels, cut off at 4 of them; edge pixels are repeated."""
    values = np.asarray(picture, dtype=np.float32)
    reach = math.ceil(4 * sigma)
    offsets = np.arange(-reach, reach + 1)
    weights = np.exp(-0.5 * (offsets / sigma) ** 2)
    weights = (weights / weights.sum()).astype(np.float32)
    for axis in (0, 1):
        places = np.arange(values.shape[axis])
        blurred = np.zeros_like(values)
        for offset, weight in zip(offsets, weights, strict=True):
            blurred += weight * values.take((places + offset).clip(0, places[-1]), axis)
        values = blurred
    return Image.fromarray(np.rint(values).astype(np.uint8))


def photo(picture: Image.Image, random: np.random.Generator) -> Image.Image:
    """What happens to photographs: blur, a small scale, noise and JPEG, in random order and strengths.

    After Wang et al. 2021 (Real-ESRGAN), section 3: there are two rounds, of which the second has half the
    strength. Half of the pictures are JPEGs alone. JPEG's squares begin at a random pixel, as in a part of a
    photograph.
    """
    before = random.integers(BLOCK, size=2)
    sides = [(int(first), int(BLOCK - first)) for first in before]
    channels = [(0, 0)] if picture.mode == "RGB" else []
    degraded = Image.fromarray(np.pad(np.asarray(picture), [*sides, *channels], mode="symmetric"))
    only = random.random() < ONLY_JPEG
    if not only:
        for strength in (1.0, 0.5):
            for index in random.permutation(len(STEPS)):
                if random.random() < EACH:
                    degraded = STEPS[index](degraded, random, strength)
    if only or random.random() < ENDS_AS_JPEG:
        degraded = _compressed(degraded, random, 1.0)
    top, left = (int(first) for first in before)
    return degraded.crop((left, top, left + picture.width, top + picture.height))


def _smaller(picture: Image.Image, random: np.random.Generator, strength: float) -> Image.Image:
    scale = SMALLEST ** (strength * random.random())
    width, height = (max(1, round(scale * side)) for side in picture.size)
    down, up = (FILTERS[index] for index in random.integers(len(FILTERS), size=2))
    return picture.resize((width, height), down).resize(picture.size, up)


def _noisy(picture: Image.Image, random: np.random.Generator, strength: float) -> Image.Image:
    """Gaussian noise, of all channels alike or of each."""
    values = np.asarray(picture, dtype=np.float32)
    shape = values.shape
    if random.random() >= 1 / 2:
        shape = (*values.shape[:2], *[1] * (values.ndim - 2))
    noise = (
        strength
        * LARGEST_NOISE ** random.random()
        * random.standard_normal(shape, dtype=np.float32)
    )
    return Image.fromarray(np.rint(values + noise).clip(0, 255).astype(np.uint8))


def _compressed(picture: Image.Image, random: np.random.Generator, strength: float) -> Image.Image:
    """JPEG of a quality that is even in its logarithm."""
    least, most = QUALITIES
    quality = round(most * (least / most) ** (strength * random.random()))
    return jpeg(picture, random, quality, ("4:2:0", "4:4:4")[int(random.integers(2))])


def edges(picture: Image.Image, random: np.random.Generator) -> Image.Image:
    """Dark lines on white where brightness changes: its gradient, of which the strongest is black."""
    grey = np.pad(np.asarray(picture.convert("L"), dtype=np.float32), 1, mode="edge")
    across = grey[1:-1, 2:] - grey[1:-1, :-2]
    down = grey[2:, 1:-1] - grey[:-2, 1:-1]
    strength = np.hypot(across, down)
    most = strength.max()
    if most > 0:
        strength = strength / most
    lines = Image.fromarray(np.rint(255 * (1 - strength)).astype(np.uint8))
    return lines.convert(picture.mode)


def grey(picture: Image.Image, random: np.random.Generator) -> Image.Image:
    """Without its colours."""
    return picture.convert("L").convert(picture.mode)


def masked(picture: Image.Image, random: np.random.Generator) -> Image.Image:
    """A rectangle of middle grey, of a quarter to three quarters of each side, anywhere."""
    levels = np.array(picture)
    places: list[slice] = []
    for side in levels.shape[:2]:
        length = max(1, round(side * random.uniform(*MASKED)))
        start = int(random.integers(side - length + 1))
        places.append(slice(start, start + length))
    levels[tuple(places)] = MIDDLE
    return Image.fromarray(levels)


def any_of(picture: Image.Image, random: np.random.Generator) -> Image.Image:
    """One of grey, edges, blurred, small and masked, with strengths that are drawn.

    A network that learns to undo all of them knows pictures of a kind: a start for few pairs of that kind.
    """
    kinds = KINDS_OF_ANY if picture.mode == "RGB" else KINDS_OF_ANY[1:]
    kind = kinds[int(random.integers(len(kinds)))]
    if kind == "blurred":
        return blur(picture, random, random.uniform(*BLURS))
    if kind == "small":
        scale = random.uniform(*SCALES)
        width, height = (max(1, round(side * scale)) for side in picture.size)
        small = picture.resize((width, height), Image.Resampling.BICUBIC)
        return small.resize(picture.size, Image.Resampling.BICUBIC)
    return {"edges": edges, "grey": grey, "masked": masked}[kind](picture, random)


STEPS: tuple[Callable[..., Image.Image], ...] = (
    lambda picture, random, strength: blur(
        picture, random, max(0.1, random.random() * strength * LARGEST_BLUR)
    ),
    _smaller,
    _noisy,
    _compressed,
)
DEGRADATIONS: dict[str, Callable[[Image.Image, np.random.Generator], Image.Image]] = {
    "sr4": sr4,
    "jpeg": partial(jpeg, quality=10),
    "blur": partial(blur, sigma=2.0),  # standard deviation in pixels
    "photo": photo,
    "edges": edges,
    "grey": grey,
    "masked": masked,
    "any": any_of,
}


@dataclass(frozen=True)
class Degradation:
    """A degradation of a data set's pictures.

    What a picture gets is a function of the seed and the picture's name alone: the same in each epoch, in
    each process and after a resume.
    """

    name: str  # in DEGRADATIONS
    seed: int = 0  # of its random numbers

    @classmethod
    def read(cls, text: str) -> Degradation:
        """A degradation from ``NAME`` or ``NAME@SEED``, such as ``sr4`` or ``photo@1``.

        Raises:
            ValueError: an unknown name, or a seed that is no number.
        """
        name, mark, seed = text.partition("@")
        if name not in DEGRADATIONS or (mark and not seed.isdecimal()):
            raise ValueError(
                f"degrade must be one of {', '.join(DEGRADATIONS)}, and maybe @SEED; got {text!r}"
            )
        return cls(name, int(seed or 0))

    def picture(self, picture: Image.Image, name: str) -> Image.Image:
        """The degraded picture, of the same size and mode; ``name`` is the picture's in its data set."""
        random = np.random.Generator(np.random.PCG64(keyed(self.seed, name)))
        return DEGRADATIONS[self.name](picture, random)

    def __call__(self, arrays: dict[str, Array], name: str) -> dict[str, Array]:
        """The arrays of an example: the source (1 or 3, H, W) becomes the target, degraded the source.

        Raises:
            ValueError: there is a target, or the source is no grey or colour of 8 bits.
        """
        source = arrays["source"]
        if "target" in arrays:
            raise ValueError(
                "degrade is for pictures without targets (the data set 'folder'), and there is one"
            )
        if source.dtype != np.uint8 or source.ndim != 3 or len(source) not in (1, 3):
            raise ValueError(
                f"degrade is for grey and colour of 8 bits, got {source.shape} of {source.dtype}"
            )
        degraded = self.picture(images.image_of(source), name)
        return {**arrays, "source": images.pixels(degraded, len(source)).copy(), "target": source}

    def __str__(self) -> str:
        """``jpeg@0``: what manifests and checkpoints of a data set hold."""
        return f"{self.name}@{self.seed}"
