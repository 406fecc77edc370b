"""Distilling a trained network into one that needs few calls, by the energy score of its own results.

Sampling starts from noise. Each call's estimate is noised again for the next time, as the solver
``consistency`` does. Call k of the student is trained on the results of its calls before, so that training
sees what sampling sees. Its loss is the energy score (Gneiting and Raftery 2007, equation 22; De Bortoli et
al. 2025, Distributional Diffusion Models): with m results x_j of one pair,

    mean_j |x0 - x_j| - 1 / (2 m (m - 1)) sum_{j, k} |x_j - x_k|

which is lowest for results with the distribution of the targets.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import combinations
from typing import Any

import torch

from bbdm import solvers
from bbdm.data.examples import Example
from bbdm.defaults import Defaults
from bbdm.files.content import Checkpoint
from bbdm.kernels import philox
from bbdm.networks.base import Network
from bbdm.training.bridge import VALIDATION_STEPS, BridgeTask
from bbdm.training.config import DistillConfig
from bbdm.training.optimization import DROPOUT
from bbdm.training.task import Forward, Losses

FIRST_STREAM = 2  # of noise; each result and each of its calls has a stream of its own


def student_of(teacher: Checkpoint, calls: int, network: Network | None = None) -> Network:
    """The network that a student begins with: the teacher's, without dropout.

    Args:
        teacher: the content of the teacher's file.
        calls: the network calls of the student.
        network: the wrapped network of a file that holds only its weights, and of which no module is
            registered; it is copied.

    Raises:
        IncompleteFileError: the file is of a wrapped network that is not registered, and ``network`` is None.
        ValueError: the teacher was distilled for fewer calls, or is of another network; or noise does not
            hide the target at the top of its bridge, so that sampling cannot start from noise.
    """
    most = teacher.defaults.calls
    if most is not None and most < calls:
        raise ValueError(
            f"calls must be at most those that the teacher was distilled for, {most}, got {calls}"
        )
    if not solvers.build(teacher.bridge, solvers.DISTILLED, steps=calls).start[1]:
        raise ValueError(
            f"a student starts from noise, and {teacher.bridge} has too little at its top"
        )
    student = teacher.build_unet(network=network)
    for module in student.modules():
        if isinstance(module, DROPOUT):
            module.p = 0.0
    return student


class StudentTask(BridgeTask):
    """The training of a student; ``config`` is a :class:`DistillConfig`.

    Raises:
        ValueError: ``loss`` or ``times`` is not None: a student has its own.
    """

    config: DistillConfig

    def __init__(self, *args: Any, **functions: Any) -> None:
        for name in ("loss", "times"):
            if functions.get(name) is not None:
                raise ValueError(
                    f"{name} must be None for a student, whose loss is the energy score of its own calls"
                )
        super().__init__(*args, **functions)
        if self.two_way and self.bridge.turned is not self.bridge:
            raise ValueError(
                "a student of two directions takes the same steps both ways: not 'preconditioned'"
            )
        self.defaults = Defaults(calls=self.config.calls)
        self.table = self.defaults.table(self.bridge)  # as samplers take it

    def losses(self, network: Forward, batch: Example, seeds: torch.Tensor, step: int) -> Losses:
        """Energy scores (B,) of the call whose turn it is; in validation, of the last.

        Gradients flow through this call alone.
        """
        count = self.config.results
        table = self.table
        last = self.config.calls - 1
        if step not in VALIDATION_STEPS:
            last = step % self.config.calls
        y = self.network.endpoint(batch.source)
        shape = tuple(y.shape[1:])
        ends = torch.cat([y] * count)
        conditions = {name: torch.cat([value] * count) for name, value in self.seen(batch).items()}

        def noise(row: int) -> torch.Tensor:
            of_results: list[torch.Tensor] = []
            for result in range(count):
                stream = FIRST_STREAM + row + result * len(table)
                of_results.append(philox.normal(seeds, step, shape, stream))
            return torch.cat(of_results)

        of_y, of_z = table.start
        x = of_y * ends + of_z * noise(len(table) - 1)
        with torch.no_grad():
            for row in range(last):
                estimate = self.estimate(network, table, row, x, ends, conditions)
                _, c_y, c_0, _, c_z = table.coefficients[row].tolist()
                x = c_y * ends + c_0 * estimate + c_z * noise(row)
        estimate = self.estimate(network, table, last, x, ends, conditions)
        return energy_scores(estimate.chunk(count), batch.target, batch.mask), {}


def energy_scores(
    results: Sequence[torch.Tensor], target: torch.Tensor, mask: torch.Tensor | None = None
) -> torch.Tensor:
    """The energy scores (B,) of several results (B, C, *S) of each target; see the head of this module.

    Args:
        results: at least two of each target, each (B, C, *S).
        target: the targets (B, C, *S), one for each example.
        mask: (B, 1, *S), 1 where values count, 0 where they do not; None where all do.
    """
    if mask is not None:
        results = [result * mask for result in results]
        target = target * mask
    results = [result.flatten(1) for result in results]
    target = target.flatten(1)
    errors = [(result - target).norm(dim=1) for result in results]
    distances = [(one - other).norm(dim=1) for one, other in combinations(results, 2)]
    return torch.stack(errors).mean(0) - torch.stack(distances).mean(0) / 2
