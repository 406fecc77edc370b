"""Seeds of results: which sample of which source is drawn from which seed."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from bbdm.base.seeds import seed_of
from bbdm.data.rows import FRAMES
from bbdm.data.sequences import sequence_of
from bbdm.translation.config import TranslateConfig


@dataclass(frozen=True)
class Seeds:
    """The rule of seeds of a translation.

    Args:
        by: ``place`` of a source in the data set; its ``name``, whatever other sources there are; or the
            name of the ``sequence`` that it is a frame of, whose frames have one noise.
        first: the seed of the first sample; of the first source too where seeds are by place.
        samples: the number of results of each source.
    """

    by: Literal["place", "name", "sequence"]
    first: int
    samples: int

    @classmethod
    def of(cls, config: TranslateConfig, axes: int, independent: bool) -> Seeds:
        """The rule of settings.

        Args:
            config: the settings of the translation.
            axes: of the network: one of three axes sees a sequence as a whole.
            independent: whether sources are photographs that have nothing to do with each other.
        """
        by: Literal["place", "name", "sequence"] = "place"
        if independent or config.dataset == "folder":
            by = "name"
        elif config.dataset == FRAMES:
            by = "name" if config.noise_by == "frame" or axes == 3 else "sequence"
        return cls(by, config.seed, config.num_samples)

    def __call__(self, index: int, name: str, count: int) -> tuple[int, ...]:
        """The seed of each sample of a source.

        Args:
            index: of the source in the data set.
            name: the name of its row.
            count: the number of all sources.
        """
        samples = range(self.samples)
        if self.by == "place":
            return tuple(self.first + index + sample * count for sample in samples)
        if self.by == "sequence":
            name = sequence_of(name)
        return tuple(seed_of(name, self.first + sample) for sample in samples)
