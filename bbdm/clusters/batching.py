"""Pictures that arrive together, each with its own solver, steps and seed. Nothing here needs Ray."""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt


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


def translate_together(sampler: Any, items: list[Item], batch_size: int) -> list[Made]:
    """Translate pictures: those of one solver, number of steps and size in one batch, the others apart.

    An error of some is theirs alone.
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
            made |= {i: Made(None, str(error), len(indices)) for i in indices}
        else:
            made |= {i: Made(result, "", len(indices)) for i, result in zip(indices, results, strict=True)}
    return [made[index] for index in range(len(items))]
