"""How often targets lie within their results: whether the spread of a network is that of the truth.

Of S results and a target of one distribution, the target lies between the k-th smallest and the k-th largest
result with the probability (S + 1 - 2 k) / (S + 1). A share below it says that results spread too little.

Where a target equals results, as on white paper, the results do not say at which place it stands among them.
It stands at each place that is possible alike, and counts by the share of them that are between. So the
expected share is that of values without ties, and paper that is white in all adds the expected share.
"""

from __future__ import annotations

import torch


def expected(samples: int) -> list[float]:
    """The probability of each interval of :func:`coverage`, the widest first; of one result, none."""
    return [(samples + 1 - 2 * k) / (samples + 1) for k in range(1, samples // 2 + 1)]


def coverage(results: torch.Tensor, targets: torch.Tensor, inside: torch.Tensor) -> torch.Tensor:
    """The share of a target's values that lie between the k-th smallest and the k-th largest result.

    A target that equals results counts in part, by the places among them that it may have.

    Args:
        results: (B, S, C, *S), of each source S results.
        targets: (B, C, *S), one of each source.
        inside: (B, 1, *S), bool: the pixels that count, at least one of each source.

    Returns:
        (B, K) in [0, 1], in the order of :func:`expected`.
    """
    samples = results.shape[1]
    if samples < 2:
        return targets.new_zeros(len(targets), 0, dtype=torch.float32)
    counts = inside.expand_as(targets).flatten(1)
    number = counts.sum(1)
    # results below, at the lowest place that the target may have
    first = (results < targets[:, None]).sum(1)
    last = (results <= targets[:, None]).sum(1)
    places = last - first + 1
    shares: list[torch.Tensor] = []
    for k in range(1, samples // 2 + 1):
        between = last.clamp(max=samples - k) - first.clamp(min=k) + 1
        within = (between.clamp(min=0) / places).flatten(1) * counts
        shares.append(within.sum(1) / number)
    return torch.stack(shares, 1)
