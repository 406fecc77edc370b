"""Pictures that arrive together, each with its own solver, steps and seed. Nothing here needs Ray."""

from __future__ import annotations

import logging
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

log = logging.getLogger(__name__)
FAILED = "the picture could not be translated"


class Item(NamedTuple):
    """One picture to translate."""

    pixels: npt.NDArray[np.uint8]  # (H, W) or (H, W, 3)
    solver: str | None
    steps: int | None
    seed: int


class Made(NamedTuple):
    """A result, or why there is none; and the pictures that were translated together."""

    pixels: npt.NDArray[np.uint8] | None
    error: str
    batch: int
    status: int  # of HTTP


def translate_together(sampler: Any, items: list[Item], batch_size: int) -> list[Made]:
    """Translate pictures: those of one solver, number of steps and size in one batch, the others apart.

    An error of some is theirs alone: a ValueError with the status 422, any other with 500, and logged.
    """
    groups: dict[tuple[Any, ...], list[int]] = {}
    for index, item in enumerate(items):
        groups.setdefault((item.solver, item.steps, item.pixels.shape), []).append(index)
    made: dict[int, Made] = {}
    for (solver, steps, _), indices in groups.items():
        sources, seeds = [items[i].pixels for i in indices], [items[i].seed for i in indices]
        try:
            results = sampler(sources, seed=seeds, batch_size=batch_size, solver=solver, steps=steps)
        except ValueError as error:
            made |= {i: Made(None, str(error), len(indices), 422) for i in indices}
        except Exception:  # such as a lack of memory for pictures of this size
            log.exception("%d pictures could not be translated", len(indices))
            made |= {i: Made(None, FAILED, len(indices), 500) for i in indices}
        else:
            made |= {i: Made(result, "", len(indices), 200) for i, result in zip(indices, results, strict=True)}
    return [made[index] for index in range(len(items))]
