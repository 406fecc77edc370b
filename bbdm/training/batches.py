"""The batches of a training run: which pairs each of its processes has, and in which order.

The order of an epoch is a function of (run seed, epoch), so a resumed run sees the pairs in the same order as
an uninterrupted run.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from bbdm.data.examples import Example
from bbdm.data.loading import Batches
from bbdm.data.pairs import Pairs
from bbdm.execution.processes import Processes
from bbdm.training.config import RunConfig
from bbdm.training.task import mixed


class RunBatches:
    """The batches of a run that this process has, on its device.

    Args:
        train: the pairs to learn from, shared by the processes.
        validation: the pairs of the validation loss, or None.
        config: the settings of the run.
        processes: the processes that share each batch.

    Attributes:
        train: batches of any training pairs.
        per_epoch: the whole batches of an epoch.
        share: the pairs of a batch that this process has.
        indices: those of this process's validation pairs: of N processes, each has every Nth batch.
    """

    def __init__(self, train: Pairs, validation: Pairs | None, config: RunConfig, processes: Processes) -> None:
        self.pairs = train
        self.seed, self.size = config.seed, config.batch_size
        self.per_epoch = len(train) // self.size
        self.share = self.size // processes.count
        self.rank = processes.rank
        loading = (self.share, processes.device, config.workers)
        self.train = Batches(train, *loading)
        self.validation = None if validation is None else Batches(validation, *loading)
        count = 0 if validation is None else len(validation)
        self.indices = [i for i in range(count) if i // self.share % processes.count == self.rank]

    def epoch(self, epoch: int, done: int) -> Iterator[Example]:
        """The training batches of an epoch after the first ``done``."""
        drawn = mixed(self.seed, epoch)  # the order, and crops
        return self.train(self._order(drawn, done), drawn)

    def _order(self, seed: int, done: int) -> Iterator[int]:
        order = self.pairs.order(seed)
        for step in range(done, self.per_epoch):
            first = step * self.size + self.rank * self.share
            yield from order(first, first + self.share)

    def validated(self) -> Iterator[tuple[Sequence[int], Example]]:
        """The validation batches, each with the indices of its pairs; none without validation pairs."""
        done = 0
        for batch in () if self.validation is None else self.validation(self.indices):
            first, done = done, done + len(batch.source)
            yield self.indices[first:done], batch

    def close(self) -> None:
        """End the workers, which an error would wait for."""
        for batches in (self.train, self.validation):
            if batches is not None:
                batches.close()
