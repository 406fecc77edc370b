"""What a bridge knows of its data: how far targets, sources and their differences spread."""

from __future__ import annotations

from dataclasses import dataclass, field, fields

PICTURES = 0.5  # the spread that levels of densities and timesteps are written for, of pictures in [-1, 1]


@dataclass(frozen=True, kw_only=True)
class Statistics:
    """Statistics of training pairs, over all pixels and channels, in the space of the bridge.

    Every bridge has them as keyword arguments.

    Args:
        spread: the root mean square of x0 - y: the scale of the objective ``pinned``, of noise levels in
            densities of training times, and of the highest levels of timesteps.
        sigma_data: the standard deviation of targets, for the objective ``preconditioned``.
        sigma_source: the standard deviation of sources, for the objective ``preconditioned``.
        cov: the covariance of targets and sources, for the objective ``preconditioned``.

    Raises:
        ValueError: a spread is not a positive number, or the covariance is too large for the spreads.
    """

    spread: float = field(default=PICTURES, repr=False)
    sigma_data: float = field(default=PICTURES, repr=False)
    sigma_source: float = field(default=PICTURES, repr=False)
    cov: float = field(default=0.0, repr=False)

    @property
    def statistics(self) -> dict[str, float]:
        """The values by name."""
        return {each.name: getattr(self, each.name) for each in fields(Statistics)}
