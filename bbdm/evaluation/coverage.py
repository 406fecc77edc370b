"""How often targets lie within their results: whether the spread of a network is that of the truth.

Of S results and a target of one distribution, the target lies between the k-th smallest and the k-th largest
result with the probability (S + 1 - 2 k) / (S + 1). A share below it says that results spread too little.
"""

from __future__ import annotations

import torch


def expected(samples: int) -> list[float]:
    """The probability of each interval of :func:`coverage`, the widest first; of one result, none."""
    return [(samples + 1 - 2 * k) / (samples + 1) for k in range(1, samples // 2 + 1)]


def coverage(results: torch.Tensor, targets: torch.Tensor, inside: torch.Tensor) -> torch.Tensor:
    """The share of a target's values that lie between the k-th smallest and the k-th largest result.

    Where results are equal, as on white paper, a target that equals them lies between them.

    Args:
        results: (B, S, C, *S), of each source S results.
        targets: (B, C, *S), one of each source.
        inside: (B, 1, *S), bool: the pixels that count, at least one of each source.

    Returns:
        (B, K) in [0, 1], in the order of :func:`expected`.
    """
    if results.shape[1] < 2:
        return targets.new_zeros(len(targets), 0, dtype=torch.float32)
    ordered = results.sort(1).values
    counts = inside.expand_as(targets).flatten(1)
    number = counts.sum(1)
    shares: list[torch.Tensor] = []
    for k in range(results.shape[1] // 2):
        low = ordered[:, k]
        high = ordered[:, -1 - k]
        within = ((low <= targets) & (targets <= high)).flatten(1) & counts
        shares.append(within.sum(1) / number)
    return torch.stack(shares, 1)
