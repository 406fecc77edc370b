"""Pictures that arrive together, each with its own solver, steps and seed. Nothing here needs Ray."""

from __future__ import annotations

import logging
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from bbdm.serving.requests import FAILED, RequestError

log = logging.getLogger(__name__)


class Item(NamedTuple):
    """One picture to translate."""

    pixels: npt.NDArray[np.uint8]  # (H, W) or (H, W, 3)
    solver: str | None
    steps: int | None
    seed: int


class Made(NamedTuple):
    """A result, and the number of pictures that were translated together."""

    pixels: npt.NDArray[np.uint8]
    batch: int


def translate_together(sampler: Any, items: list[Item], batch_size: int, **settings: Any) -> list[Made | RequestError]:
    """Translate pictures: those of one solver, number of steps and size in one batch, the others apart.

    ``settings`` are further arguments of the sampler's calls.
    An error of some is theirs alone: a ValueError with the status 422, any other with 500, and logged.
    """
    groups: dict[tuple[Any, ...], list[int]] = {}
    for index, item in enumerate(items):
        groups.setdefault((item.solver, item.steps, item.pixels.shape), []).append(index)
    made: dict[int, Made | RequestError] = {}
    for (solver, steps, _), indices in groups.items():
        sources, seeds = [items[i].pixels for i in indices], [items[i].seed for i in indices]
        try:
            results = sampler(sources, seed=seeds, batch_size=batch_size, solver=solver, steps=steps, **settings)
            made |= {i: Made(result, len(indices)) for i, result in zip(indices, results, strict=True)}
        except ValueError as error:
            made |= dict.fromkeys(indices, RequestError(422, str(error)))
        except Exception:  # such as a lack of memory for pictures of this size
            log.exception("%d pictures could not be translated", len(indices))
            made |= dict.fromkeys(indices, RequestError(500, FAILED))
    return [made[index] for index in range(len(items))]
