"""Predictions of a step that are guided, on NumPy; see :mod:`bbdm.networks.guidance`."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np
import numpy.typing as npt

from bbdm.kernels.philox_numpy import CORRUPTION, normal
from bbdm.networks.guidance import Guidance, gaussian
from bbdm.solvers import StepTable

Array = npt.NDArray[np.float32]


class Guided:
    """The guided predictions of a table's steps, for images of some seeds.

    Attributes:
        guides: which steps are guided.
    """

    def __init__(self, guidance: Guidance, table: StepTable, seeds: Sequence[int]) -> None:
        self.guidance, self.table, self.seeds = guidance, table, seeds
        self.guides = guidance.guides(table.timesteps.tolist(), table.inputs.tolist())

    def __call__(self, predict: Callable[[list[Array]], list[Array]], inputs: Array, index: int) -> Array:
        """The prediction of a step that is guided, (B, C, *S).

        Args:
            predict: the predictions for what the network is shown in each evaluation.
            inputs: (B, C, *S) what it is shown of the state.
            index: the row of the table.
        """
        shown, offset = [inputs] * self.guidance.evaluations, None
        seen = float(self.table.inputs[index, 0])
        if (prior := self.guidance.prior) is not None and seen != 0:
            if prior.corruption == "noise":
                change = np.float32(prior.strength) * normal(self.seeds, index, inputs.shape[1:], CORRUPTION)
            else:
                change = blurred(inputs, prior.strength) - inputs
            shown[1] = (inputs + change).astype(np.float32)
            offset = change * prior.offset(self.table.prediction[index].tolist(), seen)
        return self.guidance.combined(predict(shown), offset)


def blurred(images: Array, sigma: float) -> Array:
    """(B, C, *S) images filtered by a Gaussian of a standard deviation in pixels, along each axis."""
    kernel = np.array(gaussian(sigma), np.float32)
    reach = len(kernel) // 2
    for axis in range(2, images.ndim):
        around = [(reach, reach) if each == axis else (0, 0) for each in range(images.ndim)]
        parts = np.lib.stride_tricks.sliding_window_view(np.pad(images, around, mode="edge"), len(kernel), axis)
        images = parts @ kernel
    return images
