"""Predictions of a step that are guided; see :mod:`bbdm.networks.guidance`."""

from __future__ import annotations

import torch
import torch.nn.functional as F

from bbdm.kernels import philox
from bbdm.networks.base import Body, Conditions
from bbdm.networks.guidance import Guidance, Prior, gaussian
from bbdm.solvers import StepTable


class Guided:
    """The guided predictions of a table's steps.

    Args:
        guidance: how they are guided.
        table: the steps of the loop.
        together: evaluate all in one batch; else one after the other, for a network of one batch size.
    """

    def __init__(self, guidance: Guidance, table: StepTable, together: bool) -> None:
        self.guidance = guidance
        self.together = together
        self._guides = guidance.guides(table.timesteps.tolist(), table.inputs.tolist())
        self._prediction, self._inputs = table.prediction.tolist(), table.inputs.tolist()

    @property
    def evaluations(self) -> list[int]:
        """The numbers of evaluations of an image in one network call, each once, over all steps."""
        return sorted({self.guidance.evaluations if guides and self.together else 1 for guides in self._guides})

    def __call__(
        self,
        network: Body,
        inputs: torch.Tensor,
        embedding: torch.Tensor,
        conditions: Conditions,
        index: int,
        seeds: torch.Tensor,
    ) -> torch.Tensor:
        """The prediction of a step, (B, C, *S).

        Args:
            network: the network's body, which makes predictions.
            inputs: (B, C, *S) what it is shown.
            embedding: a row for all images.
            conditions: of each evaluation, one after the other: (N B, ...).
            index: the row of the table.
            seeds: (B,) of noise that corrupts the state.
        """
        count = len(inputs)
        if not self._guides[index]:
            return network(inputs, embedding, {name: value[:count] for name, value in conditions.items()})
        shown, offset = [inputs] * self.guidance.evaluations, None
        if self.guidance.prior is not None:
            shown[1], offset = self._corrupted(self.guidance.prior, inputs, index, seeds)
        if self.together:
            predictions = [*network(torch.cat(shown), embedding, conditions).chunk(len(shown))]
        else:
            parts = [slice(i * count, (i + 1) * count) for i in range(len(shown))]
            told = [{name: value[part] for name, value in conditions.items()} for part in parts]
            predictions = [network(x, embedding, each) for x, each in zip(shown, told, strict=True)]
        wide = torch.promote_types(inputs.dtype, torch.float32)
        return self.guidance.combined([each.to(wide) for each in predictions], offset)

    def _corrupted(
        self, prior: Prior, inputs: torch.Tensor, index: int, seeds: torch.Tensor
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """What the network is shown of a corrupted state, and what the guided prediction has besides."""
        seen = self._inputs[index][0]
        if seen == 0:
            return inputs, torch.zeros_like(inputs)
        wide = torch.promote_types(inputs.dtype, torch.float32)
        state = inputs.to(wide)
        if prior.corruption == "noise":
            shape = tuple(inputs.shape[1:])
            change = prior.strength * philox.normal(seeds, index, shape, philox.CORRUPTION).to(wide)
        else:
            change = blurred(state, prior.strength) - state
        return (state + change).to(inputs.dtype), change * prior.offset(self._prediction[index], seen)


def blurred(images: torch.Tensor, sigma: float) -> torch.Tensor:
    """(B, C, *S) images filtered by a Gaussian of a standard deviation in pixels, along each axis."""
    weights = gaussian(sigma)
    reach = len(weights) // 2
    for axis in range(2, images.ndim):
        padding = [0, 0] * (images.ndim - 1 - axis) + [reach, reach] + [0, 0] * (axis - 2)
        padded = F.pad(images, padding, mode="replicate")
        parts = [w * padded.narrow(axis, k, images.shape[axis]) for k, w in enumerate(weights)]
        images = torch.stack(parts).sum(0)
    return images
