"""What a training run learns: a network, its losses, its validation and its files.

How it is learned is :mod:`bbdm.training.optimization`, and the loop is :mod:`bbdm.training.trainer`. What is
drawn for an example is a function of (run seed, optimizer step, index in the batch), so a resumed run sees
what an uninterrupted run sees.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections import Counter
from collections.abc import Callable, Iterable, Mapping
from functools import partial
from pathlib import Path
from typing import Any

import torch

from bbdm.data.examples import Example
from bbdm.data.pairs import Pairs
from bbdm.execution.processes import Processes
from bbdm.files.weights import Snapshot
from bbdm.training.augmentation import augmented
from bbdm.training.config import Precision, RunConfig

AUTOCAST: dict[Precision, torch.dtype] = {"bf16": torch.bfloat16, "fp16": torch.float16}
Forward = Callable[..., torch.Tensor]  # of a network
# begins the name of the share of examples that a number of the rest of the name is of
SHARE = "share of "
Losses = tuple[torch.Tensor, Mapping[str, torch.Tensor]]


def sample_seeds(run_seed: int, first: int, count: int, device: torch.device) -> torch.Tensor:
    """(count,) seeds of samples ``first``.. of a batch: the run's seed as low word, the index as high."""
    return run_seed + (torch.arange(first, first + count, device=device) << 32)


def sample_numbers(seeds: torch.Tensor) -> torch.Tensor:
    """(B,) which samples the seeds of :func:`sample_seeds` are of."""
    return seeds >> 32


def mixed(seed: int, number: int) -> int:
    """A 32-bit seed from a run's seed and a number; a generator reads no more bits."""
    return (seed * 0x9E3779B9 + number) % 2**32


class Task(ABC):
    """What is learned: a network, the losses that it minimises, its validation, its pictures and its files.

    Args:
        network: what is trained; it is moved to the device of ``processes``.
        config: the settings of the run.
        train: the pairs to learn from; None where batches come from elsewhere.
        processes: the processes that share the work; None for this one alone.

    Attributes:
        average: the network with the averaged weights; ``network`` itself before an
            :class:`~bbdm.training.optimization.Optimization` begins.
        paired: whether the sources and the targets of examples must belong together.
        betas: the two decays of Adam's moments.
        stateful: what else a checkpoint holds the state of, by name.
        autocast: the context of the network's arithmetic, ``with self.autocast():``.
    """

    betas = (0.9, 0.999)
    paired = True

    def __init__(
        self,
        network: Any,
        config: RunConfig,
        train: Pairs | None = None,
        processes: Processes | None = None,
    ) -> None:
        if processes is None:
            processes = Processes(next(network.parameters()).device)
        self.processes = processes
        self.device = processes.device
        self.config = config
        self.train = train
        self.network = network.to(self.device).train()
        self.average: Any = self.network
        self.stateful: dict[str, Any] = {}
        dtype = AUTOCAST.get(config.precision)
        self.autocast = partial(torch.autocast, self.device.type, dtype, enabled=dtype is not None)

    # Learning

    def prepared(self, batch: Example, seeds: torch.Tensor, step: int) -> Example:
        """The batch that :meth:`losses` gets, of one from the data set: mirrored and moved."""
        return augmented(batch, seeds, step, self.config)

    @abstractmethod
    def losses(self, network: Forward, batch: Example, seeds: torch.Tensor, step: int) -> Losses:
        """Losses, whose mean is minimised, and what is reported.

        Args:
            network: the trained network as it is called, or in validation :attr:`average`.
            batch: what :meth:`prepared` returned of a batch.
            seeds: (B,) int64, one for each example, of what is drawn.
            step: the number of the optimizer step.

        Returns:
            The losses, (B,) or a scalar, and scalars by name, whose means over steps are metrics. ``loss``
            among them is what is reported in place of the mean of the losses. A sum over some examples of a
            batch, divided by the number of all, stands beside the share of these examples, whose name is
            that of the sum after :data:`SHARE`: the metric is the mean over these examples.
        """

    def begin(self, optimization: Any) -> None:  # noqa: B027  (most tasks do nothing)
        """Called once, when an :class:`~bbdm.training.optimization.Optimization` of the network begins."""

    def after_step(self, step: int) -> None:  # noqa: B027  (most tasks do nothing)
        """Called after optimizer step ``step``, counted from 0, and the move of the average."""

    def report(self) -> dict[str, float]:
        """More metrics of the steps since the last report, the same in each process."""
        return {}

    def release(self) -> None:  # noqa: B027  (most tasks do nothing)
        """Let go of what an optimization made parallel, before the processes part."""

    # Validation, and pictures of the averaged weights

    def validate(
        self, batches: Iterable[tuple[Example, torch.Tensor]], pairs: Pairs
    ) -> dict[str, float]:
        """Mean losses of the averaged weights by name, the same in each process.

        Args:
            batches: this process's batches of the validation pairs, with the seeds (B,) of their numbers.
            pairs: the validation pairs of all processes.
        """
        totals = Counter[str]()
        for batch, seeds in batches:
            totals.update(self.validation_losses(batch, seeds))
        # process 0 has the first pair, others may have none
        names = self.processes.gather([*totals])[0]
        return {name: self.processes.sum(totals[name]) / len(pairs) for name in names}

    @abstractmethod
    def validation_losses(self, batch: Example, seeds: torch.Tensor) -> dict[str, float]:
        """Losses of the averaged weights by name, sums over pairs; ``validation_loss`` is the one of all."""

    @abstractmethod
    def columns(self, batch: Example) -> dict[str, torch.Tensor]:
        """The columns of a grid of pairs by their names, each (B, C, H, W)."""

    # Files

    @property
    @abstractmethod
    def description(self) -> dict[str, Any]:
        """What is trained, as plain values: for the run's folder, and compared when it resumes."""

    @staticmethod
    @abstractmethod
    def read(path: Path) -> Any:
        """The content of a file of a :meth:`snapshot`, with its ``training`` and ``origin``.

        Raises:
            ValueError: it is another file, or is damaged.
        """

    @abstractmethod
    def snapshot(self, training: dict[str, Any] | None = None) -> Snapshot:
        """The content of a file of the weights; with training state, all to resume from."""

    @abstractmethod
    def stored(self, checkpoint: Any) -> tuple[Any, dict[str, Any]]:
        """The network in the content of a file, and the :attr:`description` of what was trained there."""
