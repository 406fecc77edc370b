"""A network that is called on windows of what it is given."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import Any

import torch

from bbdm.kernels.elementwise import layout
from bbdm.networks.base import Body, Conditions
from bbdm.networks.windows import Spans, Weights, Windowing, Windows, blend, concatenated, sweep


class Windowed:
    """A network's body that is called on windows of the state, whose predictions are blended.

    Each window sees the same state at the same time, and one row of the table then moves the whole state. So
    noise has no seams, and the variance of the state is kept, which blending steps of windows would lower.

    Args:
        network: the network's body, which takes windows.
        windowing: which windows it is called on.
        report: called after each call of the network with 1.
    """

    def __init__(self, network: Body, windowing: Windowing, report: Callable[[int], Any] = lambda _: None) -> None:
        self.network = network
        self.windowing = windowing
        self._report = report
        self._weights: dict[Any, list[torch.Tensor]] = {}  # kept for a captured graph, which reads them again

    def __call__(self, x: torch.Tensor, embedding: torch.Tensor, conditions: Conditions, /) -> torch.Tensor:
        """See :class:`bbdm.networks.base.Body`; x of any size, one row of ``embedding`` for all."""
        sides = self.windowing.sides(x.shape[2:])
        together = self.windowing.together(len(x))
        weights = self._weights_of(sides, x)
        return blend(lambda spans: self._predictions(x, embedding, conditions, spans), sides, weights, together)

    def rows(
        self,
        read: Callable[[Spans], tuple[torch.Tensor, dict[str, torch.Tensor]]],
        embedding: torch.Tensor,
        size: Sequence[int],
        rows: slice,
    ) -> Iterator[tuple[slice, torch.Tensor]]:
        """Rows of the prediction for one image of a size; ``read`` gives a place of x and of conditions.

        Yields:
            Rows, and the prediction there, one after the other. No later window touches them.
        """
        sides = self.windowing.sides(size)

        def predictions(spans: list[Spans]) -> torch.Tensor:
            windows, seen = zip(*map(read, spans), strict=True)
            conditions = {name: torch.cat([each[name] for each in seen]) for name in seen[0]}
            whole = tuple(slice(0, side.length) for side in sides)
            return self._predictions(torch.cat(windows), embedding, conditions, [whole])

        x, _ = read(tuple(slice(0, 1) for _ in sides))
        yield from sweep(predictions, sides, self._weights_of(sides, x), self.windowing.at_once, rows=rows)

    def _predictions(
        self, x: torch.Tensor, embedding: torch.Tensor, conditions: Conditions, spans: Sequence[Spans]
    ) -> torch.Tensor:
        """The predictions of windows of x, one after the other, in no less than float32: they are summed."""
        made: list[torch.Tensor] = []
        for count, given in self._batches(x, embedding, conditions, spans):
            made.append(self.network(*given)[:count].to(_summed(x.dtype)))
            self._report(1)
        return concatenated(made)

    def first(
        self, x: torch.Tensor, embedding: torch.Tensor, conditions: Conditions
    ) -> tuple[torch.Tensor, torch.Tensor, dict[str, torch.Tensor]]:
        """What the network is called with first for x."""
        spans = [tuple(side.span(0) for side in self.windowing.sides(x.shape[2:]))]
        return next(self._batches(x, embedding, conditions, spans * self.windowing.together(len(x))))[1]

    def _batches(
        self, x: torch.Tensor, embedding: torch.Tensor, conditions: Conditions, spans: Sequence[Spans]
    ) -> Iterator[tuple[int, tuple[torch.Tensor, torch.Tensor, dict[str, torch.Tensor]]]]:
        """What the network is called with for windows, and how many of a call count."""
        for count, parts in self.windowing.batches([x, *conditions.values()], spans):
            given, *others = (part.contiguous(memory_format=layout(part.ndim)) for part in parts)
            yield count, (given, embedding, dict(zip(conditions, others, strict=True)))

    def _weights_of(self, sides: list[Windows], like: torch.Tensor) -> list[torch.Tensor]:
        """The weights of windows, on the device once: a captured graph cannot copy them."""
        key = *sides, like.dtype, like.device
        if key not in self._weights:
            with torch.inference_mode(False):
                self._weights[key] = on_device(self.windowing.weights(sides), like)
        return self._weights[key]


def on_device(weights: Sequence[Weights], like: torch.Tensor) -> list[torch.Tensor]:
    """Weights of windows as tensors where another is, in the dtype that its kind is summed in."""
    made: list[torch.Tensor] = []
    for each in weights:
        made.append(torch.from_numpy(each).to(like.device, _summed(like.dtype)))
    return made


def _summed(dtype: torch.dtype) -> torch.dtype:
    """The dtype that predictions of a dtype are summed in."""
    return torch.float64 if dtype == torch.float64 else torch.float32
