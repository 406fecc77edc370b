"""How a VQGAN uses its codes in training: counts of an epoch, and restarts of codes that are not used."""

from __future__ import annotations

import torch
from torch import nn

from bbdm.execution.processes import Processes


class CodebookUse(nn.Module):
    """Counts which of a number of codes batches take. Each of several processes has a share of a batch."""

    def __init__(self, codes: int, processes: Processes) -> None:
        super().__init__()
        self.processes = processes
        self.counts = nn.Buffer(torch.zeros(codes, dtype=torch.int64, device=processes.device))  # in this epoch
        self.used = nn.Buffer(torch.zeros(codes, dtype=torch.bool, device=processes.device))  # since the last restart
        self.restarted = nn.Buffer(torch.tensor(0))  # in this epoch

    def add(self, index: torch.Tensor) -> None:
        """Count the codes of this process's share of a batch, indices of any shape."""
        index = index.flatten()  # bincount would wait for the largest
        counts = torch.zeros_like(self.counts).scatter_add_(0, index, torch.ones_like(index))
        counts = self.processes.total(counts)
        self.counts += counts
        self.used |= counts > 0

    @torch.no_grad()
    def restart(self, weights: list[torch.Tensor], z: torch.Tensor, seed: int) -> None:
        """Move codes that no batch took since the last call to random latents of a batch.

        Args:
            weights: the codes, (codes, C), and their moving average.
            z: (B, C, H, W) this process's latents.
            seed: of the choice; the same in each process.
        """
        unused = (~self.used).nonzero().flatten()
        self.used.zero_()
        self.restarted += len(unused)
        if not len(unused):
            return
        vectors = torch.cat(self.processes.gather(z.detach().permute(0, 2, 3, 1).flatten(0, 2).cpu()))
        chosen = torch.randint(len(vectors), (len(unused),), generator=torch.Generator().manual_seed(seed))
        for codes in weights:
            codes[unused] = vectors[chosen].to(codes)

    def report(self) -> dict[str, float]:
        """The share of codes that the epoch used, their perplexity, and how many were moved; begins anew.

        The perplexity is exp(-sum p log p), with the share p of latents that take a code: the number of codes
        if all are taken equally often.
        """
        shares = self.counts.double() / self.counts.sum().clamp(min=1)
        found = {
            "codes_used": (self.counts > 0).double().mean().item(),
            "perplexity": torch.special.entr(shares).sum().exp().item(),
            "codes_restarted": int(self.restarted),
        }
        self.counts.zero_()
        self.restarted.zero_()
        return found
