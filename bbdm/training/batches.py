"""How the batches of a training run are changed: mirrored, moved, turned around, without some conditions.

What is drawn for an example is a function of (run seed, optimizer step, index in the batch), so a resumed run
sees what an uninterrupted run sees.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
import torch.nn.functional as F

from bbdm.data.examples import Example
from bbdm.kernels import philox
from bbdm.kernels.elementwise import CHANNELS_LAST
from bbdm.networks.base import Network
from bbdm.networks.conditions import DIRECTION
from bbdm.training.config import RunConfig

Change = Callable[[torch.Tensor], torch.Tensor]


def sample_seeds(run_seed: int, first: int, count: int, device: torch.device) -> torch.Tensor:
    """(count,) seeds of samples ``first``.. of a batch: the run's seed as low word, the index as high."""
    return run_seed + (torch.arange(first, first + count, device=device) << 32)


def mixed(seed: int, number: int) -> int:
    """A 32-bit seed from a run's seed and a number; a generator reads no more bits."""
    return (seed * 0x9E3779B9 + number) % 2**32


def augment(batch: Example, seeds: torch.Tensor, step: int, config: RunConfig, latents: bool = False) -> Example:
    """A batch whose images (B, C, *S) are changed as the settings ``flip`` and ``shift`` say, all alike.

    They are sources, targets, masks, and of the conditions those with four axes or more. Pictures (H, W) and
    volumes (D, H, W) are mirrored along W. Latents of plain and mirrored pictures are (B, 2, C, H, W), of
    which ``flip`` chooses.
    """
    if config.flip:
        mirrored = philox.flips(seeds, step)

        def flipped(v: torch.Tensor) -> torch.Tensor:
            pair = (v[:, 1], v[:, 0]) if latents else (v.flip(-1), v)
            return torch.where(mirrored[(..., *[None] * (pair[0].ndim - 1))], *pair)

        batch = _changed(batch, flipped)
    return _changed(batch, _shift(batch.source, seeds, step, config.shift)) if config.shift else batch


def _changed(batch: Example, change: Change) -> Example:
    """A batch whose images are changed."""
    conditions = {name: change(v) if v.ndim >= 4 else v for name, v in batch.conditions.items()}
    mask = None if batch.mask is None else change(batch.mask)
    return batch._replace(source=change(batch.source), target=change(batch.target), conditions=conditions, mask=mask)


def _shift(v: torch.Tensor, seeds: torch.Tensor, step: int, share: float) -> Change:
    """Moves pictures by whole pixels, up to a share of the sides of ``v``; they go on as at their edge."""
    sides = v.shape[2:]
    axes = len(sides)
    drawn = philox.uniforms(seeds, step, axes) * 2 - 1  # across, down, of volumes deep
    theta = torch.eye(axes, axes + 1, device=v.device).repeat(len(v), 1, 1)
    for axis, side in enumerate(reversed(sides)):
        theta[:, axis, axes] = torch.round(drawn[:, axis] * share * side) * 2 / side
    grid = F.affine_grid(theta, [len(v), 1, *sides], align_corners=False)

    def moved(v: torch.Tensor) -> torch.Tensor:
        found = F.grid_sample(v.float(), grid, mode="nearest", padding_mode="border", align_corners=False)
        return found.clamp(-1, 1).to(v.dtype).contiguous(memory_format=CHANNELS_LAST[v.ndim])

    return moved


def drawn_back(seeds: torch.Tensor, step: int) -> torch.Tensor:
    """(B,) whether examples of a run of both directions go back: of two neighbours in a batch one, drawn."""
    odd = seeds >> 32 & 1  # of the index in the batch
    return (philox.uniforms(seeds - (odd << 32), step, 1, philox.TURN_LANE)[:, 0] < 0.5) ^ (odd == 1)


def turned(batch: Example, back: torch.Tensor) -> Example:
    """A batch of AtoB in which source and target change places where ``back`` (B,) says so."""
    where = back[(..., *[None] * (batch.source.ndim - 1))]
    source, target = (
        torch.where(where, *pair) for pair in ((batch.target, batch.source), (batch.source, batch.target))
    )
    return batch._replace(source=source, target=target, conditions={**batch.conditions, DIRECTION: back.long()})


def dropped(batch: Example, seeds: torch.Tensor, step: int, network: Network) -> Example:
    """A batch in which each condition is "none" for the share of examples that ``network.drop`` says."""
    drawn = philox.uniforms(seeds, step, len(network.drop), philox.DROP_LANE)
    conditions = dict(batch.conditions)
    for column, (name, share) in enumerate(network.drop.items()):
        value = conditions[name]
        without = (drawn[:, column] < share)[(..., *[None] * (value.ndim - 1))]
        conditions[name] = torch.where(without, network.without({name: value}, [name])[name], value)
    return batch._replace(conditions=conditions)
